r"""A plane through a network's weights: that of its own trajectories, or two random directions.

A picture in two dimensions shows what lies in them. Three numbers say how much that is: the share of the
trajectories' movement that the plane holds, the fraction that it would hold of random walks (much, always),
and how far the loss on the plane is from that of the real weights.

The null. The Gram matrix of a random walk of T steps in many dimensions is min(s, t) times the dimension,
whatever the distribution of its steps; walks with a common start are orthogonal. The shares of its principal
components are the eigenvalues of that matrix, centred: for one long walk 6/π² and ¼ of it.

Sources: Li, Xu, Taylor, Studer and Goldstein 2018 (filter-normalised directions); Antognini and
Sohl-Dickstein 2018 (PCA of random walks).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schuss.curvature.memory import claim
from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.landscape.scene import Scene
from schuss.lab.landscape.trails import Trail, said
from schuss.lab.tasks.data import Batch, size
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import flat, put, sample, training
from schuss.lab.training.run import first_step

Array = NDArray[np.float64]

GRID = 25
KEPT = 40  # places of a run that are kept
EXAMPLES = 512
TRIED = 5  # learning rates a run, evenly in the logarithm of the entry's range
MARGIN = 0.25


def on_network(
    task: Task,
    entries: list[Entry],
    steps: int,
    lr: float | None = None,
    plane: str = "pca",
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Scene:
    """The runs of some optimizers from one start, over the loss on a plane through their weights.

    `plane`: "pca", the two principal directions of all their movement together; "filter", two random
    directions round the end of the first run, each row as long as that row of the weights. Raises `MemoryError`
    before memory is taken that is not there, naming it; `network_cost` says it beforehand.
    """
    if plane not in ("pca", "filter"):
        raise refusal("plane", plane, "'pca' or 'filter'")
    if task.train is None:
        raise refusal(
            "task", task.name, "a network", "For a function of two numbers name the function itself."
        )
    said_so = progress or (lambda _: None)
    steps = min(steps, task.total_steps())
    rows = _rows(len(entries), steps, lr)
    n = sum(w.numel() for w in first_step(task, seed).model.parameters() if w.requires_grad)
    claim(
        f"a plane through {len(entries)} runs",
        *(rows, n, torch.float64, torch.device("cpu")),
        "Name fewer --optimizers, give fewer --steps, or an --lr.",
    )
    batch = sample(task, EXAMPLES)
    runs = list[_Run]()
    for entry in entries:
        said_so(entry.name)
        runs.append(_best(task, entry, steps, lr, seed, batch))
    said_so("the plane")
    through = _plane_through(runs, plane, seed)
    trails, gaps = list[Trail](), list[Array]()
    for run in runs:
        places = through.coordinates(run.weights)
        shadow = np.array([through.loss(task, p, batch) for p in places])
        gaps.append(shadow - run.trail.values)
        trails.append(replace(run.trail, places=places.numpy()))
    xs, ys = _window(trails, plane)
    heights = np.array(
        [[through.loss(task, torch.tensor((x, y), dtype=torch.float64), batch) for x in xs] for y in ys]
    )
    units = "weights' own units" if plane == "pca" else "filter lengths"
    return Scene(
        id="walk",
        title=task.name,
        lede=f"{task.description[:1].upper()}{task.description[1:]}: {steps} steps from one start (seed "
        f"{seed}), drawn on {through.words}. The loss is that of {size(batch)} training examples, in evaluation mode.",
        found=_found(trails, gaps, through),
        how=_how(lr),
        xs=xs,
        ys=ys,
        heights=heights,
        lowest=min(0.0, float(np.nanmin(heights))),
        trails=tuple(trails),
        axes=(f"first direction, {units}", f"second direction, {units}"),
        unit="loss",
        facts=_facts(gaps, through, n),
    )


@dataclass(frozen=True, eq=False)
class _Plane:
    """Two directions through a place in the space of weights.

    `held` is the share of the runs' movement along each, `null` that of a pure random walk's.
    """

    model: nn.Module
    centre: Tensor
    axes: Tensor
    held: tuple[float, float]
    null: tuple[float, float]
    words: str

    def coordinates(self, weights: Tensor) -> Tensor:
        """The places of some weights on it."""
        return (weights - self.centre) @ self.axes.T / self.axes.square().sum(dim=1)

    def loss(self, task: Task, at: Tensor, batch: Batch) -> float:
        """The loss at a place on it."""
        return _loss(task, self.model, self.centre + at @ self.axes, batch)


def _plane_through(runs: list[_Run], plane: str, seed: int) -> _Plane:
    model, every = runs[0].model, torch.cat([run.weights for run in runs])
    if plane == "pca":
        centre, axes = _principal(every)
        null = random_walk_shares([len(run.weights) for run in runs])
        words = "the plane of their movement (PCA)"
    else:
        centre, axes = _filters(model, runs[0].weights[-1], seed)
        # Principal directions follow a random walk; random directions hold no more of it than any others.
        null = (1 / every.shape[1], 1 / every.shape[1])
        words = f"two random filter-normalised directions round the end of {runs[0].trail.name}"
    return _Plane(model, centre, axes, _held(every, axes), null, words)


def _facts(gaps: list[Array], through: _Plane, weights: int) -> tuple[tuple[str, str], ...]:
    return (
        ("movement within the two directions", f"{through.held[0]:.0%} + {through.held[1]:.0%}"),
        ("expected for random walks", f"{through.null[0]:.0%} + {through.null[1]:.0%}"),
        (
            "largest difference of loss between weights and plane",
            f"{max(float(np.abs(g).max()) for g in gaps):.3g}",
        ),
        ("weights", f"{weights:,}".replace(",", "\u202f")),
    )


def _found(trails: list[Trail], gaps: list[Array], through: _Plane) -> str:
    """What was measured, in words."""
    ends = ", ".join(
        f"{t.name} {t.values[-1]:.3g} (on the plane {t.values[-1] + g[-1]:.3g})"
        for t, g in zip(trails, gaps, strict=True)
    )
    return (
        f"Loss at the end: {ends}. The plane contains {sum(through.held):.0%} of the movement; of random walks "
        f"of this length it would contain {sum(through.null):.0%}."
    )


def random_walk_shares(lengths: list[int]) -> tuple[float, float]:
    """What the first two principal components hold of random walks from one start, in many dimensions.

    >>> first, second = random_walk_shares([1000])
    >>> round(first, 2), round(second, 2)
    (0.61, 0.15)
    """
    walks = [np.minimum.outer(np.arange(n), np.arange(n)).astype(float) for n in lengths]
    gram = np.zeros((sum(lengths), sum(lengths)))
    at = 0
    for walk in walks:
        gram[at : at + len(walk), at : at + len(walk)] = walk
        at += len(walk)
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values = np.linalg.eigvalsh(centred)[::-1]
    return float(values[0] / values.sum()), float(values[1] / values.sum())


class _Run:
    """Some places of a run, and the losses there."""

    def __init__(self, trail: Trail, weights: Tensor, model: nn.Module) -> None:
        self.trail, self.weights, self.model = trail, weights, model


def _best(task: Task, entry: Entry, steps: int, lr: float | None, seed: int, batch: Batch) -> _Run:
    low, high, _ = entry.space["lr"]
    rates = [lr] if lr is not None else np.geomspace(low, high, TRIED + 2)[1:-1].tolist()
    runs = [_run(task, entry, rate, steps, seed, batch) for rate in rates]
    whole = [run for run in runs if not run.trail.ended]
    return min(whole or runs, key=lambda run: run.trail.values[-1])


def _rows(entries: int, steps: int, lr: float | None) -> int:
    """Vectors as long as the weights that are in memory at once.

    All runs four times for their directions, or every run of the last entry beside the best of the others.
    """
    places = min(steps, KEPT) + 1
    return places * max(4 * entries, entries + TRIED - 1 if lr is None else entries) + 4


@dataclass(frozen=True)
class PlaneCost:
    """What a plane through a network takes: bytes of memory for vectors, and seconds here."""

    bytes: int
    seconds: float


def network_cost(task: Task, entries: list[Entry], steps: int, lr: float | None = None) -> PlaneCost:
    """What `on_network` will take, before it is paid: one loss and one gradient are timed for it.

    A step is counted as one gradient; methods that step by curvature take some more.
    """
    steps = min(steps, task.total_steps())
    model = first_step(task, 0).model
    weights = [w for w in model.parameters() if w.requires_grad]
    batch, runs = sample(task, EXAMPLES), len(entries) * (TRIED if lr is None else 1)
    own = next(task.stream(0))

    def loss() -> object:
        with torch.no_grad():
            return task.loss(model, batch)

    def step() -> object:
        return torch.autograd.grad(task.loss(model, own), weights, allow_unused=True)

    places = min(steps, KEPT) + 1
    seconds = [_shortest(loss), _shortest(step)]
    losses = GRID**2 + places * (runs + len(entries))
    memory = 8 * _rows(len(entries), steps, lr) * sum(w.numel() for w in weights)
    return PlaneCost(memory, losses * seconds[0] + steps * runs * seconds[1])


def _shortest(work: Callable[[], object], times: int = 3) -> float:
    found = list[float]()
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def _run(task: Task, entry: Entry, lr: float, steps: int, seed: int, batch: Batch) -> _Run:
    kept = set(np.unique(np.linspace(0, steps, min(steps, KEPT) + 1).round().astype(int)).tolist())
    places, values, model = list[Tensor](), list[float](), None
    chosen = {**entry.usual, "lr": lr}
    last = 0
    for moment in training(task, entry, chosen, steps, seed):
        last = moment.step
        if moment.step in kept:
            model = moment.model
            row = flat(moment.model)
            value = _loss(task, moment.model, row, batch)
            if not math.isfinite(value):
                break
            places.append(row)
            values.append(value)
    assert model is not None
    ended = "" if last == steps and len(places) == len(kept) else f"lost at step {last}"
    trail = Trail(
        *(entry.name, said(entry, chosen), np.zeros((len(values), 2)), np.array(values), ended),
        at=np.array(sorted(kept)[: len(values)]),
    )
    return _Run(trail, torch.stack(places), copy.deepcopy(model))


def _loss(task: Task, model: nn.Module, row: Tensor, batch: Batch) -> float:
    """The loss at other weights, in evaluation mode; weights and mode are put back."""
    before, training_ = flat(model), model.training
    put(model, row)
    model.eval()
    try:
        with torch.no_grad():
            return float(task.loss(model, batch))
    finally:
        put(model, before)
        model.train(training_)


def _principal(every: Tensor) -> tuple[Tensor, Tensor]:
    """The mean place and the two directions in which the places differ most, of unit length."""
    centre = every.mean(dim=0)
    _, sizes, rows = torch.linalg.svd(every - centre, full_matrices=False)
    if len(rows) < 2 or not float(sizes[1]) > 1e-12 * float(sizes[0]):
        raise ValueError(
            "The runs moved along one line, and a line spans no plane. Give more steps, more optimizers, or a "
            "smaller lr."
        )
    return centre, rows[:2]


def _filters(model: nn.Module, end: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Two Gaussian directions, each row scaled to the length of that row of the weights; vectors stay."""
    draw = torch.Generator().manual_seed(seed)
    axes = list[Tensor]()
    for _ in range(2):
        parts = list[Tensor]()
        for w in (w for w in model.parameters() if w.requires_grad):
            d = torch.randn(w.shape, generator=draw, dtype=torch.float64)
            if w.dim() < 2:
                parts.append(torch.zeros(w.numel(), dtype=torch.float64))
                continue
            rows, own = d.reshape(len(w), -1), w.detach().double().reshape(len(w), -1)
            parts.append((rows / rows.norm(dim=1, keepdim=True) * own.norm(dim=1, keepdim=True)).reshape(-1))
        axes.append(torch.cat(parts))
    second = axes[1] - (axes[1] @ axes[0]) / (axes[0] @ axes[0]) * axes[0]
    if not bool(second.norm() > 0):
        raise refusal(
            "plane",
            "filter",
            "possible here",
            "The model has no weight with two dimensions. Try --plane pca.",
        )
    return end, torch.stack([axes[0], second])


def _held(every: Tensor, axes: Tensor) -> tuple[float, float]:
    """The share of all movement about its mean that lies along each axis."""
    off = every - every.mean(dim=0)
    along = (off @ axes.T / axes.norm(dim=1)).square().sum(dim=0) / off.square().sum()
    return float(along[0]), float(along[1])


def _window(trails: list[Trail], plane: str) -> tuple[Array, Array]:
    places = np.concatenate([trail.places for trail in trails])
    low, high = places.min(axis=0), places.max(axis=0)
    if plane == "filter":  # a whole filter's length to each side
        low, high = np.minimum(low, -1), np.maximum(high, 1)
    room = MARGIN * np.maximum(high - low, 1e-12 + 0.1 * (high - low).max())
    low, high = low - room, high + room
    return np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID)


def _how(lr: float | None) -> str:
    if lr is not None:
        return f"Every optimizer at the given learning rate {lr:g}, its other settings as usual."
    return (
        f"Each optimizer ran at {TRIED} learning rates, evenly in the logarithm of its usual range, "
        "with its other settings "
        "as usual; the one with the lowest loss at the end is shown."
    )
