r"""The plane through a network's weights in which its own trajectories move most.

A picture in two dimensions shows what lies in them. Three numbers say how much that is: the fraction of the
trajectories' movement that the plane holds, the fraction that it would hold of random walks (much, always),
and how far the loss on the plane is from that of the real weights.

The Gram matrix of a random walk of T steps in many dimensions is min(s, t) times the dimension, whatever the
distribution of its steps; walks with a common start are orthogonal. The fractions of its principal components are the
eigenvalues of that matrix, centred: for one long walk 6/π² and ¼ of it.

Sources: Li, Xu, Taylor, Studer and Goldstein 2018 (PCA of trajectories); Antognini and Sohl-Dickstein 2018 (PCA of
random walks).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import block_diag
from torch import Tensor, nn

from schuss.curvature.memory import claim
from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.landscape.picture import Picture, at_lr
from schuss.lab.landscape.surfaces import Array
from schuss.lab.landscape.trajectories import Trajectory, settings_in_words
from schuss.lab.tasks.data import Batch, size
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import flat, put, sample, training
from schuss.lab.training.run import first_step

GRID = 25
PLACES = 40  # of a run, from its first step to its last
EXAMPLES = 512
TRIED = 5  # learning rates of a run, evenly in the logarithm of the entry's range
MARGIN = 0.25

Run = tuple[Trajectory, Tensor, nn.Module]
"""A trajectory, the weights at its places (float64, one row each), and the model after the run."""


def on_network(
    task: Task,
    entries: list[Entry],
    steps: int,
    lr: float | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> Picture:
    """The runs of some optimizers from one start, over the loss on the plane of all their movement together (PCA).

    Raises `MemoryError` before memory is taken that is not there, naming it.
    """
    if task.train is None:
        advice = "For a function of two numbers name the function itself."
        raise refusal("task", task.name, "a network", advice)
    steps = min(steps, task.total_steps())
    n = sum(w.numel() for w in first_step(task, seed).model.parameters() if w.requires_grad)
    # Either all runs four times, for their directions, or every run of the last entry and the best of the others.
    runs_held = max(4 * len(entries), len(entries) + (TRIED - 1 if lr is None else 0))
    claim(
        f"a plane through {len(entries)} runs",
        *((min(steps, PLACES) + 1) * runs_held + 4, n, torch.float64, torch.device("cpu")),
        "Name fewer --optimizers, give fewer --steps, or an --lr.",
    )
    batch, runs = sample(task, EXAMPLES), list[Run]()
    for entry in entries:
        progress(entry.name)
        runs.append(_best(task, entry, steps, lr, seed, batch))
    progress("the plane")
    centre, axes, held = _principal(torch.cat([weights for _, weights, _ in runs]))
    model = runs[0][2]

    def loss_at(place: Tensor) -> float:
        put(model, centre + place @ axes)
        return _loss(task, model, batch)

    trajectories, gaps = list[Trajectory](), list[float]()
    ends = list[str]()
    for found, weights, _ in runs:
        places = (weights - centre) @ axes.T / axes.square().sum(dim=1)
        gap = np.array([loss_at(place) for place in places]) - found.values
        gaps.append(float(np.abs(gap).max()))
        trajectories.append(replace(found, places=places.numpy()))
        ends.append(f"{found.name} {found.values[-1]:.3g} (on the plane {found.values[-1] + gap[-1]:.3g})")
    xs, ys = _window(trajectories)
    heights = np.array([[loss_at(torch.tensor((x, y), dtype=torch.float64)) for x in xs] for y in ys])
    null = random_walk_fractions([len(weights) for _, weights, _ in runs])
    return Picture(
        id="trajectories",
        title=task.name,
        lede=f"{task.description[:1].upper()}{task.description[1:]}: {steps} steps from one start (seed {seed}), drawn "
        f"on the plane of their movement (PCA). The loss is that of {size(batch)} training examples, in evaluation "
        "mode.",
        found=f"Loss at the end: {', '.join(ends)}. The plane contains {sum(held):.0%} of the movement; of random "
        f"walks of this length it would contain {sum(null):.0%}.",
        how=f"Each optimizer ran at {TRIED} learning rates, evenly in the logarithm of its usual range, with its other "
        "settings as usual; the one with the lowest loss at the end is shown."
        if lr is None
        else at_lr(lr),
        xs=xs,
        ys=ys,
        heights=heights,
        lowest=min(0.0, float(np.nanmin(heights))),
        trajectories=tuple(trajectories),
        axes=("first direction, weights' own units", "second direction, weights' own units"),
        unit="loss",
        facts=(
            ("movement within the two directions", f"{held[0]:.0%} + {held[1]:.0%}"),
            ("expected for random walks", f"{null[0]:.0%} + {null[1]:.0%}"),
            ("largest difference of loss between weights and plane", f"{max(gaps):.3g}"),
            ("weights", f"{n:,}".replace(",", "\u202f")),
        ),
    )


def random_walk_fractions(lengths: list[int]) -> tuple[float, float]:
    """What the first two principal components hold of random walks from one start, in many dimensions.

    >>> first, second = random_walk_fractions([1000])
    >>> round(first, 2), round(second, 2)
    (0.61, 0.15)
    """
    walks = [np.minimum.outer(np.arange(n), np.arange(n)) for n in lengths]
    gram = np.asarray(block_diag(*walks), dtype=float)
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
    values = np.linalg.eigvalsh(centred)[::-1]
    return float(values[0] / values.sum()), float(values[1] / values.sum())


def _best(task: Task, entry: Entry, steps: int, lr: float | None, seed: int, batch: Batch) -> Run:
    """The run with the lowest loss at the end, of one at `lr` or of a few over the entry's range."""
    low, high, _ = entry.space["lr"]
    rates = [lr] if lr is not None else np.geomspace(low, high, TRIED + 2)[1:-1].tolist()
    runs = [_run(task, entry, rate, steps, seed, batch) for rate in rates]
    whole = [run for run in runs if not run[0].ended]
    return min(whole or runs, key=lambda run: run[0].values[-1])


def _run(task: Task, entry: Entry, lr: float, steps: int, seed: int, batch: Batch) -> Run:
    wanted = np.unique(np.linspace(0, steps, min(steps, PLACES) + 1).round().astype(int))
    chosen = {**entry.usual, "lr": lr}
    weights, values = list[Tensor](), list[float]()
    model, last = None, 0
    for moment in training(task, entry, chosen, steps, seed):
        model, last = moment.model, moment.step
        if last in wanted:
            value = _loss(task, model, batch)
            if not math.isfinite(value):
                break
            weights.append(flat(model))
            values.append(value)
    assert model is not None
    ended = "" if last == steps and len(values) == len(wanted) else f"lost at step {last}"
    found = Trajectory(
        *(entry.name, settings_in_words(entry, chosen), np.zeros((len(values), 2)), np.array(values), ended),
        at=wanted[: len(values)],
    )
    return found, torch.stack(weights), model


def _loss(task: Task, model: nn.Module, batch: Batch) -> float:
    """The loss in evaluation mode; the model's own mode is put back."""
    mode = model.training
    model.eval()
    with torch.no_grad():
        loss = float(task.loss(model, batch))
    model.train(mode)
    return loss


def _principal(every: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """The mean of some places, the two unit directions in which they differ most, and the fractions of that in each."""
    centre = every.mean(dim=0)
    _, sizes, rows = torch.linalg.svd(every - centre, full_matrices=False)
    if len(rows) < 2 or not float(sizes[1]) > 1e-12 * float(sizes[0]):
        raise ValueError(
            "The runs moved along one line, and a line spans no plane. Give more steps, more optimizers, or a "
            "smaller lr."
        )
    return centre, rows[:2], (sizes[:2].square() / sizes.square().sum()).tolist()


def _window(trajectories: list[Trajectory]) -> tuple[Array, Array]:
    places = np.concatenate([found.places for found in trajectories])
    low, high = places.min(axis=0), places.max(axis=0)
    margin = MARGIN * np.maximum(high - low, 1e-12 + 0.1 * (high - low).max())
    low, high = low - margin, high + margin
    return np.linspace(low[0], high[0], GRID), np.linspace(low[1], high[1], GRID)
