"""A run of a method that steps by curvature: the whole training split at once, every product paid for.

Such a method compares losses, so it needs one function: all of the training split, with the model's own draws
(dropout) the same at every evaluation. Its costs are put on the axis of all others: a forward and backward pass
over as many examples as the task's batch is one gradient equivalent, a Hessian-vector product over them two,
and the run ends where these have used up the horizon, whatever happened in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.seeds import stable_seed
from schuss.lab.tasks.data import Rows, to_device
from schuss.lab.tasks.task import Task
from schuss.lab.training.run import NOT_FINITE, Build, Outcome, Point, Running, cadence, scalar
from schuss.newton import GaussNewton
from schuss.newton.base import CurvatureOptimizer
from schuss.newton.objective import NotFinite

AGREE = 1e-4  # relative: how near the loss of the outputs must come to the task's own


class CurvedRun(Running):
    """Steps of unequal cost, none of which may end past the horizon."""

    untimed = 2

    def __init__(
        self,
        task: Task,
        build: Build,
        seed: int,
        schedule: Callable[[int], float] | None,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        super().__init__(task, build, seed, schedule, batch_size, device)
        assert isinstance(self.optimizer, CurvatureOptimizer)
        self.method = self.optimizer
        self.function = Function(task, self.model, self.method, seed, device)
        batch_size = batch_size or task.batch_size
        rows = self.function.rows
        self.unit = rows / batch_size if rows else 1.0
        self.per_gradient = batch_size if rows else 1  # examples of one gradient equivalent
        self.limit = getattr(self.method, "max_products", None)
        self.spent = 0.0
        self.before: list[Tensor] = []

    def through(self) -> Outcome:
        """Train to the horizon; where a step passes an evaluation by, that sees the weights from before it.

        A method that only accepts steps that lower its loss cannot stay above its start, so there is one way to
        diverge: a loss that is not finite.
        """
        outcome = Outcome(curve=[self.evaluate(math.nan)])
        rate = math.nan
        for at in cadence(self.total):
            while self.gradients < at:
                rate = self.step(watch=True)
                if not self.finite:
                    return self.diverged(outcome, NOT_FINITE)
            point = self.evaluate(rate) if self.gradients == at else self.evaluate_before(at)
            if not point.finite:
                return self.diverged(outcome, NOT_FINITE)
            outcome.curve.append(point)
        return outcome

    def evaluate_before(self, at: int) -> Point:
        """The model as it was before the last step, which was still being paid for at this cost.

        This costs the method nothing: the weights come back bit for bit, and as they are changed through `.data`,
        it knows that what it evaluated at its last point still holds.
        """
        now = self.weights()
        self.put(self.before)
        point = replace(
            self.evaluate(math.nan), steps=self.steps - 1, gradients=at, examples=at * self.per_gradient
        )
        self.put(now)
        return point

    def weights(self) -> list[Tensor]:
        """Copies of the model's weights."""
        return [w.detach().clone() for w in self.model.parameters()]

    def put(self, weights: list[Tensor]) -> None:
        """Write these weights into the model, unseen by autograd."""
        for w, value in zip(self.model.parameters(), weights, strict=True):
            w.data.copy_(value)

    def state_bytes(self) -> int:
        """What the method remembers from step to step."""
        return sum(
            each.numel() * each.element_size()
            for slot in self.method.memory.values()
            for each in (cast("list[Any]", slot) if isinstance(slot, list) else [slot])
            if isinstance(each, Tensor)
        )

    def step(self, watch: bool) -> float:
        """Take one step and pay for it, at least as much as one gradient; a step that costs too much is undone."""
        self.set_rate(self.gradients)
        self.before = self.weights()
        price, rate = 1.0, math.nan
        if self.method.param_groups[0]["lr"] > 0:
            if hasattr(self.method, "max_products"):
                left = int(((self.total - self.spent) / self.unit - 2) // 2)
                self.method.max_products = max(1, min(left, self.limit or left))  # pyright: ignore
            try:
                self.method.step(self.function)
            except NotFinite:
                self.finite = False
                return math.nan
            report = self.method.report
            assert report is not None
            price = max(1.0, report.gradient_equivalents)
            self.at_rest = not report.accepted
            if report.gradient_norm > 0:
                rate = report.step_norm / report.gradient_norm
        self.spent += price * self.unit
        self.steps += 1
        self.gradients = min(self.total, math.ceil(self.spent - 1e-9))
        self.examples = self.gradients * self.per_gradient
        if self.spent > self.total + 1e-9:
            with (
                torch.no_grad()
            ):  # not through `.data`: the method must see that its last point no longer holds
                for w, old in zip(self.model.parameters(), self.before, strict=True):
                    w.copy_(old)
            self.at_rest = True
        return rate


class Function:
    """The one function such a method works on, as its closure: the loss, or what Gauss-Newton straightens."""

    def __init__(
        self, task: Task, model: nn.Module, method: CurvatureOptimizer, seed: int, device: torch.device
    ) -> None:
        part = task.splits["train"]
        self.rows = len(part) if isinstance(part, Rows) else None
        self.batch = to_device(next(task.stream(seed, self.rows)), device)
        self.task, self.model = task, model
        self.straight = isinstance(method, GaussNewton)
        self.draws = stable_seed("closure", seed)
        if isinstance(method, GaussNewton):
            squares = isinstance(self(), Tensor)
            method.loss, method.reduction = ("squares", "sum") if squares else ("softmax", "mean")

    def __call__(self) -> Any:
        """Evaluate it; what the model draws is the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.draws)
            if self.straight:
                assert self.task.outputs is not None
                return self.task.outputs(self.model, self.batch)
            return scalar(self.task, self.task.loss(self.model, self.batch))


def check_applies(task: Task, entries: Sequence[Entry]) -> None:
    """Refuse a method that steps by curvature on a task where it has no function to work on."""
    for entry in entries:
        if entry.kind != "curvature":
            continue
        here = f"possible on {task.name!r}"
        if task.train is not None and not isinstance(task.splits["train"], Rows):
            advice = "It compares losses over the whole training split, and this data has no length."
            raise refusal("entry", entry.name, here, advice)
        if entry.optimizer is GaussNewton:
            if task.outputs is None:
                needed = "residuals whose half sum of squares is the loss, or (logits, targets)"
                raise refusal("entry", entry.name, here, f"It needs Task(outputs=...): {needed}.")
            _check_outputs(task, task.outputs)


@torch.no_grad()
def _check_outputs(task: Task, outputs: Callable[..., Any]) -> None:
    model, batch = task.model(), next(task.stream(0))
    found = outputs(model, batch)
    own = float(task.loss(model, batch))
    theirs = float(found.double().square().sum() / 2 if isinstance(found, Tensor) else cross_entropy(*found))
    if not abs(theirs - own) <= AGREE * max(abs(own), abs(theirs)):
        raise ValueError(
            f"Task {task.name!r}: its loss is {own:.6g}, but outputs(model, batch) gives the loss {theirs:.6g}. Half "
            "the sum of squared residuals, or the mean cross-entropy of (logits, targets), must be the loss."
        )
