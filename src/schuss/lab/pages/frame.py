"""One HTML file with its data, its drawing library and its style inside; it makes no request."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from schuss.lab.pages.words import cost, duration, interval, number, percent, settings
from schuss.units import human_bytes, human_seconds

HERE = Path(__file__).parent / "templates"
FILTERS = {each.__name__: each for each in (cost, duration, interval, number, percent, settings)}


def page(
    templates: Path, name: str, title: str, contents: Sequence[tuple[str, str]], data: Any, **context: Any
) -> str:
    """Fill `name`.html.j2 of a folder, which extends base.html.j2; `name`.js draws what `data` holds.

    `contents` are (id, text) of the sections in the margin; a template may fill the block of that name itself.
    Numbers in `data` that are not finite become null.
    """
    environment = Environment(
        loader=FileSystemLoader([templates, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, bytes=human_bytes, seconds=human_seconds)
    inline = json.dumps(plain(data), allow_nan=False, separators=(",", ":"))
    return environment.get_template(f"{name}.html.j2").render(
        title=title,
        contents=contents,
        style=Markup((HERE / "style.css").read_text("utf-8")),
        data=Markup(inline.replace("<", "\\u003c")),  # no text in it can close the script element
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
    return data if not isinstance(data, float) or math.isfinite(data) else None
