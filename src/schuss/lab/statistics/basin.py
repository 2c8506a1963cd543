"""How forgiving is the learning rate, and did the search space hold an entry back?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from schuss.errors import refusal
from schuss.lab.statistics.compare import as_losses
from schuss.lab.statistics.sampling import Range

EDGE = 0.1  # outer share of a range, on its own scale, in which a best value is suspicious


@dataclass(frozen=True)
class Basin:
    """The learning rates from `low` to `high`, `decades` wide, that do nearly as well as the best.

    `share` is the share of the trials between them that do: 1 is a basin without holes.
    """

    best_lr: float
    low: float
    high: float
    decades: float
    share: float


def lr_basin(
    lr: ArrayLike,
    scores: ArrayLike,
    *,
    lower_is_better: bool = True,
    initial: float | None = None,
    tolerance: float = 0.05,
) -> Basin | None:
    """Return the span of learning rates within `tolerance` of the best; None if every trial failed.

    One rate and one score a trial. Within 5 % means 5 % of the way from `initial` (the untrained model's
    score) to the best; without `initial`, 5 % of the best itself. Other hyperparameters vary along: the span
    says where good settings were found, and is at most as fine as the trials lie apart.

    >>> lr_basin([1e-3, 1e-2, 1e-1, 1.0], [0.5, 0.101, 0.1, 9.0]).decades
    1.0
    """
    rates = np.asarray(lr, dtype=np.float64)
    losses = as_losses(scores, lower_is_better=lower_is_better)
    if rates.shape != losses.shape or rates.ndim != 1 or not (rates > 0).all():
        raise refusal("lr", lr, "one positive number per trial", "A width in decades needs positive rates.")
    if not np.isfinite(losses).any():
        return None
    best = int(losses.argmin())
    start = 0.0 if initial is None else initial if lower_is_better else -initial
    good = losses <= losses[best] + tolerance * abs(start - losses[best])
    low, high = float(rates[good].min()), float(rates[good].max())
    inside = (rates >= low) & (rates <= high)
    return Basin(float(rates[best]), low, high, float(np.log10(high / low)), float(good[inside].mean()))


def at_edge(value: float, low: float, high: float, log: bool = True, *, edge: float = EDGE) -> str | None:
    """Return "low" or "high" if the value lies in the outer tenth of its range on that side, else None.

    >>> at_edge(0.9, 1e-3, 1.0), at_edge(0.03, 1e-3, 1.0)
    ('high', None)
    """
    if not (low < high and (low > 0 or not log)):
        raise refusal("range", (low, high), "low < high, and above 0 where it is logarithmic")
    place = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
    return "low" if place <= edge else "high" if place >= 1 - edge else None


def edges(configuration: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, str]:
    """Return the sides on which a best configuration lies at its space's edge; empty when it is inside.

    >>> edges({"lr": 0.9, "eps": 1e-8}, {"lr": (1e-3, 1.0, True), "eps": (1e-10, 1e-6, True)})
    {'lr': 'high'}
    """
    found = {
        name: at_edge(configuration[name], *bounds) for name, bounds in space.items() if bounds[0] < bounds[1]
    }
    return {name: side for name, side in found.items() if side}
