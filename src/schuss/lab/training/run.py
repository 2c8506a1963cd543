"""One run: train one model from one seed over the whole horizon, and write down what happened.

A run is a pure function of its arguments. All entries under one seed start from the same weights and see
the same batches in the same order; nothing that an optimizer does can move them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.seeds import seed_everything, stable_seed
from schuss.lab.tasks.data import Batch, size, to_device
from schuss.lab.tasks.task import Task

EVALUATIONS = 30  # rows of a curve after the first
UNTIMED = 20  # steps before those that a calibration times
NOT_FINITE = "the loss was not finite"
LOST = 0.20  # fraction of the horizon that the loss may stay above its start before the run is stopped

CPU = torch.device("cpu")

Build = Callable[[Iterable[Any]], Optimizer]


@dataclass(frozen=True)
class Point:
    """What one evaluation saw."""

    steps: int
    examples: int
    gradients: int
    train_loss: float
    validation_loss: float
    metric: float
    lr: float
    effective_rate: float  # rms(change of w) / rms(gradient) over the step just taken; NaN before the first

    @property
    def finite(self) -> bool:
        """Whether the losses and the metric are numbers."""
        return all(map(math.isfinite, (self.train_loss, self.validation_loss, self.metric)))


@dataclass
class Outcome:
    """What a run leaves behind."""

    status: Literal["finished", "diverged", "crashed"] = "finished"
    curve: list[Point] = field(default_factory=list["Point"])
    diverged_at: int | None = None
    reason: str | None = None
    test: tuple[float, float] | None = None  # loss and metric
    error: str | None = None
    seconds: float = 0.0

    @property
    def last(self) -> Point:
        """The evaluation at the end."""
        return self.curve[-1]


@dataclass(frozen=True)
class FirstStep:
    """A fresh model and its first batch, to be checked before a race."""

    model: nn.Module
    batch: Batch
    loss: float
    reached: bool  # whether any weight has a gradient


def first_step(task: Task, seed: int) -> FirstStep:
    """Make the model and take the gradient of its first batch, without changing a weight."""
    seed_everything(stable_seed("weights", seed))
    model = task.model()
    batch = next(task.stream(seed))
    seed_everything(stable_seed("training", seed))
    loss = scalar(task, task.loss(model, batch))
    loss.backward()
    reached = any(w.grad is not None for w in model.parameters())
    model.zero_grad()
    return FirstStep(model, batch, loss.item(), reached)


def plain(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data: columns instead of points, None for what is not finite."""
    curve = {
        column.name: [_finite(getattr(point, column.name)) for point in outcome.curve]
        for column in fields(Point)
    }
    at, test = outcome.diverged_at, outcome.test
    return {
        "status": outcome.status,
        "curve": curve,
        "divergence": None if at is None else {"step": at, "reason": outcome.reason},
        "test": None if test is None else {"loss": _finite(test[0]), "metric": _finite(test[1])},
        "error": outcome.error,
        "seconds": outcome.seconds,
    }


class ClosureIgnoredError(Exception):
    """The optimizer's first step took a closure and never called it."""


class Running:
    """The moving parts of one run."""

    untimed = UNTIMED  # steps before a calibration
    at_rest = False  # whether no step will move the weights any more

    def __init__(
        self,
        task: Task,
        build: Build,
        seed: int,
        schedule: Callable[[int], float] | None = None,
        batch_size: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.task, self.schedule, self.device = task, schedule, device
        seed_everything(stable_seed("weights", seed))
        self.model = task.model().to(device)
        self.optimizer = build(self.model.parameters())
        self.batches: Iterator[Batch] = task.stream(seed, batch_size)
        self.total = task.total_steps(batch_size)
        # Training draws (dropout, noise) begin at the same number whatever building the model consumed.
        seed_everything(stable_seed("training", seed))
        self.steps = self.examples = self.gradients = 0
        self.finite = True
        # torch's convention leaves it to the optimizer whether `step` calls a closure or finds the gradients there.
        self.calls_closure = _takes_closure(self.optimizer)

    def through(self) -> Outcome:
        """Train to the horizon, or until the run has diverged."""
        outcome = Outcome(curve=[self.evaluate(math.nan)])
        due = iter(cadence(self.total))
        next_due = next(due)
        lost_since: int | None = None
        # A step that takes several gradients (a line search) uses up as much of the horizon.
        while self.gradients < self.total:
            watch = self.gradients + 1 >= next_due
            rate = self.step(watch)
            if not self.finite:
                return self.diverged(outcome, NOT_FINITE)
            if self.gradients < next_due:
                continue
            point = self.evaluate(rate)
            outcome.curve.append(point)
            if not point.finite:
                return self.diverged(outcome, NOT_FINITE)
            if point.train_loss <= outcome.curve[0].train_loss:
                lost_since = None
            elif lost_since is None:
                lost_since = self.gradients
            elif self.gradients - lost_since >= LOST * self.total:
                return self.diverged(outcome, "the loss stayed above its start for a fifth of the horizon")
            next_due = next((at for at in due if at > self.gradients), self.total)
        return outcome

    def state_bytes(self) -> int:
        """What the optimizer keeps from step to step."""
        # By weight; an optimizer of the user's may keep other things.
        state: Mapping[Any, Any] = self.optimizer.state
        slots = (slot if isinstance(slot, Mapping) else {"": slot} for slot in state.values())
        return sum(_bytes(value) for slot in slots for value in cast("Mapping[Any, Any]", slot).values())

    def diverged(self, outcome: Outcome, reason: str) -> Outcome:
        """Where and why the run ended early."""
        outcome.status, outcome.diverged_at, outcome.reason = "diverged", self.steps, reason
        return outcome

    def set_rate(self, n: int) -> None:
        """Give the optimizer the learning rate after n finished gradients, where there is a schedule."""
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(n)

    @torch.enable_grad()
    def gradient(self, batch: Batch) -> Tensor:
        """The loss of a batch, its gradient left with the weights."""
        self.optimizer.zero_grad()
        loss = scalar(self.task, self.task.loss(self.model, batch))
        loss.backward()
        self.gradients += 1
        self.examples += size(batch)
        self.finite = self.finite and math.isfinite(loss.item())
        return loss

    def step(self, watch: bool) -> float:
        """Take one step; return its effective rate if watched, else NaN."""
        batch = to_device(next(self.batches), self.device)
        self.set_rate(self.gradients)
        before = [w.detach().clone() for w in self.model.parameters()] if watch else []
        if self.calls_closure:
            known = self.gradients
            self.optimizer.step(lambda: self.gradient(batch))  # type: ignore[arg-type]  # torch types its loss as float
            if self.gradients == known and self.steps == 0:
                raise ClosureIgnoredError
            if self.gradients == known:
                raise RuntimeError(
                    f"{type(self.optimizer).__name__}.step(closure) did not call its closure in step {self.steps + 1}, "
                    "though it did before. A race counts a run by its gradients: call the closure in every step, or in "
                    "none."
                )
        else:
            self.gradient(batch)
            self.optimizer.step()
        self.steps += 1
        return self.effective_rate(before) if watch else math.nan

    @torch.no_grad()
    def effective_rate(self, before: list[Tensor]) -> float:
        """How far the weights moved per unit of gradient, both as root mean squares."""
        pairs = [(w, w.grad, old) for w, old in zip(self.model.parameters(), before, strict=True)]
        moved = sum((w - old).double().square().sum().item() for w, g, old in pairs if g is not None)
        gradients = (g.coalesce().values() if g.is_sparse else g for _, g, _ in pairs if g is not None)
        slope = sum(g.double().square().sum().item() for g in gradients)
        return math.sqrt(moved / slope) if slope > 0 else math.nan

    def evaluate(self, rate: float) -> Point:
        """Measure the model as it is now."""
        train_loss, _ = self.measure("train")
        validation_loss, metric = self.measure("validation")
        lr = float(self.optimizer.param_groups[0].get("lr", math.nan))
        return Point(self.steps, self.examples, self.gradients, train_loss, validation_loss, metric, lr, rate)

    def measure(self, split: str, whole: bool = False) -> tuple[float, float]:
        """Loss and metric over a split, on the weights that the optimizer evaluates on."""
        with evaluating(self.optimizer):
            return measure(self.task, self.model, split, whole, self.device)


@torch.no_grad()
def measure(
    task: Task,
    model: nn.Module,
    split: str,
    whole: bool = False,
    device: torch.device = CPU,
    most: int | None = None,
) -> tuple[float, float]:
    """Mean loss and metric of a model over a split, or over its first `most` batches, in evaluation mode."""
    model.eval()
    losses, metrics, examples = 0.0, 0.0, 0
    for held in islice(task.batches(split, whole), most):
        batch = to_device(held, device)
        weight = size(batch)
        loss = float(task.loss(model, batch))
        losses += weight * loss
        metrics += weight * (loss if task.metric is None else float(task.metric(model, batch)))
        examples += weight
    model.train()
    if examples == 0:
        raise refusal(split, "no batches", "data", f"The {split} split of {task.name!r} gave nothing.")
    return losses / examples, metrics / examples


def cadence(total: int) -> list[int]:
    """After which gradients a run is evaluated: the same for every entry, evenly, the last at the end.

    >>> cadence(90)[:3], cadence(90)[-1], cadence(4)
    ([3, 6, 9], 90, [1, 2, 3, 4])
    """
    return sorted({max(1, round(i * total / EVALUATIONS)) for i in range(1, EVALUATIONS + 1)})


def _takes_closure(optimizer: Optimizer) -> bool:
    try:
        parameters = inspect.signature(optimizer.step).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)


def scalar(task: Task, loss: Any) -> Tensor:
    """A loss that can be differentiated; `TypeError` for anything else."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.requires_grad:
        raise TypeError(
            f"The loss of {task.name!r} does not depend on trainable weights: it has no gradient. Either every "
            "requires_grad of the model is False, or the loss was computed under no_grad or from .detach()ed or "
            ".item() values."
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"The loss of {task.name!r} is {given}; a scalar tensor is needed. Reduce it with .mean() or .sum(), and "
            "return it without .item()."
        )
    return loss


@contextmanager
def evaluating(optimizer: Optimizer) -> Generator[None]:
    """The weights that the optimizer evaluates on, which for Schedule-Free are an average, in the weights' place.

    Those of other packages have `eval()` and `train()` for that.
    """
    if getattr(optimizer, "evaluates_average", False):
        with cast(Any, optimizer).averaged():
            yield
        return
    _switch(optimizer, "eval")
    yield
    _switch(optimizer, "train")


def _switch(optimizer: Optimizer, mode: str) -> None:
    if callable(switch := getattr(optimizer, mode, None)):
        switch()


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _bytes(value: Any) -> int:
    """Of a state slot; a step count is not state that grows with the weights."""
    return value.numel() * value.element_size() if isinstance(value, Tensor) and value.numel() > 1 else 0


def weights(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(w.numel() for w in model.parameters() if w.requires_grad)
