"""A task from the user's own file or module."""

from __future__ import annotations

from schuss.errors import refusal
from schuss.lab.files import Loaded, load_own
from schuss.lab.names import divide
from schuss.lab.tasks.task import Task


def own_task(spec: str) -> tuple[Task, Loaded]:
    """The task that is named, or the only one that is there."""
    place, name = divide(spec)
    loaded = load_own(place)
    tasks = {key: value for key, value in vars(loaded.module).items() if isinstance(value, Task)}
    if name:
        if name not in tasks:
            raise refusal("task", spec, f"a task in that file: {', '.join(tasks) or 'there is none'}")
        return tasks[name], loaded
    if len(tasks) != 1:
        found = (
            f"It has {', '.join(tasks)}: name one as {spec}:NAME."
            if tasks
            else "It has none: assign a schuss.lab.Task."
        )
        raise refusal("task", spec, "a file with one task", found)
    return next(iter(tasks.values())), loaded
