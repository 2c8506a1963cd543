"""Who races: each optimizer with its usual settings.

An entry names an optimizer class and the keyword arguments it is usually given. Arguments that are written
`1 - x` are handed to the class as `x`, and `beta1, beta2` as `betas`: a search space is log-uniform in 1 −
β, not in β.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

import schuss.torch as optimizers
from schuss.errors import refusal


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One way to train: an optimizer class and its settings.

    | field       | meaning                                                          |
    | `name`      | what it is called in the table                                   |
    | `optimizer` | the class                                                        |
    | `fixed`     | keyword arguments that every run of this entry gets              |
    | `usual`     | the settings it is usually given, in the names of a search space |
    """

    name: str
    optimizer: type[Optimizer]
    fixed: Mapping[str, Any]
    usual: Mapping[str, float]

    def arguments(self, parameters: Mapping[str, float]) -> dict[str, Any]:
        """The class's keyword arguments at a point of the search space.

        >>> find("adam").arguments({"lr": 0.01, "1 - beta1": 0.25})
        {'lr': 0.01, 'betas': (0.75, 0.999)}
        """
        plain = {
            name.removeprefix("1 - "): 1 - x if name.startswith("1 - ") else x
            for name, x in parameters.items()
        }
        arguments = dict(self.fixed) | {
            name: x for name, x in plain.items() if name not in ("beta1", "beta2")
        }
        if "beta1" in plain or "beta2" in plain:
            usual = arguments.get("betas", (0.9, 0.999))
            arguments["betas"] = (plain.get("beta1", usual[0]), plain.get("beta2", usual[1]))
        return arguments

    def build(self, weights: Iterable[Any], parameters: Mapping[str, float]) -> Optimizer:
        """The optimizer over these weights at a point of the search space."""
        return self.optimizer(weights, **self.arguments(parameters))


def _entry(name: str, optimizer: str, usual: Mapping[str, float], **fixed: Any) -> Entry:
    return Entry(name=name, optimizer=getattr(optimizers, optimizer), usual=usual, fixed=fixed)


ENTRIES = {
    entry.name: entry
    for entry in (
        _entry("sgd", "SGD", {"lr": 0.1}),
        _entry("momentum", "SGD", {"lr": 0.1, "1 - momentum": 0.1}),
        _entry("nesterov", "SGD", {"lr": 0.1, "1 - momentum": 0.1}, nesterov=True),
        _entry("adagrad", "Adagrad", {"lr": 0.01}),
        _entry("rmsprop", "RMSprop", {"lr": 0.001}),
        _entry("adam", "Adam", {"lr": 0.001}),
        _entry("adamw", "AdamW", {"lr": 0.001}),
    )
}


def find(name: str) -> Entry:
    """The entry of that name."""
    if name not in ENTRIES:
        raise refusal("entry", name, f"one of {', '.join(ENTRIES)}")
    return ENTRIES[name]
