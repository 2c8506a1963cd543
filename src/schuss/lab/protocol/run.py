"""One run: train one model from one seed over the whole horizon, and write down what happened.

A run is a pure function of its arguments. All entries under one seed start from the same weights and see
the same batches in the same order; nothing that an optimizer does can move them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.tasks.data import Batch, size, stable_seed, to_device
from schuss.lab.tasks.task import Task

EVALUATIONS = 30  # rows of a curve after the first
LOST = 0.20  # share of the horizon that the loss may stay above its start before the run is stopped

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


@dataclass
class Outcome:
    """What a run leaves behind."""

    status: Literal["finished", "diverged"] = "finished"
    curve: list[Point] = field(default_factory=list["Point"])
    diverged_at: int | None = None
    reason: str | None = None
    test: tuple[float, float] | None = None  # loss and metric
    seconds: float = 0.0

    @property
    def last(self) -> Point:
        """The evaluation at the end."""
        return self.curve[-1]


def train(
    task: Task,
    build: Build,
    seed: int,
    *,
    schedule: Callable[[int], float] | None = None,
    batch_size: int | None = None,
    open_test: bool = False,
    device: str = "cpu",
) -> Outcome:
    """Train the task's model with the optimizer that `build` makes, and return its curve.

    `schedule(n)` is the learning rate after n finished gradients; without one the optimizer keeps its own.
    The test split is touched only if `open_test`. A run whose loss stops being finite, or stays above its
    start for a fifth of the horizon, ends there as diverged: that is a result, not an error.
    """
    began = time.perf_counter()
    run = _Run(task, build, seed, schedule, batch_size, torch.device(device))
    outcome = run.through()
    if open_test and outcome.status == "finished":
        outcome.test = run.measure("test")
    outcome.seconds = time.perf_counter() - began
    return outcome


class _Run:
    """The moving parts of one run."""

    def __init__(
        self,
        task: Task,
        build: Build,
        seed: int,
        schedule: Callable[[int], float] | None,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        self.task, self.schedule, self.device = task, schedule, device
        _seed_everything("weights", seed)
        self.model = task.model().to(device)
        self.optimizer = build(self.model.parameters())
        self.batches: Iterator[Batch] = task.stream(seed, batch_size)
        self.total = task.total_steps(batch_size)
        # Training draws (dropout, noise) begin at the same number whatever building the model consumed.
        _seed_everything("training", seed)
        self.steps = self.examples = self.gradients = 0
        self.finite = True
        # The train loss is watched on as many examples as validation has: same cost, same noise.
        self.watched = task.length("validation")

    def through(self) -> Outcome:
        """Train to the horizon, or until the run has diverged."""
        outcome = Outcome()
        outcome.curve.append(self.look(math.nan))
        due = iter(cadence(self.total))
        next_look = next(due)
        lost_since: int | None = None
        # A step that takes several gradients (a line search) uses up as much of the horizon.
        while self.gradients < self.total:
            looking = self.gradients + 1 >= next_look
            rate = self.step(watch=looking)
            if not self.finite:
                return self.diverged(outcome, "the loss was not finite")
            if self.gradients < next_look:
                continue
            point = self.look(rate)
            outcome.curve.append(point)
            if not math.isfinite(point.train_loss):
                return self.diverged(outcome, "the loss was not finite")
            if point.train_loss <= outcome.curve[0].train_loss:
                lost_since = None
            elif lost_since is None:
                lost_since = self.gradients
            elif self.gradients - lost_since >= LOST * self.total:
                return self.diverged(outcome, "the loss stayed above its start for a fifth of the horizon")
            next_look = next((at for at in due if at > self.gradients), self.total)
        return outcome

    def diverged(self, outcome: Outcome, reason: str) -> Outcome:
        outcome.status, outcome.diverged_at, outcome.reason = "diverged", self.steps, reason
        return outcome

    def step(self, watch: bool) -> float:
        """Take one step; return its effective rate if watched, else NaN."""
        batch = to_device(next(self.batches), self.device)
        examples = size(batch)
        if self.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule(self.gradients)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = _scalar(self.task, self.task.loss(self.model, batch))
            loss.backward()
            self.gradients += 1
            self.examples += examples
            self.finite = self.finite and math.isfinite(loss.item())
            return loss

        before = [w.detach().clone() for w in self.model.parameters()] if watch else []
        self.optimizer.step(closure)  # type: ignore[arg-type]  # torch types a closure's loss as float; it is a tensor
        self.steps += 1
        return self.effective_rate(before) if watch else math.nan

    @torch.no_grad()
    def effective_rate(self, before: list[Tensor]) -> float:
        """How far the weights moved per unit of gradient, both as root mean squares."""
        pairs = [
            (w, old) for w, old in zip(self.model.parameters(), before, strict=True) if w.grad is not None
        ]
        moved = sum((w - old).double().square().sum().item() for w, old in pairs)
        slope = sum(_dense(w.grad).double().square().sum().item() for w, _ in pairs)
        return math.sqrt(moved / slope) if slope > 0 else math.nan

    def look(self, rate: float) -> Point:
        """Measure the model as it is now."""
        train_loss, _ = self.measure("train", self.watched)
        validation_loss, metric = self.measure("validation")
        lr = float(self.optimizer.param_groups[0].get("lr", math.nan))
        return Point(self.steps, self.examples, self.gradients, train_loss, validation_loss, metric, lr, rate)

    @torch.no_grad()
    def measure(self, split: str, limit: int | None = None) -> tuple[float, float]:
        """Mean loss and metric over a split, in evaluation mode (the optimizer's too, if it has one)."""
        _switch(self.optimizer, "eval")
        self.model.eval()
        losses, metrics, examples = 0.0, 0.0, 0
        for held in self.task.batches(split, limit):
            batch = to_device(held, self.device)
            weight = size(batch)
            loss = float(self.task.loss(self.model, batch))
            losses += weight * loss
            metrics += weight * (
                loss if self.task.metric is None else float(self.task.metric(self.model, batch))
            )
            examples += weight
        self.model.train()
        _switch(self.optimizer, "train")
        if examples == 0:
            raise refusal(
                split, "no batches", "data", f"The {split} split of {self.task.name!r} gave nothing."
            )
        return losses / examples, metrics / examples


def cadence(total: int) -> list[int]:
    """After which gradients a run is evaluated: the same for every entry, evenly, the last at the end.

    >>> cadence(90)[:3], cadence(90)[-1], cadence(4)
    ([3, 6, 9], 90, [1, 2, 3, 4])
    """
    return sorted({max(1, round(i * total / EVALUATIONS)) for i in range(1, EVALUATIONS + 1)})


def _seed_everything(purpose: str, seed: int) -> None:
    number = stable_seed(purpose, seed)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (a user's model may draw from it)
    random.seed(number)


def _scalar(task: Task, loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"The loss of {task.name!r} is {given}; a scalar tensor with a graph is needed.")
    return loss


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _switch(optimizer: Optimizer, mode: str) -> None:
    """Optimizers that evaluate on an average (Schedule-Free) have `train()` and `eval()`."""
    if callable(switch := getattr(optimizer, mode, None)):
        switch()


def weights(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(w.numel() for w in model.parameters() if w.requires_grad)
