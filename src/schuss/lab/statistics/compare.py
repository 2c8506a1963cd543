"""Who is better, who is tied, and how many more seeds would tell.

Scores are paired by seed: element i of every entry's array comes from seed i. A run that diverged, or never
reached its target, is kept as the worst value there is; nothing is dropped.

Sources: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979);
R. Serlin, "Confidence intervals and the scientific method", J. Exp. Educ. 61 (1993), for intervals that say
what Holm's steps say.

What was simulated (10 seeds, normal scores): with two equal entries 2.7 % of races name one of them better;
as the leader is whoever looks best, among 5 equal entries 8 % of races put at least one of them behind, among
8 entries 11 %. An entry that is truly 2 sd better than the other is called better in 98 %.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, stdtr, stdtrit

from schuss.errors import refusal

Floats = NDArray[np.float64]

POWER = 0.8  # chance with which the number of further seeds settles a tie
MOST_SEEDS = 10_000  # beyond this nobody runs them; the count is then unknown (None)
LEAST_COST_GAP = float(np.log(1.05))  # two costs closer than 5 % are the same cost
ROUNDING = 1e-9  # relative; a gap below it is arithmetic, not optimization


@dataclass(frozen=True)
class Interval:
    """A centre with the interval round it, and the two-sided p-value of "the centre is 0".

    `method` is "t" (mean, Student), or "sign" (median, order statistics) where a value is infinite.
    """

    centre: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    method: Literal["t", "sign"]


@dataclass(frozen=True)
class Comparison:
    """How far `entry` is behind `leader`: a difference of losses, or a log ratio of costs.

    `low`, `high` and `p` are Holm-adjusted. `threshold` is the smallest gap that counts: one seed-sd, or
    log 1.05 of cost. `further_seeds` is how many seeds beyond those run would turn the tie into what
    `settles_as` says, with power 0.8, if the gap is as it looks; None where that cannot be told.
    """

    leader: str
    entry: str
    gap: float
    low: float
    high: float
    p: float
    seeds: int
    threshold: float
    method: Literal["t", "sign"]
    verdict: Literal["better", "tie"]
    settles_as: Literal["better", "equal"] | None
    further_seeds: int | None


@dataclass(frozen=True)
class Place:
    """An entry's place: its rank, whether it shares it, its own mean with interval, its gap to the leader."""

    entry: str
    rank: int
    tied: bool
    centre: float
    low: float
    high: float
    behind: Comparison | None


@dataclass(frozen=True)
class Ranking:
    """Places from best to worst; `pick` is the cheapest entry of those tied for the first place."""

    places: tuple[Place, ...]
    pick: str


def as_losses(scores: ArrayLike, *, lower_is_better: bool = True) -> Floats:
    """Return scores turned so that lower is better, with +inf for every run that has no finite score.

    >>> as_losses([0.9, float("nan")], lower_is_better=False)
    array([-0.9,  inf])
    """
    values = np.asarray(scores, dtype=np.float64)
    return np.where(np.isfinite(values), values if lower_is_better else -values, np.inf)


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the mean of independent values with its t interval; the median's where a value is infinite.

    One value has a centre and no interval: the limits are infinite.

    >>> mean_interval([1.0, 2.0, 3.0]).centre
    2.0
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise refusal("shape", x.shape, "(n,) with n ≥ 1", "Give one value a seed.")
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
    return Interval(centre, centre - half, centre + half, p, n, sd, "t")


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution.

    >>> round(student_quantile(0.975, 9), 3)
    2.262
    """
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
    k = int((2 * bdtr(np.arange(n), n, 0.5) <= 1 - level).sum())
    low, high = (float(ordered[k - 1]), float(ordered[n - k])) if k else (-np.inf, np.inf)
    return Interval(median, low, high, p, n, np.nan, "sign")


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
        rounded = (
            (np.abs(y - x) <= ROUNDING * np.maximum(np.abs(x), np.abs(y))) & np.isfinite(x) & np.isfinite(y)
        )
    return np.where(np.isnan(difference) | rounded, 0.0, difference)


def paired_interval(a: ArrayLike, b: ArrayLike, *, ratio: bool = False, level: float = 0.95) -> Interval:
    """Return how far b is above a: the mean paired difference (log ratio of costs) with its interval.

    >>> paired_interval([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).low
    1.0
    """
    return mean_interval(paired_differences(a, b, ratio=ratio), level=level)


def smallest_gap_that_counts(a: ArrayLike, b: ArrayLike, *, ratio: bool = False) -> float:
    """Return one seed-sd (pooled over both entries' finite scores), or log 1.05 for costs."""
    if ratio:
        return LEAST_COST_GAP
    finite = [x[np.isfinite(x)] for x in (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))]
    variances = [float(x.var(ddof=1)) for x in finite if x.size > 1]
    largest = max((float(np.abs(x).max()) for x in finite if x.size), default=0.0)
    return max(sqrt(sum(variances) / len(variances)) if variances else 0.0, ROUNDING * largest)


def holm_levels(p: Sequence[float], *, level: float = 0.95) -> tuple[list[float], list[float]]:
    """Return Holm-adjusted p-values, and the level at which each interval agrees with Holm's decision.

    The k-th smallest of m p-values is tested at α/(m − k + 1); after the first that fails, the rest keep
    its level, so they contain 0 as Holm says.

    >>> holm_levels([0.03, 0.01, 0.5])[0]
    [0.06, 0.03, 0.5]
    """
    m, alpha = len(p), 1 - level
    adjusted, levels = [0.0] * m, [0.0] * m
    highest, share, failed = 0.0, alpha, False
    for k, i in enumerate(sorted(range(m), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (m - k) * p[i]))
        if not failed:
            share = alpha / (m - k)
            failed = p[i] > share
        adjusted[i], levels[i] = highest, 1 - share
    return adjusted, levels


def further_seeds(interval: Interval, threshold: float, *, level: float) -> tuple[str | None, int | None]:
    """Return what a tie would settle as ("better" or "equal") and how many further seeds that takes.

    A gap above the threshold settles as better once (t_{1−α/2} + t_{0.8}) sd/√n ≤ gap; one below it settles
    as equal once the same width fits between the gap and the threshold.

    >>> further_seeds(Interval(1.0, -0.5, 2.5, 0.1, 4, 1.0, "t"), 0.9, level=0.95)
    ('better', 6)
    """
    if interval.method != "t" or interval.n < 2:
        return None, None
    gap = abs(interval.centre)
    settles_as, room = ("better", gap) if gap > threshold else ("equal", threshold - gap)
    if interval.sd == 0:
        return settles_as, 0

    def fits(n: int) -> bool:
        quantiles = student_quantile(0.5 + level / 2, n - 1) + student_quantile(POWER, n - 1)
        return quantiles * interval.sd <= room * sqrt(n)

    n = bisect_left(range(MOST_SEEDS), True, lo=interval.n, key=fits)
    return settles_as, n - interval.n if n < MOST_SEEDS else None


def compare_with_leader(
    losses: Mapping[str, ArrayLike], leader: str, *, ratio: bool = False, level: float = 0.95
) -> dict[str, Comparison]:
    """Compare every entry with the leader, Holm-adjusted over these comparisons.

    `losses` are losses or (`ratio=True`) costs, one array a entry, paired by seed. "better" (the leader is)
    needs the adjusted interval above 0 and a gap above one seed-sd, or 5 % of cost; all else is a tie.
    """
    others = [entry for entry in losses if entry != leader]
    first = {entry: paired_interval(losses[leader], losses[entry], ratio=ratio) for entry in others}
    adjusted, levels = holm_levels([first[entry].p for entry in others], level=level)
    comparisons: dict[str, Comparison] = {}
    for entry, p, own_level in zip(others, adjusted, levels, strict=True):
        found = paired_interval(losses[leader], losses[entry], ratio=ratio, level=own_level)
        threshold = smallest_gap_that_counts(losses[leader], losses[entry], ratio=ratio)
        better = found.low > 0 and found.centre > threshold
        settles_as, seeds = (None, None) if better else further_seeds(found, threshold, level=own_level)
        comparisons[entry] = Comparison(
            leader=leader,
            entry=entry,
            gap=found.centre,
            low=found.low,
            high=found.high,
            p=p,
            seeds=found.n,
            threshold=threshold,
            method=found.method,
            verdict="better" if better else "tie",
            settles_as=settles_as,  # type: ignore[arg-type]
            further_seeds=seeds,
        )
    return comparisons


def _order(losses: Floats, ratio: bool) -> tuple[float, float, int, float]:
    """Sort key: the mean; where runs failed, the median, then how many failed, then the rest's mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log(losses) if ratio else losses  # −∞: a cost of 0, the best there is
        median = float(np.median(x))
    got_there = x[x < np.inf]
    rest = float(got_there.mean()) if got_there.size else np.inf
    mean = rest if got_there.size == x.size else np.inf
    return mean, 0.0 if np.isnan(median) else median, x.size - got_there.size, rest


def rank(
    scores: Mapping[str, ArrayLike],
    *,
    lower_is_better: bool = True,
    ratio: bool = False,
    level: float = 0.95,
    costs: Mapping[str, float] | None = None,
) -> Ranking:
    """Rank entries on their fresh seeds, ties marked.

    `scores[entry]` holds one number a seed, in the same order of seeds for all; NaN or inf = failed.
    `ratio=True` ranks costs by log ratios. Those tied with the leader share rank 1; the best of the rest
    leads the next group, and so on. `costs` (one number an entry) choose among those tied for the first
    place; without them the leader is picked.

    >>> ranking = rank({"a": [1.0, 1.1, 0.9], "b": [1.1, 0.9, 1.0], "c": [9.0, 9.1, 8.9]})
    >>> [(place.rank, place.entry) for place in ranking.places]
    [(1, 'a'), (1, 'b'), (3, 'c')]
    """
    if not scores:
        raise refusal("scores", dict(scores), "a mapping with at least one entry")
    losses = {entry: as_losses(x, lower_is_better=lower_is_better) for entry, x in scores.items()}
    if len({x.shape for x in losses.values()}) > 1:
        shapes = {entry: x.shape for entry, x in losses.items()}
        raise refusal("scores", shapes, "one shape for all entries", "Every entry needs the same seeds.")
    waiting = sorted(losses, key=lambda entry: (_order(losses[entry], ratio), entry))
    behind = compare_with_leader(losses, waiting[0], ratio=ratio, level=level)
    places: list[Place] = []
    first_group: list[str] = []
    while waiting:
        group = compare_with_leader({e: losses[e] for e in waiting}, waiting[0], ratio=ratio, level=level)
        tied = [e for e in waiting if e == waiting[0] or group[e].verdict == "tie"]
        first_group = first_group or tied
        start = 1 + len(places)
        for entry in tied:
            own = mean_interval(losses[entry] if lower_is_better else -losses[entry], level=level)
            places.append(
                Place(entry, start, len(tied) > 1, own.centre, own.low, own.high, behind.get(entry))
            )
        waiting = [e for e in waiting if e not in tied]
    price = costs or {}
    pick = min(first_group, key=lambda entry: price.get(entry, np.inf))
    return Ranking(tuple(places), pick)
