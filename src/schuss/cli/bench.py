"""`schuss bench`: measure the time of a step, and compare it with other implementations."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from schuss.bench.sizes import FULL, QUICK, SECTIONS, Sizes

if TYPE_CHECKING:
    from schuss.bench.report import Report

EXAMPLES = """
\b
Examples:
  schuss bench                          every section
  schuss bench --quick --only gpt2      AdamW at GPT-2's shapes, a few rounds
  schuss bench --only small --only mlp  many small tensors, and a small network
  schuss bench --json here.json         write every round to a file
  schuss bench --from here.json --markdown
"""
FILE = click.Path(dir_okay=False, path_type=Path)
READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(epilog=EXAMPLES)
@click.option("--quick", is_flag=True, help="Measure fewer rounds.  [default: off]")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(SECTIONS),
    help="Measure this section alone. May be repeated.  [default: all sections]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of every implementation.  [default: torch.get_num_threads()]",
)
@click.option("--json", type=FILE, help="Write every measured round to this file.  [default: none]")
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print Markdown tables.  [default: tables for a terminal]"
)
@click.option(
    "--from",
    "earlier",
    type=READABLE,
    help="Show the results in this file of --json, and measure nothing.  [default: measure]",
)
def command(
    quick: bool,
    only: tuple[str, ...],
    threads: int | None,
    json: Path | None,
    as_markdown: bool,
    earlier: Path | None,
) -> None:
    """Measure the time of a step of every optimizer, and compare it with torch and others.

    \b
    gpt2        AdamW at GPT-2's 148 shapes (up to 8 GB of memory)
    optimizers  every optimizer at those shapes
    small, mlp  every optimizer on 400 and 1000 small tensors, and on a small network
    first-step  the first step of a new process, cache empty and warm
    sparse      an embedding of which 1 % is touched
    precision   bfloat16 weights, low-precision state, and clipping, at GPT-2's shapes
    numpy       the NumPy API compared with plain NumPy
    memory      the peak memory of a step
    gpu         every optimizer on a GPU, compared with a copy; kernels, host time and waits per step

    Implementations take turns in one process. Each is checked against the float64 reference first, and is not timed
    if it is wrong. Ctrl-C prints what is done.
    """
    from schuss.bench.report import load

    if json is not None and not json.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {json.absolute().parent}.", param_hint="--json")
    if earlier is not None:
        try:
            report = load(earlier)
        except ValueError as problem:
            raise click.ClickException(str(problem)) from None
    else:
        report = _measure(QUICK if quick else FULL, only, threads, {"quick": quick, "only": list(only)})
    if json is not None:
        report.save(json)
    _show(report, as_markdown)
    if report.interrupted:
        raise SystemExit(130)


def _measure(sizes: Sizes, only: tuple[str, ...], threads: int | None, settings: dict[str, object]) -> Report:
    import torch

    from schuss.bench.jobs import jobs, machine
    from schuss.bench.report import Report

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    report = Report(machine(), settings)
    aside = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=aside, transient=True, disable=not aside.is_terminal) as progress:
            todo = jobs(sizes, only)
            bar = progress.add_task("", total=len(todo))
            for job in todo:
                progress.update(bar, description=job.title)
                if not aside.is_terminal:
                    click.echo(f"{job.title} ...", err=True)
                report.add(job.run())
                gc.collect()  # an optimizer and its hooks hold each other, and the next one needs the memory
                progress.advance(bar)
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        torch.set_num_threads(before)
    return report


def _show(report: Report, as_markdown: bool) -> None:
    from schuss.bench.grids import READING, grids, headline, markdown, remarks

    if as_markdown:
        click.echo(markdown(report), nl=False)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII
    console.print(headline(report), style="bold", soft_wrap=not console.is_terminal)
    for grid in grids(report):
        table = Table(box=style, caption=grid.below or None, caption_justify="left")
        for k, head in enumerate(grid.heads):
            table.add_column(head, justify="right" if k else "left")
        for row in grid.rows:
            table.add_row(*row)
        console.print(f"\n{grid.title}", style="bold")
        console.print(table)
    for line in (READING, *remarks(report)):
        console.print(line, style="dim")
