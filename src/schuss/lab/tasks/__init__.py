"""The tasks that come with the lab, by name, and the user's own, by file."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schuss.errors import refusal
from schuss.lab.files import Loaded, UserCode, load_own
from schuss.lab.names import TASKS, check_task, divide, is_own
from schuss.lab.tasks.task import Task


def builder(name: str) -> Callable[..., Task]:
    """The function that builds a built-in task."""
    module, function = TASKS[check_task(name)].split(":")
    return getattr(importlib.import_module(f"schuss.lab.tasks.{module}"), function)


@dataclass(frozen=True)
class Found:
    """A task that was asked for, and where it comes from."""

    task: Task
    spec: str  # what names it on the command line
    built_in: bool = False
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # the texts of the user's own
    code: UserCode = field(default_factory=UserCode)  # the user's modules that have to travel with it


def find(given: str | Path | Task, data: str | Path | None = None) -> Found:
    """The task that is given, or that a spec names: a built-in one, or one in the user's file or module."""
    if isinstance(given, Task):
        return Found(given, given.name)
    spec = str(given)
    if spec.partition(":")[0] in TASKS or not is_own(spec):
        return Found(_built_in(spec, None if data is None else Path(data)), spec, built_in=True)
    task, loaded = own_task(spec)
    return Found(task, spec, files=loaded.files, code=loaded.code)


def load(spec: str, data: Path | None = None) -> Task:
    """The task that a spec names: "digits", "digits:model=convnet", "quadratic:kappa=1000", "my.py:task".

    >>> load("digits").metric_name
    'accuracy'
    """
    return find(spec, data).task


def own_task(spec: str) -> tuple[Task, Loaded]:
    """The task that is named in the user's file or module, or the only one that is there."""
    file, name = divide(spec)
    loaded = load_own(file)
    tasks = {key: value for key, value in vars(loaded.module).items() if isinstance(value, Task)}
    if name and name not in tasks:
        raise refusal("task", spec, f"a task in that file: {', '.join(tasks) or 'there is none'}")
    if not name and len(tasks) != 1:
        advice = "It has none: assign a schuss.lab.Task."
        if tasks:
            advice = f"It has {', '.join(tasks)}: name one as {spec}:NAME."
        raise refusal("task", spec, "a file with one task", advice)
    return tasks[name] if name else next(iter(tasks.values())), loaded


def _built_in(spec: str, data: Path | None) -> Task:
    name, _, settings = spec.partition(":")
    build = builder(name)
    kinds = {
        key: known.annotation for key, known in inspect.signature(build, eval_str=True).parameters.items()
    }
    options: dict[str, object] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals or key not in kinds or key == "data":
            allowed = ", ".join(f"{key}=" for key in kinds if key != "data") or "nothing"
            raise refusal("task", spec, f"understood: {setting!r}", f"After {name}: it takes {allowed}.")
        try:
            options[key] = kinds[key](value)  # int, float or str
        except ValueError:
            what = "a whole number" if kinds[key] is int else "a number"
            raise refusal("task", spec, f"understood: {key}={value!r}", f"{key} is {what}.") from None
    if data is not None:
        if "data" not in kinds:
            raise refusal("data", str(data), f"used by the task {name}")
        options["data"] = data
    return build(**options)
