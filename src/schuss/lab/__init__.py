"""The lab: compares optimizers fairly on a task and says how sure the result is."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schuss.lab.entries import Entry
    from schuss.lab.racing.budget import Budget
    from schuss.lab.racing.race import race
    from schuss.lab.racing.report import Report
    from schuss.lab.tasks.task import Task

__all__ = ["Budget", "Entry", "Report", "Task", "race"]

_HOMES = {
    "Budget": "racing.budget",
    "Entry": "entries",
    "Report": "racing.report",
    "Task": "tasks.task",
    "race": "racing.race",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker's server can be started before torch is there."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"schuss.lab.{_HOMES[name]}"), name)
