"""Comparisons of every entry with a leader who was chosen because it looked best.

Picking the leader from the data is comparing all pairs: with equal entries, "somebody is behind the leader" is
a statement on the widest of all gaps. So the errors are counted over all pairs, as Tukey's studentized range
does. Seeds pair and entries need not vary alike, so each pair has its own paired variance, as in Games and
Howell; and because the least of many variances is small by luck, a pair's variance counts as no smaller than
the median of those that either of its entries has against the others. Whoever is told apart from the leader
leaves, and the rest are compared again as the smaller set that they are, as in the model confidence set.

What a gap's t value must exceed depends on how many entries there are and on how many seeds. It is stated as a
number of *equivalent comparisons* m: the pair is tested at α/m, as if there were m separate comparisons. m was
simulated for normal scores under the least favourable mixture of noisy and quiet entries
(`benchmarks/verdicts.py --table` makes it again).

Sources: J. Tukey, "The problem of multiple comparisons" (1953); P. Games and J. Howell, J. Educ. Stat. 1 (1976),
for unequal variances; J. Romano and M. Wolf, Econometrica 73 (2005), for stepping down; P. Hansen, A. Lunde and
J. Nason, "The model confidence set", Econometrica 79 (2011).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ENTRIES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 40)
SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 60, np.inf)
# A row for each of ENTRIES, a column for each of SEEDS.
EQUIVALENT: tuple[tuple[float, ...], ...] = (
    (1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00),
    (2.96, 2.94, 3.00, 2.88, 2.69, 2.71, 2.75, 2.80, 2.63, 2.63, 2.67, 2.62, 2.60),
    (1.98, 1.91, 2.13, 2.16, 2.36, 2.18, 2.38, 2.49, 2.60, 2.69, 3.09, 3.39, 4.82),
    (3.04, 3.06, 3.35, 3.46, 3.60, 3.80, 4.32, 4.37, 4.65, 5.10, 5.06, 6.47, 7.82),
    (3.09, 2.98, 2.97, 3.28, 3.61, 3.88, 4.33, 4.50, 4.73, 4.69, 5.46, 7.11, 11.31),
    (4.03, 4.21, 4.65, 4.71, 5.13, 5.99, 6.59, 6.97, 7.41, 8.31, 7.90, 10.97, 15.86),
    (3.97, 4.25, 4.63, 4.77, 5.01, 6.17, 6.34, 6.81, 7.11, 7.92, 8.86, 12.22, 19.37),
    (4.89, 5.24, 5.70, 6.11, 6.66, 7.84, 8.41, 9.63, 10.54, 10.94, 12.12, 15.59, 25.35),
    (4.96, 4.91, 5.43, 6.05, 6.78, 7.54, 8.47, 9.18, 10.27, 11.64, 12.44, 17.99, 34.07),
    (5.81, 6.28, 6.52, 7.60, 8.28, 9.76, 11.18, 11.78, 14.39, 15.29, 16.53, 22.65, 45.31),
    (6.87, 7.59, 10.34, 10.72, 11.33, 14.92, 17.04, 19.60, 21.66, 20.70, 27.98, 33.44, 74.17),
    (9.50, 9.29, 11.00, 11.61, 13.89, 17.43, 23.58, 25.59, 31.03, 35.40, 47.18, 59.33, 144.41),
    (15.87, 14.03, 17.39, 19.02, 23.16, 27.82, 40.69, 64.91, 64.42, 73.90, 83.56, 121.81, 228.68),
    (21.57, 21.59, 22.76, 28.71, 35.19, 52.59, 60.81, 92.54, 114.82, 137.55, 128.95, 146.93, 562.81),
)


@dataclass(frozen=True)
class Apart:
    """Many races at once: who leads, and how far and how surely the others are behind; (races, entries) each.

    `gap` is the mean paired difference to the leader, `error` its standard error, `comparisons` the number of
    equivalent comparisons it was judged as one of, and `p` the adjusted two-sided p-value.
    """

    leader: NDArray[np.intp]
    gap: Floats
    error: Floats
    comparisons: Floats
    p: Floats


def equivalent_comparisons(entries: int, seeds: int) -> float:
    """Return the number m of equivalent comparisons among so many entries, each with so many seeds.

    Between the tabled numbers m is interpolated (log m in log entries and in 1/seeds); beyond the table it is the
    number of pairs, which errs on the safe side.
    """
    if entries <= 2:
        return 1.0
    if entries > ENTRIES[-1]:
        return entries * (entries - 1) / 2
    inverse = 1 / np.array(SEEDS)[::-1]
    columns = np.log(np.array(EQUIVALENT))[:, ::-1]
    by_entries = [float(np.interp(1 / seeds, inverse, row)) for row in columns]
    return float(np.exp(np.interp(np.log(entries), np.log(ENTRIES), by_entries)))


def pair_variances(losses: Floats) -> Floats:
    """Return the variance of every pair's paired differences, (races, entries, entries)."""
    off = losses - losses.mean(axis=2, keepdims=True)
    covariance = off @ off.swapaxes(1, 2) / (losses.shape[2] - 1)
    own = np.einsum("rii->ri", covariance)
    return np.maximum(own[:, :, None] + own[:, None, :] - 2 * covariance, 0.0)


def typical_variances(variances: Floats, among: Bools) -> Floats:
    """Return each entry's (lower) median variance against the others of a set, (races, entries)."""
    count = among.shape[1]
    others = among[:, None, :] & ~np.eye(count, dtype=bool)
    ordered = np.sort(np.where(others, variances, np.inf), axis=2)
    middle = np.maximum(among.sum(axis=1) - 2, 0) // 2
    median = np.take_along_axis(ordered, middle[:, None, None], axis=2)[..., 0]
    return np.where(np.isfinite(median), median, 0.0)


def apart_from_leader(losses: Floats, *, alpha: float = 0.05) -> Apart:
    """Compare everybody with the leader of each race, in steps; `losses` is (races, entries, seeds)."""
    races, count, seeds = losses.shape
    means = losses.mean(axis=2)
    leader = means.argmin(axis=1)
    at = np.arange(races), leader
    gap = means - means[at][:, None]
    if seeds < 2:
        unknown = np.full_like(gap, np.inf)
        return Apart(leader, gap, unknown, np.ones_like(gap), np.ones_like(gap))
    variances = pair_variances(losses)
    table = np.array([equivalent_comparisons(n, seeds) for n in range(count + 1)])
    error, comparisons, p = np.zeros_like(gap), np.ones_like(gap), np.ones_like(gap)
    among, highest = np.ones_like(gap, dtype=bool), np.zeros((races, 1))
    while True:
        typical = typical_variances(variances, among)
        variance = np.maximum(variances[at], np.maximum(typical[at][:, None], typical))
        now, number = np.sqrt(variance / seeds), table[among.sum(axis=1)][:, None]
        found = np.maximum(np.minimum(number * two_sided(gap, now, seeds), 1.0), highest)
        error, p = np.where(among, now, error), np.where(among, found, p)
        comparisons = np.where(among, number, comparisons)
        leaving = among & (found <= alpha)
        leaving[at] = False
        if not leaving.any():
            break
        highest = np.where(leaving, found, highest).max(axis=1, keepdims=True)
        among &= ~leaving
    error[at], p[at] = 0.0, 1.0
    return Apart(leader, gap, error, comparisons, p)


def two_sided(gap: Floats, error: Floats, seeds: int) -> Floats:
    """Return Student's p-value of each gap; a gap without any error is sure, and no gap at all is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gap == 0, 0.0, np.abs(gap) / error)
    return 2 * stdtr(seeds - 1, -t)
