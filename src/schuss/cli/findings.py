"""Findings as they come, in a table; the exit code is 1 if one fails."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from schuss.lab.doctor import Finding

COLOURS = {"holds": "green", "fails": "bold red", "note": "dim"}


def show(
    found: Iterable[tuple[str, Finding]], heads: tuple[str, str, str], doing: str, things: str = ""
) -> int:
    """Print the findings of each section, how many of the judged `things` hold, and those that fail.

    Returns the exit code. An interrupt shows what was found until then.
    """
    console, began = Console(), time.perf_counter()
    table = Table(*heads, "", box=None, pad_edge=False, header_style="bold")
    last, held, failed, stopped = "", 0, list[str](), False
    try:
        with console.status(doing) as status:
            for section, finding in found:
                if section != last:
                    table.add_row(f"\n[bold]{section}[/]" if last else f"[bold]{section}[/]")
                    last = section
                cells = map(escape, (finding.about, finding.known, finding.measured))
                table.add_row(*cells, f"[{COLOURS[finding.verdict]}]{finding.verdict}[/]")
                held += finding.verdict == "holds"
                if finding.verdict == "fails":
                    name = ", ".join(filter(None, (section, finding.about.strip())))
                    failed.append(f"{name}: {heads[1]} {finding.known}, {heads[2]} {finding.measured}.")
                status.update(f"{doing}: {finding.about.strip()} {finding.verdict}")
    except KeyboardInterrupt:
        stopped = True
    console.print(table)
    counts = f"{held} of {held + len(failed)} {things}".rstrip()
    console.print(f"\n{counts} hold, in {time.perf_counter() - began:.1f} s.", highlight=False)
    for line in failed:
        console.print(line, style="red", markup=False, highlight=False)
    if stopped:
        console.print("Stopped before the end.")
    return 130 if stopped else 1 if failed else 0
