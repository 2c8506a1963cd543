"""The PyTorch front: torch.optim's optimizers by their own names, each a page of maths in one fused launch.

Changing `from torch.optim import AdamW` to `from schuss.torch import AdamW` is all that there is to do.
"""

from __future__ import annotations

from schuss.rules import TABLE
from schuss.torch.optimizer import Optimizer


class SGD(Optimizer):
    row = TABLE["SGD"]


class Adagrad(Optimizer):
    row = TABLE["Adagrad"]


class Adadelta(Optimizer):
    row = TABLE["Adadelta"]


class RMSprop(Optimizer):
    row = TABLE["RMSprop"]


class Adam(Optimizer):
    row = TABLE["Adam"]


class AdamW(Optimizer):
    row = TABLE["AdamW"]


class NAdam(Optimizer):
    row = TABLE["NAdam"]


class RAdam(Optimizer):
    row = TABLE["RAdam"]


class Adamax(Optimizer):
    row = TABLE["Adamax"]


class Rprop(Optimizer):
    row = TABLE["Rprop"]


class ASGD(Optimizer):
    row = TABLE["ASGD"]


class Lion(Optimizer):
    row = TABLE["Lion"]
