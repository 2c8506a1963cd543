"""CONTRIBUTING is true: a rule is one file and one row, and the suite then tests it as it tests the others."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
RULE, ROW = BLOCKS
SUITE = [
    "tests/rules/test_pages.py",
    "tests/compile/test_grammar.py",
    "tests/compile/test_kernels.py",
    "tests/compile/test_eager.py",
    "tests/torch/test_checkpoints.py",
    "tests/numpy/test_optimizer.py",
    "tests/numpy/test_checkpoints.py",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project that has Signum: its file, its row, and the stubs made anew."""
    place = tmp_path_factory.mktemp("copy")
    for folder in ("src", "tests", "tools"):
        shutil.copytree(
            ROOT / folder, place / folder
        )  # compiled modules too: they need not be compiled again
    shutil.copy(ROOT / "pyproject.toml", place)
    inside = RULE.replace("from schuss.rules import", "from schuss.rules.rule import")
    (place / "src/schuss/rules/signum.py").write_text(inside, encoding="utf-8")
    table = place / "src/schuss/rules/__init__.py"
    text = table.read_text(encoding="utf-8")
    text = text.replace(
        "from schuss.rules.sgd import SGD\n",
        "from schuss.rules.sgd import SGD\nfrom schuss.rules.signum import Signum\n",
    )
    last = text.rindex("    )\n}")
    table.write_text(f"{text[:last]}{ROW.rstrip()},\n{text[last:]}", encoding="utf-8")
    run(place, "tools/stubs.py")
    return place


def run(place, *command):
    environment = os.environ | {"PYTHONPATH": str(place / "src"), "PYTHONIOENCODING": "utf-8"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=place,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_file_and_one_row_and_the_suite_tests_it(copy):
    said = run(copy, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-k", "Signum", *SUITE)
    passed = int(re.search(r"(\d+) passed", said).group(1))
    assert passed >= 45, said


def test_both_apis_stubs_and_the_race_have_it(copy):
    code = (
        "import schuss.torch, schuss.numpy; from schuss.lab.entries import find;"
        "print(schuss.torch.Signum, schuss.numpy.Signum, find('signum').optimizer is schuss.torch.Signum)"
    )
    said = run(copy, "-c", code)
    assert said.strip() == "<class 'schuss.torch.Signum'> <class 'schuss.numpy.Signum'> True"
    for api in ("torch", "numpy"):
        assert "class Signum(Optimizer):" in (copy / "src/schuss" / api / "__init__.pyi").read_text(
            encoding="utf-8"
        )
