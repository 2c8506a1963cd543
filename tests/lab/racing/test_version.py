"""A run's code version is of all the code that its numbers depend on, and of no other."""

import ast

import pytest

from schuss.lab.racing import version

FILES = {path.relative_to(version.ROOT).as_posix() for path in version.files()}


@pytest.mark.parametrize(
    "needed",
    [
        "lab/racing/work.py",
        "lab/training/run.py",
        "lab/training/curved.py",
        "lab/seeds.py",
        "lab/tasks/digits.py",  # imported by a name that is put together
        "torch/optimizer.py",
        "newton/lbfgs.py",  # imported when it is first asked for
        "newton/products.py",
        "schedules/cycles.py",
        "rules/adam.py",
        "compile/memory.py",  # imported by generated kernels
        "compile/triton_memory.py",
        "randomness.py",
    ],
)
def test_what_a_run_computes_with_is_in_its_version(needed):
    assert needed in FILES


@pytest.mark.parametrize("other", ["cli/", "bench/", "numpy/", "lab/report/", "lab/pages/", "lab/diagnose/"])
def test_what_no_run_computes_with_is_not(other):
    assert not [file for file in FILES if file.startswith(other)]


def test_the_plumbing_of_a_race_may_change_without_making_old_runs_another_race():
    assert [file for file in FILES if file.startswith("lab/racing/")] == ["lab/racing/work.py"]


def test_nothing_that_a_run_imports_is_left_out():
    for file in FILES:
        tree = ast.parse((version.ROOT / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{name}" for name in names)]
            elif not isinstance(node, ast.Import):
                continue
            for name in names:
                imported = f"{name.removeprefix('schuss.').replace('.', '/')}.py"
                assert (
                    imported in FILES
                    or not (version.ROOT / imported).is_file()
                    or imported.startswith("lab/racing/")  # who sends work, not what is done
                    or imported == "lab/statistics/sampling.py"  # the type of a range
                ), (file, name)
