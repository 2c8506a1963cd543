"""Schedules as one HTML page: their curves, and their values at the landmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import schuss
from schuss.lab.pages import page
from schuss.schedules import Schedule


def render(
    entries: Mapping[str, Schedule], horizon: float, landmarks: Sequence[float | None], command: str
) -> str:
    """The page of some schedules by the words that describe them, and the command that makes it again.

    `landmarks`: steps of the table; None where some are left out.
    """
    curves = [
        {"name": words, "steps": steps, "values": [schedule(n) for n in steps]}
        for words, schedule in entries.items()
        for steps in [_steps(schedule, horizon)]
    ]
    rows = [
        (None, []) if n is None else (n, [schedule(n) for schedule in entries.values()]) for n in landmarks
    ]
    return page(
        Path(__file__).parent / "templates",
        "curves",
        "Schedules" if len(entries) > 1 else "A schedule",
        [("curves", "The curves"), ("landmarks", "Landmarks"), ("repeat", "How to repeat it")],
        curves,
        entries=entries,
        horizon=horizon,
        rows=rows,
        command=command,
        version=schuss.__version__,
    )


def _steps(schedule: Schedule, horizon: float) -> list[float]:
    """Steps at which a curve is drawn; those before each corner too, so that a restart is seen as a jump."""
    corners = schedule.corners(horizon)
    even = {horizon * k / 1000 for k in range(1001)}
    return sorted(even | {n for corner in corners for n in (corner, corner - 1e-6) if n >= 0})
