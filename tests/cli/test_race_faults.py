"""What the command says when something goes wrong: names that would act on a terminal, crashes, Ctrl-C."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from schuss.cli.race import Interrupts, command, interrupted, printable
from schuss.lab.racing.store import Store

TASK = """
import torch
from schuss.lab import Task
from parts import Broken, loss, x

task = Task(name="mine [/b]", model=lambda: torch.nn.Linear(1, 1), loss=loss, train=(x, 3 * x), batch_size=16, epochs=2)
"""
PARTS = """
import torch

x = torch.randn(60, 1)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("not [/b] \\x1b[31mtoday")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "my [b] $(touch X), task; touch X"
    folder.mkdir()
    (folder / "mine.py").write_text(TASK)
    (folder / "parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    return folder.name


def run(*arguments):
    return CliRunner().invoke(
        command, [*arguments, "--trials", "1", "--workers", "1"], env={"COLUMNS": "100"}
    )


def test_a_race_of_which_an_entry_crashed_and_one_of_which_all_did(place):
    file, out = f"{place}/mine.py", "out [/b]; touch X"
    result = run(file, "--entries", f"sgd,{file}:Broken", "--out", out)
    assert result.exit_code == 0, result.output
    assert "mine [/b]: loss on validation" in result.output
    said = " ".join(result.output.split())
    assert f"Crashed: {file}:Broken, every run (" in said
    assert "RuntimeError: not [/b] \\x1b[31mtoday (" in said
    assert "parts.py, line 13)" in said
    assert "Each run may use 10 min" in said
    assert f"Report: {out}/report.html" in said
    report = json.loads(Path(out, "report.json").read_text())
    words = shlex.split(report["command"])
    assert words[2] == file
    assert words[words.index("--out") + 1] == out

    alone = run(*words[2:3], "--entries", f"{file}:Broken", "--out", out)
    assert alone.exit_code == 1
    said = " ".join(alone.output.split())
    assert "runs on 'mine [/b]' finished;" in said
    assert "RuntimeError: not [/b] \\x1b[31mtoday (" in said.rpartition("The first, of")[2]
    assert "--retry-crashed" in said
    again = CliRunner().invoke(command, shlex.split(report["tasks"][0]["runs"][0]["command"])[2:])
    assert json.loads(again.output)["validation_loss"] == report["tasks"][0]["runs"][0]["validation_loss"]
    assert not Path("X").exists()


def test_what_would_steer_a_terminal_is_written_out():
    assert printable("a\x1b[2Jb\n\x07c é") == "a\\x1b[2Jb\n\\x07c é"


EARLY = """
import signal
from multiprocessing.context import ForkServerContext
from schuss.lab.racing import executors

preload = ForkServerContext.set_forkserver_preload
ForkServerContext.set_forkserver_preload = lambda self, modules: preload(self, ["importing"])


def start_and_wait(start=executors.start_server):
    start()
    while True:
        signal.pause()


executors.start_server = start_and_wait
from schuss.cli.race import command
command(["digits"])
"""
IMPORTING = """
import os, signal

os.killpg(0, signal.SIGINT)  # as a terminal does, while the server imports
os.killpg(0, signal.SIGINT)
print("still there", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_an_interrupt_before_the_race_ends_in_one_line(tmp_path):
    (tmp_path / "importing.py").write_text(IMPORTING)
    ended = subprocess.run(
        [sys.executable, "-c", EARLY],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2] / 'src'}{os.pathsep}{tmp_path}"},
        start_new_session=True,
        timeout=300,
    )
    lines = sorted(ended.stdout.splitlines())
    assert (lines, ended.stderr, ended.returncode) == (["Stopped before any run.", "still there"], "", 130)


def test_a_second_interrupt_waits_for_the_report(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.began = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert "the report is being written" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_that_are_kept_are_named_though_no_report_was_written(tmp_path, capsys):
    with Store(tmp_path) as store:
        store.save("a", "mine", {"status": "finished", "curve": {}})
    interrupted(Console(), tmp_path)
    assert "Stopped. 1 run stored in" in capsys.readouterr().out
