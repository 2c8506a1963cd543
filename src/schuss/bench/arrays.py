"""The NumPy API compared with the NumPy that one writes from the formulas."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import schuss.numpy
from schuss.bench import check, textbook
from schuss.bench.contenders import Case
from schuss.bench.report import Timing
from schuss.bench.sizes import Sizes, count
from schuss.bench.timing import timings

OURS, THEIRS = "schuss.numpy", "plain NumPy"
Arrays = dict[str, np.ndarray[Any, Any]]
Update = Callable[[Arrays, Arrays], None]


@dataclass(frozen=True)
class Pair:
    """The same optimizer in the textbook and here."""

    name: str
    textbook: Callable[..., None]
    case: Case

    def updates(self) -> dict[str, Update]:
        """A new optimizer of each contender."""
        ours = getattr(schuss.numpy, self.case.optimizer)(**self.case.options)
        return {OURS: ours.update, THEIRS: functools.partial(self.textbook, state=defaultdict(float))}

    def disagreement(self, contender: str) -> str:
        """What one of them gets wrong, or nothing."""

        def moved(weights: list[check.Array], gradients: list[list[check.Array]]) -> list[check.Array]:
            params, update = {f"W{k}": w for k, w in enumerate(weights)}, self.updates()[contender]
            for step in gradients:
                update(params, {f"W{k}": g for k, g in enumerate(step)})
            return list(params.values())

        return check.disagreement(self.case.rule, moved, "float64")


# The textbook's conventions: the learning rate inside the velocity, ε inside the root of AdaGrad and RMSProp.
_INSIDE = dict(eps=1e-8, eps_position="inside")
PAIRS = (
    Pair("SGD", textbook.sgd, Case("SGD", dict(lr=1e-3))),
    Pair("momentum", textbook.momentum, Case("SGD", dict(lr=1e-3, momentum=0.9, lr_inside_velocity=True))),
    Pair("AdaGrad", textbook.adagrad, Case("Adagrad", dict(lr=1e-2, **_INSIDE))),
    Pair("RMSProp", textbook.rmsprop, Case("RMSprop", dict(lr=1e-3, alpha=0.9, **_INSIDE))),
    Pair("Adam", textbook.adam, Case("Adam", dict(lr=1e-3))),
)


def networks(elements: int) -> Iterator[Arrays]:
    """A two-layer network of `elements` weights or so, and one for the digits."""
    side = max(1, round(elements**0.5 / 1.25))
    for inputs, hidden, outputs in ((side, side, max(1, side // 2)), (64, 32, 10)):
        shapes = {"W1": (inputs, hidden), "b1": (hidden,), "W2": (hidden, outputs), "b2": (outputs,)}
        yield {name: np.random.default_rng(0).standard_normal(shape) for name, shape in shapes.items()}


def measure(section: str, sizes: Sizes) -> list[Timing]:
    """Every optimizer of the textbook at two sizes, in float64 as NumPy has it."""
    records: list[Timing] = []
    wrong = {(pair.name, name): pair.disagreement(name) for pair in PAIRS for name in (OURS, THEIRS)}
    for rounds, params in zip((sizes.rounds, sizes.short_rounds), networks(sizes.arrays), strict=True):
        grads = {name: np.random.default_rng(1).standard_normal(w.shape) for name, w in params.items()}
        elements = sum(w.size for w in params.values())
        workload = f"dict of {len(params)} arrays, {count(elements)} weights"
        for pair in PAIRS:
            steps = {
                name: wrong[pair.name, name] or functools.partial(update, params, grads)
                for name, update in pair.updates().items()
            }
            moved = pair.case.moved(elements, itemsize=8)
            records += timings((section, workload, pair.name), steps, rounds, sizes.least, moved=moved)
    return records
