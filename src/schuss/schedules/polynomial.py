"""A power of the line: the classic decay of image segmentation.

Source: Chen et al., "DeepLab", 2018, section 4.1 (power 0.9). https://arxiv.org/abs/1606.00915
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from schuss.schedules.schedule import UNSAID, Length, Parametric, Positive, Value, between


@dataclass(frozen=True, repr=False)
class Polynomial(Parametric):
    """From `start` to `end` along a power of what is left: above 1 it falls early, below 1 late.

        value(n) = end + (start − end) (1 − n/N)^power

    | here    | units | domain | meaning                               |
    | `start` | value | finite | the value of the first step           |
    | `end`   | value | finite | the value from step N on              |
    | `power` | none  | > 0    | 1 is the straight line, 2 a parabola  |
    | `steps` | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: torch's `PolynomialLR` ends at 0 only; `optax.polynomial_schedule` and
    Keras' `PolynomialDecay` are the same. All use power 1 by default.

    >>> schedule = Polynomial(1e-3, power=2, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000)
    (0.001, 0.00025, 0.0)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    power: Positive = 1.0
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, 1 - (1 - n / self.steps) ** self.power)
