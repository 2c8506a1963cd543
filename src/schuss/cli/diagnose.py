"""`schuss diagnose`: why training goes as it goes, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from schuss.cli.ending import clear_end, this_command
from schuss.cli.names import check_names

if TYPE_CHECKING:
    from schuss.lab.diagnose import Advice, Diagnosis, Effort

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
@click.argument("task", metavar="TASK")
@click.option(
    "--optimizer",
    default="adamw",
    show_default=True,
    help="Entry to train with: a name of `schuss list`, or file.py:name.",
)
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
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the weights, the batches and the measurements.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File or folder with the task's data.  [default: none]",
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="About how many seconds to take. Where they are too few for everything, less is measured.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("diagnose.html"),
    show_default=True,
    help="HTML report to write.",
)
def command(
    task: str,
    optimizer: str,
    lr: float | None,
    steps: int | None,
    schedule: str,
    seed: int,
    data: Path | None,
    budget: float,
    out: Path,
) -> None:
    """Measure curvature, stability, gradient noise and sparsity along a short run, and give advice."""
    console = Console()
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
                    console.print(f"  {what}", markup=False, highlight=False)

            found = measure(
                *(load(task, data), find(optimizer), task),
                lr=lr,
                steps=steps,
                schedule=schedule,
                seed=seed,
                named=optimizer,
                data="" if data is None else str(data),
                budget=budget,
                progress=progress,
                begun=lambda effort: console.print(
                    plan(effort), markup=False, highlight=False, soft_wrap=True
                ),
            )
        advice = advise(found)
        write(out, render(found, advice, this_command()))
    _show(console, found, advice)
    console.print(f"\nReport: {out}", soft_wrap=True, highlight=False)


def plan(effort: Effort) -> str:
    """What will be measured, in a line.

    >>> from schuss.lab.diagnose import Effort
    >>> plan(Effort(128, products=40, seconds=42.0))
    'Measuring on 128 training examples, 5 times with at most 2 × 40 Hessian-vector products: about 42 s.'
    """
    from schuss.units import human_seconds

    about = "a second or so" if effort.seconds < 2 else human_seconds(effort.seconds)
    return (
        f"Measuring on {effort.examples} training example{'s' * (effort.examples != 1)}, {effort.looks} times with "
        f"at most 2 × {effort.products} Hessian-vector products: about {about}."
    )


def _show(console: Console, found: Diagnosis, advice: list[Advice]) -> None:
    from schuss.lab.diagnose import caveat

    table = Table(
        title=f"{found.task}: {found.steps} steps of {found.optimizer} ({found.settings})",
        title_justify="left",
    )
    for head in ("step", "loss", "λ max", "λ min", "sharpness", "limit", "ratio", "max lr"):
        table.add_column(head, justify="right")
    for look in found.looks:
        high, low, seen, rate = look.bounds
        numbers = (
            ("", look.loss),
            (high, look.largest),
            (low, look.smallest),
            (seen, look.sharpness),
            ("", look.limit),
            (seen, look.dial),
            (rate, look.largest_lr),
        )
        table.add_row(str(look.step), *("–" if x is None else f"{mark}{x:.3g}" for mark, x in numbers))
    console.print(table)
    console.print(
        f"Measured on {found.examples} training examples{caveat(found)}.", markup=False, highlight=False
    )
    for name, noise in zip(("start", "end"), found.noise, strict=True):
        if noise is not None:
            console.print(f"At the {name}: {noise}", markup=False, highlight=False)
    if found.conditioning is not None:
        line = f"Spread of the curvature {found.conditioning.value:.3g}: {found.conditioning.how}"
        console.print(line, markup=False, highlight=False)
    for what, why in found.missing.items():
        console.print(f"Not measured: {what}. {why}", style="yellow", markup=False, highlight=False)
    for each in advice:
        console.print(f"\n[bold]{each.topic}[/]: ", end="", highlight=False)
        console.print(f"{each.take} ({each.sure})", markup=False, highlight=False)
        console.print(f"  {each.because}", markup=False, highlight=False)
        console.print(
            f"  To overturn it: {each.command}", style="dim", markup=False, highlight=False, soft_wrap=True
        )
