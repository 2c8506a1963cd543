"""`schuss doctor`: is everything right on this machine?"""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EPILOG = """\b
Examples:
  schuss doctor
  schuss doctor --only kernels --dtypes float32,float64,bfloat16
  schuss doctor --only curvature,noise

The first run compiles every kernel and stores them in the cache, so the next run is faster.
"""

TITLES = {
    "rates": "Rates, κ = 100",
    "limits": "Stability limits × lr",
    "noise": "Gradient noise scale",
    "curvature": "Curvature",
    "kernels": "Kernels against float64",
    "sparse": "Sparse gradients",
    "threads": "1 and 2 threads",
    "cache": "Kernel cache",
    "processors": "Machine",
    "gpu": "Machine",
}
COLOURS = {"holds": "green", "fails": "bold red", "note": "dim"}


@click.command(epilog=EPILOG)
@click.option(
    "--only",
    help=f"Parts to examine, separated by commas: {', '.join(TITLES)}.  [default: all]",
)
@click.option(
    "--dtypes",
    default="float32",
    show_default=True,
    help="Dtypes in which every kernel is compared with the float64 reference, separated by commas.",
)
def command(only: str | None, dtypes: str) -> None:
    """Measure numbers whose values are known, on this machine. The exit code is 1 if one is wrong."""
    from schuss.lab.doctor import Finding, examine

    console = Console()
    began = time.perf_counter()
    table = Table("what", "known value", "measured", "", box=None, pad_edge=False, header_style="bold")
    section, found, stopped = "", list[tuple[str, Finding]](), False
    try:
        with console.status("Measuring"):
            parts = None if only is None else [name.strip() for name in only.split(",")]
            for part, finding in examine(parts, tuple(name.strip() for name in dtypes.split(","))):
                if TITLES[part] != section:
                    section = TITLES[part]
                    table.add_row(f"[bold]{section}[/]" if not found else f"\n[bold]{section}[/]")
                found.append((section, finding))
                colour = COLOURS[finding.verdict]
                cells = (finding.about, finding.known, finding.measured)
                table.add_row(*map(escape, cells), f"[{colour}]{finding.verdict}[/]")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        stopped = True  # what was found until now is shown
    console.print(table)
    failed = [(about, finding) for about, finding in found if finding.verdict == "fails"]
    judged = sum(finding.verdict != "note" for _, finding in found)
    seconds = time.perf_counter() - began
    console.print(
        f"\n{judged - len(failed)} of {judged} known values hold, in {seconds:.1f} s.", highlight=False
    )
    for about, finding in failed:
        line = f"{about}, {finding.about.strip()}: known value {finding.known}, measured {finding.measured}."
        console.print(line, style="red", markup=False, highlight=False)
    if stopped:
        console.print("Stopped before the end.")
    sys.exit(130 if stopped else 1 if failed else 0)
