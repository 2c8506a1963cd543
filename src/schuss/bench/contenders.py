"""Who is timed: each page here, and the same optimizer as others have it, all with the same hyperparameters."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch

import schuss.torch
from schuss.bench import check
from schuss.rules import TABLE, Rule

OURS = "schuss"
# torch.optim's implementations, and the arguments that choose them. Its default on the CPU is a loop over the tensors.
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "torch fused": dict(fused=True),
    "torch foreach": dict(foreach=True),
    "torch default": dict(),
}
# What torch.optim fuses on the CPU.
FUSED = ("SGD", "Adam", "AdamW", "Adagrad")

Make = Callable[[Sequence[torch.Tensor]], Any]


@dataclass(frozen=True)
class Page:
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


PAGES = (*map(Page, TABLE), Page("SGD", {"momentum": 0.9}))


def _peer(package: str) -> ModuleType | None:
    try:
        return importlib.import_module(package)
    except ImportError:
        return None


def _arguments(page: Page, accepted: Sequence[str]) -> dict[str, Any]:
    """The page's hyperparameters under the names that torch.optim and its peers share, as far as they are accepted."""
    values = dataclasses.asdict(page.rule)
    values |= {name: tuple(values[one] for one in parts) for name, parts in page.rule.tuples.items()}
    return {name: values[name] for name in accepted if name in values and not isinstance(values[name], bool)}


def _like(page: Page, cls: Callable[..., Any]) -> Make:
    """The peer's optimizer with the page's hyperparameters."""
    return functools.partial(cls, **_arguments(page, list(inspect.signature(cls).parameters)))


def contenders(page: Page) -> dict[str, Make]:
    """Everyone who has this optimizer: called with weights, each makes a torch optimizer."""
    found: dict[str, Make] = {OURS: _like(page, getattr(schuss.torch, page.optimizer))}
    theirs = getattr(torch.optim, page.optimizer, None)
    if theirs is not None:
        for name, how in IMPLEMENTATIONS.items():
            if name != "torch fused" or page.optimizer in FUSED:
                found[name] = functools.partial(_like(page, theirs), **how)
    optimi = _peer("optimi")
    if optimi is not None and hasattr(optimi, page.optimizer):
        found["optimi"] = _like(page, getattr(optimi, page.optimizer))
    if (
        theirs is None
        and (others := _peer("pytorch_optimizer")) is not None
        and hasattr(others, page.optimizer)
    ):
        make = _like(page, getattr(others, page.optimizer))
        # It counts ADOPT's first step, which moves nothing, among those whose fourth root it clips by.
        more = {"clip_lambda": lambda step: (step - 1) ** 0.25} if page.optimizer == "ADOPT" else {}
        found["pytorch_optimizer"] = functools.partial(make, **more)
    return found


def disagreement(page: Page, make: Make) -> str:
    """What this contender gets wrong, or nothing."""

    def moved(weights: list[np.ndarray], gradients: list[list[np.ndarray]]) -> list[np.ndarray]:
        parameters = [torch.nn.Parameter(torch.from_numpy(w)) for w in weights]
        optimizer = make(parameters)
        for step in gradients:
            for parameter, g in zip(parameters, step, strict=True):
                parameter.grad = torch.from_numpy(g)
            optimizer.step()
        return [parameter.detach().numpy() for parameter in parameters]

    return check.disagreement(page.rule, moved, "float32")
