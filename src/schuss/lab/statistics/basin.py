"""How forgiving is the learning rate, and did the search space hold an entry back?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from schuss.errors import refusal
from schuss.lab.statistics.compare import as_losses
from schuss.lab.statistics.sampling import Range

EDGE = 0.1  # outer fraction of a range, on its own scale, in which a best value is suspicious
TOLERANCE = 0.05  # of the way from the start to the best


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

    >>> lr_basin([1e-3, 1e-2, 1e-1, 1.0], [0.5, 0.101, 0.1, 9.0], initial=2.3).decades
    1.0
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
    """Return "low" or "high" for each value of a configuration in the outer tenth of its range on that side.

    >>> edges({"lr": 0.9, "eps": 1e-8}, {"lr": (1e-3, 1.0, True), "eps": (1e-10, 1e-6, True)})
    {'lr': 'high'}
    """
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
