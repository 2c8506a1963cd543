"""The straight line, the simplest decay that ends."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from schuss.schedules.schedule import UNSAID, Length, Parametric, Value, between


@dataclass(frozen=True, repr=False)
class Linear(Parametric):
    """The straight line from `start` to `end`; to 0 if no end is said.

        value(n) = (1 − n/N) · start + n/N · end

    | here    | units | domain | meaning                               |
    | `start` | value | finite | the value of the first step           |
    | `end`   | value | finite | the value from step N on              |
    | `steps` | N     | > 0    | how many steps it takes (or `epochs`) |

    Where implementations differ: `torch.optim.lr_scheduler.LinearLR` says both ends as factors of the
    optimizer's lr and by default rises from a third; `optax.linear_schedule` and Keras'
    `PolynomialDecay(power=1)` are the same.

    >>> schedule = Linear(1e-3, steps=1000)
    >>> schedule(0), schedule(500), schedule(1000), schedule(5000)
    (0.001, 0.0005, 0.0, 0.0)
    """

    start: Value
    end: Value = 0.0
    _: KW_ONLY
    steps: Length = UNSAID

    def _formula(self, n: float) -> float:
        return between(self.start, self.end, n / self.steps)
