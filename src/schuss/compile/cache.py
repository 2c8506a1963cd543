"""Where compiled kernels live between processes, and how they get there whole.

What is read here is run as machine code. So a folder or a file counts only if nobody but this user (or root, who can
do anything) can have written it, and a file only under the name and for the source text it was written for.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from pathlib import Path

# A name may belong to a link, a pipe or a device: follow none, wait for none.
_READ = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)
UNUSED = 90 * 24 * 3600
"""Seconds after which a file that nobody has read is removed."""


def wanted_folder() -> Path:
    """`$SCHUSS_CACHE_DIR`, else `schuss` in the user's cache folder; it starts with ~ where no home is known."""
    chosen = os.environ.get("SCHUSS_CACHE_DIR")
    path = chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "schuss")
    path = os.path.expanduser(path)  # which, unlike Path's, leaves a ~ without a home as it is
    return Path(path if path.startswith("~") else os.path.abspath(path))


def _distrust(found: os.stat_result) -> str:
    """Why what is found may be somebody else's work, in words; nothing if only this user or root can write it."""
    if os.name != "posix":
        return ""
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}, and its files would be run"
    return "others may write to it, and its files would be run; try chmod go-w" * bool(
        found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _problem(folder: Path) -> str:
    """Why kernels cannot be in this folder, or nothing."""
    if str(folder).startswith("~"):
        return "there is no home folder"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _distrust(folder.stat())
    except OSError as problem:
        return problem.strerror or str(problem)


@functools.cache
def _warn(folder: Path, problem: str) -> None:
    """Say it once."""
    warnings.warn(
        f"Compiled kernels cannot be stored in {folder} ({problem}), so every process compiles its own. "
        "Try setting SCHUSS_CACHE_DIR to a folder that belongs to you and can be written to.",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def _usable(folder: Path) -> Path:
    """The folder, also one that can only be read; or after a warning a temporary one for this process."""
    problem = _problem(folder)
    if not problem:
        return folder
    _warn(folder, problem)
    spare, owner = Path(tempfile.mkdtemp(prefix="schuss-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked process leaves it to the one that made it
            shutil.rmtree(spare, ignore_errors=True)

    atexit.register(remove)
    return spare


def folder() -> Path:
    """Where kernels are kept in this process."""
    return _usable(wanted_folder())


def _digest(name: str, key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + key + content).digest()


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def read(name: str, key: str | None = None) -> bytes | None:
    """What was kept with `write_checked` under this name and, if given, this key; else None.

    None also where the file was damaged, since a linker would crash on it, or where somebody else may have written it.
    """
    try:
        handle = os.open(folder() / name, _READ)
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or _distrust(found):
            return None
        with open(handle, "rb", closefd=False) as file:
            kept = file.read()
    except OSError:
        return None
    finally:
        os.close(handle)
    content, its_key, digest = kept[:-64], kept[-64:-32], kept[-32:]
    whole = digest == _digest(name, its_key, content) and (key is None or its_key == _key(key))
    return content if whole else None


def write_checked(name: str, content: bytes, key: str = "") -> None:
    """Keep a file that ends in the digest of its key, and in one of its name, that key and its content."""
    write(name, content + _key(key) + _digest(name, _key(key), content))


def write(name: str, content: bytes) -> None:
    """Keep a file: whole or not at all, whoever else writes it; a full disk costs the next process a compilation."""
    place = folder()
    try:
        handle, temporary = tempfile.mkstemp(dir=place, prefix=f"{name}.")
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _warn(place, problem.strerror)
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, place / name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
    _prune(place, name)


def _prune(place: Path, name: str) -> None:
    """Remove what an older version or another machine left of the same title, if nobody has used it for long."""
    title, now = name.split("-")[0], time.time()
    for path in place.glob(f"{title}-*"):
        try:
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and now - max(found.st_atime, found.st_mtime) > UNUSED:
                path.unlink()
        except OSError:  # another process was faster
            continue
