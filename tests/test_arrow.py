"""Imports flow one way through the house, late ones too, and the rules import next to nothing."""

import ast
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "schuss"
SOURCES = sorted(ROOT.rglob("*.py"))

# From the bottom up. What stands on one line may not import from each other; all else may be imported from above.
ORDER = """
errors machine units randomness
rules schedules
compile
core
newton
torch numpy
curvature bench
minimizing
lab
cli
__main__
"""
LAB = """
reason schedules seeds statistics
names pages
files
tasks
entries
training report curves
landscape
ranges
diagnose
racing doctor
"""
# The rules and schedules import no library, so they may be read with nothing but Python there.
PURE = {"__future__", "collections.abc", "dataclasses", "functools", "math", "typing"}
IN_TEXT = re.compile(r"^(?:from|import) (schuss[.\w]+)", re.MULTILINE)


@lru_cache
def imported(path):
    """Return the full names of the modules that a file imports: wherever in it, by name, or in code it generates."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            parts = [f"{node.module}.{name.name}" for name in node.names]
            found += [part if file_of(part) else node.module for part in parts]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += IN_TEXT.findall(node.value)
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0]
            if isinstance(
                name, ast.JoinedStr
            ):  # what is put together while running is somewhere below its beginning
                name = name.values[0]
            if function in ("import_module", "__import__") and isinstance(name, ast.Constant):
                found.append(str(name.value).rstrip("."))
    return found


def file_of(module):
    """Return the file of a module of ours, None for others."""
    first, *rest = module.split(".")
    if first != "schuss":
        return None
    place = ROOT.joinpath(*rest)
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def levels(order):
    return {name: height for height, line in enumerate(order.strip().splitlines()) for name in line.split()}


def part(path, depth):
    """Return the package or module of a file at this depth; "__init__" for a package's own door."""
    return path.relative_to(ROOT).parts[depth].removesuffix(".py")


def room(path):
    return part(path, 0)


@pytest.mark.parametrize(("folder", "order"), [("", ORDER), ("lab", LAB)], ids=["schuss", "lab"])
def test_imports_flow_one_way(folder, order):
    depth, height = bool(folder) * 1, levels(order)
    inside = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
    parts = {part(path, depth) for path in inside} - {"__init__"}
    assert parts == set(height), "every part has its place in the order"
    for path in inside:
        mine = part(path, depth)
        if mine == "__init__":  # the package's own door may open on any room
            continue
        for module in imported(path):
            other = file_of(module)
            if other is None or (other.name == "__init__.py" and other.parent in (ROOT, ROOT / folder)):
                continue
            if not other.is_relative_to(ROOT / folder):
                continue
            theirs = part(other, depth)
            assert theirs == mine or height[theirs] < height[mine], f"{path}: {mine} imports {module}"


def test_no_modules_import_each_other():
    """Neither directly nor through others, nor by an import that waits until it is needed."""
    below = {path: set(filter(None, map(file_of, imported(path)))) - {path} for path in SOURCES}
    left = set(SOURCES)
    while left:
        free = {path for path in left if not below[path] & left}
        assert free, f"a circle among {sorted(str(path.relative_to(ROOT)) for path in left)}"
        left -= free


@pytest.mark.parametrize(
    ("name", "allowed"), [("rules", PURE), ("schedules", PURE | sys.stdlib_module_names)]
)
def test_rules_and_schedules_import_no_library(name, allowed):
    files = [path for path in SOURCES if room(path) == name]
    assert len(files) > 3
    for path in files:
        for module in imported(path):
            inside = module == "schuss.errors" or module.startswith(f"schuss.{name}")
            assert inside or module in allowed, f"{path}: {module}"


def test_the_arrow_is_read_from_real_files(tmp_path):
    assert {"rules", "compile", "torch"} <= set(map(room, SOURCES))
    assert "schuss.rules" in imported(ROOT / "torch" / "__init__.py")
    late = tmp_path / "late.py"
    late.write_text(
        "def f(x):\n    import schuss.lab\n    import_module('schuss.torch')\n"
        "    importlib.import_module(f'schuss.cli.{x}')\n"
        "    __import__('schuss.numpy')\n    return 'from schuss.compile.memory import draw'\n"
    )
    assert sorted(imported(late)) == [
        *("schuss.cli", "schuss.compile.memory", "schuss.lab", "schuss.numpy", "schuss.torch")
    ]
