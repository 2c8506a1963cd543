"""Which code a run's numbers depend on: all of this package but what no run computes with.

The rest of this folder decides which runs there are, who does them and where results go, so it may change without
making old runs another race. So may what judges and shows them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import lru_cache
from pathlib import Path

import schuss

ROOT = Path(schuss.__file__).parent
WORK = "lab/racing/work.py"  # what a worker does, alone of its folder
NOT_RUN = (
    *("__init__.py", "__main__.py", "cli/", "bench/", "curvature/", "minimizing/", "numpy/"),
    *("lab/__init__.py", "lab/curves/", "lab/diagnose/", "lab/doctor/", "lab/landscape/", "lab/pages/"),
    *("lab/racing/", "lab/ranges/", "lab/report/", "lab/statistics/"),
)


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of every file of ours, and the version of every package, that a run's numbers depend on."""
    seen = hashlib.blake2b(digest_size=6)
    for path in files():
        seen.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("torch", "numpy", "numba")]
    seen.update(repr((versions, platform.python_version_tuple()[:2])).encode())
    return f"schuss {schuss.__version__}, code {seen.hexdigest()}"


def files() -> list[Path]:
    """The files of ours that a run's numbers depend on."""
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")}
    return [ROOT / file for file in sorted(found) if file == WORK or not file.startswith(NOT_RUN)]
