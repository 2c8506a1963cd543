"""`schuss check`: is this rule right on every path?"""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EPILOG = """\b
Examples:
  schuss check my_rule.py:MyRule        a rule of your own
  schuss check adamw                    a built-in one

A rule is a dataclass with hyperparameters, state, coefficients and update: CONTRIBUTING.md shows a whole one.
"""

COLOURS = {"holds": "green", "fails": "bold red", "note": "dim"}


@click.command(epilog=EPILOG)
@click.argument("rule", metavar="FILE.py:RULE")
def command(rule: str) -> None:
    """Test your own rule as the built-in ones are tested.

    Every kernel and dtype is compared with the rule itself in float64: odd sizes and strides, NaN and infinity, split
    tensors, saving and continuing, low precision, sparse gradients, the NumPy API, and the code for a GPU. The exit
    code is 1 if something fails. It takes under a minute.
    """
    from schuss.errors import RuleError
    from schuss.lab.doctor.own_rule import examine_rule, find_rule

    console = Console()
    began, failed, held, stopped = time.perf_counter(), 0, 0, False
    table = Table("what", "wanted", "found", "", box=None, pad_edge=False, header_style="bold")
    try:
        found = find_rule(rule)
        with console.status("Compiling and comparing") as status:
            for finding in examine_rule(found):
                colour = COLOURS[finding.verdict]
                cells = map(escape, (finding.about, finding.known, finding.measured))
                table.add_row(*cells, f"[{colour}]{finding.verdict}[/]")
                failed += finding.verdict == "fails"
                held += finding.verdict == "holds"
                status.update(f"Compiling and comparing: {finding.about} {finding.verdict}")
    except RuleError as error:
        raise click.ClickException(str(error)) from error
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        stopped = True  # what was found until now is shown
    console.print(table)
    seconds = time.perf_counter() - began
    console.print(f"\n{held} of {held + failed} hold, in {seconds:.1f} s.", highlight=False)
    if stopped:
        console.print("Stopped before the end.")
    sys.exit(130 if stopped else 1 if failed else 0)
