"""Polynomials that drive singular values to 1, as they were published.

Each set is a few (a, b, c): one after the other they map every singular value σ to a σ + b σ³ + c σ⁵. A matrix is
divided by its norm before, so that no σ is above 1. What a set makes of σ from 0.001 and from 0.01 to 1:

| set             | products | from 0.001       | from 0.01        |
|-----------------|----------|------------------|------------------|
| `quintic`       | 15       | 0.4705 to 1.2024 | 0.6818 to 1.1344 |
| `quintic5`      | 15       | 0.4750 to 1.1450 | 0.9778 to 1.0318 |
| `polar_express` | 15       | 0.8589 to 1.1411 | 0.8589 to 1.1411 |
| `quintic8`      | 30       | 1.0000 to 1.0005 | 1.0000 to 1.0005 |

Sources: Jordan and others 2024, Muon (`quintic`); You Jiacheng's table of five (`quintic5`); Amsel, Persson, Musco and
Gower 2025, "The Polar Express", with a margin for rounding (`polar_express`); DeepSeek-V4 (`quintic8`: eight of
`quintic`, then two that converge).
"""

from __future__ import annotations

__all__ = ["POLYNOMIALS", "QUINTIC", "Polynomials"]

Polynomials = tuple[tuple[float, float, float], ...]

QUINTIC = (3.4445, -4.7750, 2.0315)
POLYNOMIALS: dict[str, Polynomials] = {
    "quintic": (QUINTIC,) * 5,
    "quintic5": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (
        (8.15655, -22.48329, 15.87877),
        (4.04293, -2.80892, 0.50002),
        (3.89167, -2.77248, 0.50606),
        (3.28575, -2.36813, 0.46449),
        (2.34654, -1.70978, 0.42324),
    ),
    "quintic8": ((QUINTIC,) * 8 + ((2.0, -1.5, 0.5),) * 2),
}
