"""The page: `report.json` as one HTML file that needs nothing else, not even a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schuss.errors import refusal
from schuss.lab.pages import page
from schuss.lab.report.bands import bands


def render(report: Mapping[str, Any]) -> str:
    """Return the HTML page of a report, given as `report.json` holds it (see `schema.py`).

    The page carries its data, its drawing library and its style; it makes no request and needs no server.
    """
    if report.get("format") != "schuss-race-report":
        advice = "Give the contents of a report.json."
        raise refusal("format", report.get("format"), "'schuss-race-report'", advice)
    data = {"report": report, "bands": [bands(task) for task in report["tasks"]]}
    return page(Path(__file__).parent / "templates", "report", report["title"], (), data, report=report)
