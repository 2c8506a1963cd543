"""`schuss list`: the optimizers, and what can be raced."""

from __future__ import annotations

import inspect

import click
from rich.console import Console
from rich.table import Table


@click.command
def command() -> None:
    """Show the optimizers, the built-in tasks, the entries with their search spaces, and the schedules.

    An optimizer's state is in bytes per float32 weight. Its passes are how often a step reads the weights, their
    gradients and their state.
    """
    from schuss.compile import facts
    from schuss.lab.entries import DEFAULT, ENTRIES
    from schuss.lab.names import TASKS
    from schuss.lab.schedules import names
    from schuss.lab.tasks import builder
    from schuss.rules import TABLE

    console = Console()
    heads, *rows = facts.table({name: row.rule for name, row in TABLE.items()})
    optimizers = Table(*heads, title="Optimizers", title_justify="left")
    optimizers.columns[0].no_wrap = True  # a name that is cut short cannot be copied
    optimizers.columns[0].min_width = max(len(row[0]) for row in rows)
    for row in rows:
        optimizers.add_row(*row)
    console.print(optimizers)
    tasks = Table("task", "what", "settings", title="Tasks", title_justify="left")
    for name in TASKS:
        build = builder(name)
        settings = [
            f"{key}={value.default}"
            for key, value in inspect.signature(build).parameters.items()
            if key != "data"
        ]
        data = "data" in inspect.signature(build).parameters
        summary = (inspect.getdoc(build) or "").splitlines()[0]
        tasks.add_row(name, summary, " ".join([*settings, *(["--data"] if data else [])]))
    console.print(tasks)
    entries = Table(
        "entry",
        "class",
        "search space",
        title="Entries (* raced unless others are named)",
        title_justify="left",
    )
    for name, entry in ENTRIES.items():
        space = ", ".join(f"{key} {low:.2g} .. {high:.2g}" for key, (low, high, _) in entry.space.items())
        entries.add_row(f"{name}{'*' if name in DEFAULT else ''}", entry.optimizer.__name__, space)
    console.print(entries)
    console.print(f"Schedules, each also with warmup+ before it: {', '.join(names())}")
    console.print("Your own: a file with a schuss.lab.Task as TASK, --entry file.py:name as an entry.")
