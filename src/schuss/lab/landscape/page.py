"""Scenes as one HTML page, and one of them as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import schuss
from schuss.lab.landscape.scene import Scene
from schuss.lab.pages import page
from schuss.lab.pages.frame import plain

COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b0528a", "#a87500", "#2f8fc4", "#4d4d4d", "#7a4fb5")
"""The report's colours of its entries, in light."""


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


def figure(scene: Scene) -> dict[str, Any]:
    """Contours and paths as a Plotly figure in light colours, for a picture."""
    above = scene.heights - scene.lowest
    positive = above[np.isfinite(above) & (above > 0)]
    floor = max(float(positive.min()) / 10, 1e-12)
    levels = np.log10(np.maximum(above, floor))
    bottom, top = float(np.nanquantile(levels, 0.01)), float(np.nanmax(levels))
    traces: list[dict[str, Any]] = [
        dict(
            type="contour",
            x=scene.xs,
            y=scene.ys,
            z=levels,
            autocontour=False,
            contours=dict(start=bottom, end=top, size=(top - bottom) / 18),
            showscale=False,
            colorscale=[[0, "#7ba5b3"], [1, "#fbfbf9"]],
            zmin=bottom,
            zmax=top,
            line=dict(color="#55606a", width=0.4),
        )
    ]
    for i, trail in enumerate(scene.trails):
        colour = COLOURS[i % len(COLOURS)]
        traces.append(
            dict(
                type="scatter",
                name=f"{trail.name} ({trail.settings})",
                x=trail.places[:, 0],
                y=trail.places[:, 1],
                mode="lines+markers",
                line=dict(color=colour, width=2),
                marker=dict(color=colour, size=3),
            )
        )
    if scene.minima:
        x, y = zip(*scene.minima, strict=True)
        mark = dict(symbol="cross-thin", size=12, line=dict(width=2, color="#1b2126"))
        traces.append(dict(type="scatter", x=x, y=y, mode="markers", marker=mark, showlegend=False))
    axis = dict(showgrid=False, zeroline=False)
    layout = dict(
        title=dict(text=scene.title, font=dict(size=22, color="#1b2126")),
        font=dict(family="system-ui, sans-serif", size=14, color="#55606a"),
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        margin=dict(l=60, r=20, t=60, b=110),
        legend=dict(orientation="h", y=-0.1),
        xaxis=dict(title=dict(text=scene.axes[0]), range=[scene.xs[0], scene.xs[-1]], **axis),
        yaxis=dict(title=dict(text=scene.axes[1]), range=[scene.ys[0], scene.ys[-1]], **axis),
    )
    return plain(dict(data=traces, layout=layout))
