"""What every page is written in: `Rule`, its hyperparameters with their domains, and a small vocabulary.

A page is a frozen dataclass. Its fields are hyperparameters; `state` names what it remembers of each weight;
`coefficients(step)` turns hyperparameters into the scalars of one step; `update` moves one weight by one step.

`update` may use `+ - * /`, comparisons, numbers, and the functions below. Here they work on plain numbers, so a
page can be read and run by hand; each backend binds the same names to its own. There is no `if` in an `update`:
a convention is a coefficient, and what changes the *state* is a variant with an `update_<variant>` of its own.

`norm(x)`, `mean(x)`, `root_mean_square(x)` and `total(x)` are of a whole tensor. The compiler makes passes over memory
of them: one that measures for each that another one depends on, and the last one, which alone writes. `orthogonal(x)`
is of a whole matrix: the library's products make it between two passes, as `Rule.iterations` say. `rows(w)` and
`columns(w)` are known of its shape, `machine_epsilon(w)` of its dtype.

`row_mean(x)` and `column_mean(x)` are over the last axis and the one before: a number for each row, one for each
column. A slot can have as many, and no more (`shapes`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from math import exp, log, sqrt
from typing import Any, ClassVar, Self

from schuss.errors import Domain

__all__ = [
    "MATRIX",
    "MEASURED",
    "SHAPES",
    "VECTORS",
    "VOCABULARY",
    "WHOLE_TENSOR",
    "Rule",
    "choice",
    "column_mean",
    "columns",
    "exp",
    "log",
    "machine_epsilon",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "number",
    "option",
    "orthogonal",
    "root_mean_square",
    "row_mean",
    "rows",
    "sign",
    "sqrt",
    "total",
    "where",
]


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, `no` elsewhere; both are computed."""
    return yes if condition else no


def maximum(a: Any, b: Any) -> Any:
    """The larger of two numbers; NaN if either is NaN, as in torch and NumPy."""
    return where((a > b) | (a != a), a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two numbers; NaN if either is NaN, as in torch and NumPy."""
    return where((a < b) | (a != a), a, b)


def sign(a: Any) -> Any:
    """−1, 0 or 1; NaN for NaN."""
    return where(a > 0, 1, where(a < 0, -1, a))


# Words that need every number of a tensor. Of a tensor of one number they mean:


def norm(a: Any) -> Any:
    """The 2-norm of a whole tensor: the root of a sum of float64 squares, so infinite beyond 1e154, 0 below 1e-162."""
    return abs(a)


def mean(a: Any) -> Any:
    """The mean over a whole tensor."""
    return a


def root_mean_square(a: Any) -> Any:
    """The root of the mean square over a whole tensor."""
    return abs(a)


def total(a: Any) -> Any:
    """The sum over a whole tensor."""
    return a


def rows(a: Any) -> Any:
    """How many rows the weight's matrix has: its first axis. All other axes together are its columns."""
    del a
    return 1.0


def columns(a: Any) -> Any:
    """How many columns the weight's matrix has."""
    del a
    return 1.0


def machine_epsilon(a: Any) -> Any:
    """The distance from 1 to the next number of the weight's dtype."""
    del a
    return 2.0**-52


def orthogonal(a: Any) -> Any:
    """The matrix with all singular values driven to 1, by the rule's `iterations`."""
    return sign(a)


def row_mean(a: Any) -> Any:
    """The mean over the last axis: a number for each row."""
    return a


def column_mean(a: Any) -> Any:
    """The mean over the last axis but one: a number for each column, in each matrix of a tensor of more axes."""
    return a


# Those that give one number for a tensor, those that are known without looking at its numbers, those that give a
# matrix, and those that give a number for each row or column.
MEASURED = ("mean", "norm", "root_mean_square", "total")
SHAPES = ("rows", "columns", "machine_epsilon")
MATRIX, VECTORS = ("orthogonal",), {"row_mean": "row", "column_mean": "column"}
WHOLE_TENSOR = (*MEASURED, *SHAPES, *MATRIX, *VECTORS)
# The names that a backend binds anew. `abs` is Python's own.
VOCABULARY = ("abs", "exp", "log", "maximum", "minimum", "sign", "sqrt", "where", *WHOLE_TENSOR)


def number(
    default: float | None,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    above: float = -math.inf,
    advice: str = "",
    optional: bool = False,
) -> Any:
    """A real hyperparameter: low ≤ it ≤ high, above < it < below; or None, if it is `optional`."""
    domain = Domain(low, high, below, above, advice=advice, optional=optional)
    return field(default=default, metadata={"domain": domain})


def option(default: bool) -> Any:
    """A hyperparameter that is on or off."""
    return field(default=default, metadata={"domain": Domain(kind=bool)})


def choice(*choices: str | None, advice: str = "") -> Any:
    """A hyperparameter that is one of several words, or None; the first is the default."""
    return field(default=choices[0], metadata={"domain": Domain(choices=choices, advice=advice)})


@functools.cache
def _domains(rule: type[Rule]) -> dict[str, Domain]:
    return {f.name: f.metadata["domain"] for f in fields(rule)}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An optimizer as mathematics: hyperparameters, named state, and one step of one weight.

    `state` names what is remembered of each weight, in the order in which `update` takes and returns it;
    `variants` does so where an option changes it. `scalars` names what is remembered of a whole tensor. `bounds` says
    between which two numbers each of these stays: a checkpoint with others is damaged. `shapes` names the slots that
    have one number for each "row" or "column", as `row_mean` and `column_mean` give them. `precise` names the slots
    that hold weights, which have no meaning in fewer bits than float32 has; those with `shapes` have as many.

    What else a rule may say: `tuples`, the hyperparameters that a constructor takes together, as
    `{"betas": ("beta1", "beta2")}`; `state_names`, what a checkpoint calls its state, where not by the rule's letters;
    `space`, what a race searches, as `{"lr": (1e-4, 1e-1)}` (low, high, and False where not log-uniform; `1 - beta1`
    searches what is left of one).
    """

    state: ClassVar[tuple[str, ...]] = ()
    variants: ClassVar[dict[str, tuple[str, ...]]] = {"": ()}
    shapes: ClassVar[dict[str, str]] = {}
    scalars: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    precise: ClassVar[tuple[str, ...]] = ()
    tuples: ClassVar[dict[str, tuple[str, ...]]] = {}
    state_names: ClassVar[dict[str, str]] = {}
    space: ClassVar[dict[str, tuple[float, float] | tuple[float, float, bool]]] = {}

    def __init_subclass__(cls) -> None:
        if "variants" not in cls.__dict__ and "state" in cls.__dict__:
            cls.variants = {"": cls.state}

    def __post_init__(self) -> None:
        self._check(_domains(type(self)))

    def _check(self, names: Iterable[str]) -> None:
        domains = _domains(type(self))
        for name in names:
            domains[name].check(name, getattr(self, name))
        self.check()

    def changed(self, **values: float) -> Self:
        """The same rule with some other hyperparameters: what `dataclasses.replace` does, in a quarter of the time."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **values)
        other._check(values)
        return other

    def check(self) -> None:
        """Refuse what the domains of single hyperparameters cannot: combinations of them."""

    @property
    def variant(self) -> str:
        """Which of `variants` these hyperparameters choose."""
        return ""

    @property
    def slots(self) -> tuple[str, ...]:
        """The state of this variant, by name."""
        return self.variants[self.variant]

    def variant_of(self, dimensions: int) -> str:
        """Which of `variants` moves a weight with so many axes."""
        del dimensions
        return self.variant

    def slots_of(self, dimensions: int) -> tuple[str, ...]:
        """The state of a weight with so many axes, by name."""
        return self.variants[self.variant_of(dimensions)]

    @classmethod
    def has_evaluated(cls) -> bool:
        """Whether the weights to evaluate are others than those that are trained."""
        return cls.evaluated is not Rule.evaluated

    def evaluated(self, w: Any, *slots: Any) -> Any:
        """The weights to evaluate, from those that are trained and the state in the order of `slots`."""
        del slots
        return w

    @property
    def iterations(self) -> tuple[tuple[float, float, float], ...]:
        """The polynomials a σ + b σ³ + c σ⁵ by which `orthogonal` drives singular values to 1."""
        raise NotImplementedError

    @property
    def smallest_norm(self) -> float:
        """`orthogonal` divides a matrix by its norm at first; by this where the norm is smaller."""
        return 1e-7

    def initial(self) -> dict[str, float]:
        """The value of each slot and scalar before the first step, where it is not 0."""
        return {}

    def coefficients(self, step: int, **scalars: float) -> dict[str, float]:
        """The scalars of step 1, 2, ..., by name, in float64; the tensor's own new `scalars` among them."""
        raise NotImplementedError
