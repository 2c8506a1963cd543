"""The names of what comes with the lab are those of what comes with it, and asking for them imports no torch."""

import subprocess
import sys

import pytest
import torch

import schuss.cli
from schuss.lab import Entry, entries, names
from schuss.lab.files import load
from schuss.lab.landscape.surfaces import SURFACES
from schuss.lab.tasks import builder


def test_every_name_is_there_and_nothing_else():
    assert tuple(entries.ENTRIES) == names.ENTRIES
    assert tuple(SURFACES) == names.SURFACES
    assert all(callable(builder(name)) for name in names.TASKS)


SLIPS = {
    "race digts": "Did you mean digits?",
    "race digits --entries sgd,adm": "Did you mean adam?",
    "race digits --schedules cosin": "Did you mean cosine?",
    "range digts": "Did you mean digits?",
    "range digits --optimizer momentm": "Did you mean momentum?",
    "diagnose digits --schedule warmup+cosin": "Did you mean cosine?",
    "landscape beal": "Did you mean beale?",
    "landscape beale --optimizers adm": "Did you mean adam?",
    "rcae digits": "Did you mean race?",
}

FROM_HERE = """
import sys
import schuss.cli
for words in sys.argv[1:]:
    sys.argv = ["schuss", *words.split()]
    try:
        schuss.cli.main()
    except SystemExit as end:
        assert end.code, words
    print("torch" in sys.modules, file=sys.stderr)
"""


def test_a_slip_on_the_command_line_is_named_before_torch_is_imported(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FROM_HERE, *SLIPS], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    said = ran.stderr.split("False\n")
    assert said[-1] == ""  # torch was imported nowhere
    for words, answer in zip(SLIPS, said, strict=False):
        one_line = " ".join(answer.replace("│", " ").split())
        assert SLIPS[words] in one_line, (words, one_line)
    assert list(tmp_path.iterdir()) == []


RATE = (1e-3, 0.1, True)
BAD = [
    (dict(kind="x"), "mine: kind='x' is not one of gradient, unit, curvature"),
    (dict(optimizer=3), "mine: optimizer=3 is not an optimizer class"),
    (dict(name=""), "name='' is not a name"),
    (dict(space=None), "mine: space=None is not a dict"),
    (dict(space={"lr": 3}), "mine: lr=3 is not .low, high, True or False."),
    (dict(space={"lr": (1e-3, 0.1)}), "is not .low, high, True or False."),
    (dict(space={"lr": ("a", "b", True)}), "mine: lr='a' is not a finite number"),
    (dict(space={"lr": (1e-3, float("inf"), True)}), "mine: lr=inf is not a finite number"),
    (dict(usual=3), "mine: usual=3 is not a dict"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_an_entry_that_cannot_race_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Entry(**{"name": "mine", "optimizer": torch.optim.SGD, "space": {"lr": RATE}} | changes)


@pytest.mark.parametrize("space", [3, {"lr": 3}, {"lr": ("a", "b")}])
def test_a_class_with_a_space_that_is_none_is_refused(space):
    class Mine(torch.optim.SGD):
        pass

    Mine.space = space
    with pytest.raises(ValueError, match=r"mine: (space|lr)=.* is not "):
        entries.wrap("mine", Mine)


def test_a_file_without_a_name_is_told_apart_from_a_built_in():
    with pytest.raises(ValueError, match=r"entry='mine.py' is not file.py:name.*mine.py:MyOptimizer"):
        entries.find("mine.py")


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "task.py"
    path.write_bytes(b"\x80\x04\xff\xfe")
    with pytest.raises(ValueError, match=r"task.py' is not Python source. It cannot be decoded"):
        load(path)


def test_commands_are_those_that_there_are():
    assert sorted(schuss.cli.COMMANDS) == list(schuss.cli.COMMANDS)
