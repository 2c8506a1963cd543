"""`schuss range`: at which learning rates the first steps make progress."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

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
@click.argument("task", metavar="TASK")
@click.option(
    "--optimizer",
    default="adamw",
    show_default=True,
    help="Entry to train with: a name of `schuss list`, or file.py:name.",
)
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
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the weights and the batches.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder with the task's data.  [default: none]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("range.html"),
    show_default=True,
    help="HTML report to write.",
)
def command(
    task: str,
    optimizer: str,
    lowest: float | None,
    highest: float | None,
    steps: int,
    sweeps: int,
    seed: int,
    data: Path | None,
    out: Path,
) -> None:
    """Run a learning-rate range test: raise the rate at every step, and show where the loss falls."""
    console = Console()
    check_names(tasks=[task], entries=[optimizer])
    from schuss.lab.entries import find
    from schuss.lab.pages import check_writable, write
    from schuss.lab.ranges import climb, render
    from schuss.lab.tasks import load

    with clear_end(console, "Fewer --steps or --sweeps take less time."):
        check_writable(out)
        given, entry = load(task, data), find(optimizer)
        with console.status("Range test") as status:
            found = climb(
                *(given, entry),
                lowest=lowest,
                highest=highest,
                steps=steps,
                sweeps=sweeps,
                seed=seed,
                progress=lambda done, of: status.update(f"Range test: step {done} of {of}"),
            )
        write(out, render(found, given, entry, this_command()))
    measured = f"schuss diagnose {shlex.quote(task)} --optimizer {shlex.quote(optimizer)}"
    _show(console, found, f"{entry.name} on {given.name}", measured)
    console.print(f"Report: {out}", soft_wrap=True, highlight=False)


def _show(console: Console, found: RangeTest, title: str, measured: str) -> None:
    """A line of bars per sweep, the range of learning rates, and the result in words."""
    width = min(max(console.width - 24, 20), len(found.rates))
    known = [x for sweep in found.losses.tolist() for x in sweep if x == x]
    low, high = min(known), min(max(known), 2 * max(sweep[0] for sweep in found.losses.tolist()))
    table = Table(title=f"{title}: loss by learning rate", title_justify="left", box=None, pad_edge=False)
    for head in ("sweep", f"{found.rates[0]:.3g} to {found.rates[-1]:.3g}", "stopped at"):
        table.add_column(head, no_wrap=True)
    picks = [round(k * (len(found.rates) - 1) / max(width - 1, 1)) for k in range(width)]
    for number, (sweep, stopped) in enumerate(zip(found.losses.tolist(), found.stopped_at, strict=True), 1):
        bars = "".join(_bar(sweep[k], low, high) for k in picks)
        table.add_row(str(number), bars, "–" if stopped == float("inf") else f"{stopped:.3g}")
    console.print(table)
    told = found.words.removesuffix(".")
    console.print(
        f"{told[:1].upper()}{told[1:]}. This test does not measure stability: {measured} does.",
        markup=False,
        highlight=False,
    )


def _bar(value: float, low: float, high: float) -> str:
    """A bar as high as a value; a blank where there is none.

    >>> _bar(0.0, 0.0, 1.0), _bar(1.0, 0.0, 1.0), _bar(float("nan"), 0.0, 1.0)
    ('▁', '█', ' ')
    """
    if value != value:
        return " "
    share = (value - low) / (high - low) if high > low else 0.0
    return BARS[min(max(round(share * (len(BARS) - 1)), 0), len(BARS) - 1)]
