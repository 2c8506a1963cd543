import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from schuss.lab import Budget, race
from schuss.lab.racing.executors import ExecutorError, dask
from schuss.lab.racing.race import Watcher
from schuss.lab.racing.version import code_version

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are Dask's

BUDGET = Budget(3, finalists=1, confirm_seeds=2, report_seeds=3)

THREAD = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "processes": False,
    "dashboard_address": None,
    "protocol": "tcp://",
}


@pytest.fixture
def cluster():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(host="127.0.0.1", **options) as cluster:
        yield cluster


class KillOne(Watcher):
    """Kills a worker of the cluster after the third run."""

    def __init__(self, cluster):
        self.cluster, self.left, self.killed = cluster, 3, False

    def finished(self, task, run, result):
        self.left -= 1
        if self.left == 0:
            with distributed.Client(self.cluster.scheduler_address) as client:
                workers = client.run(os.getpid)
            os.kill(next(iter(workers.values())), signal.SIGKILL)
            self.killed = True


def test_a_cluster_gives_the_same_report_though_a_worker_is_killed(line, cluster, tmp_path):
    with ThreadPoolExecutor(1) as thread:
        here = race(line(), ["sgd", "adam"], BUDGET, out=tmp_path / "here", executor=thread, workers=1)
    watcher = KillOne(cluster)
    with dask(cluster.scheduler_address) as (executor, workers):
        assert workers == 2
        there = race(
            line(),
            ["sgd", "adam"],
            BUDGET,
            out=tmp_path / "there",
            executor=executor,
            workers=4,
            watcher=watcher,
        )
    assert watcher.killed
    assert json.dumps(there.numbers()) == json.dumps(here.numbers())


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("schuss.lab.racing.executors.PATIENCE", 0.2)
    message = r"scheduler='tcp://127.0.0.1:9' is not a Dask scheduler that answers"
    with pytest.raises(ValueError, match=message), dask("tcp://127.0.0.1:9"):
        pass


class CloseAll(Watcher):
    """Closes the cluster, its scheduler too, after the first run."""

    def __init__(self, cluster):
        self.cluster = cluster

    def planned(self, words):
        self.words = words

    def finished(self, task, run, result):
        self.cluster.close()


def test_a_race_does_not_wait_for_a_scheduler_that_is_gone(line, tmp_path, monkeypatch):
    monkeypatch.setattr("schuss.lab.racing.executors.PATIENCE", 1.0)
    with distributed.LocalCluster(host="127.0.0.1", **THREAD) as cluster:
        watcher = CloseAll(cluster)
        client = distributed.Client(cluster)
        more = {"out": tmp_path, "executor": client.get_executor(), "workers": 1, "watcher": watcher}
        with pytest.raises(
            ExecutorError, match=r"The Dask cluster at tcp.* is gone: .*Finished runs are stored"
        ):
            race(line(), ["sgd"], BUDGET, **more)
        client.close()
    assert "memory is not watched" in watcher.words


def test_a_worker_says_which_code_it_has(monkeypatch):
    with (
        distributed.LocalCluster(host="127.0.0.1", **THREAD) as cluster,
        dask(cluster.scheduler_address) as (executor, _),
    ):
        executor.verify(code_version())
        executor.watch()
        with pytest.raises(ExecutorError, match=r"than this process \(schuss 0\): .* says 'schuss .*, code "):
            executor.verify("schuss 0")
