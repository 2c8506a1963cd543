"""Who does the work: local processes by default, or anything that is a `concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from types import FunctionType, ModuleType
from typing import Any

from schuss.errors import refusal
from schuss.lab.racing.limits import GIB, Limits
from schuss.lab.racing.processes import Children, end, end_children, lead, memory, table
from schuss.units import human_seconds

PATIENCE = 10.0  # seconds, with a scheduler that may be busy
TICK = 0.25  # seconds between two measurements of what the workers use
GRACE = 5.0  # seconds: a run that still takes steps ends itself at its limit
RESUME = "Finished runs are stored. Give the same command again to resume the race."


class ExecutorError(RuntimeError):
    """The executor does no more work; what was finished is stored."""


class OverLimitError(RuntimeError):
    """A run was ended because it used more than it may."""


@dataclass
class _Worker:
    """One process, in a pool of its own, and what it is doing."""

    pool: ProcessPoolExecutor
    work: Future[Any] | None = None
    began: float = 0.0
    finished: int = 0  # pieces of work since it started
    stopped: str | None = None  # why it was killed

    @property
    def pids(self) -> list[int]:
        return list(self.pool._processes or {})  # pyright: ignore[reportPrivateUsage]

    def end(self) -> None:
        for pid in self.pids:
            end(pid)


class LocalProcesses(Executor):
    """Processes on this machine, one run each at a time; one that dies takes no other with it.

    Each is a pool of one, so that it is known which work a dead one held. A dead one is replaced; its
    future raises `BrokenProcessPool`. With `gpus`, worker i sees device i alone. A run that uses more than `limits`
    is killed with its children by `watch`; its future raises `OverLimitError`.
    """

    def __init__(self, workers: int, gpus: bool = False) -> None:
        """Prepare the processes; they start with their first work."""
        if workers < 1:
            raise refusal("workers", workers, "at least 1")
        self.workers, self.limits = workers, Limits()
        self._context = start_server()
        self._gpus, self._watched = gpus, 0.0
        # Processes are started by another thread than the one that an interrupt reaches: what it tore out of a start
        # would leave a process that nobody knows, to fail over what is gone by then.
        self._starter = ThreadPoolExecutor(1)
        self._starter.submit(int).result()  # its thread runs before there is anything to tear
        self._workers = [self._worker(index) for index in range(workers)]
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(workers):
            self._free.put(index)

    def _worker(self, index: int) -> _Worker:
        device = index if self._gpus else None
        return _Worker(ProcessPoolExecutor(1, self._context, initializer=_begin, initargs=(device,)))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give work to a free process; waits until there is one."""
        index = self._free.get()
        future = self._starter.submit(self._start, index, partial(fn, *args, **kwargs)).result()
        worker, given = self._workers[index], Future[Any]()
        given.set_running_or_notify_cancel()
        worker.work, worker.began = future, time.monotonic()

        def give_back(done: Future[Any]) -> None:
            error = CancelledError() if done.cancelled() else done.exception()
            worker.work, worker.finished = None, worker.finished + 1
            if isinstance(error, BrokenProcessPool):
                worker.pool.shutdown(wait=False)
                self._workers[index] = self._worker(index)
                error = error if worker.stopped is None else OverLimitError(worker.stopped)
            self._free.put(index)
            if error is None:
                given.set_result(done.result())
            else:
                given.set_exception(error)

        future.add_done_callback(give_back)
        return given

    def _start(self, index: int, work: Callable[[], Any]) -> Future[Any]:
        with _without_main():
            try:
                return self._workers[index].pool.submit(_tidily, work)
            except BrokenProcessPool:  # it died idle
                self._workers[index] = self._worker(index)
                return self._workers[index].pool.submit(_tidily, work)

    def watch(self) -> None:
        """Kill the workers whose run uses more than it may."""
        now = time.monotonic()
        if now - self._watched < TICK:
            return
        self._watched = now
        children = table() if self.limits.memory is not None else {}
        for worker in self._workers:
            if worker.work is not None and not worker.work.done() and worker.stopped is None:
                self._judge(worker, now - worker.began, children)

    def _judge(self, worker: _Worker, took: float, children: Children) -> None:
        seconds, most = self.limits.seconds, self.limits.memory
        if seconds is not None and took > seconds + min(GRACE, seconds):
            worker.stopped = over_time(seconds)
        elif most is not None and (used := sum(memory(pid, most, children) for pid in worker.pids)) > most:
            # What an earlier run left in this process is not held against this one: it is tried in a new process.
            if worker.finished == 0:
                worker.stopped = f"over {most / GIB:.3g} GiB, at {used / GIB:.3g} GiB (--run-memory)"
        else:
            return
        worker.end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes end."""
        self._starter.shutdown(wait=wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End the processes now, with their children, whatever they are doing; first, what is being started starts."""
        self._starter.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self.shutdown(wait=True, cancel_futures=True)


def over_time(seconds: float) -> str:
    """Why a run was stopped."""
    return f"over {human_seconds(seconds)} (--run-minutes)"


def _tidily(work: Callable[[], Any]) -> Any:
    """Do the work; what it started ends with it."""
    try:
        return work()
    finally:
        end_children()


def start_server() -> Any:
    """How workers are started: forked from a server that has imported all they need, where there is fork.

    The server starts at once and imports on a core of its own, while the caller goes on; calling this again
    does nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["schuss.lab.racing.preload"])
    # It imports for seconds, and Ctrl-C reaches the whole group: it must not be torn out of that. The tracker comes
    # first because its own start ends with SIGINT let through. What a killed race leaves it clears up in silence.
    sys.warnoptions.append("ignore:resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _without_main() -> Generator[None]:
    """Start a process that does not run the user's script again, as Python would have it do.

    What workers need is sent to them by value, so a script that races needs no `if __name__ == "__main__":`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(device: int | None) -> None:
    """Set up a worker: Ctrl-C is the parent's to answer, and without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError):  # the server blocked it; a child of this process may want it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    lead()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive_not, args=(parent.sentinel,), daemon=True).start()


def _outlive_not(sentinel: int) -> None:
    wait([sentinel])
    end(os.getpid(), itself=False)
    os._exit(1)


class Cluster(Executor):
    """A Dask cluster whose workers say which code they have before they get work, and whose silence is an error."""

    def __init__(self, client: Any) -> None:
        """Of this `distributed.Client`."""
        self.client = client
        # Every result matters once, and a run that was sent twice gives the same: nothing is remembered between calls.
        self._executor: Executor = client.get_executor(pure=False, retries=0)
        address = getattr(client.scheduler, "address", "the scheduler")
        self._name = f"the Dask cluster at {address}"
        self._silent_since: float | None = None
        self._version, self._known = "", set[str]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give work to the cluster."""
        if self.client.status == "closed":
            raise self._gone("its scheduler does not answer")
        try:
            return self._executor.submit(fn, *args, **kwargs)
        except Exception as error:  # Dask's own, of a client that is being closed
            raise self._gone(f"it takes no more work ({error})") from error

    def _gone(self, why: str) -> ExecutorError:
        return ExecutorError(f"T{self._name[1:]} is gone: {why}. {RESUME}")

    def verify(self, version: str) -> None:
        """Refuse a cluster of which a worker has other code than this process, or none."""
        self._version = version
        self._known = self._compare(None)

    def _compare(self, new: list[str] | None) -> set[str]:
        """Ask these workers, or all, for their code; return which were asked."""
        answers: dict[str, Any] = self.client.run(_by_value(_which_code), workers=new, on_error="return")
        # A new one that came and went again gives an error for an answer; its work goes to another.
        said = {worker: a for worker, a in answers.items() if new is None or isinstance(a, str)}
        other = {worker: answer for worker, answer in said.items() if answer != self._version}
        if other:
            worker, answer = next(iter(other.items()))
            many = f"{len(other)} of the {len(said)} workers asked have" if len(other) > 1 else "a worker has"
            raise ExecutorError(
                f"In {self._name}, {many} other code than this process ({self._version}): {worker} says "
                f"{str(answer)!r}. Numbers of two versions cannot be mixed: install the same schuss, torch, numpy and "
                "numba there, and start its workers again."
            )
        return set(answers)

    def watch(self) -> None:
        """Raise `ExecutorError` if the scheduler or every worker is gone for too long, or a new one has other code."""
        if self.client.status != "running":
            missing = "its scheduler does not answer"
        elif not (workers := set(self.client.scheduler_info()["workers"])):
            missing = "it has no workers"
        else:
            self._silent_since = None
            if new := workers - self._known:
                self._known |= new
                self._compare(list(new))
            return
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since >= PATIENCE or self.client.status == "closed":
            raise self._gone(missing)


def _which_code() -> str:
    """Runs on a worker that may not have schuss at all, so it names nothing of this module."""
    try:
        from schuss.lab.racing.version import code_version

        return code_version()
    except BaseException as error:
        import sys

        return f"{type(error).__name__}: {error} (Python {sys.version.split()[0]}, {sys.executable})"


def _by_value(function: Any) -> Any:
    """The same function in a form that is sent whole, not by its name."""
    alone = FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    alone.__module__ = "__main__"
    return alone


def adopt(executor: Executor) -> Executor:
    """Dask's own executor as a `Cluster`; any other as it is."""
    if type(executor).__module__.partition(".")[0] == "distributed":
        return Cluster(executor._client)  # type: ignore[attr-defined]
    return executor


@contextmanager
def dask(address: str) -> Generator[tuple[Executor, int]]:
    """A running Dask cluster as an executor, and how many threads its workers have."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask. Try: pip install 'schuss[dask]'") from error
    try:
        client: Any = Client(address, timeout=f"{PATIENCE}s")
    except (OSError, ValueError, TimeoutError) as error:
        raise refusal("scheduler", address, "a Dask scheduler that answers", f"It said: {error}") from error
    workers = sum(client.ncores().values())
    if workers == 0:
        client.close()
        raise refusal("scheduler", address, "a cluster with workers", "Start one: dask worker " + address)
    try:
        yield Cluster(client), workers
    finally:
        client.close()
