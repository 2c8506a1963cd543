"""What the tuning trials say: which optimizer for n trials, how forgiving its learning rate is, how wide to search.

The expected best of n trials, for every n, comes from one pool of N. Source: the U-statistic whose kernel is the
best of n values. Sorted from worst to best, the i-th value is the best of a random n-subset with probability
C(i−1, n−1)/C(N, n). It is unbiased for every n ≤ N; the usual plug-in (n draws from the pool with replacement) is
too pessimistic. The interval is the delete-one jackknife's (J. Arvesen, "Jackknifing U-statistics", Ann. Math.
Statist. 40, 1969); at N = 20 its 95 % covered 94 % at n = 1 and 85 % at n = 10 in simulation (normal scores).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schuss.errors import refusal
from schuss.lab.statistics.compare import Floats, as_losses, student_quantile
from schuss.lab.statistics.sampling import Range

EDGE = 0.1  # outer fraction of a range, on its own scale, in which a best value is suspicious
TOLERANCE = 0.05  # of the way from the start to the best


@dataclass(frozen=True)
class BudgetCurve:
    """Expected best of `n` = 1 .. N trials, shape (N,), in the metric's own orientation.

    `low` and `high` are the 95 % jackknife interval; NaN beyond n = N/2, where one pool no longer holds two
    separate sets of n trials and so cannot say how much another pool would differ.
    """

    n: NDArray[np.int64]
    expected: Floats
    low: Floats
    high: Floats


def expected_best(scores: ArrayLike, *, lower_is_better: bool = True) -> Floats:
    """Return the expected best of n = 1 .. N of these N trials, shape (N,).

    A trial without a finite score stays in the pool as the worst one, so the expected best is infinitely bad
    for every n that could be spent on failures alone.
    """
    losses = as_losses(scores, lower_is_better=lower_is_better)
    if losses.ndim != 1 or losses.size == 0:
        raise refusal("scores", losses.shape, "one number per trial, at least one trial")
    worst_first, pool = np.sort(losses)[::-1], losses.size
    # Row n − 1, column i − 1: the probability that the i-th value from the worst is the best of n of the pool.
    weights = np.array([[comb(i, n) / comb(pool, n + 1) for i in range(pool)] for n in range(pool)])
    failed = np.isinf(worst_first)
    expected = weights @ np.where(failed, 0.0, worst_first)
    expected[: failed.sum()] = np.inf
    return expected if lower_is_better else -expected


def budget_curve(scores: ArrayLike, *, lower_is_better: bool = True) -> BudgetCurve:
    """Return the expected best of n trials with intervals, from one entry's tuning scores, shape (N,)."""
    x = np.asarray(scores, dtype=np.float64)
    expected = expected_best(x, lower_is_better=lower_is_better)
    size, half = x.size, x.size // 2
    low, high = np.full((2, size), np.nan)
    if half:
        rest = (np.delete(x, i) for i in range(size))
        left_out = np.array([expected_best(y, lower_is_better=lower_is_better)[:half] for y in rest])
        with np.errstate(invalid="ignore"):
            error = np.sqrt((size - 1) ** 2 / size * left_out.var(axis=0, ddof=1))
        error = np.where(np.isfinite(expected[:half]), error, np.nan)
        width = student_quantile(0.975, size - 1) * error
        low[:half], high[:half] = expected[:half] - width, expected[:half] + width
    return BudgetCurve(np.arange(1, size + 1), expected, low, high)


@dataclass(frozen=True)
class Basin:
    """The learning rates from `low` to `high`, `decades` wide, that do nearly as well as the best."""

    best_lr: float
    low: float
    high: float
    decades: float


def lr_basin(
    lr: ArrayLike, scores: ArrayLike, initial: float, *, lower_is_better: bool = True
) -> Basin | None:
    """Return the span of learning rates within 5 % of the best; None if every trial failed.

    One rate and one score per trial. Within 5 % means 5 % of the way from `initial` (the untrained model's
    score) to the best. Other hyperparameters vary along: the span says where good settings were found, and is
    at most as fine as the trials lie apart.
    """
    rates = np.asarray(lr, dtype=np.float64)
    losses = as_losses(scores, lower_is_better=lower_is_better)
    if rates.shape != losses.shape or rates.ndim != 1 or not (rates > 0).all():
        raise refusal("lr", lr, "one positive number per trial", "A width in decades needs positive rates.")
    if not np.isfinite(losses).any():
        return None
    best = int(losses.argmin())
    start = initial if lower_is_better else -initial
    good = losses <= losses[best] + TOLERANCE * abs(start - losses[best])
    low, high = float(rates[good].min()), float(rates[good].max())
    return Basin(float(rates[best]), low, high, float(np.log10(high / low)))


def edges(configuration: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, str]:
    """Return "low" or "high" for each value of a configuration in the outer tenth of its range on that side."""
    found: dict[str, str] = {}
    for name, (low, high, log) in space.items():
        if low == high:
            continue
        if not (low < high and (low > 0 or not log)):
            raise refusal(name, (low, high), "low < high, and above 0 where it is logarithmic")
        value = configuration[name]
        at = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
        if at <= EDGE or at >= 1 - EDGE:
            found[name] = "low" if at <= EDGE else "high"
    return found
