"""A short training run that can be looked at on its way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.lab.entries import Entry
from schuss.lab.tasks.data import Batch, Rows
from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import Function, check_applies
from schuss.lab.training.run import first_step
from schuss.newton.base import CurvatureOptimizer


@dataclass(frozen=True, eq=False)
class Moment:
    """The state of training after `step` finished steps; `loss` is that of the batch of the last one."""

    step: int
    model: nn.Module
    optimizer: Optimizer
    loss: float | None


def training(
    task: Task,
    entry: Entry,
    parameters: Mapping[str, float],
    steps: int,
    seed: int = 0,
    schedule: Callable[[int], float] | None = None,
) -> Generator[Moment]:
    """Train from the seed's own start, pausing before the first step and after each.

    `schedule(n)` is the rate of the step after n finished ones; the optimizer holds that of its last step, before
    the first step that one's. Model and optimizer are the live ones: look, and leave them as they are. Ends early
    where the loss is no longer finite.
    """
    model = first_step(task, seed).model
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = entry.build(weights, parameters)
    if schedule is not None:
        for group in optimizer.param_groups:
            group["lr"] = schedule(0)
    yield Moment(0, model, optimizer, None)
    whole = None
    if isinstance(optimizer, CurvatureOptimizer):
        check_applies(task, [entry])
        whole = Function(task, model, optimizer, seed, torch.device("cpu"))
    for n, batch in enumerate(islice(task.stream(seed), steps)):
        if schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = schedule(n)
        if whole is not None and isinstance(optimizer, CurvatureOptimizer):
            yield Moment(n + 1, model, optimizer, float(optimizer.step(whole)))
            continue
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        if not bool(torch.isfinite(loss.detach())):
            return
        loss.backward()
        optimizer.step()
        yield Moment(n + 1, model, optimizer, float(loss.detach()))


def sample(task: Task, examples: int) -> Batch:
    """One batch of at most so many training examples, at even distances; a stream's first batch."""
    part = task.splits["train"]
    if isinstance(part, Rows):
        picks = torch.arange(min(examples, len(part))) * len(part) // min(examples, len(part))
        return part.take(part.index[picks])
    return next(task.stream(0))


def flat(model: nn.Module) -> Tensor:
    """All trainable weights as one float64 vector."""
    return torch.cat([w.detach().double().reshape(-1) for w in model.parameters() if w.requires_grad])


def put(model: nn.Module, row: Tensor) -> None:
    """Write such a vector into the model."""
    weights: list[Any] = [w for w in model.parameters() if w.requires_grad]
    for w, part in zip(weights, row.split([w.numel() for w in weights]), strict=True):
        w.data.copy_(part.view_as(w))
