"""The names of everything that comes with the lab, without importing any of it: a slip is seen before torch is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schuss.errors import unknown
from schuss.lab.schedules import check as check_schedule
from schuss.rules import TABLE

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
_ENTRIES = (
    *("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "nadamw", "lion", "adadelta"),
    *("adamax", "nadam", "radam", "asgd", "muon", "newton-cg", "lbfgs", "gauss-newton"),
)
# And every rule of the table that has none of these names.
ENTRIES = (*_ENTRIES, *(name.lower() for name in TABLE if name.lower() not in _ENTRIES))


def is_own(spec: str) -> bool:
    """Whether a spec names the user's own code: `file.py`, `file.py:name`, `package.module:name`.

    >>> is_own("my.py"), is_own(".pyenv/x/my.py:task"), is_own("mine.tasks:task"), is_own("quadratic:kappa=10")
    (True, True, True, False)
    """
    file, name = divide(spec)
    return file.endswith(".py") or (dotted(file) and (name.isidentifier() or (not name and "." in file)))


def divide(spec: str) -> tuple[str, str]:
    """The file or module of a spec, and the name in it; "" if it has none.

    >>> divide("a.py:b.py:Mine"), divide(".pyenv/x/task.py"), divide("mine.tasks:task")
    (('a.py:b.py', 'Mine'), ('.pyenv/x/task.py', ''), ('mine.tasks', 'task'))
    """
    file, colon, name = spec.rpartition(":")
    return (file, name) if colon and not spec.endswith(".py") else (spec, "")


def dotted(name: str) -> bool:
    """Whether this can be a module's name."""
    return all(part.isidentifier() for part in name.split("."))


def check_task(spec: str) -> str:
    """Return the name in a spec like "quadratic:kappa=10" if a task that comes with the lab has it."""
    name = spec.partition(":")[0]
    if name not in TASKS:
        raise unknown("task", name, sorted(TASKS), "Your own: file.py, file.py:task or package.module:task.")
    return name


def check_entry(name: str) -> str:
    """Return the name if an entry that comes with the lab has it."""
    if name not in ENTRIES:
        raise unknown("entry", name, ENTRIES, "Your own: file.py:name or package.module:name.")
    return name


def check_landscape(spec: str) -> str:
    """Return the name in a spec if a function of two numbers that comes with the lab has it."""
    name = spec.partition(":")[0]
    if name not in SURFACES:
        raise unknown("landscape", name, SURFACES, "Your own: FILE.py:function.")
    return name


def check_words(
    *, tasks: Sequence[str] = (), entries: Sequence[str] = (), schedules: Sequence[str] = ()
) -> None:
    """Refuse names that nothing here has; files of the user's own are looked into later."""
    for spec in tasks:
        if spec.partition(":")[0] in TASKS or not is_own(spec):
            check_task(spec)
    for name in entries:
        if not is_own(name):
            check_entry(name)
    for name in schedules:
        check_schedule(name)


def separate(specs: str) -> list[str]:
    """The specs in a comma-separated list; a setting after a comma belongs to the task before it.

    A comma that belongs to the name of a file which is there parts nothing.

    >>> separate("digits,quadratic:kappa=10,dim=3,text")
    ['digits', 'quadratic:kappa=10,dim=3', 'text']
    """
    found: list[str] = []
    parts = specs.split(",")
    while parts:
        count = next((n for n in range(len(parts), 1, -1) if _is_file(",".join(parts[:n]))), 1)
        part = ",".join(parts[:count]).strip()
        del parts[:count]
        if found and "=" in part and ":" not in part and ":" in found[-1]:
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return found


def _is_file(spec: str) -> bool:
    file = divide(spec.strip())[0]
    return file.endswith(".py") and Path(file).is_file()
