"""`schuss landscape`: the trajectories of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Column, Table

from schuss.cli import options
from schuss.cli.ending import clear_end, this_command
from schuss.cli.names import check_names

if TYPE_CHECKING:
    from schuss.lab.landscape import Picture, TaylorModel

EPILOG = """\b
Examples:
  schuss landscape rosenbrock
  schuss landscape quadratic:kappa=100 --optimizers sgd,momentum --steps 60
  schuss landscape beale --optimizers adam,rmsprop --lr 0.05
  schuss landscape hills.py:f --start 1,2 --window -3,3,-3,3
  schuss landscape rosenbrock --model --at 0,0 the Taylor model and its steps
  schuss landscape --story all                 six demonstrations of why optimizers differ
  schuss landscape --story saddle

\b
Functions: rosenbrock, himmelblau, saddle, beale, quadratic:kappa=K, FILE.py:function.
Demonstrations: jitter, momentum, saddle, noise, adagrad, restarts, all.
"""

TRAJECTORIES = ("optimizers", "steps", "lr")


def _numbers(count: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...] | None]:
    """The callback of an option that is so many numbers with commas between."""

    def parse(
        context: click.Context, parameter: click.Parameter, text: str | None
    ) -> tuple[float, ...] | None:
        if text is None:
            return None
        try:
            numbers = tuple(map(float, text.split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) != count:
            words = f"{text!r} is not {count} numbers with commas between."
            raise click.BadParameter(words, context, parameter)
        return numbers

    return parse


@click.command(epilog=EPILOG)
@click.argument("target", required=False, metavar="[FUNCTION]")
@click.option(
    "--story",
    help="Draw these demonstrations, separated by commas, or all.  [default: draw the FUNCTION]",
)
@click.option(
    "--optimizers",
    default="sgd,momentum,adagrad,rmsprop,adam",
    show_default=True,
    help="Entries whose trajectories are drawn, separated by commas.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=200, show_default=True, help="Steps of every trajectory."
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of every optimizer.  [default: the best of a search, for each]",
)
@click.option(
    "--start", callback=_numbers(2), help="Start on a function, as x,y.  [default: the function's own]"
)
@click.option(
    "--window",
    callback=_numbers(4),
    help="Part of the plane to draw, as x from,x to,y from,y to.  [default: the function's own]",
)
@click.option(
    "--model", is_flag=True, help="Draw the quadratic Taylor model at a point, and its steps.  [default: off]"
)
@click.option("--at", callback=_numbers(2), help="Point of the Taylor model, as x,y.  [default: the start]")
@click.option(
    "--radius",
    type=click.FloatRange(0, min_open=True),
    help="Trust-region radius of the Taylor model.  [default: measured]",
)
@options.report("landscape.html")
def command(
    target: str | None,
    story: str | None,
    optimizers: str,
    steps: int,
    lr: float | None,
    start: tuple[float, float] | None,
    window: tuple[float, ...] | None,
    model: bool,
    at: tuple[float, float] | None,
    radius: float | None,
    out: Path,
) -> None:
    """Draw the trajectories of optimizers on a function of two numbers, or its Taylor model at a point."""
    _check_together(target, story, model, at is not None or radius is not None)
    names = [name.strip() for name in optimizers.split(",")]
    check_names(landscape=target or "", entries=names)
    console = Console(markup=False, highlight=False)
    with clear_end(console), console.status("Training"):
        from schuss.lab import landscape
        from schuss.lab.entries import find
        from schuss.lab.pages import check_writable, write

        check_writable(out)
        if target is None:
            chosen = landscape.DEMONSTRATIONS if story == "all" else (story or "").split(",")
            pictures = [landscape.demonstration(name.strip()) for name in chosen]
        elif model:
            pictures = []
            taylor = landscape.TaylorModel(landscape.surface(target, start), at, radius)
            write(out, landscape.render_model(taylor, this_command()))
            _show_model(console, taylor)
        else:
            surface = landscape.surface(target, start, window)
            pictures = [landscape.on_surface(surface, [find(name) for name in names], steps, lr)]
        if pictures:
            write(out, landscape.render(pictures, this_command()))
    for picture in pictures:
        _show(console, picture)
    console.print(f"Report: {out}", soft_wrap=True)


def _check_together(target: str | None, story: str | None, model: bool, of_model: bool) -> None:
    """Refuse options that do not go together, or would change nothing."""
    if (target is None) == (story is None):
        raise click.UsageError("Give a function, or --story NAME. Try: schuss landscape --story all")
    if of_model and not model:
        raise click.UsageError("--at and --radius belong to --model.")
    if model:
        why = "--model draws one function in a window of its own, and no trajectories"
        _leave_out(why, "story", "window", *TRAJECTORIES)
    if story is not None:
        why = "--story draws demonstrations with settings of their own"
        _leave_out(why, *TRAJECTORIES, "start", "window")


def _leave_out(why: str, *names: str) -> None:
    """Refuse options that were given and would change nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in names if source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"{why}: leave out {', '.join(given)}.")


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    columns = (Column(name, justify="right") for name in numbers)
    return Table(*words, *columns, title=title, title_justify="left")


def _show_model(console: Console, model: TaylorModel) -> None:
    numbers = ("to", "length", "predicted decrease", "decrease", "inside")
    table = _table(f"{model.surface.name} at {model.at}", ("step",), numbers)
    for step in model.steps:
        to = f"({step.end[0]:.4g}, {step.end[1]:.4g})"
        decreases = (f"{x:.4g}" for x in (step.length, step.predicted, step.actual))
        table.add_row(step.name, to, *decreases, "yes" if step.fits else "no")
    console.print(table)
    console.print(model.found)
    console.print(f"Trust region {model.radius:.3g}: {model.how}.")


def _show(console: Console, picture: Picture) -> None:
    table = _table(picture.title, ("optimizer", "settings"), ("steps", "lowest", "last"))
    for each in picture.trajectories:
        last = f"{each.values[-1]:.3g}" + (f" ({each.ended})" if each.ended else "")
        table.add_row(each.name, each.settings, str(each.steps), f"{each.values.min():.3g}", last)
    console.print(table)
    console.print(picture.found)
