"""Schedules as one HTML page: `render(entries, horizon, command)`."""

from schuss.lab.curves.page import render

__all__ = ["render"]
