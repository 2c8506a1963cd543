"""Scenes, and a model of one, as HTML pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import schuss
from schuss.lab.landscape.growth import Cost
from schuss.lab.landscape.scene import Scene
from schuss.lab.landscape.taylor import TaylorModel, drawn
from schuss.lab.pages import page


def render(scenes: Sequence[Scene], command: str) -> str:
    """The page of some scenes, with the command that makes it again."""
    title = f"The landscape of {scenes[0].title}" if len(scenes) == 1 else "Why optimizers differ"
    return page(
        Path(__file__).parent / "templates",
        "landscape",
        title,
        [*((scene.id, scene.title) for scene in scenes), ("repeat", "How to repeat it")],
        [scene.plain() for scene in scenes],
        scenes=scenes,
        command=command,
        version=schuss.__version__,
        network=any(scene.unit == "loss" for scene in scenes),
    )


def render_model(model: TaylorModel, costs: Sequence[Cost], command: str) -> str:
    """The page of a quadratic model and of what its steps cost."""
    return page(
        Path(__file__).parent / "templates",
        "model",
        f"The quadratic model of {model.surface.name}",
        [("picture", "The model and its steps"), ("cost", "What it costs"), ("repeat", "How to repeat it")],
        drawn(model),
        model=model,
        costs=costs,
        command=command,
        version=schuss.__version__,
    )
