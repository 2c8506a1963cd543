"""The NumPy API: optimizers for dicts of arrays, and minibatches.

>>> import numpy as np
>>> from schuss.numpy import Adam
>>> params, optimizer = {"W": np.ones((2, 3)), "b": np.zeros(3)}, Adam(lr=0.1)
>>> optimizer.update(params, {"W": np.ones((2, 3)), "b": np.ones(3)})
>>> params["b"].round(6)
array([-0.1, -0.1, -0.1])
"""

from __future__ import annotations

from schuss.numpy.minibatches import minibatches
from schuss.numpy.optimizer import Optimizer as Optimizer
from schuss.numpy.optimizer import optimizer
from schuss.rules import TABLE

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    *TABLE,
    "minibatches",
    "optimizer",
]


# A class for each row of the table; `__init__.pyi`, which is generated, says what each takes.
globals().update({row.name: optimizer(row.rule) for row in TABLE.values()})
