"""What the user meant: a function of two numbers, or a task."""

from __future__ import annotations

from pathlib import Path

from schuss.errors import refusal
from schuss.lab.files import load_file, load_name
from schuss.lab.names import SURFACES, check_landscape
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task


def is_surface(spec: str) -> bool:
    """Whether a spec names a function of two numbers; refused where it names nothing.

    >>> is_surface("beale"), is_surface("digits")
    (True, False)
    """
    if ".py:" in spec:
        found, _ = load_name(*spec.rsplit(":", 1))
        return not isinstance(found, Task)
    if spec.endswith(".py"):
        return False
    return check_landscape(spec) in SURFACES


def task_of(spec: str, data: Path | None = None) -> Task:
    """The task that a spec names: a built-in one, or the one in the user's file."""
    if ".py:" in spec:
        found, _ = load_name(*spec.rsplit(":", 1))
        if not isinstance(found, Task):
            raise refusal("task", spec, "a schuss.lab.Task")
        return found
    if spec.endswith(".py"):
        module, _ = load_file(spec)
        tasks = {name: value for name, value in vars(module).items() if isinstance(value, Task)}
        if len(tasks) != 1:
            found = f"has {', '.join(tasks)}: name one as {spec}:NAME" if tasks else "has none"
            raise refusal("task", spec, f"a file with one schuss.lab.Task; it {found}")
        return next(iter(tasks.values()))
    return load(spec, data)
