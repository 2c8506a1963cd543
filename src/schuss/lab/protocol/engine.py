"""Get work done by an executor, whatever happens to its workers.

Jobs are independent and their results do not depend on who did them, so a job whose worker died is simply
given out again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from schuss.lab.protocol.run import Outcome, plain
from schuss.lab.protocol.work import Package

TRIES = 2  # a run that raises is tried once more
DEATHS = 5  # a worker may die of many things; the run it held is to blame only if it happens every time


class ExecutorError(RuntimeError):
    """The executor does no more work; what was finished is kept."""


@dataclass(frozen=True)
class Job:
    """A piece of work with a name."""

    id: str
    do: Callable[[Package, Mapping[str, Any]], dict[str, Any]]
    package: Package
    work: Mapping[str, Any]


def execute(
    jobs: Iterable[Job], executor: Executor, capacity: int, done: Callable[[Job, dict[str, Any]], None]
) -> None:
    """Do all jobs, at most `capacity` of them at a time, and hand on each result once, in this thread."""
    waiting, running = deque(jobs), dict[Future[dict[str, Any]], Job]()
    tries, deaths = Counter[str](), Counter[str]()
    try:
        while waiting or running:
            while waiting and len(running) < capacity:
                job = waiting.popleft()
                running[_submit(executor, job)] = job
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                result, died = _result(future)
                (deaths if died else tries)[job.id] += 1
                again = deaths[job.id] < DEATHS if died else tries[job.id] < TRIES
                if result.get("status") == "crashed" and again:
                    waiting.appendleft(job)
                else:
                    done(job, result)
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Executor, job: Job) -> Future[dict[str, Any]]:
    try:
        return executor.submit(job.do, job.package, job.work)
    except (BrokenExecutor, RuntimeError) as error:
        advice = "What was finished is kept; run the same race again to go on."
        raise ExecutorError(f"The executor takes no more work: {error}. {advice}") from error


def _result(future: Future[dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """What came back, and whether the worker died over it."""
    try:
        return future.result(), False
    except (BrokenExecutor, CancelledError) as error:
        return _lost(error), True
    except Exception as error:
        # Dask's name for "this work was there when its workers died".
        return _lost(error), type(error).__name__ == "KilledWorker"


def _lost(error: BaseException) -> dict[str, Any]:
    return plain(
        Outcome(status="crashed", error=f"The worker did not answer: {type(error).__name__}: {error}")
    )
