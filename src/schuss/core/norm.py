"""What the norm of all gradients decides: by how much they are scaled down, and whether the step is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable

from schuss.compile.norm import clipping

# A sum of squares above this has lost nothing that counts to squares that were too small for their dtype.
_LEAST = 1e-280


def combined(squares: float, norms: Iterable[float]) -> float:
    """The norm of gradients whose squares add up to `squares`; of their `norms` where squares were too large or small.

    NaN or infinite if one of their numbers is.
    """
    return math.sqrt(squares) if _LEAST < squares < math.inf else math.hypot(*norms)


def limited(norm: float, max_norm: float | None, skip_nonfinite: bool) -> float | None:
    """What gradients of this norm are multiplied by; None if the step is left out."""
    if skip_nonfinite and not math.isfinite(norm):
        return None
    return clipping(norm, max_norm)
