"""Which entries of a race crashed, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schuss.lab.reason import reason


def crashed_entries(task: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]], int]]:
    """Each entry of which runs crashed: its name, these runs, and how many it had in all."""
    found: list[tuple[str, Sequence[Mapping[str, Any]], int]] = []
    for entry in task["entries"]:
        runs = [run for run in task["runs"] if run["entry"] == entry["name"]]
        crashed = [run for run in runs if run["status"] == "crashed"]
        if crashed:
            found.append((entry["name"], crashed, len(runs)))
    return found


def without_a_finish(task: Mapping[str, Any]) -> str | None:
    """Why a task has no result at all, if it has none."""
    runs = task["runs"]
    if not runs or any(run["status"] == "finished" for run in runs):
        return None
    first = next((run for run in runs if run["status"] == "crashed"), None)
    if first is None:
        return f"None of the {len(runs)} runs on {task['name']!r} finished: every one diverged."
    count = sum(run["status"] == "crashed" for run in runs)
    return (
        f"None of the {len(runs)} runs on {task['name']!r} finished; {count} crashed. "
        f"The first, of {first['entry']}: {reason(first['error'])}"
    )
