"""`schuss schedule`: what a schedule does, before a week of training finds out."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schuss.cli.ending import this_command
from schuss.schedules import Schedule
from schuss.schedules.words import parse

COLOURS = ("cyan", "magenta", "yellow", "green", "red", "blue")
LANDMARKS = 16
"""How many corners are listed; the restarts of a long schedule would fill the screen."""

EPILOG = """\b
Examples:
  schuss schedule 'warmup 500, cosine 9500 to 1e-5' --peak 3e-4
  schuss schedule 'warmup 5, cosine 85' --peak 0.1 --steps-per-epoch 390
  schuss schedule 'restarts period 100 multiplier 2' --steps 1500
  schuss schedule 'step rate 0.1 milestones 30 60' 'cosine 90' 'wsd 90' --html schedules.html

\b
A phase is a name, its length in steps, and words with values:
  warmup 500 [from 0.1]             linear 1000 [to 1e-5]     constant 1000
  cosine 1000 [to 1e-5]             polynomial 1000 power 2   exponential rate 0.99
  restarts period 100 multiplier 2  restarts 1000 cycles 4    step rate 0.1 every 30
  onecycle 1000 [warmup 300]        wsd 1000 [warmup 50 decay 100 shape sqrt]
  inversesqrt warmup 4000           cyclic period 200 from 1e-4 to 1e-2
"""


@click.command(name="schedule", epilog=EPILOG)
@click.argument("words", nargs=-1, required=True, metavar="WORDS...")
@click.option(
    "--peak",
    type=float,
    default=1.0,
    show_default=True,
    help="The value that a warm-up rises to, and the phases start from.",
)
@click.option(
    "--steps",
    type=click.FloatRange(min=0, min_open=True),
    help="How many steps to show.  [default: the longest schedule's length]",
)
@click.option(
    "--steps-per-epoch",
    type=click.FloatRange(min=0, min_open=True),
    help="Steps per epoch: lengths in WORDS are then epochs.  [default: lengths are steps]",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write the curves to.  [default: none]",
)
def command(
    words: tuple[str, ...], peak: float, steps: float | None, steps_per_epoch: float | None, html: Path | None
) -> None:
    """Draw one or several schedules, and list their values where a phase begins or ends.

    Each WORDS is one schedule in quotes: its phases in order, separated by commas.
    """
    if not math.isfinite(peak):
        raise click.BadParameter(f"{peak} is not a finite number.", param_hint="--peak")
    try:
        entries = {line: parse(line, peak) for line in words}
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if steps_per_epoch is not None:
        entries = {line: schedule.in_epochs(steps_per_epoch) for line, schedule in entries.items()}
    horizon = steps or max((s.length for s in entries.values() if s.length < math.inf), default=None)
    if horizon is None:
        raise click.UsageError("None of these schedules ends. Say how many steps to show: --steps 1000.")
    console = Console()
    console.print(_table(entries, horizon))
    console.print(_plot(entries, horizon, max(min(console.width - 14, 100), 20), 14))
    if html is not None:
        _picture(entries, horizon, html)
        console.print(f"Wrote {html}", highlight=False, soft_wrap=True)


def _landmarks(entries: dict[str, Schedule], horizon: float) -> list[float | None]:
    """The corners of all schedules; the first and last few, and None between, where there are too many."""
    corners = sorted({0, horizon, *(n for s in entries.values() for n in s.corners(horizon))})
    if 2 * len(corners) <= LANDMARKS:  # the middle of each piece fits too
        corners = sorted({*corners, *((a + b) / 2 for a, b in itertools.pairwise(corners))})
    half = LANDMARKS // 2
    return [*corners] if len(corners) <= LANDMARKS else [*corners[:half], None, *corners[-half:]]


def _table(entries: dict[str, Schedule], horizon: float) -> Table:
    """The values at the landmarks of all schedules."""
    table = Table("step", header_style="bold")
    for line, colour in zip(entries, itertools.cycle(COLOURS), strict=False):
        table.add_column(Text(line, style=colour), justify="right")
    for n in _landmarks(entries, horizon):
        values = [f"{s(n):.6g}" for s in entries.values()] if n is not None else ["…"] * len(entries)
        table.add_row("…" if n is None else f"{n:,.10g}", *values)
    return table


def _plot(entries: dict[str, Schedule], horizon: float, width: int, height: int) -> Text:
    """The curves in Braille dots, two by four in each character, so that a terminal is enough."""
    columns, rows = 2 * width, 4 * height
    curves = [[s(horizon * x / (columns - 1)) for x in range(columns)] for s in entries.values()]
    low = min(0.0, *(v for curve in curves for v in curve))
    high = max(v for curve in curves for v in curve)
    scale = (rows - 1) / (high - low or 1.0)
    dots: dict[tuple[int, int], int] = {}
    colours: dict[tuple[int, int], str] = {}
    for curve, colour in zip(curves, itertools.cycle(COLOURS), strict=False):
        ys = [round((high - v) * scale) for v in curve]
        for x, y in enumerate(ys):
            # From the neighbour's dot to this one, so that a jump is a line and not a gap.
            before = ys[max(x - 1, 0)]
            for dot in range(min(y, before), max(y, before) + 1):
                cell = (dot // 4, x // 2)
                dots[cell] = dots.get(cell, 0) | _BRAILLE[dot % 4][x % 2]
                colours[cell] = colour
    text = Text()
    for row in range(height):
        label = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}.get(row, "")
        text.append(f"{label:>10} ┤", style="dim")
        for column in range(width):
            cell = (row, column)
            text.append(chr(0x2800 + dots.get(cell, 0)), style=colours.get(cell, ""))
        text.append("\n")
    end = f"{horizon:,.10g} steps"
    text.append(f"{'':>11}└{'─' * width}\n{'':>12}0{end:>{width - 1}}", style="dim")
    return text


_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each of the eight dots of a character, by row and column."""


def _picture(entries: dict[str, Schedule], horizon: float, path: Path) -> None:
    """One HTML file with everything in it, to be opened without a network."""
    from schuss.lab.curves import render
    from schuss.lab.pages import write

    text = render(entries, horizon, _landmarks(entries, horizon), this_command())
    try:
        write(path, text)
    except OSError as error:
        raise click.ClickException(str(error)) from error
