"""`schuss landscape`: where optimizers walk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schuss.cli.ending import clear_end, this_command
from schuss.cli.names import check_names

if TYPE_CHECKING:
    from schuss.lab.entries import Entry
    from schuss.lab.landscape import Scene, TaylorModel
    from schuss.lab.landscape.growth import Cost

EPILOG = """\b
Examples:
  schuss landscape rosenbrock
  schuss landscape quadratic:kappa=100 --optimizers sgd,momentum --steps 60
  schuss landscape beale --optimizers adam,rmsprop --lr 0.05
  schuss landscape hills.py:f --start 1,2 --window -3,3,-3,3
  schuss landscape rosenbrock --model --at 0,0 the Taylor model, its steps, and what they cost as d grows
  schuss landscape --story all                 six demonstrations of why optimizers differ
  schuss landscape --story saddle
  schuss landscape digits --optimizers sgd,adam a network: the plane of its trajectories
  schuss landscape my_task.py --plane filter   two random filter-normalised directions

\b
Functions: rosenbrock, himmelblau, saddle, beale, quadratic:kappa=K, FILE.py:function.
Demonstrations: jitter, momentum, saddle, noise, adagrad, restarts, all.
"""

ON_SURFACES, ON_NETWORKS = 200, 300
TRAJECTORIES = ("optimizers", "steps", "lr")
OF_NETWORKS = ("plane", "seed", "data")


@click.command(epilog=EPILOG)
@click.argument("target", required=False, metavar="[FUNCTION|TASK]")
@click.option(
    "--story",
    "names",
    help="Draw these demonstrations, separated by commas, or all.  [default: draw the FUNCTION or TASK]",
)
@click.option(
    "--optimizers",
    default="sgd,momentum,adagrad,rmsprop,adam",
    show_default=True,
    help="Entries whose trajectories are drawn, separated by commas.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help=f"Steps of every trajectory.  [default: {ON_SURFACES} on a function, {ON_NETWORKS} on a network]",
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of every optimizer.  [default: the best of a search, for each]",
)
@click.option("--start", help="Start on a function, as x,y.  [default: the function's own]")
@click.option(
    "--window", help="Part of the plane to draw, as x from,x to,y from,y to.  [default: the function's own]"
)
@click.option(
    "--plane",
    type=click.Choice(["pca", "filter"]),
    default="pca",
    show_default=True,
    help="Plane through a network's weights: pca of the trajectories, or two random filter-normalised directions.",
)
@click.option(
    "--model",
    "taylor",
    is_flag=True,
    help="Draw the quadratic Taylor model at a point, and its steps.  [default: off]",
)
@click.option("--at", help="Point of the Taylor model, as x,y.  [default: the start]")
@click.option(
    "--radius",
    type=click.FloatRange(0, min_open=True),
    help="Trust-region radius of the Taylor model.  [default: measured]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of a network's weights and batches.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder with the task's data.  [default: none]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("landscape.html"),
    show_default=True,
    help="HTML report to write.",
)
def command(
    target: str | None,
    names: str | None,
    optimizers: str,
    steps: int | None,
    lr: float | None,
    start: str | None,
    window: str | None,
    plane: str,
    taylor: bool,
    at: str | None,
    radius: float | None,
    seed: int,
    data: Path | None,
    out: Path,
) -> None:
    """Draw the trajectories of optimizers, on a function of two numbers or on a network's loss."""
    _check_together(target, names, taylor, at, radius, window)
    console = Console()
    if taylor:
        assert target is not None
        _draw_model(console, target, _pair("at", at) or _pair("start", start), radius, out)
    else:
        named = [name.strip() for name in optimizers.split(",")]
        check_names(landscape=target or "", entries=named)
        with clear_end(console):
            from schuss.lab.entries import find
            from schuss.lab.landscape import render
            from schuss.lab.landscape.target import is_surface
            from schuss.lab.pages import check_writable, write

            check_writable(out)
            if target is None:
                assert names is not None
                scenes = _stories(console, names)
            elif is_surface(target):
                _leave_out("A function of two numbers is drawn as it is", *OF_NETWORKS)
                place, frame = _pair("start", start), _numbers("window", window, 4)
                scenes = [_on_surface(console, target, list(map(find, named)), place, frame, steps, lr)]
            else:
                if start or window:
                    raise click.UsageError("--start and --window are for functions of two numbers.")
                entries = list(map(find, named))
                scenes = [_on_network(console, target, data, entries, steps or ON_NETWORKS, lr, plane, seed)]
            write(out, render(scenes, this_command()))
        for scene in scenes:
            _show(console, scene)
    console.print(f"Report: {out}", soft_wrap=True, highlight=False)


def _check_together(
    target: str | None,
    names: str | None,
    taylor: bool,
    at: str | None,
    radius: float | None,
    window: str | None,
) -> None:
    """Refuse options that do not go together, or would change nothing."""
    if (target is None) == (names is None):
        raise click.UsageError(
            "Give a function or a task, or --story NAME. Try: schuss landscape --story all"
        )
    if not taylor and (at is not None or radius is not None):
        raise click.UsageError("--at and --radius belong to --model.")
    if names is not None:
        _leave_out(
            "--story draws demonstrations with settings of their own",
            *TRAJECTORIES,
            "start",
            "window",
            *OF_NETWORKS,
        )
    if taylor:
        _leave_out("--model draws no trajectories", *TRAJECTORIES, *OF_NETWORKS)
        if names is not None or window is not None:
            raise click.UsageError(
                "--model draws one function in a window of its own. Leave out --story and --window."
            )


def _stories(console: Console, names: str) -> list[Scene]:
    """The named demonstrations."""
    from schuss.lab.landscape import STORIES, story

    with console.status("Training"):
        return [story(name.strip()) for name in (STORIES if names == "all" else names.split(","))]


def _on_surface(
    console: Console,
    target: str,
    entries: list[Entry],
    place: tuple[float, float] | None,
    frame: tuple[float, ...] | None,
    steps: int | None,
    lr: float | None,
) -> Scene:
    """The trajectories of optimizers on a function of two numbers."""
    from schuss.lab.landscape import on_surface, surface

    with console.status("Training"):
        return on_surface(surface(target, place, frame), entries, steps or ON_SURFACES, lr)


def _on_network(
    console: Console,
    target: str,
    data: Path | None,
    entries: list[Entry],
    steps: int,
    lr: float | None,
    plane: str,
    seed: int,
) -> Scene:
    """The runs of a network on a plane through its weights; says what it takes where that is long."""
    from schuss.lab.landscape import network_cost, on_network
    from schuss.lab.tasks import load
    from schuss.units import human_bytes, human_seconds

    with console.status("Training") as status:
        task = load(target, data)
        cost = network_cost(task, entries, steps, lr)
        if cost.seconds > 10:
            console.print(
                f"About {human_seconds(cost.seconds)}, and {human_bytes(cost.bytes)} of memory. "
                "Fewer --steps or --optimizers, or an --lr, take less.",
                highlight=False,
                soft_wrap=True,
            )
        return on_network(
            *(task, entries, steps, lr, plane, seed),
            progress=lambda what: status.update(f"Training: {what}"),
        )


def _leave_out(why: str, *names: str) -> None:
    """Refuse options that were given and would change nothing."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in names if source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"{why}: leave out {', '.join(given)}.")


def _draw_model(
    console: Console, target: str, place: tuple[float, float] | None, radius: float | None, out: Path
) -> None:
    """Draw the Taylor model of a surface, and say what its steps do and cost."""
    with clear_end(console):
        from schuss.lab.landscape import growth, render_model, surface, taylor_model
        from schuss.lab.landscape.target import is_surface
        from schuss.lab.pages import check_writable, write

        check_writable(out)
        if not is_surface(target):
            raise click.UsageError("--model is for functions of two numbers.")
        model = taylor_model(surface(target), place, radius)
        with console.status("Timing steps as d grows"):
            costs = growth()
        write(out, render_model(model, costs, this_command()))
    _show_model(console, model)
    _show_growth(console, costs)


def _show_model(console: Console, model: TaylorModel) -> None:
    steps = Table(title=f"{model.surface.name} at {model.at}", title_justify="left")
    for head in ("step", "to", "length", "predicted decrease", "decrease", "inside"):
        steps.add_column(head, justify="left" if head == "step" else "right")
    for step in model.steps:
        to = f"({step.end[0]:.4g}, {step.end[1]:.4g})"
        numbers = (f"{x:.4g}" for x in (step.length, step.predicted, step.actual))
        steps.add_row(step.name, to, *numbers, "yes" if step.fits else "no")
    console.print(steps)
    console.print(model.found, markup=False, highlight=False)
    console.print(f"Trust region {model.radius:.3g}: {model.how}.", markup=False, highlight=False)


def _show_growth(console: Console, costs: list[Cost]) -> None:
    from schuss.newton.cost import human_bytes, human_seconds

    table = Table(title="A step as d grows (~ extrapolated)", title_justify="left")
    for head in ("d", "gradient", "HVP", "dense Newton", "its memory"):
        table.add_column(head, justify="right")
    for cost in costs:
        times = (cost.gradient, cost.product, cost.dense)
        said = (("" if t.measured else "~ ") + human_seconds(t.seconds) for t in times)
        table.add_row(f"{cost.d:,}", *said, human_bytes(cost.dense_bytes))
    console.print(table)


def _pair(name: str, text: str | None) -> tuple[float, float] | None:
    found = _numbers(name, text, 2)
    return None if found is None else (found[0], found[1])


def _numbers(name: str, text: str | None, count: int) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise click.BadParameter(
            f"{text!r} is not {count} numbers with commas between.", param_hint=f"--{name}"
        )
    return numbers


def _show(console: Console, scene: Scene) -> None:
    table = Table(title=scene.title, title_justify="left")
    for head in ("optimizer", "settings", "steps", "lowest", "last"):
        table.add_column(head, justify="left" if head in ("optimizer", "settings") else "right")
    for trail in scene.trails:
        last = f"{trail.values[-1]:.3g}" + (f" ({trail.ended})" if trail.ended else "")
        table.add_row(trail.name, trail.settings, str(trail.steps), f"{trail.values.min():.3g}", last)
    console.print(table)
    console.print(scene.found, markup=False, highlight=False)
    for what, value in scene.facts:
        console.print(f"  {escape(what)}: {escape(value)}", highlight=False)
