"""The names of everything that comes with the lab, without importing any of it: a slip is seen before torch is."""

from __future__ import annotations

from collections.abc import Sequence

from schuss.errors import unknown
from schuss.lab.schedules import check as check_schedule

# name -> module and function that builds it; a module is imported when its task is asked for.
TASKS = {
    "digits": "digits:digits",
    "mnist": "digits:mnist",
    "text": "text:text",
    "sparse": "sparse:sparse",
    "diabetes": "convex:diabetes",
    "breast_cancer": "convex:breast_cancer",
    "quadratic": "functions:quadratic",
    "rosenbrock": "functions:rosenbrock",
    "saddle": "functions:saddle",
}
SURFACES = ("rosenbrock", "himmelblau", "saddle", "beale", "quadratic")
ENTRIES = (
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "rmsprop",
    "adam",
    "adamw",
    "nadamw",
    "lion",
    "adadelta",
    "adamax",
    "nadam",
    "radam",
    "asgd",
    "newton-cg",
    "lbfgs",
    "gauss-newton",
)


def is_own(spec: str) -> bool:
    """Whether a spec names something in a file of the user's: `file.py`, `file.py:name`."""
    return spec.endswith(".py") or ".py:" in spec


def check_task(spec: str) -> str:
    """Return the name in a spec like "quadratic:kappa=10" if a task that comes with the lab has it."""
    name = spec.partition(":")[0]
    if name not in TASKS:
        raise unknown("task", name, sorted(TASKS), "A file of your own ends in .py.")
    return name


def check_entry(name: str) -> str:
    """Return the name if an entry that comes with the lab has it."""
    if name not in ENTRIES:
        raise unknown("entry", name, ENTRIES, "Your own: file.py:name.")
    return name


def check_landscape(spec: str) -> str:
    """Return the name in a spec if a function of two numbers or a task that comes with the lab has it."""
    name = spec.partition(":")[0]
    if name not in SURFACES and name not in TASKS:
        own = "Your own: FILE.py:function, or FILE.py with a schuss.lab.Task."
        raise unknown("landscape", name, dict.fromkeys((*SURFACES, *TASKS)), own)
    return name


def check_words(
    *, tasks: Sequence[str] = (), entries: Sequence[str] = (), schedules: Sequence[str] = ()
) -> None:
    """Refuse names that nothing here has; files of the user's own are looked into later."""
    for spec in tasks:
        if not is_own(spec):
            check_task(spec)
    for name in entries:
        if not is_own(name):
            check_entry(name)
    for name in schedules:
        check_schedule(name)


def separate(specs: str) -> list[str]:
    """The specs in a comma-separated list; a setting after a comma belongs to the task before it.

    >>> separate("digits,quadratic:kappa=10,dim=3,text")
    ['digits', 'quadratic:kappa=10,dim=3', 'text']
    """
    found: list[str] = []
    for part in filter(None, map(str.strip, specs.split(","))):
        if found and "=" in part and ":" not in part and ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found
