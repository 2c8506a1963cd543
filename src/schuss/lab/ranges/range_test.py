"""The range test of `schuss.curvature` on a task, with an entry's usual settings."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from schuss.curvature import RangeTest, range_test
from schuss.errors import refusal
from schuss.lab.entries import Entry
from schuss.lab.tasks.task import Task
from schuss.lab.training.run import first_step

BEYOND = 10.0  # how far the test reaches below and above the entry's usual range


def range_test_of(
    task: Task,
    entry: Entry,
    *,
    lowest: float | None = None,
    highest: float | None = None,
    steps: int = 100,
    sweeps: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> RangeTest:
    """Train a few steps from the seed's start while the learning rate grows, in several sweeps; see `range_test`.

    `lowest`, `highest`: first and last rate; a decade below and above the entry's range, if not given. Raises
    `ValueError` for a second-order method, whose lr is a fraction of its own step.
    """
    if entry.kind == "curvature":
        advice = "The lr of a second-order method is a fraction of its own step."
        raise refusal("entry", entry.name, "an optimizer with a learning rate", advice)
    low, high, _ = entry.space["lr"]
    model = first_step(task, seed).model
    return range_test(
        model,
        task.loss,
        islice(task.stream(seed), steps),
        entry.build([w for w in model.parameters() if w.requires_grad], entry.usual),
        lowest=low / BEYOND if lowest is None else lowest,
        highest=high * BEYOND if highest is None else highest,
        steps=steps,
        sweeps=sweeps,
        progress=progress,
    )
