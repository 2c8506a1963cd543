"""Imports flow one way through the house, and the pages import next to nothing."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "schuss"
SOURCES = sorted(ROOT.rglob("*.py"))

# Each room may import from itself, and from the rooms named here.
ABOVE = {
    "errors": set(),
    "rules": {"errors"},
    "schedules": {"errors"},
    "compile": {"errors", "rules"},
    "torch": {"errors", "rules", "schedules", "compile"},
    "numpy": {"errors", "rules", "schedules", "compile"},
}
ABOVE["curvature"] = ABOVE["newton"] = {*ABOVE["torch"], "torch", "numpy", "curvature", "newton"}
ABOVE["lab"] = ABOVE["newton"] | {"lab"}
ABOVE["bench"] = {*ABOVE["torch"], "torch", "numpy"}
ABOVE["cli"] = ABOVE["lab"] | {"bench", "cli"}
ABOVE["__main__"] = {"cli"}
PURE = {"__future__", "collections.abc", "dataclasses", "functools", "math", "typing"}


def imported(path):
    """Return the full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "schuss":
                yield from (f"schuss.{name.name}" for name in node.names)
            else:
                yield node.module


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_flow_one_way(path):
    mine = room(path)
    if mine == "__init__":  # the package's own door may open on any room
        return
    for module in imported(path):
        head, *rest = module.split(".")
        if head == "schuss" and rest:
            assert rest[0] in ABOVE[mine] | {mine}, f"{mine} imports {module}"


@pytest.mark.parametrize(
    ("name", "allowed"), [("rules", PURE), ("schedules", PURE | sys.stdlib_module_names)]
)
def test_pages_import_no_library(name, allowed):
    pages = [path for path in SOURCES if room(path) == name]
    assert len(pages) > 3
    for path in pages:
        for module in imported(path):
            inside = module == "schuss.errors" or module.startswith(f"schuss.{name}")
            assert inside or module in allowed, f"{path}: {module}"


def test_the_arrow_is_read_from_real_files():
    assert {"rules", "compile", "torch"} <= set(map(room, SOURCES))
    assert "schuss.rules" in set(imported(ROOT / "torch" / "__init__.py"))
