"""`schuss race`: race the optimizers on a task and print who won."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SEEDS = {"quick": 3, "default": 5, "careful": 10}

EXAMPLES = """
\b
Examples:
  schuss race digits                        all entries on scikit-learn's digits
  schuss race digits --entries sgd,adam     only these two
  schuss race mnist --data ~/mnist          MNIST, from its own IDX files
"""


@click.command(epilog=EXAMPLES)
@click.argument("task")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with the task's own data (MNIST: its IDX files)."
)
@click.option("--entries", help="Comma-separated; all of them if not given.")
@click.option(
    "--preset", type=click.Choice(list(SEEDS)), default="quick", show_default=True, help="How thorough."
)
def command(task: str, data: Path | None, entries: str | None, preset: str) -> None:
    """Race the optimizers on TASK and print who won."""
    import torch

    from schuss.lab.entries import ENTRIES, find
    from schuss.lab.protocol.heats import Heat, heats
    from schuss.lab.tasks import load

    try:
        racing = load(task, data)
        entrants = [find(name.strip()) for name in entries.split(",")] if entries else list(ENTRIES.values())
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    seeds = range(SEEDS[preset])
    # Small models are fastest on one thread, and then a run does not depend on how many cores there are.
    torch.set_num_threads(1)
    console, done = Console(), list[Heat]()
    console.print(f"{racing.name}: {racing.description}; {racing.total_steps()} steps, {len(seeds)} seeds.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stopped = False
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("racing", total=len(seeds) * len(entrants))
        try:
            for heat in heats(racing, entrants, seeds):
                done.append(heat)
                line = _line(heat, racing.metric_name)
                progress.update(bar, advance=1, description=line)
                if not console.is_terminal:
                    console.print(line)
        except KeyboardInterrupt:
            stopped = True
    if done:
        console.print(_table(done, racing.metric_name, racing.best))
    if stopped:
        console.print(f"Stopped after {len(done)} of {len(seeds) * len(entrants)} runs.")
        sys.exit(130)


def _line(heat: object, metric: str) -> str:
    from schuss.lab.protocol.heats import Heat

    assert isinstance(heat, Heat)
    last = heat.outcome.last
    result = (
        f"{metric} {last.metric:.4f}"
        if heat.outcome.status == "finished"
        else f"diverged: {heat.outcome.reason}"
    )
    return f"{heat.entry}, seed {heat.seed}: {result}"


def _table(done: Sequence[object], metric: str, best: str) -> Table:
    from schuss.lab.protocol.heats import Heat

    heats = [heat for heat in done if isinstance(heat, Heat)]
    table = Table(title="Validation, mean over seeds (sample standard deviation)")
    for heading in ("entry", metric, "loss", "steps", "s a run", "finished"):
        table.add_column(heading, justify="left" if heading == "entry" else "right")
    rows: list[tuple[float, list[str]]] = []
    for entry in dict.fromkeys(heat.entry for heat in heats):
        outcomes = [heat.outcome for heat in heats if heat.entry == entry]
        ended = [outcome for outcome in outcomes if outcome.status == "finished"]
        share = f"{len(ended)} of {len(outcomes)}"
        seconds = f"{statistics.median(outcome.seconds for outcome in outcomes):.2f}"
        if not ended:
            rows.append((float("inf"), [entry, "–", "–", "–", seconds, share]))
            continue
        metrics = [outcome.last.metric for outcome in ended]
        spread = f" ({statistics.stdev(metrics):.4f})" if len(metrics) > 1 else ""
        mean, loss = (
            statistics.mean(metrics),
            statistics.mean(outcome.last.validation_loss for outcome in ended),
        )
        steps = str(ended[0].last.steps)
        key = -mean if best == "max" else mean
        rows.append((key, [entry, f"{mean:.4f}{spread}", f"{loss:.4f}", steps, seconds, share]))
    for _, cells in sorted(rows, key=lambda row: row[0]):
        table.add_row(*cells)
    return table
