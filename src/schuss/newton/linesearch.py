"""A step length that satisfies the strong Wolfe conditions, by bracketing and cubic interpolation.

Sources: Moré & Thuente, "Line search algorithms with guaranteed sufficient decrease", ACM TOMS 20 (1994);
Nocedal & Wright, "Numerical Optimization" (2006), §3.5; Hager & Zhang, SIAM J. Optim. 16 (2005), §2, for the
approximate condition that still works where the decrease is lost in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(frozen=True)
class Probe(Generic[P]):
    """The loss and its slope at one step length, with whatever the caller needs to go there."""

    t: float
    loss: float
    slope: float
    point: P


def cubic_minimum(a: Probe[P], b: Probe[P]) -> float:
    """Where the cubic through two losses and two slopes has its minimum; nan if it has none.

    >>> cubic_minimum(Probe(0.0, 4.0, -4.0, None), Probe(1.0, 1.0, -2.0, None))  # (t − 2)²
    2.0
    """
    mean = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    inner = mean * mean - a.slope * b.slope
    if inner < 0 or not math.isfinite(inner):
        return math.nan
    root = math.copysign(math.sqrt(inner), b.t - a.t)
    below = b.slope - a.slope + 2 * root
    return b.t - (b.t - a.t) * (b.slope + root - mean) / below if below else math.nan


def strong_wolfe(
    evaluate: Callable[[float], Probe[P]],
    start: Probe[P],
    t: float,
    *,
    c1: float = 1e-4,
    c2: float = 0.9,
    noise: float = 0.0,
    limit: int = 25,
) -> tuple[Probe[P] | None, int, str]:
    """Find t with φ(t) ≤ φ(0) + c₁ t φ'(0) and |φ'(t)| ≤ c₂ |φ'(0)|; φ'(0) < 0.

    Returns the probe (None if no length lowered the loss), the number of evaluations and why it ended.
    A decrease within `noise` counts as one where the slope confirms it (Hager & Zhang's approximate Wolfe).
    A loss or slope that is not finite bounds the step from above.
    """
    low, high, ceiling = start, None, math.inf
    width = previous_width = math.inf
    for count in range(1, limit + 1):
        probe = evaluate(t)
        if not (math.isfinite(probe.loss) and math.isfinite(probe.slope)):
            ceiling = t
            t = low.t + 0.1 * (t - low.t)
            continue
        enough = probe.loss <= start.loss + c1 * t * start.slope
        if enough and abs(probe.slope) <= -c2 * start.slope:
            return probe, count, "the strong Wolfe conditions hold"
        quiet = probe.loss <= start.loss + noise and abs(c1 * t * start.slope) <= noise
        if quiet and c2 * start.slope <= probe.slope <= (2 * c1 - 1) * start.slope:
            return probe, count, "the approximate Wolfe conditions hold, within rounding"
        if high is None and enough and probe.loss < low.loss and probe.slope < 0:
            # Still falling: look further, as the cubic says but at least 1.1 and at most 4 lengths on.
            guess, reach = cubic_minimum(low, probe), t - low.t
            low = probe
            t = min(max(guess if guess > t else math.inf, t + 1.1 * reach), t + 4 * reach)
            if t >= ceiling:
                t = 0.5 * (low.t + ceiling)
            continue
        if not enough or probe.loss >= low.loss:
            high = probe
        else:
            if high is None or probe.slope * (high.t - low.t) >= 0:
                high = low
            low = probe
        width, previous_width = abs(high.t - low.t), width
        if width <= 1e-16 * max(low.t, high.t):
            break
        t = _between(low, high, halve=width > 0.66 * previous_width)
    else:
        count = limit
    if low.t > 0:
        return low, count, "a decrease, but no length with the strong Wolfe slope was found"
    return None, count, "no length along this direction lowered the loss"


def _between(low: Probe[P], high: Probe[P], *, halve: bool) -> float:
    guess = cubic_minimum(low, high)
    fraction = (guess - low.t) / (high.t - low.t)
    if halve or not math.isfinite(fraction):
        fraction = 0.5
    return low.t + min(max(fraction, 0.05), 0.95) * (high.t - low.t)
