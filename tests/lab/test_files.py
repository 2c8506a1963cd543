import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from schuss.lab.entries import find
from schuss.lab.files import UserCode
from schuss.lab.names import divide, separate
from schuss.lab.racing.work import Package, Source, train_run
from schuss.lab.tasks import own_task

TASK = """
import torch
from schuss.lab import Task
from nearby import far

x = torch.rand(60, 1)


def loss(model, batch):
    from lazily import weighted

    return weighted(model(batch[0]) - batch[1])


task = Task(name="mine", model=far.model, loss=loss, train=(x, 3 * x), batch_size=16, epochs=1)
"""
FILES = {
    "mine.py": TASK,
    "nearby/__init__.py": "",
    "nearby/far.py": "import torch\n\ndef model():\n    return torch.nn.Linear(1, 1)\n",
    "lazily.py": "from scale import SCALE\n\ndef weighted(x):\n    return SCALE * x.square().mean()\n",
    "scale.py": "import torch\n\nSCALE = 1 + torch.rand(()).item()\n",
    "house/__init__.py": "",
    "house/base.py": "import torch\n\nclass Base(torch.optim.SGD):\n    pass\n",
    "house/tools.py": "def half(lr):\n    return lr / 2\n",
    "house/own.py": """
from .base import Base


class Half(Base):
    def __init__(self, weights, lr=0.1):
        from .tools import half

        super().__init__(weights, lr=half(lr))
""",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "place"
    for name, text in FILES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(place)
    return place


ELSEWHERE = """
import json, pickle, sys
from schuss.lab.racing.work import train_run

package, works = pickle.load(sys.stdin.buffer)
print(json.dumps([train_run(package, work) for work in works]))
"""


def test_a_worker_without_the_folder_runs_files_that_import_their_neighbours(folder, tmp_path):
    task, loaded = own_task("mine.py")
    entries = [find(name) for name in ("house/own.py:Half", "house.own:Half", "sgd")]
    package = Package.of(Source("mine.py", task=task), entries, loaded.code)
    assert set(loaded.neighbours) == {"nearby/far.py", "lazily.py", "scale.py"}
    shutil.rmtree(folder)
    works = [
        {"entry": entry.name, "schedule": "constant", "batch_size": 16, "parameters": {"lr": 0.1}}
        | {"seed": 0, "open_test": False, "device": "cpu"}
        for entry in entries
    ]
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=pickle.dumps((package, works)),
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        timeout=300,
    )
    file, module, sgd = json.loads(ended.stdout)
    assert [run["status"] for run in (file, module, sgd)] == ["finished"] * 3, file["error"]
    assert file["curve"]["train_loss"] == module["curve"]["train_loss"] != sgd["curve"]["train_loss"]
    assert train_run(package, works[0])["curve"] == file["curve"]  # what a neighbour drew is the same there


def test_what_is_drawn_at_import_is_drawn_again(folder, monkeypatch):
    task, _ = own_task("mine.py")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, _ = own_task(str(folder / "mine.py"))
    assert torch.equal(task.train[0], again.train[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_neighbour_that_changed_is_read_again_and_counts_as_code(folder):
    _, old = own_task("mine.py")
    assert own_task("mine.py")[1].files == old.files
    (folder / "scale.py").write_text("SCALE = 7.0\n")
    task, new = own_task("mine.py")
    model, x = task.model(), torch.ones(4, 1)
    assert task.loss(model, (x, x)).item() == pytest.approx(7 * (model(x) - x).square().mean().item())
    assert {file for file in new.files if new.files[file] != old.files[file]} == {"scale.py"}
    assert new.source != old.source


def test_two_neighbours_of_one_name_cannot_race_together(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "scale.py").write_text("SCALE = 1.0\n")
    (other / "opt.py").write_text(
        "import torch\nfrom scale import SCALE\n\nclass Mine(torch.optim.SGD):\n    pass\n"
    )
    entry, (_, loaded) = find(f"{other / 'opt.py'}:Mine"), own_task("mine.py")
    with pytest.raises(ValueError, match=r"import='scale' is not one module: it is .*rename one"):
        UserCode.merged([entry.code, loaded.code])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py", "nowhere.py is not a file"),
        ("house.nothing:task", "module='house.nothing' is not a module that can be imported here"),
        ("house.own:task", "task='house.own:task' is not a task in that file: there is none"),
        ("leaves.py", "leaves.py cannot be run: SystemExit: 3"),
        ("binary.py", r"file='.*binary.py' is not Python source"),
    ],
)
def test_a_place_without_a_task_is_named(folder, spec, message):
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "binary.py").write_bytes(bytes(range(128, 256)))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        own_task(spec)


def test_an_entry_without_a_name_is_asked_for_one(folder):
    with pytest.raises(
        ValueError, match=r"entry='house/own.py' is not file.py:name. .*house/own.py:MyOptimizer"
    ):
        find("house/own.py")


def test_dots_and_commas_in_the_names_of_files(folder):
    hidden = folder / ".pyenv" / "a,b.py"
    hidden.parent.mkdir()
    hidden.write_text(TASK)
    assert separate(".pyenv/a,b.py,digits,.pyenv/a,b.py:task") == [
        ".pyenv/a,b.py",
        "digits",
        ".pyenv/a,b.py:task",
    ]
    assert divide(".pyenv/a,b.py") == (".pyenv/a,b.py", "")
    shutil.copytree(folder / "nearby", hidden.parent / "nearby")
    assert own_task(".pyenv/a,b.py:task")[0].name == "mine"
