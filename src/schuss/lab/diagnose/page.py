"""A diagnosis as one HTML report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import schuss
from schuss.lab.diagnose.advise import Advice, Cost, costs
from schuss.lab.diagnose.measure import Diagnosis, Look, caveat
from schuss.lab.pages import page


def render(found: Diagnosis, advice: Sequence[Advice], command: str) -> str:
    """The HTML report of a diagnosis with its advice, and the command that repeats it."""
    noise = found.noise[1] or found.noise[0]
    dial = next((look.dial for look in reversed(found.looks) if look.dial is not None), None)
    shown = {
        "advice": "What to try",
        "edge": "Edge of stability",
        "curvature": "Curvature",
        "noise": "Gradient noise",
        "rates": "Learning rates",
        "sparsity": "Sparsity",
        "missing": "Not measured",
        "repeat": "How to repeat it",
    }
    here = {
        "advice": bool(advice),
        "edge": dial is not None,
        "curvature": any(look.largest is not None for look in found.looks),
        "noise": noise is not None,
        "rates": found.ladder is not None,
        "sparsity": found.sparsity is not None,
        "missing": bool(found.missing),
        "repeat": True,
    }
    return page(
        Path(__file__).parent / "templates",
        "diagnose",
        f"Diagnosis of {found.task}",
        [(key, text) for key, text in shown.items() if here[key]],
        _data(found),
        found=found,
        advice=advice,
        here=here,
        dial=dial,
        needle=None if dial is None else needle(dial),
        noise=noise,
        caveat=caveat(found),
        negative=None
        if found.density is None
        else found.density.below(-0.01 * float(np.max(found.density.nodes))),
        paid=_costs(found),
        highest=max((look for look in found.looks if look.dial is not None), key=_dial, default=None),
        command=command,
        version=schuss.__version__,
    )


def needle(dial: float) -> tuple[float, float]:
    """Where the needle of a half circle of radius 100 about (120, 120) points: 0 left, 1 up, 2 and more right.

    >>> [round(x, 6) for x in needle(1.0)]
    [120.0, 30.0]
    """
    angle = math.pi * (1 - min(max(dial, 0.0), 2.0) / 2)
    return 120 + 90 * math.cos(angle), 120 - 90 * math.sin(angle)


def _costs(found: Diagnosis) -> list[Cost]:
    """What a goal costs at each batch size, where the noise scale is known and finite."""
    noise = found.noise[1] or found.noise[0]
    return costs(found.speeds, noise.simple) if noise is not None and math.isfinite(noise.simple) else []


def _dial(look: Look) -> float:
    return look.dial or 0.0


def _data(found: Diagnosis) -> dict[str, Any]:
    density, tested = found.density, found.ladder
    return {
        "looks": [{**vars(look), "dial": look.dial} for look in found.looks],
        "density": None
        if density is None
        else {"grid": density.grid, "density": density.density, "error": density.error},
        "costs": [vars(cost) for cost in _costs(found)],
        "range": None
        if tested is None
        else {"rates": tested.rates, "losses": tested.losses, "interval": tested.interval},
        "lr": found.lr,
        "batch": found.batch_size,
    }
