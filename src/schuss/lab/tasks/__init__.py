"""The tasks that come with the lab, by name, and the user's own, by file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from schuss.errors import refusal
from schuss.lab.files import divide
from schuss.lab.tasks.task import Task

# name -> module and function that builds it; a module is imported when its task is asked for.
BUILT_IN = {
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


def builder(name: str) -> Callable[..., Task]:
    """The function that builds a built-in task."""
    if name not in BUILT_IN:
        raise refusal(
            "task",
            name,
            f"one of {', '.join(sorted(BUILT_IN))}",
            "Your own: file.py, file.py:task or package.module:task.",
        )
    module, function = BUILT_IN[name].split(":")
    return getattr(importlib.import_module(f"schuss.lab.tasks.{module}"), function)


def load(spec: str, data: Path | None = None) -> Task:
    """The task that a spec names: "digits", "digits:model=convnet", "quadratic:kappa=1000".

    >>> load("digits").metric_name
    'accuracy'
    """
    name, _, settings = spec.partition(":")
    build = builder(name)
    known = inspect.signature(build).parameters
    options: dict[str, object] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals or key not in known or key == "data":
            allowed = ", ".join(f"{key}=" for key in known if key != "data") or "nothing"
            raise refusal("task", spec, f"understood: {setting!r}", f"After {name}: it takes {allowed}.")
        options[key] = _number(value)
    if data is not None:
        if "data" not in known:
            raise refusal("data", str(data), f"used by the task {name}")
        options["data"] = data
    return build(**options)


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
    place = divide(spec.strip())[0]
    return place.endswith(".py") and Path(place).is_file()


def _number(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
