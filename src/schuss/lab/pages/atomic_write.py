"""A file on the disk: whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

ADVICE = "Try a path elsewhere, or free space there."


def write(path: Path, content: str | bytes) -> None:
    """Write a file beside its place, then put it there; its folder is made if it is missing.

    What stood there stays until the new file is whole. A device or a pipe is written as it is.

    Raises:
        OSError: it cannot be written; names the path, the reason and what to try.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    draft = _draft(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        draft.write_bytes(data)
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refused(path, error) from error
        raise


def check_writable(*paths: Path | None) -> None:
    """Refuse, before long work, paths that `write` could not write, as it would; None stands for no file."""
    for path in filter(None, paths):
        draft = _draft(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            if path.exists() and not path.is_file():
                continue
            draft.touch()
            draft.unlink()
        except OSError as error:
            raise _refused(path, error) from error


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.new")


def _refused(path: Path, error: OSError) -> OSError:
    return OSError(f"{path} could not be written: {error.strerror or error}. {ADVICE}")
