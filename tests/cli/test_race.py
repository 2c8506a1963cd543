import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from schuss.cli.list import command as list_command
from schuss.cli.race import command

TASK = """
import torch
from schuss.lab import Task

x = torch.linspace(-1, 1, 80).unsqueeze(1)


class Halving(torch.optim.SGD):
    space = {"lr": (1e-2, 1.0)}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def forward(self, x, y):
        return (self.line(x) - y).square().mean()  # the loss is inside


task = Task(
    name="mine",
    model=Model,
    loss=lambda model, batch: model(batch["x"], batch["y"]),
    train={"x": x, "y": 3 * x},
    batch_size=16,
    epochs=8,
)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_ones_own_task_and_optimizer_in_one_file(place):
    result = run(
        "my_task.py",
        "--entries",
        "sgd",
        "--entry",
        "my_task.py:Halving",
        "--trials",
        "1",
        "--export",
        "runs.csv",
    )
    assert result.exit_code == 0, result.output
    assert "mine: loss on validation" in result.output
    assert "my_task.py:Halving" in result.output
    assert {path.name for path in Path("runs/mine").iterdir()} >= {
        "race.sqlite",
        "report.json",
        "report.html",
    }
    report = json.loads(Path("runs/mine/report.json").read_text())
    with Path("runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {run["id"] for run in report["tasks"][0]["runs"]}
    for picked in (report["tasks"][0]["runs"][0], report["tasks"][0]["runs"][-1]):
        import shlex

        again = CliRunner().invoke(command, shlex.split(picked["command"])[2:])
        assert json.loads(again.output)["validation_loss"] == picked["validation_loss"]


BROKEN = """

class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("not today")
"""


def test_the_table_is_whole_in_a_narrow_terminal_and_a_crash_says_why(place):
    (place / "my_task.py").write_text(TASK + BROKEN)
    arguments = ["my_task.py", "--entries", "sgd,adam,my_task.py:Broken", "--trials", "1"]
    result = CliRunner().invoke(command, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    report = json.loads(Path("runs/mine/report.json").read_text())["tasks"][0]
    for row in report["ranking"]:
        assert f"{row['entry']}: lr {row['parameters']['lr']:.3g}" in result.output
        assert f"{row['metric']['mean']:.4g}" in result.output
    assert {row["entry"] for row in report["ranking"]} == {"sgd", "adam"}
    said = " ".join(result.output.split())
    assert "Crashed: my_task.py:Broken, every run (2). The last (lr " in said
    assert "said: RuntimeError: not today (my_task.py, line 33)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "Error: task='nope' is not one of breast_cancer, diabetes, digits"),
        (["nowhere.py"], "nowhere.py is not a file"),
        (["my_task.py:other"], "is not a task in that file: task"),
        (["saddle", "--entries", "sgd,wonder"], "entry='wonder' is not one of sgd, momentum"),
        (["saddle", "--entry", "my_task.py:Nothing"], "name='Nothing' is not in my_task.py"),
        (["saddle", "--schedules", "sine"], "schedule='sine' is not one of constant"),
        (["saddle", "--batch-sizes", "2"], "has no length"),
        (["saddle", "--export", "runs.xls"], "is not a file that ends in one of"),
        (["saddle", "--run", "{"], "--run is not what a report gives"),
        (["saddle", "--run", "{}"], "batch_size, entry, open_test, parameters, schedule, seed is missing"),
        (["mnist"], "needs MNIST's own IDX files"),
        (["mnist", "--data", "."], "train-images-idx3-ubyte is missing"),
    ],
)
def test_what_the_user_can_put_right_is_said_in_a_line(place, arguments, message):
    result = run(
        *arguments, *([] if "--entry" in arguments or "--entries" in arguments else ["--entries", "sgd"])
    )
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_file_that_cannot_be_run_is_named(place):
    (place / "my_task.py").write_text("import torch\n1 / 0\n")
    assert "my_task.py cannot be run: ZeroDivisionError" in run("my_task.py", "--entries", "sgd").output


def test_help_shows_examples():
    assert "schuss race mnist --data" in run("--help").output


def test_list_shows_what_there_is():
    output = CliRunner().invoke(list_command).output
    for name in ("digits", "rosenbrock", "adamw", "cosine"):
        assert name in output


def test_interrupting_keeps_what_is_done_and_says_how_to_go_on(place):
    program = "from schuss.cli.race import command; command()"
    arguments = [
        sys.executable,
        "-c",
        program,
        "digits",
        "--preset",
        "quick",
        "--entries",
        "sgd",
        "--workers",
        "1",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    process = subprocess.Popen(arguments, **pipes)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith("2 of"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "runs stored in runs/digits; the same command resumes the race" in rest
    assert len(json.loads(Path("runs/digits/report.json").read_text())["tasks"][0]["runs"]) >= 2
