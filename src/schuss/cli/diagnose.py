"""`schuss diagnose`: why training goes as it goes, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table

from schuss.cli import options
from schuss.cli.ending import clear_end, this_command
from schuss.cli.names import check_names

if TYPE_CHECKING:
    from schuss.lab.diagnose import Diagnosis, Effort

EPILOG = """\b
Examples:
  schuss diagnose digits
  schuss diagnose digits --optimizer momentum --lr 0.05
  schuss diagnose digits --optimizer sgd --schedule warmup+cosine --steps 800
  schuss diagnose my_task.py --steps 200 --out why.html
  schuss diagnose text --budget 300            more examples and Hessian-vector products than a minute allows
  schuss diagnose quadratic:kappa=1000 --optimizer momentum

Nothing is raced here. Each piece of advice names the race that could overturn it.
"""


@click.command(epilog=EPILOG)
@options.task_and_optimizer
@click.option(
    "--lr", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: the entry's usual one]"
)
@click.option(
    "--steps",
    type=click.IntRange(2),
    help="Steps of the short run.  [default: a tenth of the task's horizon]",
)
@click.option(
    "--schedule",
    default="constant",
    show_default=True,
    help="Schedule of the learning rate over the task's horizon.",
)
@options.seed("Seed of the weights, the batches and the measurements.")
@options.data
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="About how many seconds to take. Where they are too few for everything, less is measured.",
)
@options.report("diagnose.html")
def command(task: str, optimizer: str, schedule: str, data: Path | None, out: Path, **settings: Any) -> None:
    """Measure curvature, stability, gradient noise and sparsity along a short run, and give advice."""
    console = Console(markup=False, highlight=False)
    check_names(tasks=[task], entries=[optimizer], schedules=[schedule])
    from schuss.lab.diagnose import advise, measure, render
    from schuss.lab.entries import find
    from schuss.lab.pages import check_writable, write
    from schuss.lab.tasks import load

    with clear_end(console, "A smaller --budget or fewer --steps take less time."):
        check_writable(out)
        with console.status("Measuring") as status:

            def progress(what: str, done: int, at_most: int) -> None:
                status.update(f"Measuring {what}" + (f": {done} of at most {at_most}" if at_most else ""))
                if not at_most and not console.is_terminal:
                    console.print(f"  {what}")

            found = measure(
                *(load(task, data), find(optimizer), task),
                schedule=schedule,
                named=optimizer,
                data="" if data is None else str(data),
                progress=progress,
                begun=lambda effort: console.print(plan(effort), soft_wrap=True),
                **settings,
            )
        advice = advise(found)
        write(out, render(found, advice, this_command()))
    _show(console, found)
    for each in advice:
        console.print(f"\n{each.topic}", style="bold", end="")
        console.print(f": {each.take} ({each.sure})\n  {each.because}")
        console.print(f"  To overturn it: {each.command}", style="dim", soft_wrap=True)
    console.print(f"\nReport: {out}", soft_wrap=True)


def plan(effort: Effort) -> str:
    """What will be measured, in a line.

    >>> from schuss.lab.diagnose import Effort
    >>> plan(Effort(128, products=40, seconds=42.0))
    'Measuring on 128 training examples, 5 times with at most 2 × 40 Hessian-vector products: about 42 s.'
    """
    from schuss.units import human_seconds

    about = "a second or so" if effort.seconds < 2 else human_seconds(effort.seconds)
    return (
        f"Measuring on {effort.examples} training example{'s' * (effort.examples != 1)}, {effort.measurements} times "
        f"with at most 2 × {effort.products} Hessian-vector products: about {about}."
    )


def _show(console: Console, found: Diagnosis) -> None:
    from schuss.lab.diagnose import caveat

    heads = ("step", "loss", "λ max", "λ min", "sharpness", "limit", "ratio", "max lr")
    title = f"{found.task}: {found.steps} steps of {found.optimizer} ({found.settings})"
    columns = (Column(head, justify="right") for head in heads)
    table = Table(*columns, title=title, title_justify="left")
    for each in found.measurements:
        high, low, seen, rate = each.bounds
        numbers = (
            ("", each.loss),
            (high, each.largest),
            (low, each.smallest),
            (seen, each.sharpness),
            ("", each.limit),
            (seen, each.sharpness_ratio),
            (rate, each.largest_lr),
        )
        table.add_row(str(each.step), *("–" if x is None else f"{mark}{x:.3g}" for mark, x in numbers))
    console.print(table)
    console.print(f"Measured on {found.examples} training examples{caveat(found)}.")
    for name, noise in zip(("start", "end"), found.noise, strict=True):
        if noise is not None:
            console.print(f"At the {name}: {noise}")
    if found.conditioning is not None:
        console.print(f"Spread of the curvature {found.conditioning.value:.3g}: {found.conditioning.how}")
    for what, why in found.missing.items():
        console.print(f"Not measured: {what}. {why}", style="yellow")
