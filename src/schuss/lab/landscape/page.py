"""Scenes as one HTML page, and one of them as a picture."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import schuss
from schuss.lab.landscape.growth import Cost
from schuss.lab.landscape.scene import Scene
from schuss.lab.landscape.taylor import TaylorModel, drawn
from schuss.lab.landscape.trails import Trail
from schuss.lab.pages import page
from schuss.lab.pages.frame import plain

COLOURS = ("#0072b2", "#d55e00", "#00805c", "#b0528a", "#a87500", "#2f8fc4", "#4d4d4d", "#7a4fb5", "#6b7d00")
"""The report's colours of its entries, in light."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down")

READ = (
    "Lines of equal {}, evenly in its logarithm; the deeper the colour, the lower. From the open circle to the filled "
    "mark; a cross is a known minimum."
)


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


def model_figure(model: TaylorModel) -> dict[str, Any]:
    """The model's contours, its region and the steps as a Plotly figure in light colours, for a picture."""
    trails = tuple(
        Trail(
            step.name,
            "step",
            np.array([model.at, step.end]),
            np.array([model.value, model.value - step.actual]),
        )
        for step in model.steps
    )
    at = "({:g}, {:g})".format(*model.at)
    words = (
        f"{model.surface.formula or model.surface.name}, at {at}. Dotted: lines of equal height of the model."
    )
    scene = Scene(
        *("model", f"The quadratic model of {model.surface.name}", words, "", ""),
        *(model.xs, model.ys, model.heights, model.lowest, trails),
    )
    found = figure(scene)
    ground, circle = found["data"][0], drawn(model)["circle"]
    bottom = ground["contours"]["start"]
    modelled = np.log10(np.maximum(model.modelled - model.lowest, 10**bottom / 10))
    dotted = {**ground["contours"], "coloring": "none"}
    line = dict(color="#1b2126", width=1, dash="dot")
    found["data"][1:1] = plain(
        [
            {**ground, "name": "model", "showlegend": True, "z": modelled, "contours": dotted, "line": line},
            dict(type="scatter", name="trust region", x=circle[0], y=circle[1], mode="lines")
            | dict(line=dict(color="#1b2126", dash="dash", width=1.5)),
        ]
    )
    return found


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
    heads: list[dict[str, Any]] = []
    for i, trail in enumerate(scene.trails):
        colour = COLOURS[i % len(COLOURS)]
        head = dict(
            symbol=SYMBOLS[i % len(SYMBOLS)], size=11, color=colour, line=dict(width=1.5, color="#ffffff")
        )
        x, y = trail.places[-1]
        heads.append(dict(type="scatter", x=[x], y=[y], mode="markers", marker=head, showlegend=False))
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
    x, y = zip(*{tuple(trail.places[0]) for trail in scene.trails}, strict=True)
    mark = dict(symbol="circle-open", size=12, color="#1b2126", line=dict(width=1.5))
    traces.append(dict(type="scatter", x=x, y=y, mode="markers", marker=mark, showlegend=False))
    traces += heads
    if scene.marks:
        x, y, text = zip(*scene.marks, strict=True)
        mark = dict(size=19, color="#ffffff", line=dict(width=1, color="#55606a"))
        traces.append(
            dict(type="scatter", x=x, y=y, text=text, mode="markers+text", marker=mark, showlegend=False)
        )
    if scene.minima:
        x, y = zip(*scene.minima, strict=True)
        mark = dict(symbol="cross-thin", size=12, line=dict(width=2, color="#1b2126"))
        traces.append(dict(type="scatter", x=x, y=y, mode="markers", marker=mark, showlegend=False))
    axis = dict(showgrid=False, zeroline=False)
    layout: dict[str, Any] = dict(
        title=dict(
            text=f"{scene.title}: {'loss' if scene.unit == 'loss' else 'height'} and trajectories",
            font=dict(size=22, color="#1b2126"),
            subtitle=dict(text=_wrapped(f"{scene.lede} {READ.format(scene.unit)}"), font=dict(size=13)),
            yref="container",
            y=0.97,
            yanchor="top",
        ),
        font=dict(family="system-ui, sans-serif", size=14, color="#55606a"),
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        margin=dict(l=60, r=20, t=130, b=150),
        legend=dict(orientation="h", y=-0.13, yanchor="top"),
        xaxis=dict(title=dict(text=scene.axes[0]), range=[scene.xs[0], scene.xs[-1]], **axis),
        yaxis=dict(title=dict(text=scene.axes[1]), range=[scene.ys[0], scene.ys[-1]], **axis),
    )
    if scene.to_scale:
        layout["yaxis"]["scaleanchor"] = "x"
        for name in ("xaxis", "yaxis"):
            layout[name]["constrain"] = "domain"
    return plain(dict(data=traces, layout=layout))


def _wrapped(text: str) -> str:
    """The same in lines that fit above a picture."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(text, 150))
