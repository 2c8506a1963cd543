"""Whether the user meant a function of two numbers, or a task."""

from __future__ import annotations

from schuss.lab.files import load_name
from schuss.lab.names import SURFACES, TASKS, check_landscape, divide, is_own
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
