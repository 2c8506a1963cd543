"""What the user meant: a function of two numbers, or a task."""

from __future__ import annotations

from pathlib import Path

from schuss.lab.files import load_name
from schuss.lab.names import SURFACES, TASKS, check_landscape, divide, is_own
from schuss.lab.tasks import load
from schuss.lab.tasks.own import own_task
from schuss.lab.tasks.task import Task


def is_surface(spec: str) -> bool:
    """Whether a spec names a function of two numbers; refused where it names nothing.

    >>> is_surface("beale"), is_surface("digits")
    (True, False)
    """
    if spec.partition(":")[0] not in (*SURFACES, *TASKS) and is_own(spec):
        place, name = divide(spec)
        return bool(name) and not isinstance(load_name(place, name)[0], Task)
    return check_landscape(spec) in SURFACES


def task_of(spec: str, data: Path | None = None) -> Task:
    """The task that a spec names: a built-in one, or the one in the user's file."""
    if spec.partition(":")[0] not in TASKS and is_own(spec):
        return own_task(spec)[0]
    return load(spec, data)
