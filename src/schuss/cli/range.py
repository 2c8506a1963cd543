"""`schuss range`: at which learning rates the first steps make progress."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table

from schuss.cli import options
from schuss.cli.ending import clear_end, this_command
from schuss.cli.names import check_names

if TYPE_CHECKING:
    from schuss.curvature import RangeTest

BARS = "▁▂▃▄▅▆▇█"

EPILOG = """\b
Examples:
  schuss range digits
  schuss range digits --optimizer momentum --sweeps 5
  schuss range digits --optimizer sgd --lowest 1e-3 --highest 10 --steps 200
  schuss range my_task.py --optimizer my_opt.py:Mine --out rates.html

The learning rate grows from step to step. This test does not measure stability: schuss diagnose does.
"""


@click.command(epilog=EPILOG)
@options.task_and_optimizer
@click.option(
    "--lowest",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the first step.  [default: a tenth of the lowest in the entry's search space]",
)
@click.option(
    "--highest",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the last step.  [default: ten times the highest in the entry's search space]",
)
@click.option(
    "--steps", type=click.IntRange(10), default=100, show_default=True, help="Learning rates per sweep."
)
@click.option(
    "--sweeps",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often the test is repeated, each time with other batches.",
)
@options.seed("Seed of the weights and the batches.")
@options.data
@options.report("range.html")
def command(task: str, optimizer: str, data: Path | None, out: Path, **settings: Any) -> None:
    """Run a learning-rate range test: raise the rate at every step, and show where the loss falls."""
    console = Console(markup=False, highlight=False)
    check_names(tasks=[task], entries=[optimizer])
    from schuss.lab.entries import find
    from schuss.lab.pages import check_writable, write
    from schuss.lab.ranges import range_test_of, render
    from schuss.lab.tasks import load

    with clear_end(console, "Fewer --steps or --sweeps take less time."):
        check_writable(out)
        given, entry = load(task, data), find(optimizer)
        with console.status("Range test") as status:
            found = range_test_of(
                *(given, entry),
                **settings,
                progress=lambda done, of: status.update(f"Range test: step {done} of {of}"),
            )
        write(out, render(found, given, entry, this_command()))
    _show(console, found, f"{entry.name} on {given.name}")
    words = found.words.removesuffix(".")
    measured = f"schuss diagnose {shlex.quote(task)} --optimizer {shlex.quote(optimizer)}"
    console.print(f"{words[:1].upper()}{words[1:]}. This test does not measure stability: {measured} does.")
    console.print(f"Report: {out}", soft_wrap=True)


def _show(console: Console, found: RangeTest, title: str) -> None:
    """A line of bars per sweep."""
    import numpy as np

    width = min(max(console.width - 24, 20), len(found.rates))
    low = float(np.nanmin(found.losses))
    high = min(float(np.nanmax(found.losses)), 2 * float(found.losses[:, 0].max()))
    heads = ("sweep", f"{found.rates[0]:.3g} to {found.rates[-1]:.3g}", "stopped at")
    columns = (Column(head, no_wrap=True) for head in heads)
    table = Table(
        *columns, title=f"{title}: loss by learning rate", title_justify="left", box=None, pad_edge=False
    )
    picks = np.linspace(0, len(found.rates) - 1, width).round().astype(int)
    for number, (sweep, stopped) in enumerate(zip(found.losses, found.stopped_at, strict=True), 1):
        bars = "".join(_bar(value, low, high) for value in sweep[picks].tolist())
        table.add_row(str(number), bars, "–" if stopped == float("inf") else f"{stopped:.3g}")
    console.print(table)


def _bar(value: float, low: float, high: float) -> str:
    """A bar as high as a value; a blank where there is none.

    >>> _bar(0.0, 0.0, 1.0), _bar(1.0, 0.0, 1.0), _bar(float("nan"), 0.0, 1.0)
    ('▁', '█', ' ')
    """
    if value != value:
        return " "
    fraction = (value - low) / (high - low) if high > low else 0.0
    return BARS[min(max(round(fraction * (len(BARS) - 1)), 0), len(BARS) - 1)]
