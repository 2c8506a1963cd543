"""Where compiled kernels live between processes, and how they get there whole."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import warnings
from pathlib import Path

_SEAL = hashlib.sha256().digest_size


def wanted_folder() -> Path:
    """`$SCHUSS_CACHE_DIR`, else `schuss` in the user's cache folder."""
    chosen = os.environ.get("SCHUSS_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "schuss"


@functools.cache
def _usable(folder: Path) -> Path:
    """The folder, or after one warning a temporary one, if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as problem:
        spare = Path(tempfile.mkdtemp(prefix="schuss-"))
        warnings.warn(
            f"Compiled kernels cannot be kept in {folder} ({problem.strerror}), so every process compiles its own. "
            "Try setting SCHUSS_CACHE_DIR to a folder that can be written to.",
            RuntimeWarning,
            stacklevel=2,
        )
        return spare


def folder() -> Path:
    """Where kernels are kept in this process."""
    return _usable(wanted_folder())


def read(name: str) -> bytes | None:
    """A file that was kept, or None; also where it is not what was written, as after a crash of the machine."""
    try:
        content = (folder() / name).read_bytes()
    except OSError:
        return None
    seal, content = content[:_SEAL], content[_SEAL:]
    return content if seal == hashlib.sha256(content).digest() else None


def write(name: str, content: bytes) -> None:
    """Keep a file, sealed: whole or not at all, whoever else writes it.

    Where it cannot be kept, on a full disk say, the next process compiles again.
    """
    replace(name, hashlib.sha256(content).digest() + content)


def replace(name: str, content: bytes) -> None:
    """Put a file in its place in one move."""
    place = folder()
    try:
        handle, temporary = tempfile.mkstemp(dir=place)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, place / name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
