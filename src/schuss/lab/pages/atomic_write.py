"""A file on the disk: whole or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write a file next to its path, then move it there; its folder is made if it is missing.

    What stood there stays until the new file is whole. A device or a pipe is written as it is.

    Raises:
        OSError: it cannot be written; names the path, the reason and what to try.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with _explained(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        draft = _draft(path)
        try:
            draft.write_bytes(data)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def check_writable(*paths: Path | None) -> None:
    """Refuse, before long work, paths that `write` could not write, as it would; None stands for no file."""
    for path in filter(None, paths):
        with _explained(path):
            if path.is_dir():
                raise IsADirectoryError("it is a folder")
            if path.is_file() or not path.exists():
                draft = _draft(path)
                draft.touch()
                draft.unlink()


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Make the folder; an error names the path and what to try."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        advice = "Try a path elsewhere, or free space there."
        raise OSError(f"{path} could not be written: {error.strerror or error}. {advice}") from error


def _draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.new")
