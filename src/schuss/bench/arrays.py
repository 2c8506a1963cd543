"""The NumPy front against the NumPy that one writes from the formulas."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from schuss.bench import check, textbook
from schuss.bench.report import Skipped, Timing
from schuss.bench.shapes import count
from schuss.bench.sizes import Sizes
from schuss.bench.timing import in_turn
from schuss.rules import TABLE

OURS, THEIRS = "schuss.numpy", "plain NumPy"
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Pair:
    """The same optimizer in the notes and here."""

    name: str
    notes: Callable[[], Any]
    optimizer: str
    options: dict[str, Any]


# The notes' conventions: the learning rate inside the velocity, ε inside the root of AdaGrad and RMSProp.
PAIRS = (
    Pair("SGD", textbook.SGD, "SGD", dict(lr=1e-3)),
    Pair("momentum", textbook.Momentum, "SGD", dict(lr=1e-3, momentum=0.9, lr_inside_velocity=True)),
    Pair("AdaGrad", textbook.AdaGrad, "Adagrad", dict(lr=1e-2, eps=1e-8, eps_position="inside")),
    Pair("RMSProp", textbook.RMSProp, "RMSprop", dict(lr=1e-3, alpha=0.9, eps=1e-8, eps_position="inside")),
    Pair("Adam", textbook.Adam, "Adam", dict(lr=1e-3)),
)


def _disagreement(pair: Pair, make: Callable[[], Any]) -> str:
    def moved(weights: list[np.ndarray[Any, Any]], gradients: Any) -> list[np.ndarray[Any, Any]]:
        params = {f"W{k}": w for k, w in enumerate(weights)}
        optimizer = make()
        for step in gradients:
            optimizer.update(params, {f"W{k}": g for k, g in enumerate(step)})
        return list(params.values())

    return check.disagreement(TABLE[pair.optimizer].rule(**pair.options), moved, "float64")


def networks(elements: int) -> Iterator[tuple[str, Arrays]]:
    """A two-layer network of `elements` weights or so, and one for the digits."""
    side = max(1, round(elements**0.5 / 1.25))
    for inputs, hidden, outputs in ((side, side, max(1, side // 2)), (64, 32, 10)):
        shapes = {"W1": (inputs, hidden), "b1": (hidden,), "W2": (hidden, outputs), "b2": (outputs,)}
        params = {name: np.random.default_rng(0).standard_normal(shape) for name, shape in shapes.items()}
        yield f"dict of {len(params)} arrays, {count(sum(w.size for w in params.values()))} weights", params


def measure(section: str, sizes: Sizes) -> list[Timing | Skipped]:
    """Every optimizer of the notes at two sizes, in float64 as NumPy has it."""
    front: Any = importlib.import_module("schuss.numpy")
    missing = [pair.optimizer for pair in PAIRS if not hasattr(front, pair.optimizer)]
    if missing:
        return [Skipped(section, f"schuss.numpy has no {', '.join(dict.fromkeys(missing))} in this version")]
    records: list[Timing | Skipped] = []
    makers: dict[str, dict[str, Callable[[], Any]]] = {
        pair.name: {THEIRS: pair.notes, OURS: lambda p=pair: getattr(front, p.optimizer)(**p.options)}
        for pair in PAIRS
    }
    wrong = {
        (pair.name, name): _disagreement(pair, make)
        for pair in PAIRS
        for name, make in makers[pair.name].items()
    }
    for large, (workload, params) in zip((True, False), networks(sizes.arrays), strict=True):
        grads = {name: np.random.default_rng(1).standard_normal(w.shape) for name, w in params.items()}
        elements = sum(w.size for w in params.values())
        for pair in PAIRS:
            rule = TABLE[pair.optimizer].rule(**pair.options)
            timing = functools.partial(Timing, section, workload, pair.name)
            actions: dict[str, Callable[[], object]] = {}
            for name, make in makers[pair.name].items():
                if problem := wrong[pair.name, name]:
                    records.append(timing(name, problem=problem))
                else:
                    actions[name] = functools.partial(make().update, params, grads)
            found = in_turn(actions, sizes.rounds if large else sizes.short_rounds, sizes.least)
            moved = 8 * elements * (3 + 2 * len(rule.slots))
            records += [timing(name, rounds=took, moved=moved) for name, took in found.items()]
    return records
