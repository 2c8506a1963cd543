"""When is a target reached, by how many, and at what cost? Not reached is an infinite cost; no run is dropped.

Sources. Expected running time (ERT): N. Hansen et al., "COCO: a platform for comparing continuous optimizers",
2021. Performance profiles over several tasks: E. Dolan and J. Moré, "Benchmarking optimization software with
performance profiles", Math. Program. 91 (2002); the integrated score on τ in [1, 4] is AlgoPerf's (Dahl et al. 2023).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from schuss.errors import refusal
from schuss.lab.statistics.compare import Floats, as_losses

HOLD = 3  # evaluations in a row for which a target must stay reached; a first crossing is often noise
LARGEST_FACTOR = 4.0


@dataclass(frozen=True)
class TimeToTarget:
    """How many runs reached it, the median cost with ∞ for the others, and the expected cost."""

    reached: int
    median: float
    ert: float


def fixed_targets(
    initial: float,
    bests: Mapping[str, ArrayLike],
    *,
    lower_is_better: bool = True,
    quantiles: Sequence[float] = (0.5, 0.9, 1.0),
) -> list[float]:
    """Return the targets initial + q (best − initial), fixed before the reporting seeds run.

    `bests[entry]` are the best values that the entry's confirming runs saw, one a run; "best" here is the
    median of the strongest entry. `initial` is the untrained model's value. Returns [] when nothing finished
    better than the untrained model, as then there is nothing to reach.
    """
    for q in quantiles:
        if not 0 < q <= 1:
            raise refusal("quantile", q, "in (0, 1]", "1 is what the strongest entry reached.")
    sign = 1.0 if lower_is_better else -1.0
    medians = [float(np.median(as_losses(x, lower_is_better=lower_is_better))) for x in bests.values()]
    best = min(medians, default=np.inf)
    if not (np.isfinite(best) and best < sign * initial):
        return []
    return [initial + q * (sign * best - initial) for q in quantiles]


def cost_to_target(
    values: ArrayLike, costs: ArrayLike, target: float, *, lower_is_better: bool = True
) -> float:
    """Return the cost at which a run reached the target, and stayed there for three evaluations in a row.

    `costs[i]` was paid by `values[i]`. NaN is not reached. A target not reached, or reached in the last two
    evaluations only, has the cost ∞.
    """
    losses = as_losses(values, lower_is_better=lower_is_better)
    good = losses <= (target if lower_is_better else -target)
    if good.size < HOLD:
        return np.inf
    held = np.lib.stride_tricks.sliding_window_view(good, HOLD).all(axis=1)
    return float(np.asarray(costs)[held.argmax()]) if held.any() else np.inf


def time_to_target(costs: Iterable[float], spent: Iterable[float]) -> TimeToTarget:
    """Summarise runs by `costs` (to the target, ∞ = not reached) and `spent` (each run's whole cost).

    ERT is the cost of all runs, each counted until it reached or ended, over the number that reached.
    """
    paid, whole = (np.asarray(list(x), dtype=np.float64) for x in (costs, spent))
    if paid.shape != whole.shape or paid.size == 0:
        advice = "Give both costs of every run."
        raise refusal("runs", (paid.size, whole.size), "two equal counts ≥ 1", advice)
    paid = np.where(np.isnan(paid), np.inf, paid)
    reached = int(np.isfinite(paid).sum())
    total = float(np.where(np.isfinite(paid), paid, whole).sum())
    return TimeToTarget(reached, float(np.median(paid)), total / reached if reached else np.inf)


@dataclass(frozen=True)
class Profiles:
    """`share[entry][k]`: the fraction of tasks solved within `tau[k]` times the cheapest entry's cost.

    `score` is the area under the profile on [1, 4], as a fraction: mean of max(0, (4 − r)/3).
    """

    tau: Floats
    share: dict[str, Floats]
    score: dict[str, float]


def cost_ratios(costs: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Return each entry's cost over the cheapest's, task by task; ∞ where it, or everybody, failed."""
    table = np.array([np.asarray(x, dtype=np.float64) for x in costs.values()])
    if table.ndim != 2 or table.size == 0 or (table < 0).any():
        raise refusal("costs", list(costs), "one cost ≥ 0 for every entry and task", "Use inf for a failure.")
    table = np.where(np.isnan(table), np.inf, table)
    cheapest = table.min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(table == cheapest, 1.0, table / cheapest)
    ratios = np.where(np.isinf(table), np.inf, ratios)
    return dict(zip(costs, ratios, strict=True))


def performance_profiles(costs: Mapping[str, ArrayLike], *, points: int = 121) -> Profiles:
    """Return the profiles of all entries; `costs[entry]` holds one cost a task (and seed), ∞ = failed."""
    ratios = cost_ratios(costs)
    tau = np.linspace(1.0, LARGEST_FACTOR, points)
    share = {entry: (r[None, :] <= tau[:, None]).mean(axis=1) for entry, r in ratios.items()}
    gain = (np.maximum(0.0, (LARGEST_FACTOR - r) / (LARGEST_FACTOR - 1)) for r in ratios.values())
    return Profiles(tau, share, {entry: float(x.mean()) for entry, x in zip(ratios, gain, strict=True)})


def pairwise_profiles(costs: Mapping[str, ArrayLike]) -> dict[tuple[str, str], Profiles]:
    """Return the profiles of each pair of entries alone, since a third entry can swap two others."""
    return {(a, b): performance_profiles({a: costs[a], b: costs[b]}) for a, b in combinations(costs, 2)}
