"""Who is better, who is tied, and how many more seeds would tell.

Scores are paired by seed: element i of every entry's array comes from seed i. A run that diverged, or never
reached its target, counts as the worst value there is; nothing is dropped.

An entry's own interval is that of its *median* over seeds, from order statistics: it covers as stated whatever
the metric's distribution, at a bound, skewed, or with one seed in ten that fails, where Student's interval of the
mean covers 66 to 84 %. No interval of a mean can do that: what no seed has shown, none can know of. The sources
are W. Thompson, Ann. Math. Stat. 7 (1936), and G. Hahn and W. Meeker, "Statistical Intervals" (1991), section 5.2.

A comparison is of mean paired differences, by Student's t: between equal entries they are symmetric, and then t is
conservative where tails are heavy. `simultaneous.py` says how the choice of the leader is paid for. Error
rates, coverage and power are in `docs/verdicts.md`; `benchmarks/verdicts.py` makes them again.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, hypot, isfinite, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtr, stdtrit

from schuss.errors import refusal
from schuss.lab.statistics.simultaneous import (
    apart_from_leader,
    equivalent_comparisons,
    pair_variances,
    two_sided,
    typical_variances,
)

Floats = NDArray[np.float64]
IntervalDict = dict[Literal["mean", "low", "high", "sd", "n"], float | None]  # None: not finite

LEVEL = 0.95  # of the intervals, unless another is asked for
POWER = 0.8  # probability with which the number of further seeds settles a tie
MOST_SEEDS = 10_000  # beyond this nobody runs them; the count is then unknown (None)
LEAST_COVERAGE = 0.93  # what five seeds give; fewer give no interval of a median at all
LEAST_COST_GAP = float(np.log(1.05))  # two costs closer than 5 % are the same cost
ROUNDING = 1e-9  # relative; a gap below it is arithmetic, not optimization


@dataclass(frozen=True)
class Interval:
    """A centre with the interval around it, and the two-sided p-value of "the centre is 0".

    `method` is "t" (mean, Student), or "sign" (median, order statistics). `coverage` is what the interval
    covers at least: the level asked for, or more where order statistics only come in steps.
    """

    centre: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    method: Literal["t", "sign"]
    coverage: float = LEVEL

    def as_dict(self) -> IntervalDict:
        """The interval of a mean as `report.json` holds it."""
        limits = self.centre, self.low, self.high, self.sd
        mean, low, high, sd = (x if isfinite(x) else None for x in limits)
        return {"mean": mean, "low": low, "high": high, "sd": sd, "n": self.n}


@dataclass(frozen=True)
class Comparison:
    """How far `entry` is behind `leader`: a difference of losses, or a log ratio of costs.

    `low`, `high` and `p` are adjusted for all pairs. `threshold` is the smallest gap that counts: one seed-sd, or
    log 1.05 of cost. `further_seeds` is how many seeds beyond those run would turn the tie into what `settles_as`
    says, with power 0.8, if the gap is as it looks; None where that cannot be said.
    """

    leader: str
    entry: str
    gap: float
    low: float
    high: float
    p: float
    seeds: int
    threshold: float
    verdict: Literal["better", "tie"]
    settles_as: Literal["better", "equal"] | None
    further_seeds: int | None


@dataclass(frozen=True)
class Place:
    """An entry's rank and whether it shares it, its own mean, and how far it is behind the leader.

    The rank is one more than the number of entries that are better; it is 1 for all that tie with the leader.
    """

    entry: str
    rank: int
    tied: bool
    mean: float
    behind: Comparison | None


@dataclass(frozen=True)
class Ranking:
    """Places in the order of their means; `pick` is the cheapest entry of those that tie with the first."""

    places: tuple[Place, ...]
    pick: str


def as_losses(scores: ArrayLike, *, lower_is_better: bool = True) -> Floats:
    """Return scores turned so that lower is better, with +inf for every run that has no finite score."""
    values = np.asarray(scores, dtype=np.float64)
    return np.where(np.isfinite(values), values if lower_is_better else -values, np.inf)


def _per_seed(values: ArrayLike) -> Floats:
    """The values as an array (n,) with n ≥ 1."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise refusal("shape", x.shape, "(n,) with n ≥ 1", "Give one value per seed.")
    return x


def mean_interval(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the mean of independent values with its t interval; the median's where a value is infinite.

    One value has a centre and no interval: the limits are infinite.
    """
    x = _per_seed(values)
    if not 0 < level < 1:
        raise refusal("level", level, "in (0, 1)", "Use 0.95 for a 95 % interval.")
    if not np.isfinite(x).all():
        return _sign_interval(np.sort(x), level)
    # A mean or a spread of the size of rounding is none: 0, and not −2e−17.
    n, rounding = x.size, ROUNDING * float(np.abs(x).max())
    centre = fsum(x) / n
    centre = centre if abs(centre) > rounding or n == 1 else 0.0
    if n == 1:
        return Interval(centre, -np.inf, np.inf, 1.0, n, np.nan, "t")
    sd = float(x.std(ddof=1))
    sd = sd if sd > rounding else 0.0
    error = sd / sqrt(n)
    half = student_quantile(0.5 + level / 2, n - 1) * error
    p = 2 * float(stdtr(n - 1, -abs(centre) / error)) if error else float(centre == 0)
    return Interval(centre, centre - half, centre + half, p, n, sd, "t", level)


def median_interval(values: ArrayLike) -> Interval:
    """Return the median of independent values with the 95 % interval that their order alone gives.

    It covers the median of any distribution with at least `coverage`, and never leaves the range of the values.
    Below six values 95 % cannot be had: five give the range of the values, with 93.75 %; fewer give none.

    >>> found = median_interval([5.0, 1.0, 3.0, 2.0, 4.0, 90.0])
    >>> found.centre, found.low, found.high, found.coverage
    (3.5, 1.0, 90.0, 0.96875)
    """
    x = _per_seed(values)
    widest = 1 - 2 * float(bdtr(0, x.size, 0.5))
    return _sign_interval(np.sort(x), min(LEVEL, widest) if widest >= LEAST_COVERAGE else LEVEL)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution."""
    return float(stdtrit(freedom, probability))


def _sign_interval(ordered: Floats, level: float) -> Interval:
    """The sign test and the interval of the median that agrees with it; values that are 0 count against."""
    n = ordered.size
    with np.errstate(invalid="ignore"):
        median = float(np.median(ordered))
    median = 0.0 if np.isnan(median) else median  # halfway between −inf and +inf
    fewer = min(int((ordered <= 0).sum()), int((ordered >= 0).sum()))
    p = min(1.0, 2 * float(bdtr(fewer, n, 0.5)))
    # The k-th value from either end, with k the largest for which 2·P(Bin(n, ½) ≤ k − 1) ≤ 1 − level.
    k = int((2 * bdtr(np.arange(n), n, 0.5) <= 1 - level + 1e-12).sum())
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (-np.inf, np.inf)
    coverage = 1 - 2 * float(bdtr(k - 1, n, 0.5)) if k else 1.0
    return Interval(median, low, high, p, n, np.nan, "sign", coverage)


def paired_differences(a: ArrayLike, b: ArrayLike, *, ratio: bool = False) -> Floats:
    """Return b − a seed by seed, or log(b / a) for costs; 0 where both failed.

    Both are losses or costs (lower is better, +inf = diverged or not reached).
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise refusal("shapes", (x.shape, y.shape), "two equal (n,)", "Pair the runs by seed first.")
    if ratio and ((x < 0).any() or (y < 0).any()):
        raise refusal("cost", float(min(x.min(), y.min())), "≥ 0", "A ratio of costs needs costs.")
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.log(y) - np.log(x) if ratio else y - x
        # Two sums of the same numbers in another order are equal.
        near = np.abs(y - x) <= ROUNDING * np.maximum(np.abs(x), np.abs(y))
    rounded = near & np.isfinite(x) & np.isfinite(y)
    return np.where(np.isnan(difference) | rounded, 0.0, difference)


def paired_interval(a: ArrayLike, b: ArrayLike, *, ratio: bool = False, level: float = LEVEL) -> Interval:
    """Return how far b is above a: the mean paired difference (log ratio of costs) with its interval."""
    return mean_interval(paired_differences(a, b, ratio=ratio), level=level)


def smallest_gap_that_counts(a: ArrayLike, b: ArrayLike, *, ratio: bool = False) -> float:
    """Return one seed-sd (pooled over both entries' finite scores), or log 1.05 for costs."""
    if ratio:
        return LEAST_COST_GAP
    finite = [x[np.isfinite(x)] for x in (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))]
    variances = [float(x.var(ddof=1)) for x in finite if x.size > 1]
    largest = max((float(np.abs(x).max()) for x in finite if x.size), default=0.0)
    return max(sqrt(sum(variances) / len(variances)) if variances else 0.0, ROUNDING * largest)


def holm_levels(p: Sequence[float]) -> list[float]:
    """Return the level at which the interval behind each p-value agrees with Holm's decision.

    The k-th smallest of m p-values is tested at α/(m − k + 1); after the first that fails, the rest keep
    its level, so they contain 0 as Holm says.
    """
    m = len(p)
    levels, alpha, failed = [0.0] * m, 1 - LEVEL, False
    for k, i in enumerate(sorted(range(m), key=lambda i: p[i])):
        if not failed:
            alpha = (1 - LEVEL) / (m - k)
            failed = p[i] > alpha
        levels[i] = 1 - alpha
    return levels


def further_seeds(interval: Interval, threshold: float, *, level: float) -> tuple[str | None, int | None]:
    """Return what a tie would settle as ("better" or "equal") and how many further seeds that takes.

    A gap above the threshold settles as better once (t_{1−α/2} + t_{0.8}) sd/√n ≤ gap, so that it will be seen, and
    t_{0.8} √(sd² + threshold²/4)/√n ≤ gap − threshold, so that it will be seen to count (the threshold is itself
    an estimate, a pooled sd, and moves by threshold/(2√n)). One below it settles as equal once the first
    width fits between the gap and the threshold.

    >>> further_seeds(Interval(1.0, -0.5, 2.5, 0.1, 4, 1.0, "t"), 0.9, level=0.95)
    ('better', 83)
    """
    if interval.method != "t" or interval.n < 2 or not np.isfinite(interval.sd):
        return None, None
    gap = abs(interval.centre)
    settles_as = "better" if gap > threshold else "equal"
    if interval.sd == 0:
        return settles_as, 0

    def fits(n: int) -> bool:
        seen = student_quantile(0.5 + level / 2, n - 1)
        power = student_quantile(POWER, n - 1)
        if gap <= threshold:
            return (seen + power) * interval.sd <= (threshold - gap) * sqrt(n)
        counts = power * hypot(interval.sd, threshold / 2) <= (gap - threshold) * sqrt(n)
        return counts and (seen + power) * interval.sd <= gap * sqrt(n)

    n = bisect_left(range(MOST_SEEDS), True, lo=interval.n, key=fits)
    return settles_as, n - interval.n if n < MOST_SEEDS else None


def penalised(losses: Mapping[str, ArrayLike], *, ratio: bool = False) -> Floats:
    """Return finite losses (logs of costs), (entries, seeds), in which a failure is worse than all else.

    A run that failed counts as the worst there is and the whole range of the others on top; a cost that was never
    paid as twice the largest that was (the PAR2 score of the algorithm selection literature), and a cost of 0
    as half the smallest. So failures are paired and averaged like everything else.
    """
    table = np.array([as_losses(x) for x in losses.values()])
    if ratio:
        if (table < 0).any():
            raise refusal("cost", float(table.min()), "≥ 0", "A ratio of costs needs costs.")
        with np.errstate(divide="ignore"):
            table = np.log(table)
    known = np.isfinite(table)
    finite = table[known] if known.any() else np.zeros(1)
    step = float(np.log(2)) if ratio else float(np.ptp(finite)) or 1.0
    return np.clip(table, finite.min() - step, finite.max() + step)


def compare_with_leader(losses: Mapping[str, ArrayLike], *, ratio: bool = False) -> dict[str, Comparison]:
    """Compare every entry with the one of the lowest mean, adjusted for having chosen it.

    `losses` are losses or (`ratio=True`) costs, one array per entry, paired by seed. "better" (the leader is)
    needs the adjusted interval above 0 and a gap above one seed-sd, or 5 % of cost; all else is a tie.
    """
    names = list(losses)
    table = penalised(losses, ratio=ratio)
    found = apart_from_leader(table[None], alpha=1 - LEVEL)
    first, seeds = names[int(found.leader[0])], table.shape[1]
    comparisons: dict[str, Comparison] = {}
    for i, entry in enumerate(names):
        if entry == first:
            continue
        gap, error, p = float(found.gap[0, i]), float(found.error[0, i]), float(found.p[0, i])
        own_level = 1 - (1 - LEVEL) / float(found.comparisons[0, i])
        half = student_quantile(0.5 + own_level / 2, seeds - 1) * error if seeds > 1 else np.inf
        threshold = smallest_gap_that_counts(losses[first], losses[entry], ratio=ratio)
        better = gap - half > 0 and gap > threshold
        own = Interval(gap, gap - half, gap + half, p, seeds, error * sqrt(seeds), "t", own_level)
        settles_as, more = (None, None) if better else further_seeds(own, threshold, level=own_level)
        comparisons[entry] = Comparison(
            leader=first,
            entry=entry,
            gap=gap,
            low=own.low,
            high=own.high,
            p=p,
            seeds=seeds,
            threshold=threshold,
            verdict="better" if better else "tie",
            settles_as=settles_as,  # type: ignore[arg-type]
            further_seeds=more,
        )
    return comparisons


def better_pairs(losses: Mapping[str, ArrayLike], *, ratio: bool = False) -> set[tuple[str, str]]:
    """Return every pair (a, b) of which a is better, all pairs judged at once."""
    names, table = list(losses), penalised(losses, ratio=ratio)
    count, seeds = table.shape
    if seeds < 2:
        return set()
    variances = pair_variances(table[None])
    typical = typical_variances(variances, np.ones((1, count), dtype=bool))[0]
    error = np.sqrt(np.maximum(variances[0], np.maximum(typical[:, None], typical)) / seeds)
    means = table.mean(axis=1)
    gaps = means - means[:, None]
    sure = equivalent_comparisons(count, seeds) * two_sided(gaps, error, seeds) <= 1 - LEVEL
    return {
        (names[i], names[j])
        for i, j in zip(*np.nonzero(sure & (gaps > 0)), strict=True)
        if gaps[i, j] > smallest_gap_that_counts(losses[names[i]], losses[names[j]], ratio=ratio)
    }


def rank(
    scores: Mapping[str, ArrayLike],
    *,
    lower_is_better: bool = True,
    ratio: bool = False,
    costs: Mapping[str, float] | None = None,
) -> Ranking:
    """Rank entries on their fresh seeds: in the order of their means, with ties marked.

    `scores[entry]` holds one number per seed, in the same order of seeds for all; NaN or inf = failed.
    `ratio=True` ranks costs by log ratios. All that tie with the leader have rank 1, the others one more than
    the number of entries that are better. So an entry that varies little can rank behind one with a worse mean
    that varies much. `costs` (one number per entry) choose among those that tie with the leader; without them
    the leader is picked.

    >>> ranking = rank({"a": [1.0, 1.1, 0.9], "b": [1.1, 0.9, 1.0], "c": [9.0, 9.1, 8.9]})
    >>> [(place.rank, place.entry) for place in ranking.places]
    [(1, 'a'), (1, 'b'), (3, 'c')]
    """
    if not scores:
        raise refusal("scores", dict(scores), "a mapping with at least one entry")
    losses = {entry: as_losses(x, lower_is_better=lower_is_better) for entry, x in sorted(scores.items())}
    if len({x.shape for x in losses.values()}) > 1:
        shapes = {entry: x.shape for entry, x in losses.items()}
        raise refusal("scores", shapes, "one shape for all entries", "Every entry needs the same seeds.")
    means = dict(zip(losses, penalised(losses, ratio=ratio).mean(axis=1).tolist(), strict=True))
    order = sorted(losses, key=lambda entry: (means[entry], entry))
    behind = compare_with_leader(losses, ratio=ratio)
    leading = {order[0]} | {entry for entry in behind if behind[entry].verdict == "tie"}
    pairs = better_pairs(losses, ratio=ratio) | {(order[0], e) for e in order if e not in leading}
    ranks = {e: 1 if e in leading else 1 + sum((other, e) in pairs for other in order) for e in order}
    places: list[Place] = []
    for entry in order:
        mean = float(losses[entry].mean()) * (1 if lower_is_better else -1)
        tied = list(ranks.values()).count(ranks[entry]) > 1
        places.append(Place(entry, ranks[entry], tied, mean, behind.get(entry)))
    price = costs or {}
    pick = min((e for e in order if e in leading), key=lambda entry: price.get(entry, np.inf))
    return Ranking(tuple(places), pick)
