"""Half a period of a cosine.

Source: Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, equation 5, for
a single period. https://arxiv.org/abs/1608.03983
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from schuss.schedules.schedule import UNSAID, Length, Parametric, Value, between, cosine


@dataclass(frozen=True, repr=False)
class Cosine(Parametric):
    """From `start` to `end` along half a cosine: slow, fast in the middle, slow.

        value(n) = end + ½ (start − end) (1 + cos πn/N)

    | here    | paper | units | domain | meaning                               |
    | `start` | η_max | value | finite | the value of the first step           |
    | `end`   | η_min | value | finite | the floor, and the value from N on    |
    | `steps` | T     | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: torch's `CosineAnnealingLR` rises again after `T_max`, this stays at the
    floor. optax' and Keras' `alpha` is the floor as a fraction of the start: `end = alpha * start`.

    >>> schedule = Cosine(1e-3, 1e-5, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000), schedule(1500)
    (0.001, 0.000505, 1e-05, 1e-05)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, cosine(n / self.steps))
