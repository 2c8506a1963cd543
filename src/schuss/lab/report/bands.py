"""The convergence curves' medians and intervals, evaluation by evaluation, over the reporting seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from schuss.lab.statistics.compare import Floats, median_interval


def bands(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return, by entry, the x columns and for each curve its centre, low and high, as columns.

    The centre is the median with the interval that the order of the seeds gives, which never leaves the range of
    the runs (five seeds or more). From where a run has diverged it counts as infinitely bad; once most have, the
    centre is None. `log` says that a loss is positive throughout, and can be drawn on a logarithmic axis.
    """
    found: dict[str, Any] = {}
    reported = [run for run in task["runs"] if run["stage"] == "report" and run["status"] != "crashed"]
    worst = np.inf if task["metric"]["best"] == "min" else -np.inf
    for entry in task["entries"]:
        runs = [run for run in reported if run["entry"] == entry["name"]]
        if not runs:
            continue
        curves = [run["curve"] for run in runs]
        longest = max(curves, key=lambda curve: len(curve["steps"]))
        second = entry["step"]["seconds"]
        rates = [run["curve"]["effective_rate"] for run in runs if run["status"] == "finished"]
        known = (column[np.isfinite(column)] for column in _table(rates, np.nan).T)
        found[entry["name"]] = {
            **{axis: longest[axis] for axis in ("steps", "examples", "gradients")},
            "seconds": None if second is None else [second * step for step in longest["steps"]],
            "train_loss": _band([curve["train_loss"] for curve in curves], np.inf),
            "validation_loss": _band([curve["validation_loss"] for curve in curves], np.inf),
            "metric": _band([curve["metric"] for curve in curves], worst) | {"log": False},
            "effective_rate": _plain(np.median(column) if column.size else np.nan for column in known),
        }
    return found


def _table(curves: Sequence[Sequence[float | None]], missing: float) -> Floats:
    """One row per run, filled up with `missing` to the longest."""
    rows = max((len(curve) for curve in curves), default=0)
    table = np.full((len(curves), rows), missing)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = [missing if x is None else x for x in curve]
    return table


def _band(curves: Sequence[Sequence[float | None]], worst: float) -> dict[str, Any]:
    table = _table(curves, worst)
    intervals = [median_interval(column) for column in table.T]
    columns = {side: _plain(getattr(i, side) for i in intervals) for side in ("centre", "low", "high")}
    return columns | {"log": bool((table > 0).all())}


def _plain(column: Iterable[float]) -> list[float | None]:
    return [float(x) if np.isfinite(x) else None for x in column]
