"""What is measured of a task before anything is advised.

A short training run with one optimizer, measured from start to end on one fixed sample of the training data:
curvature and its limit, noise, sparsity, speed. What cannot be measured on a model (no second derivative, no
state yet) is left out, and the reason is given.
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
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.curvature import (
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
from schuss.lab.diagnose.effort import RATES, SECONDS, Effort, affordable
from schuss.lab.entries import Entry
from schuss.lab.landscape.trajectories import settings_in_words
from schuss.lab.ranges.range_test import range_test_of
from schuss.lab.schedules import schedule as planned
from schuss.lab.tasks.data import Batch, Rows
from schuss.lab.tasks.data import size as size_of
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import Moment, sample, training
from schuss.newton.base import CurvatureOptimizer
from schuss.randomness import preserved

Found = TypeVar("Found")
Progress = Callable[[str, int, int], object]

TOLERANCE = 1e-3
"""Residual of an eigenvalue of more than `DENSE` weights; its error is of the order of its square."""

INEXACT = "An operation in the loss has no second derivative"  # how the warning of a difference begins
CURVED = 20  # steps of a second-order method, each as dear as many gradients
DENSE = 600  # weights up to which κ comes from the whole matrix, and eigenvalues are exact
ROUNDS, TIMED = 3, 3  # rounds through the batch sizes, steps in each; two more before the first are not timed
LENGTHS = tuple(
    2.0**k for k in range(-15, 2)
)  # of a line search, from a 32 000th of the weights' own to twice it


@dataclass(frozen=True)
class Measurement:
    """The curvature after `step` steps, on the sample.

    `largest` and `smallest` are the ends of the Hessian's spectrum. `sharpness` is the largest eigenvalue as
    the optimizer sees it (preconditioned) and `limit` the stability limit of its settings; `largest_lr` the largest
    stable rate here. None where it could not be measured.

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
        """ "≥ " or "≤ " before largest, smallest, sharpness (and its ratio) and largest_lr where they are bounds."""
        high, low, seen = (r is not None and r > TOLERANCE for r in self.residuals)
        return ("≥ " * high, "≤ " * low, "≥ " * seen, "≤ " * seen)

    @property
    def sharpness_ratio(self) -> float | None:
        """Sharpness / limit: 1 at the edge of stability."""
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


@dataclass(eq=False)
class Diagnosis:
    """Everything that was measured; `missing` says what was not, and why.

    `spec`, `named` and `data` are the task, the optimizer and the task's files in the words of a command.
    `adaptive`: the optimizer divides by sizes of past gradients, which its first steps do not know yet.
    `noise`: at the start and at the end.
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
    measurements: tuple[Measurement, ...] = ()
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
    range_test: RangeTest | None = None
    missing: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def settled(self) -> tuple[Measurement, ...]:
        """Those whose limit means something: of adaptive optimizers those from a quarter of the run on."""
        known = (each for each in self.measurements if each.largest_lr is not None)
        return tuple(each for each in known if not self.adaptive or 4 * each.step >= self.steps)

    @property
    def last_noise(self) -> NoiseScale | None:
        """The noise at the end, or where that is not known at the start."""
        return self.noise[1] or self.noise[0]


def caveat(found: Diagnosis) -> str:
    """What the marks of bounds mean, if there are any; to follow a statement of the sample."""
    worst = max((r for each in found.measurements for r in each.residuals if r is not None), default=0.0)
    if worst <= TOLERANCE:
        return ""
    return (
        f"; ≥ and ≤ mark bounds: the eigenvalue behind them had not converged in {found.effort.products} "
        f"Hessian-vector products (relative residual up to {worst:.1g})"
    )


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
    progress: Progress = lambda what, done, at_most: None,
    begun: Callable[[Effort], object] = lambda effort: None,
) -> Diagnosis:
    """Train for a short while with the entry's usual settings (or another `lr`), and measure on the way.

    `steps`: of that run; a tenth of the task's horizon, at least 50 and at most 300, if not given; of a
    second-order method at most 20. `schedule`: the name of one, planned for the task's whole horizon.
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
    most = CURVED if entry.kind == "curvature" else horizon
    steps = min(horizon, most, steps or min(300, max(50, horizon // 10)))
    rate = None if schedule == "constant" else planned(schedule, chosen["lr"], horizon)
    with preserved():
        effort = affordable(task, steps, budget, seed)
        begun(effort)
        held = sample(task, effort.examples)
        moments = training(task, entry, chosen, steps, seed, rate)
        moment = next(moments)
        found = Diagnosis(
            task=task.name,
            description=task.description,
            spec=spec,
            optimizer=entry.name,
            settings=settings_in_words(entry, chosen),
            lr=chosen["lr"],
            steps=steps,
            seed=seed,
            weights=sum(w.numel() for w in moment.model.parameters() if w.requires_grad),
            batch_size=task.batch_size,
            examples=size_of(held),
            has_data=task.train is not None,
            effort=effort,
            schedule=schedule,
            named=named or entry.name,
            data=data,
        )
        _Session(found, task, entry, held, progress).run(moment, moments, chosen)
    return found


class _Session:
    """Fills in a diagnosis while a run goes on; keeps the reason where a measurement cannot be made."""

    def __init__(self, found: Diagnosis, task: Task, entry: Entry, held: Batch, progress: Progress) -> None:
        self.found, self.task, self.entry, self.held, self.progress = found, task, entry, held, progress
        self.seed, self.effort, self.missing = found.seed, found.effort, found.missing
        self.now = ""

    def tick(self, done: int, at_most: int) -> None:
        self.progress(self.now, done, at_most)

    def attempt(self, what: str, measure: Callable[..., Found], *given: object) -> Found | None:
        self.now = what
        self.tick(0, 0)
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                found = measure(*given)
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

    def run(self, moment: Moment, moments: Iterator[Moment], chosen: dict[str, float]) -> None:
        """Measure before the first step, along the run, and after the last step if it gets there."""
        found, attempt, steps = self.found, self.attempt, self.found.steps
        stops = {
            round(k * steps / (self.effort.measurements - 1)) for k in range(1, self.effort.measurements)
        }
        model = moment.model
        found.adaptive = _is_adaptive(moment.optimizer)
        found.range_test = self.range_test()
        batch = next(self.task.stream(self.seed))
        found.sparsity = attempt("sparsity", gradient_sparsity, model, self.task.loss, batch)
        found.noise = (attempt("gradient noise at the start", self.noise, model, self.seed), None)
        found.measurements = (self.curvature(moment),)
        for moment in moments:
            if moment.step in stops:
                found.measurements += (self.curvature(moment),)
        found.steps = moment.step
        if moment.step == steps:
            self.at_end(model)
        else:
            self.missing["the whole run"] = (
                f"the loss was no longer finite after step {moment.step}. Try a smaller --lr."
            )
        found.speeds = attempt("speed", self.speeds, chosen) or ()

    def at_end(self, model: nn.Module) -> None:
        found, attempt = self.found, self.attempt
        noise = attempt("gradient noise at the end", self.noise, model, self.seed + 1)
        found.noise = (found.noise[0], noise)
        found.density = attempt("spectrum", self.spectrum, model)
        found.conditioning = attempt("conditioning", self.conditioning, model)
        found.directions = attempt("directions", self.directions, model)

    def range_test(self) -> RangeTest | None:
        if self.entry.kind == "curvature":
            self.missing["learning rates"] = (
                f"{self.entry.name} has none: its lr is a fraction of its own step."
            )
            return None
        settings = {"steps": RATES, "sweeps": self.effort.sweeps, "seed": self.seed}
        return self.attempt(
            "learning rates",
            lambda: range_test_of(self.task, self.entry, **settings, progress=self.tick),
        )

    def curvature(self, moment: Moment) -> Measurement:
        model, optimizer, step, loss = moment.model, moment.optimizer, moment.step, self.task.loss
        small = sum(w.numel() for w in model.parameters()) <= DENSE
        tolerance, products = None if small else TOLERANCE, self.effort.products
        ends = self.attempt(
            f"curvature at step {step}",
            lambda: extreme_eigenvalues(
                *(model, loss, self.held, 1), products=products, tolerance=tolerance, progress=self.tick
            ),
        )
        seen = None
        if isinstance(optimizer, CurvatureOptimizer):
            self.missing["stability"] = (
                f"{type(optimizer).__name__} has no stability limit: it computes its steps from the curvature, and "
                "rejects a step that does not lower the loss."
            )
        elif step or not _is_adaptive(optimizer):  # it has no denominator before its first step
            seen = self.attempt(
                f"stability at step {step}",
                lambda: stability_limit(optimizer).sharpness(
                    *(model, loss, self.held), products=products, tolerance=tolerance, progress=self.tick
                ),
            )
        with torch.no_grad():
            value = float(loss(copy.deepcopy(model), self.held))
        largest = smallest = high = low = sharpest = None
        if ends is not None:
            largest, smallest = float(ends.largest[0]), float(ends.smallest[0])
            scale = max(abs(largest), abs(smallest)) or 1.0
            high, low = float(ends.residuals[0]) / scale, float(ends.residuals[-1]) / scale
        if seen is None:
            return Measurement(step, value, largest, smallest, None, None, None, (high, low, None))
        sharpest = seen.residual / (abs(seen.value) or 1.0)
        return Measurement(
            *(step, value, largest, smallest, seen.value, seen.limit, seen.largest_lr), (high, low, sharpest)
        )

    def batches(self, seed: int, count: int) -> list[Batch]:
        """Training batches of full size, of one epoch at most."""
        part = self.task.splits["train"]
        if isinstance(part, Rows):
            count = min(count, max(2, len(part) // self.task.batch_size))
        return list(islice(self.task.stream(seed), count))

    def noise(self, model: nn.Module, seed: int) -> NoiseScale:
        if self.task.train is None:
            raise ValueError("there is no data, so there is no noise")
        batches = self.batches(seed, self.effort.batches)
        return gradient_noise_scale(model, self.task.loss, batches, progress=self.tick)

    def spectrum(self, model: nn.Module) -> Spectrum:
        given, lanczos = (model, self.task.loss, self.held), self.effort.lanczos
        return spectrum(*given, probes=3, steps=lanczos, points=200, progress=self.tick)

    def conditioning(self, model: nn.Module) -> Conditioning:
        if self.found.weights <= DENSE:
            found = condition_number(model, self.task.loss, self.held)
            how = f"κ of the positive part, {found.how}"
            return Conditioning(found.value, found.largest, found.smallest, how)
        density, largest = self.found.density, self.found.measurements[-1].largest
        if density is None or largest is None:
            raise ValueError("it needs the spectrum")
        mean, error = density.mean(np.abs)
        how = (
            f"largest eigenvalue over the mean |λ| of all ({mean:.3g} ± {error:.1g}); κ itself is larger, the smallest "
            "positive eigenvalues of a model of this size cannot be seen"
        )
        return Conditioning(largest / mean, largest, mean, how)

    def directions(self, model: nn.Module) -> Directions:
        """Along the gradient on the sample as it is, and divided by the typical size of each weight's gradient."""
        loss, probe = self.task.loss, copy.deepcopy(model)
        weights = [w.detach() for w in model.parameters() if w.requires_grad]
        moved = [w for w in probe.parameters() if w.requires_grad]

        def gradient(batch: Batch) -> list[Tensor]:
            found = torch.autograd.grad(loss(probe, batch), moved, allow_unused=True, materialize_grads=True)
            return [g.to_dense() for g in found]

        g = gradient(self.held)
        # The sample is one of those that say what is typical: no weight is divided by less than it has here.
        batches = [self.held, *self.batches(self.seed + 2, 16)]
        squares = [torch.zeros_like(w) for w in weights]
        for batch in batches:
            for square, a in zip(squares, gradient(batch), strict=True):
                square += a * a / len(batches)
        here = float(loss(probe, self.held).detach())

        def decrease(step: list[Tensor]) -> float:
            length, lowest = _norm(weights) / max(_norm(step), 1e-300), here
            for t in LENGTHS:
                with torch.no_grad():
                    for weight, w, a in zip(moved, weights, step, strict=True):
                        weight.copy_(w + t * length * a)
                    value = float(loss(probe, self.held))
                lowest = min(lowest, value) if math.isfinite(value) else lowest
            return here - lowest

        scaled = [-a / (b.sqrt() + 1e-8) for a, b in zip(g, squares, strict=True)]
        return Directions(decrease([-a for a in g]), decrease(scaled))

    def speeds(self, chosen: dict[str, float]) -> tuple[Speed, ...]:
        """Seconds per step at batch sizes from a sixteenth of the task's to sixteen times it, or the whole split."""
        part = self.task.splits["train"]
        if self.entry.kind == "curvature":
            raise ValueError(
                f"a step of {self.entry.name} takes the whole training split, whatever the batch"
            )
        if not isinstance(part, Rows):
            raise ValueError("batches of other sizes can only be made from data with a length")
        sizes = sorted({min(max(1, self.task.batch_size * 4**k // 16), len(part)) for k in range(5)})
        times: dict[int, list[list[float]]] = {size: [] for size in sizes}
        runs = {size: self.timed(chosen, size) for size in sizes}
        for size in sizes:
            list(islice(runs[size], 2))
        # In turn, so that what else the machine does falls on all sizes alike.
        for number in range(ROUNDS):
            for k, size in enumerate(sizes):
                times[size].append(list(islice(runs[size], TIMED)))
                self.tick(number * len(sizes) + k + 1, ROUNDS * len(sizes))
        return tuple(
            Speed(size, statistics.median(chain(*rounds)), tuple(map(statistics.median, rounds)))
            for size, rounds in times.items()
        )

    def timed(self, chosen: dict[str, float], size: int) -> Iterator[float]:
        """Seconds of one step after another of a model of its own."""
        moment = next(training(self.task, self.entry, chosen, 0, self.seed))
        for batch in self.task.stream(self.seed, size):
            began = time.perf_counter()
            moment.optimizer.zero_grad()
            self.task.loss(moment.model, batch).backward()
            moment.optimizer.step()
            yield time.perf_counter() - began


def _is_adaptive(optimizer: Optimizer) -> bool:
    try:
        return stability_limit(optimizer).preconditioner is None
    except ValueError:
        return False  # it is refused again, with its reason, where it is measured


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(t.double().norm()) for t in tensors))
