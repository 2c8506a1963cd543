"""The text that every machine has: Python's own standard library, or any file the user names.

The modules are taken in alphabetical order, so the text depends on the Python version and on nothing else.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from schuss.errors import refusal

CHARACTERS = 400_000


def modules() -> Iterator[tuple[str, str]]:
    """Name and source of each module at the top of the standard library, in alphabetical order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        yield path.stem, path.read_text(encoding="utf-8", errors="replace")


def text(data: Path | None) -> str:
    """The first `CHARACTERS` of the user's file, or of the standard library."""
    if data is not None:
        if not data.is_file():
            raise FileNotFoundError(f"{data} is not a file. Any text file will do.")
        return data.read_text(encoding="utf-8", errors="replace")[:CHARACTERS]
    found = ""
    for _, code in modules():
        found += code
        if len(found) >= CHARACTERS:
            break
    if not found:
        advice = "Name a file: schuss race text --data FILE"
        raise refusal("standard library", sysconfig.get_paths()["stdlib"], "there as source", advice)
    return found[:CHARACTERS]
