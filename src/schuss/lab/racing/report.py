"""What a race hands back: its report, to read, to show, and to build the winner from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schuss.lab.pages import write
from schuss.lab.racing.plan import Contestant
from schuss.lab.racing.store import RESUME, StoreError


class Report:
    """The report of a race; `data` is what `report.json` holds (see `schuss.lab.report.schema`).

    With several tasks, `best`, `optimizer` and `recipe` speak of the first unless another is named.
    """

    def __init__(self, data: dict[str, Any], contestants: Mapping[tuple[str, str], Contestant]) -> None:
        """Hold a report and the contestants that it names, by task and entry."""
        self.data, self._contestants = data, contestants

    def __repr__(self) -> str:
        """The verdicts."""
        return "\n".join(task["verdict"]["text"] for task in self.data["tasks"])

    def task(self, name: str | None = None) -> dict[str, Any]:
        """One task's part; the first if not named."""
        tasks = {task["name"]: task for task in self.data["tasks"]}
        return tasks[name] if name else next(iter(tasks.values()))

    def best(self, task: str | None = None) -> dict[str, Any]:
        """The row of the entry to take: the leader, or the cheapest of those tied with it.

        `LookupError` if the race did not get so far.
        """
        found = self.task(task)
        take = found["verdict"]["take"]
        if take is None:
            raise LookupError(found["verdict"]["text"])
        return next(row for row in found["ranking"] if row["entry"] == take)

    def recipe(self, task: str | None = None) -> tuple[Any, dict[str, Any]]:
        """The best's class and keyword arguments: `Trainer(optimizer_cls_and_kwargs=...)`."""
        name, row = self.task(task)["name"], self.best(task)
        entry = self._contestants[name, row["entry"]].entry
        return entry.optimizer, entry.arguments(row["parameters"])

    def optimizer(self, parameters: Iterable[Any], task: str | None = None) -> Any:
        """The best optimizer at its best settings, over these parameters."""
        name, row = self.task(task)["name"], self.best(task)
        return self._contestants[name, row["entry"]].entry.build(parameters, row["parameters"])

    def table(self, task: str | None = None) -> Any:
        """The ranking as a DataFrame where pandas is there, else as a list of dicts."""
        found = self.task(task)
        rows = [
            {name: row[name] for name in ("rank", "tied", "entry")}
            | row["parameters"]
            | {
                found["metric"]["name"]: row["metric"]["mean"],
                "low": row["metric"]["low"],
                "high": row["metric"]["high"],
                "test": row["test_metric"]["mean"],
                "reached": row["reached"],
                "gradients": row["cost"]["gradients"],
                "bytes_per_weight": row["bytes_per_weight"],
                "seconds": row["step"]["seconds"],
            }
            for row in found["ranking"]
        ]
        try:
            from pandas import DataFrame  # pyright: ignore[reportMissingImports]
        except ImportError:
            return rows
        return DataFrame(rows)

    def numbers(self) -> dict[str, Any]:
        """The report without measured times and its command, which names the folder: what executors agree on."""
        return _without_seconds({key: value for key, value in self.data.items() if key != "command"})

    def save(self, folder: Path) -> None:
        """Write report.json and report.html, each whole or not at all."""
        from schuss.lab.report.page import render

        try:
            write(folder / "report.json", json.dumps(self.data, indent=1, allow_nan=False))
            write(folder / "report.html", render(self.data))
        except OSError as error:
            raise StoreError(f"{error} {RESUME}") from error


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [_without_seconds(item) for item in value]
    return value
