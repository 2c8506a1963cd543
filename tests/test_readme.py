"""The README is true: each block of Python runs alone; its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

from schuss.compile.facts import markdown
from schuss.rules import TABLE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_python_examples_run() -> None:
    examples = [block for block in blocks("python") if "@staticmethod" not in block]
    assert len(examples) >= 7
    for block in examples:
        exec(compile(block, "README.md", "exec"), {})


def test_the_page_shown_is_the_page() -> None:
    (shown,) = [block for block in blocks("python") if "@staticmethod" in block]
    page = (ROOT / "src/schuss/rules/adam.py").read_text()
    lines = [line.strip() for line in page.splitlines()]
    for line in shown.strip().splitlines():
        assert line.strip() in lines


def test_commands_exist() -> None:
    targets = (ROOT / "Makefile").read_text()
    for line in "\n".join(blocks("console")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert f"\n{words[1]}:" in targets
        elif words[:1] == ["schuss"]:
            run = subprocess.run(
                [sys.executable, "-m", "schuss", words[1], "--help"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr


def test_files_that_it_names_are_there() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_table_of_optimizers_is_that_of_the_rules() -> None:
    assert README.count("| optimizer |") == 1
    assert markdown({name: row.rule for name, row in TABLE.items()}) + "\n" in README, "Run: make stubs"
