"""`schuss landscape`: where optimizers walk."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EPILOG = """\b
Examples:
  schuss landscape rosenbrock
  schuss landscape quadratic:kappa=100 --optimizers sgd,momentum --steps 60
  schuss landscape beale --optimizers adam,rmsprop --lr 0.05 --png beale.png
  schuss landscape hills.py:f --start 1,2 --window -3,3,-3,3
  schuss landscape --story all                 the six pictures that explain why optimizers differ
  schuss landscape --story saddle
  schuss landscape digits --optimizers sgd,adam a network: the plane of its trajectories
  schuss landscape my_task.py --plane filter   two random filter-normalised directions

\b
Functions: rosenbrock, himmelblau, saddle, beale, quadratic:kappa=K, FILE.py:function.
Stories: jitter, momentum, saddle, noise, adagrad, restarts, all.
"""

ON_SURFACES, ON_NETWORKS = 200, 300


@click.command(epilog=EPILOG)
@click.argument("target", required=False, metavar="[FUNCTION|TASK]")
@click.option("--story", "names", help="Named pictures instead, comma-separated; or all.")
@click.option(
    "--optimizers", default="sgd,momentum,adagrad,rmsprop,adam", show_default=True, help="Who walks."
)
@click.option("--steps", type=click.IntRange(1), help=f"[default: {ON_SURFACES}; a network {ON_NETWORKS}]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="For all of them; searched if not given.")
@click.option("--start", help="Where to start, as x,y.")
@click.option("--window", help="What to look at, as x from,x to,y from,y to.")
@click.option(
    "--plane", type=click.Choice(["pca", "filter"]), default="pca", show_default=True, help="Of a network."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of a network's start.")
@click.option("--data", type=click.Path(path_type=Path), help="Files for the task.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("landscape.html"),
    show_default=True,
)
@click.option(
    "--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the (first) picture here too."
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
    seed: int,
    data: Path | None,
    out: Path,
    png: Path | None,
) -> None:
    """Draw where optimizers walk, step by step, on a function of two numbers or on a network's loss."""
    if (target is None) == (names is None):
        raise click.UsageError(
            "Give a function or a task, or --story NAME. Try: schuss landscape --story all"
        )
    console = Console()
    from schuss.lab.entries import find
    from schuss.lab.landscape import STORIES, Scene, figure, on_network, on_surface, render, story, surface
    from schuss.lab.landscape.target import is_surface, task_of
    from schuss.lab.pages import picture

    try:
        with console.status("Walking"):
            scenes: list[Scene]
            if names is not None:
                scenes = [story(name.strip()) for name in (STORIES if names == "all" else names.split(","))]
            else:
                assert target is not None
                entries = [find(name.strip()) for name in optimizers.split(",")]
                if is_surface(target):
                    place = _numbers("start", start, 2)
                    ground = surface(
                        target,
                        None if place is None else (place[0], place[1]),
                        None if (frame := _numbers("window", window, 4)) is None else frame,
                    )
                    scenes = [on_surface(ground, entries, steps or ON_SURFACES, lr)]
                else:
                    if start or window:
                        raise click.UsageError("--start and --window are for functions of two numbers.")
                    scenes = [
                        on_network(task_of(target, data), entries, steps or ON_NETWORKS, lr, plane, seed)
                    ]
        words = [word if word.startswith("-") else shlex.quote(word) for word in sys.argv[1:]]
        text = render(scenes, f"schuss {' '.join(words)}")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        for scene in scenes:
            _show(console, scene)
        console.print(f"Page: {out}", soft_wrap=True, highlight=False)
        if png is not None:
            png.parent.mkdir(parents=True, exist_ok=True)
            picture(figure(scenes[0]), png)
            console.print(f"Picture: {png}", soft_wrap=True, highlight=False)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


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


def _show(console: Console, scene: object) -> None:
    from schuss.lab.landscape import Scene

    assert isinstance(scene, Scene)
    table = Table(title=scene.title, title_justify="left")
    for head, side in (
        ("optimizer", "left"),
        ("settings", "left"),
        ("steps", "right"),
        ("lowest", "right"),
        ("last", "right"),
    ):
        table.add_column(head, justify="right" if side == "right" else "left")
    for trail in scene.trails:
        last = f"{trail.values[-1]:.3g}" + (f" ({trail.ended})" if trail.ended else "")
        table.add_row(trail.name, trail.settings, str(trail.steps), f"{trail.values.min():.3g}", last)
    console.print(table)
    console.print(scene.found, markup=False, highlight=False)
    for what, value in scene.facts:
        console.print(f"  {escape(what)}: {escape(value)}", highlight=False)
