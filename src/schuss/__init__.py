"""Schuss: every optimizer written once, as a page of maths (its rule) that is the kernel that runs.

The packages are imported when they are first named: `schuss.torch` needs PyTorch, `schuss.numpy` does not.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PACKAGES = (
    "bench",
    "compile",
    "curvature",
    "lab",
    "minimizing",
    "newton",
    "numpy",
    "rules",
    "schedules",
    "torch",
)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"schuss.{name}")
    if name == "minimize":
        from schuss.minimizing import minimize

        return minimize
    raise AttributeError(
        f"module 'schuss' has no attribute {name!r}. Its packages are {', '.join(_PACKAGES)}."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, "minimize"})
