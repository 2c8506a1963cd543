"""What an optimizer costs and where it comes from, read off its rule."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import NamedTuple

from schuss.compile.formula import Formula, formula
from schuss.compile.grammar import options_of_variants
from schuss.rules import Rule

__all__ = ["Facts", "facts", "markdown", "table"]

_KINDS = ("elementwise", "whole tensor", "matrix")


class Facts(NamedTuple):
    """Of a rule's variants, from the least to the most that one needs.

    | `kind`   | "elementwise"; "whole tensor": it measures tensors first; "matrix": it multiplies matrices too |
    | `state`  | bytes per float32 weight; a number for a whole row or column counts for none                   |
    | `passes` | how often a step reads the weight, its gradient and its state                                  |
    | `source` | the first that the rule's module names, by authors and year                                    |
    """

    kind: str
    state: tuple[int, int]
    passes: tuple[int, int]
    source: str

    def cells(self) -> tuple[str, str, str, str]:
        """The same as text: "0 to 4" where variants differ."""
        state, passes = (
            str(low) if low == high else f"{low} to {high}" for low, high in (self.state, self.passes)
        )
        return self.kind, state, passes, self.source


def facts(rule: type[Rule]) -> Facts:
    """The facts of a rule.

    >>> from schuss.rules import SGD, LAMB
    >>> facts(SGD).cells()
    ('elementwise', '0 to 4', '1', 'Polyak 1964')
    >>> facts(LAMB).cells()[:3]
    ('whole tensor', '8', '2')
    """
    chosen = [rule(**options) for options in options_of_variants(rule).values()]
    every = [formula(one, dimensions=axes) for one in chosen for axes in (None, 2)]
    kind = max((_kind(one) for one in every), key=_KINDS.index)
    state = [4 * sum(slot not in rule.shapes for slot in one.slots) for one in every]
    passes = [one.passes.readings if one.passes else 1 for one in every]
    return Facts(kind, (min(state), max(state)), (min(passes), max(passes)), _source(rule))


def _kind(one: Formula) -> str:
    if one.passes is None:
        return "elementwise"
    return "matrix" if one.of_matrices else "whole tensor"


def _source(rule: type[Rule]) -> str:
    """The first source in the docstring of the rule's module, by authors and year; nothing if it names none."""
    found = re.search(
        r"^Sources?:\s+(.*?)(?:;|\Z)", inspect.getdoc(inspect.getmodule(rule)) or "", re.M | re.S
    )
    first = " ".join(found[1].split()) if found else ""
    dated = re.match(r"(.*?) (\d{4})\b", first)
    if dated is None:
        return first.rstrip(".")
    authors = re.split(r", | and ", dated[1])
    short = len(authors) <= 3 and "others" not in authors
    return f"{dated[1] if short else f'{authors[0]} and others'} {dated[2]}"


def table(rules: Mapping[str, type[Rule]]) -> list[tuple[str, ...]]:
    """A row for each optimizer: its name and its facts, after the heads of the columns."""
    heads = ("optimizer", "kind", "state, bytes per weight", "passes", "source")
    return [heads, *((name, *facts(rule).cells()) for name, rule in rules.items())]


def markdown(rules: Mapping[str, type[Rule]]) -> str:
    """The table in Markdown."""
    heads, *rows = table(rules)
    marks = ["---" if one in ("optimizer", "kind", "source") else "---:" for one in heads]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, marks, *rows)) + "\n"
