"""What a rule means: its own `update`, in float64, one plain NumPy expression after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schuss.compile.formula import formula
from schuss.compile.matrices import slot_shape, words
from schuss.compile.storage import EPSILONS
from schuss.rules.rule import Rule

Array = np.ndarray[Any, Any]


WORDS: dict[str, Any] = {
    "abs": np.abs,
    "column_mean": lambda x: np.mean(x, axis=-2, keepdims=True),
    "exp": np.exp,
    "log": np.log,
    "machine_epsilon": lambda x: EPSILONS["float64"],
    "maximum": np.maximum,
    "mean": np.mean,
    "minimum": np.minimum,
    "norm": lambda x: np.linalg.norm(np.ravel(x)),
    "row_mean": lambda x: np.mean(x, axis=-1, keepdims=True),
    "root_mean_square": lambda x: np.linalg.norm(np.ravel(x)) / max(np.size(x), 1) ** 0.5,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "total": np.sum,
    "where": np.where,
}


class Reference:
    """A weight array of any shape and all its state, stepped in float64.

    `dtype` is what the weights are said to be of, to rules that ask (`machine_epsilon`).

    >>> from schuss.rules import Adam
    >>> reference = Reference(Adam(lr=0.1), np.array([1.0, 2.0]))
    >>> reference.step(np.array([3.0, -4.0])).round(6)
    array([0.9, 2.1])
    """

    def __init__(
        self,
        rule: Rule,
        w: Array,
        dtype: str = "float64",
        *,
        cautious: bool = False,
        max_update: float | None = None,
    ) -> None:
        self.rule, self.max_update = rule, max_update
        self.formula = formula(rule, cautious=cautious, limited=max_update is not None, dimensions=np.ndim(w))
        self.w = np.array(w, dtype=np.float64)
        self.steps = 0
        first = rule.initial()
        self.state: list[Array] = [
            np.full(slot_shape(self.w.shape, rule.shapes.get(name)), first.get(name, 0.0))
            for name in rule.slots_of(self.w.ndim)
        ]
        self.epsilon = EPSILONS[dtype]
        self.scalars = {name: first.get(name, 0.0) for name in rule.scalars}

    def step(self, g: Array) -> Array:
        """Take one step with gradient `g` (same shape) and return the weights."""
        self.steps += 1
        scalars = self.rule.coefficients(self.steps, **self.scalars)
        self.scalars = {name: scalars[name] for name in self.rule.scalars}
        if not self.w.size:
            return self.w
        vocabulary = WORDS | words(self.rule, self.w.shape) | {"machine_epsilon": lambda x: self.epsilon}
        with np.errstate(all="ignore"):
            self.w, *self.state = self.formula.bind(vocabulary)(
                self.w,
                np.asarray(g, dtype=np.float64),
                *self.state,
                *self.formula.values(self.rule, scalars, self.max_update),
            )
        return self.w

    def run(self, gradients: Sequence[Array]) -> Array:
        """Take a step with each gradient in turn."""
        for g in gradients:
            self.step(g)
        return self.w
