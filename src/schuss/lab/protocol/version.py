"""Which code a run's numbers depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import lru_cache
from pathlib import Path

import schuss

# The report and the command line may change without making old runs another race.
CODE = (
    "rules",
    "schedules",
    "compile",
    "torch",
    "newton",
    "lab/tasks",
    "lab/entries.py",
    "lab/schedules.py",
    "lab/protocol/run.py",
    "lab/protocol/curved.py",
)


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of every file of ours, and the version of every package, that a run's numbers depend on."""
    seen = hashlib.blake2b(digest_size=6)
    root = Path(schuss.__file__).parent
    for part in CODE:
        place = root / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.is_file():
                seen.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("torch", "numpy", "numba")]
    seen.update(repr((versions, platform.python_version_tuple()[:2])).encode())
    return f"schuss {schuss.__version__}, code {seen.hexdigest()}"
