"""Who races: each optimizer with its usual settings and the space that is searched for it.

Hyperparameters are searched in the names of their spaces: `1 - beta1` is handed to the class as `betas[0] =
1 − x`, since what is log-uniform is 1 − β. Spaces marked (A) are AlgoPerf's published ones; the others
follow them: the same width, round the values that the optimizer's own paper uses.

Source: Dahl et al., "Benchmarking neural network training algorithms", 2023,
https://arxiv.org/abs/2306.07179; Chen et al., "Symbolic discovery of optimization algorithms", 2023,
section 5 (Lion: a learning rate 3 to 10 times smaller than AdamW's, decay as many times larger); Liu, Su et al.,
"Muon is Scalable for LLM Training", 2025, section 2.2 (Muon with AdamW's learning rate and decay).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite, log10
from typing import Any, Literal, cast, get_args

from torch import Tensor
from torch.optim import Optimizer

import schuss.torch as optimizers
from schuss.compile.formula import formula
from schuss.errors import real, refusal, unknown
from schuss.lab.files import UserCode, load_own
from schuss.lab.names import check_entry, divide, is_own
from schuss.lab.statistics.sampling import Range
from schuss.rules import TABLE, Rule

Kind = Literal["gradient", "unit", "curvature"]
_RANGE = "A range is (low, high, whether it is searched in its logarithm): {'lr': (1e-4, 1e-1, True)}."

DECADES = log10(250)  # of learning rate, the same for every entry: the widest of the published ranges

MOMENTUM: Range = (5e-3, 0.3, True)  # of 1 − β (A)
L2: Range = (1e-7, 5e-5, True)  # (A)
FRACTION: Range = (0.5, 1.0, False)
"""Fraction of the step that a second-order method proposes. 1 is the proposed step, whose length a trust region or
a line search has already checked. Less damps it; below a half every step is less than half of it."""
DECOUPLED: Range = (5e-3, 1.0, True)  # (A)
BETA1: Range = (2e-2, 0.5, True)  # of 1 − β₁ (A)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An optimizer in a race: its class, its fixed settings, and its search space.

    | field       | meaning                                                                         |
    | `name`      | what it is called in the report                                                 |
    | `optimizer` | the class: `optimizer(weights, lr=..., ...)`                                    |
    | `space`     | name -> (low, high, log-uniform); must hold "lr"                                |
    | `usual`     | settings it is usually given, in the names of the space                         |
    | `fixed`     | keyword arguments that every run gets                                           |
    | `kind`      | "gradient": a step is as long as the gradient; "unit": as long as its lr;       |
    |             | "curvature": as long as the method's own model says; lr is the fraction taken   |
    | `source`    | the text of the file it came from, if any: its runs are named by it too         |
    | `code`      | the modules that this file imports from next to it: they travel to the workers  |

    >>> import torch
    >>> Entry(name="mine", optimizer=torch.optim.SGD, space={"lr": (1e-3, 0.1, True)}).arguments({"lr": 1})
    {'lr': 1}
    """

    name: str
    optimizer: type[Optimizer]
    space: Mapping[str, Range]
    usual: Mapping[str, float] = field(default_factory=dict[str, float])
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kind: Kind = "unit"
    source: str = ""
    code: UserCode = field(default_factory=UserCode, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no race could run."""
        if not (isinstance(self.name, str) and self.name.isprintable() and self.name):  # pyright: ignore
            raise refusal("name", self.name, "a name", "It is one line of text that can be printed.")
        if not callable(self.optimizer):  # pyright: ignore[reportUnnecessaryComparison]
            raise refusal(
                f"{self.name}: optimizer",
                self.optimizer,
                "an optimizer class, or a function that makes one from weights and lr",
            )
        if self.kind not in (kinds := get_args(Kind)):
            raise unknown(f"{self.name}: kind", self.kind, kinds)
        for what, given in (("space", self.space), ("usual", self.usual), ("fixed", self.fixed)):
            if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise refusal(f"{self.name}: {what}", given, "a dict", _RANGE)
        if "lr" not in self.space:
            raise refusal(
                "space", sorted(self.space), "a space with lr", f"{self.name} needs a learning rate to race."
            )
        for name, bounds in self.space.items():
            _check_range(f"{self.name}: {name}", bounds)

    @property
    def widens(self) -> bool:
        """Whether learning rates beyond the range can be searched: a fraction of a step ends at 1."""
        return self.kind != "curvature"

    def arguments(self, parameters: Mapping[str, float]) -> dict[str, Any]:
        """The class's keyword arguments at a point of the search space.

        >>> find("adam").arguments({"lr": 0.01, "1 - beta1": 0.25})
        {'betas': (0.75, 0.999), 'lr': 0.01}
        """
        plain = {
            name.removeprefix("1 - "): 1 - x if name.startswith("1 - ") else x
            for name, x in parameters.items()
        }
        arguments = dict(self.fixed)
        for together, parts in self._tuples.items():
            if any(part in plain for part in parts):
                usual = arguments.get(together, _default(self.optimizer, together))
                arguments[together] = tuple(
                    plain.pop(part, one) for part, one in zip(parts, usual, strict=True)
                )
        return arguments | plain

    @property
    def _tuples(self) -> Mapping[str, tuple[str, ...]]:
        """The hyperparameters that the class takes in one tuple; of a class that does not say, torch.optim's betas."""
        row = getattr(self.optimizer, "row", None)
        return {"betas": ("beta1", "beta2")} if row is None else row.rule.tuples

    def build(self, weights: Iterable[Any], parameters: Mapping[str, float]) -> Optimizer:
        """The optimizer over these weights at a point of the search space."""
        return self.over(weights, self.arguments(parameters))

    def over(self, weights: Iterable[Any], arguments: Mapping[str, Any]) -> Optimizer:
        """The optimizer with these arguments. Of a rule of matrices AdamW moves the vectors, at the same rate."""
        return self.optimizer(
            by_shape(weights, arguments["lr"]) if self.of_matrices else weights, **arguments
        )

    @property
    def of_matrices(self) -> bool:
        """Whether the optimizer's rule moves matrices alone."""
        row = getattr(self.optimizer, "row", None)
        return row is not None and formula(row.rule).of_matrices


def by_shape(weights: Iterable[Any], lr: float) -> list[Any]:
    """Groups for a rule of matrices: the matrices for itself, vectors and numbers for AdamW without decay."""
    given = list(weights)
    vectors = [w for w in given if isinstance(w, Tensor) and w.ndim < 2]
    matrices = [w for w in given if not (isinstance(w, Tensor) and w.ndim < 2)]
    if not matrices or not vectors:
        return given
    return [{"params": matrices}, {"params": vectors, "rule": "AdamW", "lr": lr, "weight_decay": 0.0}]


def _check_range(name: str, bounds: Any) -> None:
    """Refuse what is no range of numbers that can be searched."""
    if not (isinstance(bounds, Sequence) and not isinstance(bounds, str) and len(cast(Any, bounds)) == 3):
        raise refusal(name, bounds, "(low, high, True or False)", _RANGE)
    low, high, log = cast("tuple[Any, Any, Any]", tuple(cast(Any, bounds)))
    for number in (low, high):
        real(name, number, "a finite number", isfinite)
    if not (low < high and (low > 0 or not log)):
        raise refusal(name, (low, high), "low < high, and above 0 where it is logarithmic")


def _default(make: Any, name: str) -> Any:
    """The default of an argument; what torch.optim has for betas where there is none to see."""
    found = inspect.signature(make).parameters.get(name)
    return (0.9, 0.999) if found is None or found.default is found.empty else found.default


def even(low: float, high: float, decades: float = DECADES) -> Range:
    """Widen a range of learning rates on both sides alike, to as many decades as everyone's.

    >>> low, high, log = even(1e-4, 1e-2, 4)
    >>> round(low, 12), round(high, 12)
    (1e-05, 0.1)
    """
    extra = 10 ** ((decades - log10(high / low)) / 2)
    return low / extra, high * extra, True


def _entry(
    name: str,
    optimizer: str,
    lr: tuple[float, float],
    usual: float,
    decay: Range = L2,
    kind: Kind = "unit",
    **more: Any,
) -> Entry:
    """An entry of ours; `more` are the range of 1 − β or of 1 − momentum, and what is fixed."""
    space, settings = {"lr": even(*lr)}, {"lr": usual}
    if "beta1" in more:
        space["1 - beta1"] = more.pop("beta1")
    if "momentum" in more:
        space["1 - momentum"], settings["1 - momentum"] = more.pop("momentum"), 0.1
    space["weight_decay"] = decay
    make = getattr(optimizers, optimizer)
    return Entry(name=name, optimizer=make, space=space, usual=settings, kind=kind, fixed=more)


def _curved(name: str, optimizer: str, **fixed: Any) -> Entry:
    """An entry of ours that steps by curvature."""
    return Entry(
        name=name,
        optimizer=getattr(optimizers, optimizer),
        space={"lr": FRACTION, "weight_decay": L2},
        usual={"lr": 1.0},
        fixed={"full_batch": True, **fixed},
        kind="curvature",
    )


_SGD, _ADAM = (2e-2, 5.0), (1e-4, 1e-2)  # learning rates
_OFFERED = (
    _entry("sgd", "SGD", _SGD, 0.1, kind="gradient"),
    _entry("momentum", "SGD", _SGD, 0.1, kind="gradient", momentum=MOMENTUM),  # (A)
    _entry("nesterov", "SGD", _SGD, 0.1, kind="gradient", momentum=MOMENTUM, nesterov=True),  # (A)
    _entry("adagrad", "Adagrad", (1e-3, 1e-1), 1e-2),
    _entry("rmsprop", "RMSprop", _ADAM, 1e-3),
    _entry("adam", "Adam", _ADAM, 1e-3, beta1=BETA1),
    _entry("adamw", "AdamW", _ADAM, 1e-3, DECOUPLED, beta1=BETA1),  # (A)
    _entry(
        "nadamw", "NAdam", _ADAM, 1e-3, DECOUPLED, beta1=(4e-3, 0.1, True), decoupled_weight_decay=True
    ),  # (A)
    _entry("lion", "Lion", (1e-5, 1e-3), 1e-4, (5e-2, 10.0, True), beta1=BETA1, betas=(0.9, 0.99)),
    _entry("adadelta", "Adadelta", (1e-1, 1e1), 1.0),
    _entry("adamax", "Adamax", (2e-4, 2e-2), 2e-3, beta1=BETA1),
    _entry("nadam", "NAdam", _ADAM, 2e-3, beta1=BETA1),
    _entry("radam", "RAdam", _ADAM, 1e-3, beta1=BETA1),
    _entry("asgd", "ASGD", _SGD, 1e-2, kind="gradient"),
    # Steps of AdamW's size: so one rate does for matrices and for the vectors that AdamW moves.
    _entry("muon", "Muon", _ADAM, 1e-3, DECOUPLED, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"),
    _curved("newton-cg", "NewtonCG"),
    _curved("lbfgs", "LBFGS"),
    _curved("gauss-newton", "GaussNewton", solver="cg"),  # a dense J is as many products as outputs
)

ENTRIES = {entry.name: entry for entry in _OFFERED}
DEFAULT = tuple(ENTRIES)[:9]  # to lion


def find(name: str) -> Entry:
    """The entry of that name, or of `file.py:name` or `package.module:name`: a rule, class, function or `Entry`."""
    if isinstance(name, str) and name not in ENTRIES and is_own(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        file, inside = divide(name)
        if not inside:
            raise refusal("entry", name, "file.py:name", f"Name the optimizer in it: {name}:MyOptimizer.")
        return own(file, inside)
    return ENTRIES[check_entry(name)]


def own(file: str, name: str) -> Entry:
    """An entry from the user's file or module: an optimizer class, a function that makes one, or an `Entry`.

    What is found there may be an `Entry`, a rule, or anything that makes an optimizer from weights and `lr`; a
    `space` attribute on it is its search space, else `lr` is searched round its own default, and with a rule also its
    first beta or momentum and its weight decay.
    """
    loaded = load_own(file)
    found, label = loaded.get(name), f"{file}:{name}"
    if isinstance(found, type) and issubclass(found, Rule):
        found = optimizers.optimizer(found)
    if not isinstance(found, Entry):
        if not callable(found):
            raise refusal("entry", label, "an optimizer class, a function that makes one, or an Entry")
        found = wrap(label, found)
    return replace(found, source=loaded.source, code=loaded.code)


def wrap(name: str, make: Any) -> Entry:
    """An entry from an optimizer class, with its own `space` or its learning rate round its default."""
    rule = getattr(getattr(make, "row", None), "rule", None)
    space = getattr(make if rule is None else rule, "space", None) or _round_defaults(make)
    if not isinstance(space, Mapping):
        raise refusal(f"{name}: space", space, "a dict", _RANGE)
    ranges: dict[str, Any] = {
        key: (*bounds, True) if isinstance(bounds, tuple | list) and len(cast(Any, bounds)) == 2 else bounds
        for key, bounds in cast("Mapping[str, Any]", space).items()
    }
    for key, bounds in ranges.items():
        _check_range(f"{name}: {key}", bounds)
    usual = {"lr": (ranges["lr"][0] * ranges["lr"][1]) ** 0.5} if "lr" in ranges else {}
    return Entry(name=name, optimizer=make, space=cast("Mapping[str, Range]", ranges), usual=usual)


def _round_defaults(make: Any) -> dict[str, Range]:
    """The learning rate round its default, and what the usual entries search with it where there is such a thing."""
    known = inspect.signature(make).parameters
    lr = getattr(known.get("lr"), "default", None)
    usual = float(lr) if isinstance(lr, int | float) and lr > 0 else 1e-3
    space: dict[str, Range] = {"lr": even(usual, usual)}
    rule = getattr(getattr(make, "row", None), "rule", None)
    defaults: dict[str, Any] = {} if rule is None else {f.name: f.default for f in fields(rule)}
    for name, averages in (("beta1", BETA1), ("momentum", MOMENTUM)):
        if defaults.get(name, 0) > 0:
            space[f"1 - {name}"] = averages
    if "weight_decay" in defaults:
        space["weight_decay"] = DECOUPLED if defaults["weight_decay"] > 0 else L2
    return space


# A rule of the table that has no entry above is raced as anybody's own rule is.
_raced = {entry.optimizer for entry in _OFFERED}
for _row in TABLE.values():
    if optimizers.optimizer(_row.rule) not in _raced:
        ENTRIES[_row.name.lower()] = wrap(_row.name.lower(), optimizers.optimizer(_row.rule))
