"""Who is timed: each optimizer here, and the same one as others have it, all with the same hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import schuss.torch
from schuss.bench import check
from schuss.bench.check import Make
from schuss.compile.formula import formula
from schuss.rules import TABLE, Rule

OURS = "schuss"
# torch.optim's implementations, and the arguments that choose them. Its default on the CPU is a loop over the tensors.
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "torch fused": dict(fused=True),
    "torch foreach": dict(foreach=True),
    "torch default": dict(),
}
# Whose optimizer of the same name does something else, and what: nobody would be compared with the like.
LEFT_OUT: dict[tuple[str, str], str] = {
    ("LARS", "pytorch_optimizer"): "overwrites the gradients, and moves vectors by plain SGD",
    ("ScheduleFreeAdamW", "pytorch_optimizer"): "overwrites the gradients",
    ("ScheduleFreeRAdam", "pytorch_optimizer"): "overwrites the gradients",
}
# What makes pytorch_optimizer's of a name the same as ours.
ALIKE: dict[str, dict[str, Any]] = {
    # It counts the first step, which moves nothing, among those whose fourth root it clips by.
    "ADOPT": {"clip_lambda": lambda step: (step - 1) ** 0.25},
    "MARS": {"optimize_1d": True},  # else AdamW moves vectors
}
# What torch.optim fuses on the CPU.
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")


@dataclass(frozen=True)
class Case:
    """An optimizer by its name in the table of rules, and what is set otherwise than by default."""

    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def rule(self) -> Rule:
        """What every contender has to do."""
        return TABLE[self.optimizer].rule(**self.options)

    def moved(self, elements: int, itemsize: int = 4) -> int:
        """The bytes that a step cannot but move: weight and slots read and written, the gradient read."""
        return itemsize * elements * (3 + 2 * len(self.rule.slots))

    def __str__(self) -> str:
        return ", ".join([self.optimizer, *(f"{name} {value:g}" for name, value in self.options.items())])


HEADLINE = Case("AdamW")
# Of rules of matrices a step is products of matrices, whose time says nothing of memory.
_NAMES = tuple(name for name, row in TABLE.items() if not formula(row.rule).of_matrices)
CASES = (HEADLINE, *(Case(name) for name in _NAMES if name != "AdamW"), Case("SGD", {"momentum": 0.9}))


def _like(case: Case, package: Any) -> Make | None:
    """A package's optimizer of that name, if it has one, with the case's hyperparameters as far as it takes them."""
    cls: Callable[..., Any] | None = getattr(package, case.optimizer, None)
    if cls is None:
        return None
    values = dataclasses.asdict(case.rule)
    values |= {name: tuple(values[one] for one in parts) for name, parts in case.rule.tuples.items()}
    accepted = {
        name: values[name]
        for name in inspect.signature(cls).parameters
        if name in values and not isinstance(values[name], bool)
    }
    return functools.partial(cls, **accepted)


def contenders(case: Case) -> dict[str, Make]:
    """Everyone who has this optimizer: called with weights, each makes a torch optimizer."""
    found = {OURS: _like(case, schuss.torch)}
    theirs = _like(case, torch.optim)
    if theirs is not None:
        for name, how in IMPLEMENTATIONS.items():
            if name != "torch fused" or case.optimizer in FUSED:
                found[name] = functools.partial(theirs, **how)
    for package in ("optimi", *(["pytorch_optimizer"] if theirs is None else [])):
        if (case.optimizer, package) in LEFT_OUT:
            continue
        try:
            found[package] = _like(case, importlib.import_module(package))
        except ImportError:
            continue
    theirs = found.get("pytorch_optimizer")
    if theirs is not None:
        found["pytorch_optimizer"] = functools.partial(theirs, **ALIKE.get(case.optimizer, {}))
    return {name: make for name, make in found.items() if make is not None}


def disagreement(case: Case, make: Make, device: str = "cpu") -> str:
    """What this contender gets wrong, or nothing."""
    return check.disagreement(case.rule, check.moved_by(make, device), "float32")
