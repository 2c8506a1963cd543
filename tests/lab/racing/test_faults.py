"""What goes wrong in the code that is raced, and in the processes that run it."""

import operator
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from schuss.cli.race import without_a_finish
from schuss.lab import Budget, Entry, race
from schuss.lab.entries import find
from schuss.lab.racing import executors
from schuss.lab.racing.engine import DEATHS, ExecutorError, Job, execute
from schuss.lab.racing.executors import Cluster, LocalProcesses
from schuss.lab.racing.limits import GIB, Limits
from schuss.lab.racing.store import Store, StoreError
from schuss.lab.racing.version import code_version
from schuss.lab.racing.work import Package, Source, calibrate_entry, train_run
from schuss.lab.reason import reason
from schuss.lab.training.train import calibrate, train

TINY = Budget(1, finalists=1, confirm_seeds=1, report_seeds=2)
WORK = {"schedule": "constant", "batch_size": 28, "parameters": {"lr": 0.1}, "seed": 0, "open_test": False}


def raced(task, out, entries=("sgd",), executor=None, **more):
    with ThreadPoolExecutor(1) as thread:
        given = {"out": out, "executor": executor or thread, "workers": 1}
        return race(task, list(entries), TINY, **given | more).task()


def statuses(task):
    return {run["status"] for run in task["runs"]}


# ------------------------------------------------------------------------------------------ user's code


def leave(model, batch):
    raise SystemExit(3)


class Leaving(torch.optim.SGD):
    def step(self, closure=None):
        raise SystemExit(3)


def test_sys_exit_is_a_crash_in_words(line, tmp_path):
    leaving = Entry(name="leaving", optimizer=Leaving, space={"lr": (1e-3, 0.1, True)})
    task = raced(line(), tmp_path, ["sgd", leaving])
    assert {run["entry"] for run in task["crashed"]} == {"leaving"}
    assert "called sys.exit" in task["crashed"][0]["error"]
    assert "SystemExit: 3 (" in reason(task["crashed"][0]["error"])
    assert "finished" in statuses(task)
    with pytest.raises(ValueError, match="Task 'line': its model or loss raised SystemExit: 3"):
        raced(line(loss=leave), tmp_path / "task")


FLAG = """
import torch
from pathlib import Path
from rates import FASTER


class Mine(torch.optim.SGD):
    space = {"lr": (1e-3, 0.1)}

    def step(self, closure=None):
        if not Path("mended").exists():
            raise RuntimeError("not yet")
        return super().step(closure)
"""


def test_crashed_runs_are_run_again_when_asked_and_when_a_file_changed(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("opt.py").write_text(FLAG)
    Path("rates.py").write_text("FASTER = 1\n")
    first = raced(line(), "out", ["opt.py:Mine"])
    assert statuses(first) == {"crashed"}
    assert without_a_finish(first).endswith("of opt.py:Mine: RuntimeError: not yet (opt.py, line 12)")
    Path("mended").touch()
    assert statuses(raced(line(), "out", ["opt.py:Mine"])) == {"crashed"}
    assert statuses(raced(line(), "out", ["opt.py:Mine"], retry_crashed=True)) == {"finished"}
    Path("mended").unlink()
    assert statuses(raced(line(), "out", ["opt.py:Mine"], retry_crashed=True)) == {"finished"}
    Path("rates.py").write_text("FASTER = 2\n")
    assert statuses(raced(line(), "out", ["opt.py:Mine"])) == {"crashed"}


TASK = """
import torch
from schuss.lab import Task
from pathlib import Path

x = torch.randn(60, 1)


def loss(model, batch):
    if torch.is_grad_enabled():
        if not model.fresh:
            {fault}
        model.fresh = False
    return (model(batch[0]) - batch[1]).square().mean()


def model():
    made = torch.nn.Linear(1, 1)
    made.fresh = True
    return made


task = Task(name="mine", model=model, loss=loss, train=(x, 3 * x), batch_size=16, epochs=1, search="published")
"""


def test_a_task_file_that_only_crashed_can_be_mended_and_one_that_ran_cannot_be_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("schuss.lab.racing.preflight._expected", lambda *_: 1.0)
    Path("task.py").write_text(TASK.format(fault="raise RuntimeError('no')"))
    assert statuses(raced("task.py", "out")) == {"crashed"}
    Path("task.py").write_text(Path("task.py").read_text().replace("raise RuntimeError('no')", "pass"))
    assert statuses(raced("task.py", "out")) == {"finished"}
    assert statuses(raced("task.py", "out")) == {"finished"}  # the data that it drew is drawn again
    Path("task.py").write_text(Path("task.py").read_text() + "\n# a remark\n")
    with pytest.raises(StoreError, match=r"since 20\d\d-.*\. Of these, the file task.py changed \("):
        raced("task.py", "out")


def test_data_that_cannot_be_drawn_again_are_named(line, tmp_path):
    def other():
        x = torch.from_numpy(__import__("numpy").random.default_rng().random((120, 3))).float()
        return line(train=(x, x[:, :1]))

    raced(other(), tmp_path)
    message = r"Of these, the train data changed \(.*the test data changed .*draw the data from a generator with a seed"
    with pytest.raises(StoreError, match=message):
        raced(other(), tmp_path)


def test_what_cannot_be_sent_to_a_worker_is_named_with_its_field(line):
    lock = threading.Lock()

    def loss(model, batch):
        with lock:
            return (model(batch[0]) - batch[1]).square().mean()

    with pytest.raises(TypeError, match=r"task\.loss, which uses lock .*cannot pickle '_thread.lock'"):
        Package.of(Source("line", task=line(loss=loss)), [])
    entry = Entry(
        name="mine", optimizer=torch.optim.SGD, space={"lr": (1e-3, 1, True)}, fixed={"a": {"b": lock}}
    )
    with pytest.raises(TypeError, match=r"entry 'mine'\.fixed\['a'\]\['b'\] \(a lock\)"):
        Package.of(Source("line"), [entry])


# ------------------------------------------------------------------------------------------ closures


class Hand:
    """An optimizer as a course teaches it, with one of several ways to write `step`."""

    def __init__(self, weights, lr=0.1):
        self.state, self.param_groups = {}, [{"params": list(weights), "lr": lr}]

    def zero_grad(self):
        for w in self.param_groups[0]["params"]:
            w.grad = None

    @torch.no_grad()
    def move(self):
        for w in self.param_groups[0]["params"]:
            w -= self.param_groups[0]["lr"] * w.grad


class Ignoring(Hand):
    def step(self, closure=None):
        self.state["steps"] = self.state.get("steps", 0) + 1
        if self.param_groups[0]["params"][0].grad is not None:
            self.move()


class Plain(Hand):
    def step(self):
        self.move()


class WithoutGradients(Hand):
    @torch.no_grad()
    def step(self, closure=None):
        closure()
        self.move()


class Once(Hand):
    def step(self, closure=None):
        if not self.state:
            closure()
        self.state["known"] = {}
        self.move()


@pytest.mark.parametrize("kind", [Ignoring, Plain, WithoutGradients])
def test_an_optimizer_that_finds_its_gradients_there_runs_like_one_that_calls_the_closure(line, kind):
    expected = train(line(), lambda weights: torch.optim.SGD(weights, lr=0.05), 3)
    found = train(line(), lambda weights: kind(weights, lr=0.05), 3)
    assert [p.train_loss for p in found.curve] == pytest.approx([p.train_loss for p in expected.curve])
    assert found.last.gradients == found.last.steps == expected.last.steps


def test_an_optimizer_that_calls_the_closure_now_and_then_is_refused(line):
    with pytest.raises(RuntimeError, match=r"Once.step\(closure\) did not call its closure in step 2"):
        train(line(), Once, 0)


def test_a_calibration_knows_both_conventions(line):
    for kind in (Ignoring, Plain, torch.optim.SGD):
        assert calibrate(line(), kind, 0)["step"]["seconds"] > 0


# ------------------------------------------------------------------------------------------ processes


class Deadly(ThreadPoolExecutor):
    """Dies over some work, as a pool does whose process was killed."""

    def __init__(self, over):
        super().__init__(1)
        self.over, self.died = over, 0

    def submit(self, fn, /, *args, **kwargs):
        if not self.over(fn, *args):
            return super().submit(fn, *args, **kwargs)
        self.died += 1
        dead = Future()
        dead.set_exception(BrokenProcessPool("killed"))
        return dead


def test_a_calibration_that_kills_its_process_leaves_a_gap_and_no_more(line, tmp_path):
    with Deadly(lambda fn, *_: fn is calibrate_entry) as executor:
        task = raced(line(), tmp_path, executor=executor)
    assert executor.died == DEATHS
    assert task["ranking"][0]["step"] == {"seconds": None}
    assert statuses(task) == {"finished"}
    with Deadly(lambda fn, *_: fn is calibrate_entry) as executor:
        raced(line(), tmp_path, executor=executor)
        assert executor.died == 0  # it is known
        raced(line(), tmp_path, executor=executor, retry_crashed=True)
        assert executor.died == DEATHS


def test_work_that_kills_every_worker_is_to_blame_where_other_work_is_done(line):
    package = Package.of(Source("saddle"), [find("sgd")])
    jobs = [Job("a", train_run, package, WORK | {"entry": "sgd", "batch_size": 1, "device": "cpu"})]
    seen = []
    with Deadly(lambda fn, *_: fn is train_run) as executor:
        execute(jobs, executor, 1, lambda job, result: seen.append(result))
    assert executor.died == DEATHS
    assert seen[0]["status"] == "crashed"


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


CHILD = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); "
TELL = "open({!r}, 'w').write(str(child.pid))"
HANG = "; import signal; signal.pause()"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_a_run_over_its_limit_is_a_result_and_its_children_end_with_it(tmp_path):
    told = [tmp_path / name for name in ("hanging", "leaving")]
    hanging = Job("hanging", exec, CHILD + TELL.format(str(told[0])) + HANG, {})
    large = Job("large", exec, "held = bytes(1) * (1 << 29)" + HANG, {})
    fine, seen = Job("fine", operator.or_, {"status": "finished"}, {}), {}
    with LocalProcesses(1) as executor:
        executor.submit(exec, CHILD + TELL.format(str(told[1]))).result()
        for limits, job in ((Limits(seconds=0.5), hanging), (Limits(memory=0.45 * GIB), large)):
            executor.limits = limits
            execute([job, fine], executor, 1, lambda job, result: seen.update({job.id: result}))
    assert seen["fine"] == {"status": "finished"}
    assert seen["hanging"]["status"] == seen["large"]["status"] == "crashed"
    assert seen["hanging"]["error"] == "Stopped: over 500 ms (--run-minutes)"
    assert seen["large"]["error"].startswith("Stopped: over 0.45 GiB, at 0.")
    assert not any(alive(int(file.read_text())) for file in told)


def test_an_interrupt_tears_no_process_out_of_its_start(monkeypatch):
    ended, begun, interrupted = [], threading.Event(), threading.Event()
    monkeypatch.setattr(executors, "end", ended.append)

    class Slow:
        """A pool whose process is known only after the interrupt that came while it was starting."""

        _processes = None

        def submit(self, *_):
            begun.set()
            assert interrupted.wait(60)
            self._processes = {12345: None}
            return Future()

        def shutdown(self, **_):
            pass

    class Torn:
        """What the main thread waits for when the interrupt reaches it."""

        def result(self):
            assert begun.wait(60)
            raise KeyboardInterrupt

    executor = LocalProcesses(1)
    executor._workers[0].pool = Slow()
    give = executor._starter.submit
    monkeypatch.setattr(executor._starter, "submit", lambda *work: (give(*work), Torn())[1])
    with pytest.raises(KeyboardInterrupt):
        executor.submit(abs, -1)
    interrupted.set()
    executor.kill()
    assert ended == [12345]


def test_a_run_that_still_steps_ends_itself_at_its_limit(line):
    package = Package.of(Source("line", task=line()), [find("sgd")])
    work = WORK | {"entry": "sgd", "device": "cpu"}
    result = train_run(package, work | {"seconds": 0.0})
    assert (result["status"], result["error"]) == ("crashed", "Stopped: over 0.0 s (--run-minutes)")
    assert train_run(package, work | {"seconds": 3600.0})["status"] == "finished"


def test_limits_follow_from_what_is_expected_and_from_the_machine(monkeypatch):
    monkeypatch.setattr("schuss.lab.racing.limits.total_memory", lambda: 64 * GIB)
    assert Limits.of(None, None, 1.0, 4) == Limits(600.0, pytest.approx(0.8 * 16 * GIB))
    assert Limits.of(None, None, 100.0, 64) == Limits(3000.0, 2 * GIB)
    assert str(Limits.of(90, 1.5, 1.0, 4)) == "1.5 hours and 1.5 GiB"
    with pytest.raises(ValueError, match="run_minutes=0 is not greater than 0"):
        race("digits", ["sgd"], run_minutes=0)


# ------------------------------------------------------------------------------------------ other machines


def test_a_worker_with_other_code_does_no_work(line):
    package = replace(Package.of(Source("saddle"), [find("sgd")]), version="schuss 0.0")
    job = Job("a", train_run, package, WORK | {"entry": "sgd", "batch_size": 1, "device": "cpu"})
    message = rf"has other code .*: {code_version()}; there schuss 0.0\. Install the same"
    with ThreadPoolExecutor(1) as executor, pytest.raises(ExecutorError, match=message):
        execute([job], executor, 1, lambda *_: pytest.fail("no work may be done"))


class Client:
    """As much of Dask's client as a cluster needs."""

    scheduler = SimpleNamespace(address="tcp://there")

    def __init__(self, **answers):
        self.answers, self.status = answers, "running"

    def get_executor(self, **_):
        return ThreadPoolExecutor(1)

    def scheduler_info(self):
        return {"workers": dict(self.answers)}

    def run(self, function, workers=None, on_error="raise"):
        assert function.__module__ == "__main__"  # so it is sent whole
        return {name: self.answers[name] for name in workers or self.answers}


def test_a_cluster_whose_workers_have_other_code_is_refused():
    client = Client(a=code_version())
    cluster = Cluster(client)
    cluster.verify(code_version())
    cluster.watch()
    client.answers["b"] = "ModuleNotFoundError: No module named 'schuss'"
    with pytest.raises(ExecutorError, match=r"a worker has other code .*b says .*No module named 'schuss'"):
        cluster.watch()
    with pytest.raises(ExecutorError, match="tcp://there, a worker has other code"):
        Cluster(client).verify(code_version())


def test_a_cluster_that_is_gone_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE", 0.0)
    client = Client(a=code_version())
    cluster = Cluster(client)
    cluster.verify(code_version())
    gone = Future()
    cluster.submit = lambda *_: gone  # an answer that never comes
    client.status = "connecting"
    with pytest.raises(
        ExecutorError, match=r"is gone: its scheduler does not answer\. Finished runs are stored"
    ):
        execute([Job("a", train_run, None, {})], cluster, 1, lambda *_: None)
    client.status, client.answers = "running", {}
    with pytest.raises(ExecutorError, match="is gone: it has no workers"):
        cluster.watch()


# ------------------------------------------------------------------------------------------ the store


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "not the result of a run"),
        ('{"status": "finished", "curve": {"a": [1], "b": []}}', "columns of its curve differ"),
    ],
)
def test_a_damaged_row_is_named_and_can_be_run_again(line, tmp_path, text, why):
    whole = raced(line(), tmp_path)
    id = whole["runs"][0]["id"]
    with Store(tmp_path) as store:
        store._database.execute("UPDATE runs SET result = ? WHERE id = ?", (text, id))
    with pytest.raises(StoreError, match=rf"race.sqlite, table runs, row '{id}' is damaged: .*{why}"):
        raced(line(), tmp_path)
    again = raced(line(), tmp_path, retry_crashed=True)
    assert again["runs"][0]["curve"] == whole["runs"][0]["curve"]


def test_damaged_remarks_are_named(line, tmp_path):
    raced(line(), tmp_path)
    for key, value in (("task line", "{"), ("task line", "7"), ("task line", "{}"), ("seconds", "a while")):
        with Store(tmp_path) as store:
            before = store.get(key)
            store._database.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        with pytest.raises(StoreError, match=rf"race.sqlite, table meta, row '{key}' is damaged"):
            raced(line(), tmp_path)
        with Store(tmp_path) as store:
            store.put(key, before)


def test_no_name_of_a_task_leads_out_of_the_folder_of_runs(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raced(line(name="../../escaped"), None)
    raced(line(name="a/b"), None)
    assert {path.parent for path in tmp_path.rglob("race.sqlite")} == set((tmp_path / "runs").iterdir())
    with pytest.raises(ValueError, match=r"is not a name\. It is one line of text that can be printed"):
        line(name="bell\x07")
    with pytest.raises(ValueError, match="is not a name"):
        Entry(name="x\nimport os", optimizer=torch.optim.SGD, space={"lr": (1e-3, 1, True)})


def test_the_command_is_quoted_and_whole(line, tmp_path):
    import shlex

    place = tmp_path / "out; touch X"
    report = race(
        line(name="a $(touch X)"),
        ["sgd"],
        TINY,
        out=place,
        executor=ThreadPoolExecutor(1),
        workers=1,
        run_minutes=3,
    )
    words = shlex.split(report.data["command"])
    assert words[:3] == ["schuss", "race", "a $(touch X)"]
    assert words[words.index("--out") + 1] == str(place)
    assert words[words.index("--run-minutes") + 1] == "3"
    assert shlex.split(report.task()["runs"][0]["command"])[2] == "a $(touch X)"


def test_no_cell_of_a_table_is_a_formula(line, tmp_path):
    import csv

    from schuss.lab.racing.export import export

    entries = [replace(find("sgd"), name=name) for name in ("=1+1", "@sum", "-sgd")]
    with ThreadPoolExecutor(1) as thread:
        report = race(line(name="+task"), entries, TINY, out=tmp_path, executor=thread, workers=1)
    export(report.data, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["entry"] for row in rows} == {"'=1+1", "'@sum", "'-sgd"}
    assert {row["task"] for row in rows} == {"'+task"}
    assert float(rows[0]["metric"]) == report.task()["runs"][0]["metric"]


def test_looking_for_children_ends_at_this_process():
    from schuss.lab.racing.processes import descendants, memory

    assert os.getpid() not in descendants(os.getpid())
    assert memory(os.getpid(), 1e15) == 0.0
