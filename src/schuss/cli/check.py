"""`schuss check`: is this rule right on every path?"""

from __future__ import annotations

import sys

import click

from schuss.cli.findings import show

EPILOG = """\b
Examples:
  schuss check my_rule.py:MyRule        a rule of your own
  schuss check adamw                    a built-in one

A rule is a dataclass with hyperparameters, state, coefficients and update: CONTRIBUTING.md shows a whole one.
"""


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

    try:
        found = (("", finding) for finding in examine_rule(find_rule(rule)))
        sys.exit(show(found, ("what", "wanted", "found"), "Compiling and comparing"))
    except RuleError as error:
        raise click.ClickException(str(error)) from error
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
