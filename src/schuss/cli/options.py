"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Any], Any]

data: Option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder with the task's data.  [default: none]",
)


def seed(words: str) -> Option:
    """`--seed`, 0 unless given."""
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=words)


def report(name: str) -> Option:
    """`--out`, the file of an HTML report."""
    return click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path(name),
        show_default=True,
        help="HTML report to write.",
    )


def task_and_optimizer(command: Any) -> Any:
    """A task, and the entry that is trained on it."""
    optimizer = click.option(
        "--optimizer",
        default="adamw",
        show_default=True,
        help="Entry to train with: a name of `schuss list`, or file.py:name.",
    )
    return click.argument("task", metavar="TASK")(optimizer(command))
