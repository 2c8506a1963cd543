"""The tasks that come with the lab, by name, and the user's own, by file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from schuss.errors import refusal
from schuss.lab.names import TASKS, check_task
from schuss.lab.tasks.task import Task

BUILT_IN = TASKS


def builder(name: str) -> Callable[..., Task]:
    """The function that builds a built-in task."""
    module, function = TASKS[check_task(name)].split(":")
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
        options[key] = _value(spec, key, value, str(known[key].annotation))
    if data is not None:
        if "data" not in known:
            raise refusal("data", str(data), f"used by the task {name}")
        options["data"] = data
    return build(**options)


def _value(spec: str, key: str, text: str, kind: str) -> object:
    """A setting as the task's builder takes it."""
    if kind == "str":
        return text
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        what = "a whole number" if kind == "int" else "a number"
        raise refusal("task", spec, f"understood: {key}={text!r}", f"{key} is {what}.") from None
