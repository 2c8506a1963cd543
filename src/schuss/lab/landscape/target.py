"""What the user meant: a function of two numbers, or a task."""

from __future__ import annotations

from pathlib import Path

from schuss.errors import refusal
from schuss.lab.files import divide, is_own, load_name
from schuss.lab.landscape.surfaces import SURFACES
from schuss.lab.tasks import BUILT_IN, load
from schuss.lab.tasks.own import own_task
from schuss.lab.tasks.task import Task


def is_surface(spec: str) -> bool:
    """Whether a spec names a function of two numbers; refused where it names nothing.

    >>> is_surface("beale"), is_surface("digits")
    (True, False)
    """
    if spec.partition(":")[0] not in (*SURFACES, *BUILT_IN) and is_own(spec):
        place, name = divide(spec)
        return bool(name) and not isinstance(load_name(place, name)[0], Task)
    name = spec.partition(":")[0]
    if name not in SURFACES and name not in BUILT_IN:
        raise refusal(
            "landscape",
            spec,
            f"a function ({', '.join(SURFACES)}) or a task ({', '.join(BUILT_IN)})",
            "Your own: FILE.py:function, or FILE.py with a schuss.lab.Task.",
        )
    return name in SURFACES


def task_of(spec: str, data: Path | None = None) -> Task:
    """The task that a spec names: a built-in one, or the one in the user's file."""
    if spec.partition(":")[0] not in BUILT_IN and is_own(spec):
        return own_task(spec)[0]
    return load(spec, data)
