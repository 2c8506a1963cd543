import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from schuss.lab import Budget, Entry, race
from schuss.lab.racing import race as module
from schuss.lab.racing.engine import DEATHS, ExecutorError, Job, execute
from schuss.lab.racing.executors import LocalProcesses
from schuss.lab.racing.export import export
from schuss.lab.racing.store import Store, StoreError
from schuss.lab.racing.work import Package, Source, train_run

SMALL = Budget(4, finalists=2, confirm_seeds=2, report_seeds=3)
ENTRIES = ["sgd", "adam"]


class Here(module.Watcher):
    """Watches; may stop the race as Ctrl-C would, or count."""

    def __init__(self, stop_after=None):
        self.stop_after, self.seen, self.stages = stop_after, [], []

    def began(self, folder):
        self.folder = folder

    def stage(self, name, expected, known):
        self.stages.append((name, expected, known))

    def finished(self, task, run, result):
        self.seen.append(run.id)
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt


def raced(task, out, executor=None, **more):
    with ThreadPoolExecutor(1) as thread:
        return race(
            task, more.pop("entries", ENTRIES), SMALL, out=out, executor=executor or thread, workers=1, **more
        )


def numbers(report):
    return json.dumps(report.numbers(), sort_keys=True)


@pytest.fixture(scope="module")
def whole(line, tmp_path_factory):
    return raced(line(), tmp_path_factory.mktemp("whole"))


def test_a_race_keeps_the_protocol(whole):
    task = whole.task()
    count = {
        stage: sum(run["stage"] == stage for run in task["runs"]) for stage in ("tune", "confirm", "report")
    }
    trials = {entry["trials"] for entry in task["entries"]}
    assert len(trials) == 1
    assert count == {"tune": 2 * trials.pop(), "confirm": 2 * 2 * 2, "report": 2 * 3}
    tested = [run for run in task["runs"] if run["test"] is not None]
    assert {run["stage"] for run in tested} == {"report"}
    assert whole.data["complete"]
    assert [target["q"] for target in task["targets"]] == [0.5, 0.9, 1.0]


def test_the_report_builds_the_winner(whole):
    row, (cls, arguments) = whole.best(), whole.recipe()
    weight = torch.zeros(3, requires_grad=True)
    optimizer = whole.optimizer([weight])
    assert isinstance(optimizer, cls)
    assert optimizer.param_groups[0]["lr"] == arguments["lr"] == row["parameters"]["lr"]
    assert [line["entry"] for line in whole.table()] == [line["entry"] for line in whole.task()["ranking"]]
    assert row["entry"] in repr(whole)


def test_pasted_settings_build_the_same_optimizer(whole):
    setting = whole.task()["settings"][0]
    names = {"model": torch.nn.Linear(2, 1)}
    exec(setting["code"], names)
    row = next(row for row in whole.task()["ranking"] if row["entry"] == setting["entry"])
    assert names["optimizer"].param_groups[0]["lr"] == row["parameters"]["lr"]


def test_racing_again_runs_nothing_and_says_the_same(line, whole, tmp_path):
    assert numbers(raced(line(), tmp_path)) == numbers(whole)
    watcher = Here()
    assert numbers(raced(line(), tmp_path, watcher=watcher)) == numbers(whole)
    assert watcher.seen == []


def test_an_interrupted_race_goes_on_and_ends_the_same(line, whole, tmp_path):
    seen = []
    for stop_after in (3, 7, 5):
        watcher = Here(stop_after)
        with pytest.raises(KeyboardInterrupt):
            raced(line(), tmp_path / "parts", watcher=watcher)
        seen += watcher.seen
        partial = json.loads((tmp_path / "parts" / "report.json").read_text())
        assert not partial["complete"]
        assert len(partial["tasks"][0]["runs"]) == len(seen)
    watcher = Here()
    assert numbers(raced(line(), tmp_path / "parts", watcher=watcher)) == numbers(whole)
    assert len({*seen, *watcher.seen}) == len(seen) + len(watcher.seen)  # no run was done twice


def test_the_report_is_the_same_whichever_executor_ran_it(whole, line, tmp_path):
    with LocalProcesses(2) as two:
        assert numbers(raced(line(), tmp_path / "two", two)) == numbers(whole)
    with ThreadPoolExecutor(3) as threads:
        report = race(line(), ENTRIES, SMALL, out=tmp_path / "threads", executor=threads, workers=3)
    assert numbers(report) == numbers(whole)
    with ProcessPoolExecutor(1) as pool:
        assert numbers(raced(line(), tmp_path / "pool", pool)) == numbers(whole)


class Killing(LocalProcesses):
    """Loses a worker now and then, in the middle of its work."""

    def __init__(self, workers, rng):
        super().__init__(workers)
        self.rng, self.killed = rng, 0

    def submit(self, fn, /, *args, **kwargs):
        future = super().submit(fn, *args, **kwargs)
        if self.killed < 4 and self.rng.random() < 0.3:
            self.killed += 1
            worker = self.rng.choice(self._workers)
            for pid in worker.pids:
                os.kill(pid, signal.SIGKILL)
        return future


def test_killed_workers_change_nothing(whole, line, tmp_path):
    with Killing(2, random.Random(1)) as executor:
        report = raced(line(), tmp_path / "killed", executor)
        assert executor.killed >= 2
    assert numbers(report) == numbers(whole)


SCRIPT = textwrap.dedent("""
    import sys, os, signal, random
    from pathlib import Path
    from schuss.lab import Budget, race
    from schuss.lab.files import load_name
    from schuss.lab.racing.race import Watcher

    class Stopping(Watcher):
        def __init__(self, most): self.left = most
        def began(self, folder): pass
        def stage(self, *a): pass
        def finished(self, *a):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        line = load_name(sys.argv[1], "make_line")[0]
        budget = Budget(4, finalists=2, confirm_seeds=2, report_seeds=3)
        race(line(), ["sgd", "adam"], budget, out=sys.argv[2], workers=2, watcher=Stopping(int(sys.argv[3])))
""")


def test_a_killed_race_goes_on_and_ends_the_same(whole, line, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    conftest = Path(__file__).parents[1] / "conftest.py"
    rng = random.Random(2)
    for _ in range(2):
        arguments = [
            sys.executable,
            str(script),
            str(conftest),
            str(tmp_path / "torn"),
            str(rng.randint(2, 8)),
        ]
        ended = subprocess.run(
            arguments, capture_output=True, timeout=600, env=os.environ | {"PYTHONPATH": "src"}
        )
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with Store(tmp_path / "torn") as store:
        assert len(store.results()) >= 4
    assert numbers(raced(line(), tmp_path / "torn")) == numbers(whole)


class FullDisk(Here):
    """The disk is full after two runs: nothing larger than what is there can be written."""

    def finished(self, task, run, result):
        super().finished(task, run, result)
        if len(self.seen) == 2:
            size = (self.folder / "race.sqlite").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_is_named_and_loses_nothing(whole, line, tmp_path):
    before, watcher = resource.getrlimit(resource.RLIMIT_FSIZE), FullDisk()
    try:
        with pytest.raises(StoreError, match=r"could not be written: .*Finished runs are stored"):
            raced(line(), tmp_path / "full", watcher=watcher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "full").glob("*.new")] == []
    again = Here()
    assert numbers(raced(line(), tmp_path / "full", watcher=again)) == numbers(whole)
    assert not {*watcher.seen[:2]} & {*again.seen}


class Fragile(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        if self.param_groups[0]["lr"] > 1e-2:
            raise RuntimeError("too fast for me")
        return loss


def fragile(name="fragile"):
    return Entry(name=name, optimizer=Fragile, space={"lr": (1e-4, 1.0, True)}, kind="gradient")


def test_a_run_that_raises_is_tried_again_then_recorded_with_its_traceback(line, tmp_path):
    task = raced(line(search="published"), tmp_path, entries=["sgd", fragile()]).task()
    assert task["crashed"]
    assert all(run["entry"] == "fragile" and run["parameters"]["lr"] > 1e-2 for run in task["crashed"])
    assert "RuntimeError: too fast for me" in task["crashed"][0]["error"]
    assert {row["entry"] for row in task["ranking"]} == {"sgd", "fragile"}  # what it did finish still counts


def test_a_diverged_run_is_a_result(line, tmp_path):
    wild = Entry(name="wild", optimizer=torch.optim.SGD, space={"lr": (1e2, 1e5, True)}, kind="gradient")
    task = raced(line(search="published"), tmp_path, entries=["sgd", wild]).task()
    assert {run["entry"] for run in task["diverged"]} >= {"wild"}
    assert [row["entry"] for row in task["ranking"]] == ["sgd"]
    assert task["sensitivity"]["wild"]["best_lr"] is None
    json.dumps(task, allow_nan=False)


class Dying(ThreadPoolExecutor):
    """Raises as a pool does whose process died."""

    def __init__(self, first, last):
        super().__init__(1)
        self.deadly, self.tries = range(first, last), 0

    def submit(self, fn, /, *args, **kwargs):
        from concurrent.futures.process import BrokenProcessPool

        self.tries += 1
        if self.tries in self.deadly:
            return super().submit(self.fail, BrokenProcessPool("killed"))
        return super().submit(fn, *args, **kwargs)

    @staticmethod
    def fail(error):
        raise error


@pytest.mark.parametrize(
    ("deaths", "status"), [(0, "finished"), (DEATHS - 1, "finished"), (DEATHS, "crashed")]
)
def test_a_run_outlives_its_workers_but_not_for_ever(deaths, status):
    package = Package.of(Source("saddle"), [module.find("sgd")])
    work = {"entry": "sgd", "schedule": "constant", "batch_size": 1, "parameters": {"lr": 0.1}, "seed": 0}
    jobs = [Job(id, train_run, package, work | {"open_test": False, "device": "cpu"}) for id in "ab"]
    seen = []
    with Dying(2, 2 + deaths) as executor:
        execute(jobs, executor, 1, lambda job, result: seen.append(result["status"]))
    assert seen == ["finished", status]
    with (
        Dying(0, 99) as executor,
        pytest.raises(ExecutorError, match="Every worker ended before it finished a run"),
    ):
        execute(jobs, executor, 1, lambda job, result: seen.append(result["status"]))
    assert len(seen) == 2  # nothing is held against the runs


UNGUARDED = """
import torch
from schuss.lab import Budget, Task, race

x = torch.linspace(-1, 1, 80).unsqueeze(1)
task = Task(
    name="mine",
    model=lambda: torch.nn.Linear(1, 1),
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    train=(x, 3 * x),
    batch_size=16,
    epochs=3,
)
report = race(task, ["sgd"], Budget(2, 1, 1, 2), out="race", workers=2)
print("finished", {run["status"] for run in report.task()["runs"]})
"""


def test_a_plain_script_races_without_being_run_again_by_the_workers(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    command = [sys.executable, "script.py"]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert ended.stdout.strip() == "finished {'finished'}", ended.stderr


def test_entries_of_the_same_optimizer_are_kept_apart(line, tmp_path):
    task = raced(line(), tmp_path, entries=["sgd", "sgd"]).task()
    assert [entry["name"] for entry in task["entries"]] == ["sgd", "sgd (2)"]
    assert task["verdict"]["kind"] == "tie"


def test_schedules_and_batch_sizes_are_crossed(line, tmp_path):
    report = raced(
        line(), tmp_path, entries=["sgd"], schedules=["constant", "cosine"], batch_sizes=[14, "full"]
    )
    task = report.task()
    assert [entry["batch_size"] for entry in task["entries"]] == [14, 84, 14, 84]
    assert {entry["schedule"] for entry in task["entries"]} == {"constant", "cosine"}
    runs = {run["entry"]: run for run in task["runs"] if run["status"] == "finished"}
    full = runs["sgd + constant, batch 84"]
    assert full["examples"] == runs["sgd + constant, batch 14"]["examples"]
    assert full["steps"] == 10
    cosine = runs["sgd + cosine, batch 14"]["curve"]["lr"]
    assert cosine[-1] < 0.1 * cosine[1]


def test_several_tasks_give_profiles(line, tmp_path):
    report = raced([line(), line(name="other", epochs=5)], tmp_path, rank_by="gradients")
    assert [task["name"] for task in report.data["tasks"]] == ["line", "other"]
    assert set(report.data["profiles"]["share"]) == {"sgd", "adam"}
    assert report.data["tasks"][0]["verdict"]["rank_by"] == "gradients"


def test_another_version_of_the_task_is_not_mixed_in(line, tmp_path):
    raced(line(), tmp_path, entries=["sgd"])
    with pytest.raises(StoreError, match="another version of the code or the data"):
        raced(line(epochs=11), tmp_path, entries=["sgd"])


def test_every_run_can_be_exported(whole, tmp_path):
    export(whole.data, tmp_path / "runs.csv")
    export(whole.data, tmp_path / "runs.json")
    found = json.loads((tmp_path / "runs.json").read_text())
    assert (
        len(found) == len(whole.task()["runs"]) == len((tmp_path / "runs.csv").read_text().splitlines()) - 1
    )
    assert found[0]["metric"] == whole.task()["runs"][0]["metric"]
    with pytest.raises(ValueError, match=r"ends in one of \.csv, \.json, \.parquet"):
        export(whole.data, tmp_path / "runs.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": ["wonder"]}, "entry='wonder' is not one of sgd"),
        ({"entries": ["adm"]}, "Did you mean adam"),
        ({"entries": "adam"}, r"entries='adam' is not a list. Try entries=\['adam'\]"),
        ({"entries": [3]}, "entry=3 is not a name, file.py:name, an Entry or an optimizer class"),
        ({"schedules": "cosine"}, "schedules='cosine' is not a list"),
        ({"device": "tpu"}, "device='tpu' is not one of cpu, cuda"),
        ({"budget": None}, "budget=None is not one of quick"),
        ({"batch_sizes": ["ful"]}, "batch_size='ful' is not a whole number in 1 .. 84, or 'full'"),
        ({"entries": []}, "is not at least one entry"),
        ({"budget": "huge"}, "budget='huge' is not one of quick, default, careful"),
        ({"budget": 0}, "trials=0 is not an integer ≥ 1"),
        ({"schedules": ["sine"]}, "schedule='sine' is not one of constant, cosine"),
        ({"batch_sizes": [10**6]}, "batch_size=1000000 is not a whole number in 1 .. 84"),
        ({"workers": 0}, "workers=0 is not an integer ≥ 1"),
        ({"seed": -1}, "seed=-1 is not an integer ≥ 0"),
        ({"rank_by": "luck"}, "rank_by='luck' is not one of metric"),
        ({"task": None}, r"task=None is not a task. Give a name, a file, a schuss.lab.Task, or a list"),
        ({"task": 3}, "task=3 is not a task"),
        ({"executor": 3}, "executor=3 is not a concurrent.futures.Executor or None"),
        ({"run_minutes": "x"}, "run_minutes='x' is not greater than 0"),
    ],
)
def test_what_cannot_be_raced_is_refused(line, tmp_path, changes, message):
    given = {"task": line(), "entries": ["sgd"], "budget": SMALL, "out": tmp_path}
    with pytest.raises(ValueError, match=message), ThreadPoolExecutor(1) as thread:
        race(**given | {"executor": thread} | changes)


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer"])
def test_convex_losses_end_near_the_optimum_and_never_below_it(name, tmp_path):
    task = raced(name, tmp_path, entries=["momentum", "adam"]).task()
    finished = [run for run in task["runs"] if run["status"] == "finished"]
    assert all(run["train_loss"] > task["optimum"] - 1e-9 for run in finished)
    for entry in ("momentum", "adam"):
        reached = min(run["train_loss"] for run in finished if run["entry"] == entry)
        assert reached < 1.02 * task["optimum"]
