"""A learning-rate range test as one HTML report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import schuss
from schuss.curvature import RangeTest
from schuss.lab.entries import Entry
from schuss.lab.landscape.trajectories import settings_in_words
from schuss.lab.pages import page
from schuss.lab.tasks.task import Task

ROWS = 13


def render(found: RangeTest, task: Task, entry: Entry, command: str) -> str:
    """The HTML report of a range test, and the command that repeats it."""
    usual = {key: value for key, value in entry.usual.items() if key != "lr"}
    picks = np.unique(np.linspace(0, len(found.rates) - 1, ROWS).round().astype(int))
    return page(
        Path(__file__).parent / "templates",
        "range",
        f"Learning rates of {entry.name} on {task.name}",
        [("test", "The range test"), ("rates", "Loss at some rates"), ("repeat", "How to repeat it")],
        {key: getattr(found, key) for key in ("rates", "losses", "interval", "suggestion")},
        found=found,
        task=task,
        entry=entry,
        settings=settings_in_words(entry, usual),
        rows=[(float(found.rates[i]), found.losses[:, i].tolist()) for i in picks],
        command=command,
        version=schuss.__version__,
    )
