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

from schuss.lab.racing.executors import RESUME, TICK, ExecutorError, OverLimitError
from schuss.lab.racing.version import code_version
from schuss.lab.racing.work import Package, stopped
from schuss.lab.training.run import Outcome, plain

TRIES = 2  # a run that raises is tried once more
DEATHS = 5  # a worker may die of many things; the run it held is to blame only if it happens every time


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
    """Do all jobs, at most `capacity` of them at a time, and hand on each result once, in this thread.

    An executor that has `watch()` is asked to look after its workers meanwhile.
    """
    waiting, running = deque(jobs), dict[Future[dict[str, Any]], Job]()
    tries, deaths, alive = Counter[str](), Counter[str](), False
    watch: Callable[[], None] | None = getattr(executor, "watch", None)
    try:
        while waiting or running:
            while waiting and len(running) < capacity:
                job = waiting.popleft()
                running[_submit(executor, job.do, job.package, job.work)] = job
            ended, _ = wait(running, timeout=TICK if watch else None, return_when=FIRST_COMPLETED)
            if watch is not None:
                watch()
            for future in ended:
                job = running.pop(future)
                result, died = _result(future)
                (deaths if died else tries)[job.id] += 1
                alive = alive or not died
                if not alive and deaths.total() >= DEATHS * capacity:
                    _check_lives(executor, result["error"])
                    alive = True  # so it is the work that kills
                again = deaths[job.id] < DEATHS if died else tries[job.id] < TRIES
                if result.get("status") == "crashed" and again and not result.get("stopped"):
                    waiting.appendleft(job)
                else:
                    done(job, result)
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Executor, do: Callable[..., Any], *arguments: Any) -> Future[Any]:
    try:
        return executor.submit(do, *arguments)
    except ExecutorError:
        raise
    except RuntimeError as error:
        raise ExecutorError(f"The executor takes no more work: {error}. {RESUME}") from error


def _check_lives(executor: Executor, last: str) -> None:
    """Raise if a worker dies over a piece of work that can harm nobody."""
    result, died = _result(_submit(executor, code_version))
    if died:
        raise ExecutorError(
            f"Every worker ended before it finished a run: {result['error']}. The last run said: {last}. {RESUME}"
        )


def _result(future: Future[Any]) -> tuple[dict[str, Any], bool]:
    """What came back, and whether the worker died over it."""
    try:
        return future.result(), False
    except OverLimitError as error:
        return stopped(str(error)), False
    except ExecutorError:
        raise
    except (Exception, SystemExit) as error:
        # Dask's name for "this work was there when its workers died" is not imported here.
        died = isinstance(error, BrokenExecutor | CancelledError) or type(error).__name__ == "KilledWorker"
        words = f"The worker did not answer: {type(error).__name__}: {error}"
        return plain(Outcome(status="crashed", error=words)), died
