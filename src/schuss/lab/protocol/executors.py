"""Who does the work: local processes by default, or anything that is a `concurrent.futures.Executor`."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

from schuss.errors import refusal

PATIENCE = "10s"  # with a scheduler that may be busy


class LocalProcesses(Executor):
    """Processes on this machine, one run each at a time; one that dies takes no other with it.

    Each is a pool of one, so that it is known which work a dead one held. A dead one is replaced; its
    future raises `BrokenProcessPool`. With `gpus`, worker i sees device i alone.
    """

    def __init__(self, workers: int, gpus: bool = False) -> None:
        """Prepare the processes; they start with their first work."""
        if workers < 1:
            raise refusal("workers", workers, "at least 1")
        self.workers = workers
        self._context = start_server()
        self._gpus = gpus
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._pools = [self._pool(lane) for lane in range(workers)]
        for lane in range(workers):
            self._free.put(lane)

    def _pool(self, lane: int) -> ProcessPoolExecutor:
        device = lane if self._gpus else None
        return ProcessPoolExecutor(1, self._context, initializer=_begin, initargs=(device,))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give work to a free process; waits until there is one."""
        lane = self._free.get()
        with _without_main():
            try:
                future = self._pools[lane].submit(fn, *args, **kwargs)
            except BrokenProcessPool:  # it died idle
                self._pools[lane] = self._pool(lane)
                future = self._pools[lane].submit(fn, *args, **kwargs)

        def give_back(done: Future[Any]) -> None:
            if not done.cancelled() and isinstance(done.exception(), BrokenProcessPool):
                self._pools[lane].shutdown(wait=False)
                self._pools[lane] = self._pool(lane)
            self._free.put(lane)

        future.add_done_callback(give_back)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the processes end."""
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        """End the processes now, whatever they are doing."""
        for pool in self._pools:
            for process in list((pool._processes or {}).values()):  # pyright: ignore[reportPrivateUsage]
                process.kill()
        self.shutdown(wait=True, cancel_futures=True)


def start_server() -> Any:
    """The way workers are started: forked from a server that has imported all they need, where there is fork.

    The server starts at once and imports on a core of its own, while the caller goes on; calling this again
    does nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["schuss.lab.protocol.ready"])
    forkserver.ensure_running()
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
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive_not, args=(parent.sentinel,), daemon=True).start()


def _outlive_not(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@contextmanager
def dask(address: str) -> Generator[tuple[Executor, int]]:
    """A running Dask cluster as an executor, and how many threads its workers have."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask. Try: pip install 'schuss[dask]'") from error
    try:
        client: Any = Client(address, timeout=PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise refusal("scheduler", address, "a Dask scheduler that answers", f"It said: {error}") from error
    workers = sum(client.ncores().values())
    if workers == 0:
        client.close()
        raise refusal("scheduler", address, "a cluster with workers", "Start one: dask worker " + address)
    # Every result matters once, and a run that was sent twice gives the same: nothing is remembered between
    # calls.
    try:
        yield client.get_executor(pure=False, retries=0), workers
    finally:
        client.close()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
