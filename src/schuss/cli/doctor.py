"""`schuss doctor`: is everything right on this machine?"""

from __future__ import annotations

import sys

import click

from schuss.cli.findings import show

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
    from schuss.lab.doctor import examine

    try:
        parts = None if only is None else [name.strip() for name in only.split(",")]
        examined = examine(parts, tuple(name.strip() for name in dtypes.split(",")))
        found = ((TITLES[part], finding) for part, finding in examined)
        sys.exit(show(found, ("what", "known value", "measured"), "Measuring", "known values"))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
