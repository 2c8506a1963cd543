"""Plain data in, one HTML file out."""

from schuss.lab.report.page import render

__all__ = ["render"]
