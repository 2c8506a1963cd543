"""A diagnosis as one HTML report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import schuss
from schuss.lab.diagnose.advise import Advice, costs
from schuss.lab.diagnose.measure import Diagnosis, caveat
from schuss.lab.pages import page


def render(found: Diagnosis, advice: Sequence[Advice], command: str) -> str:
    """The HTML report of a diagnosis with its advice, and the command that repeats it."""
    rated = [(each.sharpness_ratio, each) for each in found.measurements if each.sharpness_ratio is not None]
    ratio = rated[-1][0] if rated else 0.0
    noise, density, tested = found.last_noise, found.density, found.range_test
    paid = costs(found.speeds, noise.simple) if noise is not None and math.isfinite(noise.simple) else []
    sections = {
        "advice": ("What to try", bool(advice)),
        "edge": ("Edge of stability", bool(rated)),
        "curvature": ("Curvature", any(each.largest is not None for each in found.measurements)),
        "noise": ("Gradient noise", noise is not None),
        "rates": ("Learning rates", tested is not None),
        "sparsity": ("Sparsity", found.sparsity is not None),
        "missing": ("Not measured", bool(found.missing)),
        "repeat": ("How to repeat it", True),
    }
    return page(
        Path(__file__).parent / "templates",
        "diagnose",
        f"Diagnosis of {found.task}",
        [(key, text) for key, (text, shown) in sections.items() if shown],
        {
            "measurements": [vars(each) for each in found.measurements],
            "density": density and {key: getattr(density, key) for key in ("grid", "density", "error")},
            "costs": [vars(cost) for cost in paid],
            "range": tested and {key: getattr(tested, key) for key in ("rates", "losses", "interval")},
            "lr": found.lr,
            "batch": found.batch_size,
        },
        found=found,
        advice=advice,
        here={key: shown for key, (_, shown) in sections.items()},
        ratio=ratio,
        needle=needle(ratio),
        highest=max(rated, key=lambda pair: pair[0], default=(0.0, None))[1],
        caveat=caveat(found),
        negative=density and density.below(-0.01 * float(density.nodes.max())),
        paid=paid,
        command=command,
        version=schuss.__version__,
    )


def needle(ratio: float) -> tuple[float, float]:
    """Where the needle of a half circle of radius 100 about (120, 120) points: 0 left, 1 up, 2 and more right.

    >>> [round(x, 6) for x in needle(1.0)]
    [120.0, 30.0]
    """
    angle = math.pi * (1 - min(max(ratio, 0.0), 2.0) / 2)
    return 120 + 90 * math.cos(angle), 120 - 90 * math.sin(angle)
