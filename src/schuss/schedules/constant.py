"""The schedule that does nothing, for comparing and for holding a value between two others."""

from __future__ import annotations

from dataclasses import dataclass

from schuss.schedules.schedule import Parametric, Value


@dataclass(frozen=True, repr=False)
class Constant(Parametric):
    """The same value at every step.

        value(n) = start

    | here    | units | domain | meaning                                               |
    | `start` | value | finite | the value                                             |
    | `steps` | steps | > 0    | only where another schedule follows; without end else |

    >>> from schuss.schedules import Linear
    >>> held = Constant(0.5, steps=100).then(Linear(0.5, steps=50))
    >>> held(99), held(125), held(150)
    (0.5, 0.25, 0.0)
    """

    start: Value

    def _formula(self, n: float) -> float:
        return self.start
