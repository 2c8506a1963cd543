"""The convergence curves' medians and intervals, evaluation by evaluation, over the reporting seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schuss.lab.statistics.compare import Floats, median_interval

LOSSES = ("train_loss", "validation_loss")
AXES = ("steps", "examples", "gradients")


def bands(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by entry, the x columns and for each curve its centre, low and high, as columns.

    The centre is the median with the interval that the order of the seeds gives, which never leaves the range of
    the runs (five seeds or more). From where a run has diverged it counts as infinitely bad; once most have, the
    centre is None. `log` says that a loss is positive throughout, and can be drawn on a logarithmic axis.
    """
    found: dict[str, Any] = {}
    for entry in task["entries"]:
        runs = [
            run
            for run in task["runs"]
            if run["entry"] == entry["name"] and run["stage"] == "report" and run["status"] != "crashed"
        ]
        if not runs:
            continue
        longest = max((run["curve"] for run in runs), key=lambda curve: len(curve["steps"]))
        second = entry["step"]["seconds"]
        columns: dict[str, Any] = {axis: longest[axis] for axis in AXES}
        columns["seconds"] = None if second is None else [second * step for step in longest["steps"]]
        for quantity in LOSSES:
            columns[quantity] = _band([run["curve"][quantity] for run in runs], np.inf)
        worst = np.inf if task["metric"]["best"] == "min" else -np.inf
        columns["metric"] = _band([run["curve"]["metric"] for run in runs], worst) | {"log": False}
        rates = [run["curve"]["effective_rate"] for run in runs if run["status"] == "finished"]
        columns["effective_rate"] = _medians(rates)
        found[entry["name"]] = columns
    return found


def _table(curves: Sequence[Sequence[float | None]], missing: float) -> Floats:
    """One row a run, filled up with `missing` to the longest."""
    rows = max((len(curve) for curve in curves), default=0)
    table = np.full((len(curves), rows), missing)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = [missing if x is None else x for x in curve]
    return table


def _band(curves: Sequence[Sequence[float | None]], worst: float) -> dict[str, Any]:
    table = _table(curves, worst)
    intervals = [median_interval(column) for column in table.T]
    sides = ("centre", "low", "high")
    columns = {side: _plain([getattr(interval, side) for interval in intervals]) for side in sides}
    return columns | {"log": bool((table > 0).all())}


def _medians(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The median over the runs that have a value there."""
    return [
        float(np.median(known)) if (known := column[np.isfinite(column)]).size else None
        for column in _table(curves, np.nan).T
    ]


def _plain(column: Sequence[float]) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in column]
