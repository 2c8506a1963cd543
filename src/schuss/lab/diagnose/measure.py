"""What is measured of a task before anything is advised.

A short training run with one optimizer, looked at from start to end on one fixed sample of the training data:
curvature and its limit, noise, sparsity, speed. What cannot be measured on a model (no second derivative, no
state yet) is left out and the reason kept.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.curvature import (
    Extremes,
    GradientSparsity,
    NoiseScale,
    RangeTest,
    Spectrum,
    condition_number,
    extreme_eigenvalues,
    gradient_noise_scale,
    gradient_sparsity,
    spectrum,
    stability_limit,
)
from schuss.errors import refusal
from schuss.lab.diagnose.effort import RUNGS, SECONDS, Effort, affordable
from schuss.lab.entries import Entry
from schuss.lab.landscape.trajectories import settings_in_words
from schuss.lab.ranges.range_test import climb
from schuss.lab.schedules import schedule as planned
from schuss.lab.tasks.data import Batch, Rows
from schuss.lab.tasks.data import size as size_of
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import Moment, sample, training
from schuss.newton.base import CurvatureOptimizer
from schuss.randomness import preserved

Array = NDArray[np.float64]
Found = TypeVar("Found")
Progress = Callable[[str, int, int], object]

TOLERANCE = (
    1e-3  # residual of an eigenvalue of more than DENSE weights; its error is of the order of its square
)
INEXACT = "An operation in the loss has no second derivative"  # how the warning of a difference begins
CURVED = 20  # steps of a method that steps by curvature, each as dear as many gradients
DENSE = 600  # weights up to which κ comes from the whole matrix, and eigenvalues are exact
ROUNDS, TIMED = 3, 3  # rounds through the batch sizes, steps in each; two more before the first are not timed
LENGTHS = tuple(2.0**k for k in range(-15, 2))


@dataclass(frozen=True)
class Look:
    """The curvature after `step` steps, on the sample.

    `largest` and `smallest` are the ends of the Hessian's spectrum. `sharpness` is the largest eigenvalue as
    the optimizer sees it (preconditioned) and `limit` the stability limit of its settings; `dial` = sharpness / limit;
    `largest_lr` the largest stable rate here. None where it could not be measured.

    Every eigenvalue is reached from inside the spectrum. `residuals` are how far, at most, an eigenvalue lies
    from each of the three (largest, smallest, sharpness), relative to the largest of its matrix; what has more
    than `TOLERANCE` did not converge in the products it had, and bounds what it stands for: see `bounds`.
    """

    step: int
    loss: float
    largest: float | None
    smallest: float | None
    sharpness: float | None
    limit: float | None
    largest_lr: float | None
    residuals: tuple[float | None, float | None, float | None] = (None, None, None)

    @property
    def bounds(self) -> tuple[str, str, str, str]:
        """ "≥ " or "≤ " before largest, smallest, sharpness (and the dial) and largest_lr where they are bounds."""
        high, low, seen = (r is not None and r > TOLERANCE for r in self.residuals)
        return ("≥ " * high, "≤ " * low, "≥ " * seen, "≤ " * seen)

    @property
    def dial(self) -> float | None:
        """1 at the edge of stability."""
        return None if self.sharpness is None or not self.limit else self.sharpness / self.limit


@dataclass(frozen=True)
class Conditioning:
    """How uneven the curvature is: `value` = `largest` / `against`, in words what that is."""

    value: float
    largest: float
    against: float
    how: str


@dataclass(frozen=True)
class Directions:
    """How far the loss falls at best along −g, and along −g/√(mean of g²): a search along each line."""

    plain: float
    scaled: float


@dataclass(frozen=True)
class Speed:
    """Seconds of one step (gradient and update) at a batch size: the median of some, and that of each round of them."""

    batch: int
    seconds: float
    rounds: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Everything that was measured; `missing` says what was not, and why.

    `spec`, `named` and `data` are the task, the optimizer and the task's files in the words of a command.
    `adaptive`: the optimizer divides by sizes of past gradients, which its first steps do not know yet.
    """

    task: str
    description: str
    spec: str
    optimizer: str
    settings: str
    lr: float
    steps: int
    seed: int
    weights: int
    batch_size: int
    examples: int
    has_data: bool
    effort: Effort
    looks: tuple[Look, ...]
    schedule: str = "constant"
    named: str = ""
    data: str = ""
    adaptive: bool = False
    conditioning: Conditioning | None = None
    density: Spectrum | None = None
    noise: tuple[NoiseScale | None, NoiseScale | None] = (None, None)
    sparsity: GradientSparsity | None = None
    directions: Directions | None = None
    speeds: tuple[Speed, ...] = ()
    ladder: RangeTest | None = None
    missing: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def settled(self) -> tuple[Look, ...]:
        """The looks whose limit means something: of adaptive optimizers those from a quarter of the run on."""
        known = (look for look in self.looks if look.largest_lr is not None)
        return tuple(look for look in known if not self.adaptive or 4 * look.step >= self.steps)


def caveat(found: Diagnosis) -> str:
    """What the marks of bounds mean, if there are any; to follow a statement of the sample."""
    worst = max((r for look in found.looks for r in look.residuals if r is not None), default=0.0)
    if worst <= TOLERANCE:
        return ""
    return (
        f"; ≥ and ≤ mark bounds: the eigenvalue behind them had not converged in {found.effort.products} "
        f"Hessian-vector products (relative residual up to {worst:.1g})"
    )


class _Attempts:
    """Tries measurements; keeps the reason where one cannot be made."""

    def __init__(self, progress: Progress | None) -> None:
        self.missing: dict[str, str] = {}
        self.progress = progress
        self.now = ""

    def tick(self, done: int, at_most: int) -> None:
        if self.progress is not None:
            self.progress(self.now, done, at_most)

    def __call__(self, what: str, measure: Callable[[], Found]) -> Found | None:
        self.now = what
        self.tick(0, 0)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                found = measure()
            for each in warned:
                if str(each.message).startswith(INEXACT):  # once for the whole diagnosis
                    self.missing.setdefault("exact Hessian-vector products", str(each.message))
                else:
                    warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
            return found
        except (ValueError, RuntimeError, NotImplementedError, MemoryError) as error:
            reason = str(error).split("\n")[0]
            self.missing.setdefault(what.partition(" at ")[0], f"{reason[:1].upper()}{reason[1:]}")
            return None


def measure(
    task: Task,
    entry: Entry,
    spec: str,
    *,
    lr: float | None = None,
    steps: int | None = None,
    schedule: str = "constant",
    seed: int = 0,
    named: str = "",
    data: str = "",
    budget: float = SECONDS,
    progress: Progress | None = None,
    begun: Callable[[Effort], object] | None = None,
) -> Diagnosis:
    """Train for a short while with the entry's usual settings (or another `lr`), and measure on the way.

    `steps`: of that run; a tenth of the task's horizon, at least 50 and at most 300, if not given; of a method
    that steps by curvature at most 20. `schedule`: the name of one, planned for the task's whole horizon.
    `budget`: seconds that it should take, about; where everything would take longer, less is measured (see
    `Effort`), and `begun` is called with what was chosen. The process's random generators are put back. Raises
    `ValueError` for a task that cannot be trained at all.
    """
    if lr is not None and not lr > 0:
        raise refusal("lr", lr, "greater than 0")
    if not budget > 0:
        raise refusal("budget", budget, "greater than 0")
    chosen = {**entry.usual, **({} if lr is None else {"lr": lr})}
    horizon = task.total_steps()
    curved = entry.kind == "curvature"
    steps = min(horizon, CURVED if curved else horizon, steps or min(300, max(50, horizon // 10)))
    rate = None if schedule == "constant" else planned(schedule, chosen["lr"], horizon)
    attempt = _Attempts(progress)
    with preserved():
        effort = affordable(task, steps, budget, seed)
        if begun is not None:
            begun(effort)
        held = sample(task, effort.examples)
        stops = {round(k * steps / (effort.looks - 1)) for k in range(1, effort.looks)}
        moments = training(task, entry, chosen, steps, seed, rate)
        moment = next(moments)
        start = _at_start(task, entry, moment, seed, effort, attempt)
        looks = [_look(task, held, moment, effort, attempt)]
        for moment in moments:
            if moment.step in stops:
                looks.append(_look(task, held, moment, effort, attempt))
        end = _AtEnd()
        if moment.step == steps:
            end = _at_end(task, moment.model, held, looks[-1], seed, effort, attempt)
        else:
            attempt.missing["the whole run"] = (
                f"the loss was no longer finite after step {moment.step}. Try a smaller --lr."
            )
        speeds = attempt("speed", lambda: _speeds(task, entry, chosen, seed, attempt)) or ()
    return Diagnosis(
        task=task.name,
        description=task.description,
        spec=spec,
        optimizer=entry.name,
        settings=settings_in_words(entry, chosen),
        lr=chosen["lr"],
        schedule=schedule,
        named=named or entry.name,
        data=data,
        steps=moment.step,
        seed=seed,
        weights=sum(w.numel() for w in moment.model.parameters() if w.requires_grad),
        batch_size=task.batch_size,
        examples=size_of(held),
        has_data=task.train is not None,
        effort=effort,
        looks=tuple(looks),
        adaptive=start.adaptive,
        conditioning=end.conditioning,
        density=end.density,
        noise=(start.noise, end.noise),
        sparsity=start.sparsity,
        directions=end.directions,
        speeds=speeds,
        ladder=start.ladder,
        missing=attempt.missing,
    )


@dataclass(frozen=True)
class _AtStart:
    """What is measured before the first step."""

    adaptive: bool
    ladder: RangeTest | None
    sparsity: GradientSparsity | None
    noise: NoiseScale | None


def _at_start(
    task: Task, entry: Entry, moment: Moment, seed: int, effort: Effort, attempt: _Attempts
) -> _AtStart:
    model, ladder = moment.model, None
    if entry.kind == "curvature":
        attempt.missing["learning rates"] = f"{entry.name} has none: its lr is a fraction of its own step."
    else:
        ladder = attempt(
            "learning rates",
            lambda: climb(
                *(task, entry), steps=RUNGS, sweeps=effort.sweeps, seed=seed, progress=attempt.tick
            ),
        )
    return _AtStart(
        _adaptive(moment.optimizer),
        ladder,
        attempt("sparsity", lambda: gradient_sparsity(model, task.loss, next(task.stream(seed)))),
        attempt("gradient noise at the start", lambda: _noise(task, model, seed, effort, attempt)),
    )


@dataclass(frozen=True)
class _AtEnd:
    """What is measured after the last step; nothing of a run that did not get there."""

    noise: NoiseScale | None = None
    density: Spectrum | None = None
    conditioning: Conditioning | None = None
    directions: Directions | None = None


def _at_end(
    task: Task, model: nn.Module, held: Batch, look: Look, seed: int, effort: Effort, attempt: _Attempts
) -> _AtEnd:
    noise = attempt("gradient noise at the end", lambda: _noise(task, model, seed + 1, effort, attempt))
    density = attempt(
        "spectrum",
        lambda: spectrum(
            *(model, task.loss, held), probes=3, steps=effort.lanczos, points=200, progress=attempt.tick
        ),
    )
    return _AtEnd(
        noise,
        density,
        attempt("conditioning", lambda: _conditioning(task, model, held, density, look)),
        attempt("directions", lambda: _directions(task, model, held, seed)),
    )


def _look(task: Task, held: Batch, moment: Moment, effort: Effort, attempt: _Attempts) -> Look:
    model, optimizer, step = moment.model, moment.optimizer, moment.step
    tolerance = None if sum(w.numel() for w in model.parameters()) <= DENSE else TOLERANCE
    ends = attempt(
        f"curvature at step {step}",
        lambda: extreme_eigenvalues(
            model, task.loss, held, 1, products=effort.products, tolerance=tolerance, progress=attempt.tick
        ),
    )
    seen = None
    if isinstance(optimizer, CurvatureOptimizer):
        attempt.missing["stability"] = (
            f"{type(optimizer).__name__} has no stability limit: it computes its steps from the curvature, and rejects "
            "a step that does not lower the loss."
        )
    elif step or not _adaptive(optimizer):  # an adaptive optimizer has no denominator before its first step
        seen = attempt(
            f"stability at step {step}",
            lambda: stability_limit(optimizer).sharpness(
                model, task.loss, held, products=effort.products, tolerance=tolerance, progress=attempt.tick
            ),
        )
    with torch.no_grad():
        loss = float(task.loss(copy.deepcopy(model), held))
    high, low = (None, None) if ends is None else _relative(ends)
    return Look(
        step=step,
        loss=loss,
        largest=None if ends is None else float(ends.largest[0]),
        smallest=None if ends is None else float(ends.smallest[0]),
        sharpness=None if seen is None else seen.value,
        limit=None if seen is None else seen.limit,
        largest_lr=None if seen is None else seen.largest_lr,
        residuals=(high, low, None if seen is None else seen.residual / (abs(seen.value) or 1.0)),
    )


def _relative(ends: Extremes) -> tuple[float, float]:
    """The residuals of both ends relative to the larger of them."""
    scale = max(abs(float(ends.largest[0])), abs(float(ends.smallest[0]))) or 1.0
    return float(ends.residuals[0]) / scale, float(ends.residuals[-1]) / scale


def _adaptive(optimizer: Optimizer) -> bool:
    try:
        return stability_limit(optimizer).preconditioner is None
    except ValueError:
        return False  # it is refused again, with its reason, where it is measured


def _batches(task: Task, seed: int, count: int) -> list[Batch]:
    """Training batches of full size, of one epoch at most."""
    part = task.splits["train"]
    if isinstance(part, Rows):
        count = min(count, max(2, len(part) // task.batch_size))
    return list(islice(task.stream(seed), count))


def _noise(task: Task, model: nn.Module, seed: int, effort: Effort, attempt: _Attempts) -> NoiseScale:
    if task.train is None:
        raise ValueError("there is no data, so there is no noise")
    return gradient_noise_scale(model, task.loss, _batches(task, seed, effort.batches), progress=attempt.tick)


def _conditioning(
    task: Task, model: nn.Module, held: Batch, density: Spectrum | None, look: Look
) -> Conditioning:
    if sum(w.numel() for w in model.parameters() if w.requires_grad) <= DENSE:
        found = condition_number(model, task.loss, held)
        return Conditioning(
            found.value, found.largest, found.smallest, f"κ of the positive part, {found.how}"
        )
    if density is None or look.largest is None:
        raise ValueError("it needs the spectrum")
    mean, error = density.mean(np.abs)
    return Conditioning(
        look.largest / mean,
        look.largest,
        mean,
        f"largest eigenvalue over the mean |λ| of all ({mean:.3g} ± {error:.1g}); κ itself is larger, "
        "the smallest "
        "positive eigenvalues of a model of this size cannot be seen",
    )


def _directions(task: Task, model: nn.Module, held: Batch, seed: int) -> Directions:
    """Along the gradient on the sample as it is, and divided by the typical size of each weight's gradient."""
    weights = [w for w in model.parameters() if w.requires_grad]

    def gradient(batch: Batch) -> list[Tensor]:
        loss = task.loss(probe, batch)
        found = cast("Sequence[Tensor | None]", torch.autograd.grad(loss, mirrored, allow_unused=True))
        return [
            torch.zeros_like(w) if g is None else g.to_dense() if g.is_sparse else g
            for w, g in zip(weights, found, strict=True)
        ]

    probe = copy.deepcopy(model)
    mirrored = [w for w in probe.parameters() if w.requires_grad]
    g = gradient(held)
    # The sample is one of those that say what is typical: no weight is divided by less than it has here.
    batches = [held, *_batches(task, seed + 2, 16)]
    squares = [torch.zeros_like(w) for w in weights]
    for batch in batches:
        for square, a in zip(squares, gradient(batch), strict=True):
            square += a * a / len(batches)
    scaled = [-a / (b.sqrt() + 1e-8) for a, b in zip(g, squares, strict=True)]
    here = float(task.loss(probe, held).detach())
    best: list[float] = []
    for step in ([-a for a in g], scaled):
        # Lengths from a 32 000th of the weights' own to twice it.
        length = _norm(weights) / max(_norm(step), 1e-300)
        lowest = here
        for t in LENGTHS:
            with torch.no_grad():
                for moved, w, a in zip(mirrored, weights, step, strict=True):
                    moved.copy_(w + t * length * a)
                value = float(task.loss(probe, held))
            lowest = min(lowest, value) if math.isfinite(value) else lowest
        best.append(here - lowest)
    return Directions(*best)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(t.detach().double().norm()) for t in tensors))


def _speeds(
    task: Task, entry: Entry, chosen: dict[str, float], seed: int, attempt: _Attempts
) -> tuple[Speed, ...]:
    """Seconds a step at batch sizes from a sixteenth of the task's to sixteen times it, or the whole split."""
    part = task.splits["train"]
    if entry.kind == "curvature":
        raise ValueError(f"a step of {entry.name} takes the whole training split, whatever the batch")
    if not isinstance(part, Rows):
        raise ValueError("batches of other sizes can only be made from data with a length")
    sizes = sorted({min(max(1, task.batch_size * 4**k // 16), len(part)) for k in range(5)})
    times: dict[int, list[list[float]]] = {size: [] for size in sizes}
    runs = {size: _timed(task, entry, chosen, seed, size) for size in sizes}
    for size in sizes:
        list(islice(runs[size], 2))
    # In turn, so that what else the machine does falls on all sizes alike.
    for number in range(ROUNDS):
        for k, size in enumerate(sizes):
            times[size].append(list(islice(runs[size], TIMED)))
            attempt.tick(number * len(sizes) + k + 1, ROUNDS * len(sizes))
    return tuple(
        Speed(size, statistics.median(chain(*rounds)), tuple(map(statistics.median, rounds)))
        for size, rounds in times.items()
    )


def _timed(task: Task, entry: Entry, chosen: dict[str, float], seed: int, size: int) -> Iterator[float]:
    """Seconds of one step after another of a model of its own."""
    model = next(training(task, entry, chosen, 0, seed)).model
    optimizer = entry.build([w for w in model.parameters() if w.requires_grad], chosen)
    for batch in task.stream(seed, size):
        began = time.perf_counter()
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        yield time.perf_counter() - began
