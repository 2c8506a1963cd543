"""A report's runs as a table, one row per run, for other tools."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from schuss.errors import refusal
from schuss.lab.pages import write

FORMATS = (".csv", ".json", ".parquet")
COLUMNS = ("id", "entry", "stage", "seed", "status", "steps", "examples", "gradients")
NUMBERS = ("train_loss", "validation_loss", "metric")


def check_format(path: Path) -> Path:
    """Return the path if its ending is one that can be written here."""
    if path.suffix not in FORMATS:
        raise refusal("export", str(path), f"a file that ends in one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError("Parquet needs pyarrow. Try: pip install pyarrow; or export to .csv.")
    return path


def rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One flat dict per run; hyperparameters that only other entries have are None."""
    found: list[dict[str, Any]] = []
    for task in report["tasks"]:
        names = sorted({name for run in task["runs"] for name in run["parameters"]})
        for run in task["runs"]:
            test = run["test"] or {"loss": None, "metric": None}
            found.append(
                {"task": task["name"]}
                | {name: run[name] for name in COLUMNS}
                | {name: run["parameters"].get(name) for name in names}
                | {name: run[name] for name in NUMBERS}
                | {"test_loss": test["loss"], "test_metric": test["metric"], "error": run["error"]}
                | {"seconds": run["seconds"]}
            )
    columns = list(dict.fromkeys(name for row in found for name in row))
    return [{name: row.get(name) for name in columns} for row in found]


def export(report: Mapping[str, Any], path: Path) -> None:
    """Write the runs as the file's ending says: .csv, .json or .parquet."""
    table = rows(report)
    if check_format(path).suffix == ".json":
        write(path, json.dumps(table, indent=1, allow_nan=False))
    elif path.suffix == ".csv":
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, fieldnames=list(table[0]) if table else [])
        writer.writerow({name: _cell(name) for name in writer.fieldnames})
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in table)
        write(path, lines.getvalue())
    else:
        from pyarrow import Table, parquet  # pyright: ignore[reportMissingImports]

        parquet.write_table(Table.from_pylist(table), path)


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula begins with an apostrophe instead."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
