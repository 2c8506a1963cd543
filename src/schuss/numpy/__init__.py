"""The NumPy front: optimizers for dicts of arrays, and minibatches. Not one formula lives here.

>>> import numpy as np
>>> from schuss.numpy import Adam
>>> params, optimizer = {"W": np.ones((2, 3)), "b": np.zeros(3)}, Adam(lr=0.1)
>>> optimizer.update(params, {"W": np.ones((2, 3)), "b": np.ones(3)})
>>> params["b"].round(6)
array([-0.1, -0.1, -0.1])
"""

from __future__ import annotations

from schuss.numpy.minibatches import minibatches
from schuss.numpy.optimizer import Optimizer
from schuss.rules import TABLE

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "minibatches",
]


class SGD(Optimizer):
    """Gradient descent, with momentum or without: `schuss.rules.SGD`."""

    row = TABLE["SGD"]


class Adagrad(Optimizer):
    """A rate of its own for every weight, which only shrinks: `schuss.rules.Adagrad`."""

    row = TABLE["Adagrad"]


class Adadelta(Optimizer):
    """Steps in units of earlier steps: `schuss.rules.Adadelta`."""

    row = TABLE["Adadelta"]


class RMSprop(Optimizer):
    """Steps in units of the typical recent gradient: `schuss.rules.RMSprop`."""

    row = TABLE["RMSprop"]


class Adam(Optimizer):
    """Steps along the average gradient, in units of its typical size: `schuss.rules.Adam`."""

    row = TABLE["Adam"]


class AdamW(Optimizer):
    """Adam with decoupled weight decay: `schuss.rules.AdamW`."""

    row = TABLE["AdamW"]


class NAdam(Optimizer):
    """Adam that looks ahead as Nesterov does: `schuss.rules.NAdam`."""

    row = TABLE["NAdam"]


class RAdam(Optimizer):
    """Adam that waits until its average of squares can be trusted: `schuss.rules.RAdam`."""

    row = TABLE["RAdam"]


class Adamax(Optimizer):
    """Adam in units of the largest recent gradient: `schuss.rules.Adamax`."""

    row = TABLE["Adamax"]


class Rprop(Optimizer):
    """Steps by the sign of the gradient, as long as the sign allows: `schuss.rules.Rprop`."""

    row = TABLE["Rprop"]


class ASGD(Optimizer):
    """Gradient descent at a falling rate, and the average of its path: `schuss.rules.ASGD`."""

    row = TABLE["ASGD"]


class Lion(Optimizer):
    """Steps by the sign of the average gradient: `schuss.rules.Lion`."""

    row = TABLE["Lion"]
