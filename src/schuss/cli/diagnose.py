"""`schuss diagnose`: why training goes as it goes, and what to try."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from schuss.lab.diagnose import Advice, Diagnosis

EPILOG = """\b
Examples:
  schuss diagnose digits
  schuss diagnose digits --optimizer momentum --lr 0.05
  schuss diagnose digits --optimizer sgd --schedule warmup+cosine --steps 800
  schuss diagnose my_task.py --steps 200 --out why.html
  schuss diagnose quadratic:kappa=1000 --optimizer momentum

Nothing is raced here: each piece of advice names the race that could overturn it.
"""


@click.command(epilog=EPILOG)
@click.argument("task", metavar="TASK")
@click.option("--optimizer", default="adamw", show_default=True, help="Entry to train with, or file.py:name.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Instead of the entry's usual one.")
@click.option("--steps", type=click.IntRange(2), help="Of the short run.  [default: a tenth of the horizon]")
@click.option(
    "--schedule", default="constant", show_default=True, help="Of the learning rate, over the horizon."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), help="Files for the task.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("diagnose.html"), show_default=True
)
def command(
    task: str,
    optimizer: str,
    lr: float | None,
    steps: int | None,
    schedule: str,
    seed: int,
    data: Path | None,
    out: Path,
) -> None:
    """Measure curvature, stability, gradient noise and sparsity along a short run, and advise."""
    console = Console()
    from schuss.lab.diagnose import advise, measure, render
    from schuss.lab.entries import find
    from schuss.lab.landscape.target import task_of

    try:
        with console.status("Measuring") as status:

            def progress(what: str, done: int, at_most: int) -> None:
                status.update(f"Measuring {what}" + (f": {done} of at most {at_most}" if at_most else ""))

            found = measure(
                *(task_of(task, data), find(optimizer), task),
                lr=lr,
                steps=steps,
                schedule=schedule,
                seed=seed,
                named=optimizer,
                data="" if data is None else str(data),
                progress=progress,
            )
        advice = advise(found)
        words = [word if word.startswith("-") else shlex.quote(word) for word in sys.argv[1:]]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(found, advice, f"schuss {' '.join(words)}"), encoding="utf-8")
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    _show(console, found, advice)
    console.print(f"\nPage: {out}", soft_wrap=True, highlight=False)


def _show(console: Console, found: Diagnosis, advice: list[Advice]) -> None:
    table = Table(
        title=f"{found.task}: {found.steps} steps of {found.optimizer} ({found.settings})",
        title_justify="left",
    )
    for head in ("step", "loss", "λ max", "λ min", "sharpness", "limit", "dial", "max lr"):
        table.add_column(head, justify="right")
    for look in found.looks:
        numbers = (
            look.loss,
            look.largest,
            look.smallest,
            look.sharpness,
            look.limit,
            look.dial,
            look.largest_lr,
        )
        table.add_row(str(look.step), *("–" if x is None else f"{x:.3g}" for x in numbers))
    console.print(table)
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
