"""Which code a run's numbers depend on: all that the module which runs work imports, directly or through others.

The imports are read from the source, wherever they stand. The rest of this package decides which runs there are, who
does them and where results go: it is not followed, so it may change without making old runs another race. Nor are
the report and the command line, which no run imports.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import schuss

ROOT = Path(schuss.__file__).parent
BEGIN = "schuss.lab.racing.work"
_STATEMENT = re.compile(
    r"""(?:^[ \t]*|["'])(?:from|import)[ ](schuss[.\w]*)(?:[ ]import[ ](\([^)]*\)|.*))?""", re.MULTILINE
)
_TEXT = re.compile(r"""["'](schuss\.[.\w]*\w)(\.\{)?""")


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
    begin = _file(BEGIN)
    assert begin is not None
    found, waiting = {begin}, [begin]
    while waiting:
        for path in _imported(waiting.pop()):
            if path not in found and path.parent != begin.parent:
                found.add(path)
                waiting.append(path)
    return sorted(found)


def _imported(path: Path) -> Iterator[Path]:
    """The files of ours that this one imports, or names in a text: to import them later, or in code that it generates.

    Read by patterns: a syntax tree of every file would take half a second of each race.
    """
    text = path.read_text(encoding="utf-8")
    for module, names in _STATEMENT.findall(text):
        wanted = [module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))]
        yield from (found for each in wanted if (found := _file(each)))
    for module, goes_on in _TEXT.findall(text):
        if not goes_on:
            yield from filter(None, [_file(module)])
        elif (place := _place(module)) is not None:
            yield from sorted(place.glob("*.py"))  # all that a name put together while running may be


def _place(module: str) -> Path | None:
    first, *rest = module.split(".")
    return ROOT.joinpath(*rest) if first == "schuss" and all(map(str.isidentifier, rest)) and rest else None


def _file(module: str) -> Path | None:
    place = _place(module)
    if place is None:
        return None
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)
