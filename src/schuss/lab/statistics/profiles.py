"""Performance profiles over several tasks.

Source: E. Dolan and J. Moré, "Benchmarking optimization software with performance profiles", Math. Program.
91 (2002); the integrated score on τ in [1, 4] is AlgoPerf's (Dahl et al. 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from schuss.errors import refusal
from schuss.lab.statistics.compare import Floats

LARGEST_FACTOR = 4.0


@dataclass(frozen=True)
class Profiles:
    """`share[entry][k]`: the fraction of tasks solved within `tau[k]` times the cheapest entry's cost.

    `score` is the area under the profile on [1, 4], as a fraction: mean of max(0, (4 − r)/3).
    """

    tau: Floats
    share: dict[str, Floats]
    score: dict[str, float]


def cost_ratios(costs: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Return each entry's cost over the cheapest's, task by task; ∞ where it, or everybody, failed.

    >>> cost_ratios({"a": [10.0, 40.0], "b": [20.0, 20.0]})["a"]
    array([1., 2.])
    """
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
    """Return the profiles of all entries; `costs[entry]` holds one cost a task (and seed), ∞ = failed.

    >>> performance_profiles({"a": [10.0, 40.0], "b": [20.0, 20.0]}).score["a"]
    0.8333333333333333
    """
    ratios = cost_ratios(costs)
    tau = np.linspace(1.0, LARGEST_FACTOR, points)
    share = {entry: (r[None, :] <= tau[:, None]).mean(axis=1) for entry, r in ratios.items()}
    gain = (np.maximum(0.0, (LARGEST_FACTOR - r) / (LARGEST_FACTOR - 1)) for r in ratios.values())
    return Profiles(tau, share, {entry: float(x.mean()) for entry, x in zip(ratios, gain, strict=True)})


def pairwise_profiles(costs: Mapping[str, ArrayLike]) -> dict[tuple[str, str], Profiles]:
    """Return the profiles of each pair of entries alone, since a third entry can swap two others."""
    return {(a, b): performance_profiles({a: costs[a], b: costs[b]}) for a, b in combinations(costs, 2)}
