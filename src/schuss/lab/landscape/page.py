"""Pictures, and the Taylor model of a surface, as HTML reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import schuss
from schuss.lab.landscape.picture import Picture
from schuss.lab.landscape.taylor import TaylorModel
from schuss.lab.pages import page

TEMPLATES = Path(__file__).parent / "templates"


def render(pictures: Sequence[Picture], command: str) -> str:
    """The report of some pictures, with the command that makes it again."""
    return page(
        TEMPLATES,
        "landscape",
        f"The landscape of {pictures[0].title}" if len(pictures) == 1 else "Why optimizers differ",
        [*((each.id, each.title) for each in pictures), ("repeat", "How to repeat it")],
        [each.plain() for each in pictures],
        pictures=pictures,
        command=command,
        version=schuss.__version__,
    )


def render_model(model: TaylorModel, command: str) -> str:
    """The report of a quadratic model and its steps."""
    return page(
        TEMPLATES,
        "model",
        f"The quadratic model of {model.surface.name}",
        [("picture", "The model and its steps"), ("repeat", "How to repeat it")],
        model.plain(),
        model=model,
        command=command,
        version=schuss.__version__,
    )
