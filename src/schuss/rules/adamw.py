"""AdamW: Adam with decay that its averages never see.

Source: Loshchilov and Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from schuss.rules.adam import Adam
from schuss.rules.rule import number, option


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    r"""Adam, and apart from it a pull of each weight towards 0.

    At step t = 1, 2, ... a weight w with gradient g moves by

        w ← (1 − η λ) w                   decay, outside the averages
        w ← w − η m̂ / (√v̂ + ε)           Adam's step: see `Adam` for m̂, v̂ and the hyperparameters

    | here           | paper | units  | domain | meaning                                    |
    |----------------|-------|--------|--------|--------------------------------------------|
    | `weight_decay` | λ     | 1/η    | ≥ 0    | fraction of w lost per step, over `lr`     |

    Where implementations differ: the paper multiplies λ by the schedule's factor alone; PyTorch, Keras, Optax and
    Schuss by the whole learning rate, so that halving `lr` halves the decay.

    >>> rule = AdamW(lr=0.1, weight_decay=0.5)
    >>> rule.update(1.0, 0.0, 0.0, 0.0, **rule.coefficients(step=1))
    (0.95, 0.0, 0.0)
    """

    weight_decay: float = number(1e-2, low=0)
    decoupled_weight_decay: bool = option(True)
