"""Which code a run's numbers depend on: all that the module which runs work imports, directly or through others.

The imports are read from the source, wherever they stand. The rest of this package decides which runs there are, who
does them and where results go: it is not followed, so it may change without making old runs another race. Nor are
the report and the command line, which no run imports.
"""

from __future__ import annotations

import ast
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
_IN_TEXT = re.compile(r"^(?:from|import) (schuss[.\w]+)", re.MULTILINE)


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
    """The files of ours that this one imports, or that code imports which it generates.

    Where a name is put together while running, all that it may be.
    """
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=names):
                wanted = [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names):
                wanted = [module, *(f"{module}.{name.name}" for name in names)]
            case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]) if start.startswith("schuss."):
                yield from _package(start.rstrip("."))
                continue
            case ast.Constant(value=str(text)):
                wanted = [text, *_IN_TEXT.findall(text)]
            case _:
                continue
        yield from (found for module in wanted if (found := _file(module)))


def _place(module: str) -> Path | None:
    first, *rest = module.split(".")
    return ROOT.joinpath(*rest) if first == "schuss" and all(map(str.isidentifier, rest)) and rest else None


def _file(module: str) -> Path | None:
    place = _place(module)
    if place is None:
        return None
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _package(module: str) -> Iterator[Path]:
    place = _place(module)
    return iter(()) if place is None else iter(sorted(place.glob("*.py")))
