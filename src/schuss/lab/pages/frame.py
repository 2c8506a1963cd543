"""One HTML file with its data, its drawing library and its style inside; it makes no request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import schuss.lab.report
from schuss.lab.report.page import duration, inline_json, number, percent

HERE = Path(__file__).parent / "templates"
STYLE = Path(schuss.lab.report.__file__).parent / "templates" / "style.css"


def page(
    templates: Path, name: str, title: str, contents: Sequence[tuple[str, str]], data: Any, **context: Any
) -> str:
    """Fill `name`.html.j2 of a folder, which extends base.html.j2; `name`.js draws what `data` holds.

    `contents` are (id, text) of the sections in the margin. Numbers in `data` that are not finite become null.
    """
    environment = Environment(
        loader=FileSystemLoader([templates, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "percent": percent}
    return environment.get_template(f"{name}.html.j2").render(
        title=title,
        contents=contents,
        style=Markup(STYLE.read_text("utf-8")),
        data=Markup(inline_json(plain(data))),
        plotly=Markup(get_plotlyjs()),
        shared=Markup((HERE / "shared.js").read_text("utf-8")),
        script=Markup((templates / f"{name}.js").read_text("utf-8")),
        **context,
    )


def plain(data: Any) -> Any:
    """Lists, dicts and numbers that JSON can hold; arrays as lists, numbers that are not finite as None.

    >>> plain({"x": (1.0, float("inf"))})
    {'x': [1.0, None]}
    """
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if hasattr(data, "tolist"):
        return plain(data.tolist())
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data
