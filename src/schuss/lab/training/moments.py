"""A short training run that can be measured on its way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schuss.lab.entries import Entry
from schuss.lab.tasks.data import Batch, Rows
from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import Function, check_applies
from schuss.lab.training.run import Running
from schuss.newton.base import CurvatureOptimizer


@dataclass(frozen=True, eq=False)
class Moment:
    """The state of training after `step` finished steps."""

    step: int
    model: nn.Module
    optimizer: Optimizer


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
    the first step that one's. Model and optimizer are the live ones: read them, and leave them as they are. Ends
    early where the loss is no longer finite.
    """
    run = Running(task, partial(entry.build, parameters=parameters), seed, schedule)
    optimizer = run.optimizer
    run.set_rate(0)
    yield Moment(0, run.model, optimizer)
    function = None
    if isinstance(optimizer, CurvatureOptimizer):
        check_applies(task, [entry])
        function = Function(task, run.model, optimizer, seed, run.device)
    for n in range(steps):
        run.set_rate(n)
        if function is not None:
            optimizer.step(function)
        else:
            run.gradient(next(run.batches))
            if not run.finite:
                return
            optimizer.step()
        yield Moment(n + 1, run.model, optimizer)


def sample(task: Task, examples: int) -> Batch:
    """One batch of at most so many training examples, at even distances; a stream's first batch."""
    part = task.splits["train"]
    return evenly(part, examples) if isinstance(part, Rows) else next(task.stream(0))


def evenly(part: Rows, most: int) -> Batch:
    """At most so many rows as one batch, at even distances."""
    picks = torch.arange(min(most, len(part))) * len(part) // min(most, len(part))
    return part.take(part.index[picks])


def flat(model: nn.Module) -> Tensor:
    """All trainable weights as one float64 vector."""
    return torch.cat([w.detach().double().reshape(-1) for w in model.parameters() if w.requires_grad])
