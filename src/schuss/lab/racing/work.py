"""What a worker does: a task, its entries and plain values in, plain data out, on any thread, process or machine."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import cloudpickle

from schuss.lab.entries import Entry
from schuss.lab.files import UserCode, install
from schuss.lab.racing.executors import RESUME, ExecutorError, over_time
from schuss.lab.racing.packing import pack
from schuss.lab.racing.version import code_version
from schuss.lab.schedules import schedule
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task
from schuss.lab.training.quiet import quiet_process
from schuss.lab.training.run import Build, Outcome, plain
from schuss.lab.training.train import calibrate, train

NOT_CALIBRATED: dict[str, Any] = {"step": {"seconds": None}, "bytes_per_weight": None}


@dataclass(frozen=True)
class Source:
    """Where a task comes from: a built-in one is made anew by the worker, any other travels whole."""

    spec: str
    data: str | None = None
    task: Task | None = None

    def load(self) -> Task:
        """The task."""
        return self.task or load(self.spec, None if self.data is None else Path(self.data))


@dataclass(frozen=True)
class Package:
    """A task's source and the entries by name, as bytes with their digest, and the code that these bytes import."""

    digest: str
    content: bytes = field(compare=False)
    code: UserCode = field(compare=False)
    version: str = field(compare=False)  # of the code that the race was begun with

    @classmethod
    def of(cls, source: Source, entries: Sequence[Entry], code: UserCode | None = None) -> Package:
        """Pack what all the runs of a task need. `code` is the task's own; the entries bring theirs.

        `TypeError` names what cannot be packed.
        """
        merged = UserCode.merged([code or UserCode(), *(entry.code for entry in entries)])
        alone = {entry.name: replace(entry, code=UserCode()) for entry in entries}
        content = pack(source, alone)
        digest = hashlib.blake2b(content + repr(merged).encode(), digest_size=8).hexdigest()
        return cls(digest, content, merged, code_version())


def train_run(package: Package, work: Mapping[str, Any]) -> dict[str, Any]:
    """Train as the work says: entry, schedule, batch_size, parameters, seed, open_test, device, seconds (at most).

    Never raises for what the task or the optimizer did: a run that raised has status "crashed" and its
    traceback.
    """
    _check_version(package)
    with quiet_process():
        began = time.perf_counter()
        try:
            task, build = _task_and_build(package, work)
            rate = schedule(work["schedule"], work["parameters"]["lr"], task.total_steps(work["batch_size"]))
            if work.get("seconds") is not None:
                rate = _until(began + work["seconds"], rate)
            outcome = train(
                *(task, build, work["seed"]),
                schedule=rate,
                batch_size=work["batch_size"],
                open_test=work["open_test"],
                device=work["device"],
            )
        except _OverTimeError:
            return stopped(over_time(work["seconds"]), time.perf_counter() - began)
        except (Exception, SystemExit) as error:
            words = traceback.format_exc()
            if isinstance(error, SystemExit):
                words += "SystemExit: the task or the optimizer called sys.exit\n"
            outcome = Outcome(status="crashed", error=words, seconds=time.perf_counter() - began)
    return plain(outcome)


def calibrate_entry(package: Package, work: Mapping[str, Any]) -> dict[str, Any]:
    """Time one step of an entry, alone, and weigh its state."""
    _check_version(package)
    with quiet_process():
        try:
            task, build = _task_and_build(package, work)
            return calibrate(task, build, work["seed"], work["batch_size"], work["device"])
        except (Exception, SystemExit):
            return NOT_CALIBRATED


def _task_and_build(package: Package, work: Mapping[str, Any]) -> tuple[Task, Build]:
    install(package.code)  # also for what is imported only while it runs
    task, entries = _unpacked(package)
    return task, partial(entries[work["entry"]].build, parameters=work["parameters"])


@lru_cache(maxsize=8)
def _unpacked(package: Package) -> tuple[Task, Mapping[str, Entry]]:
    source, entries = cloudpickle.loads(package.content)
    return cast("Source", source).load(), cast("Mapping[str, Entry]", entries)


class _OverTimeError(Exception):
    """The run has used up its time."""


def _until(end: float, rate: Callable[[int], float]) -> Callable[[int], float]:
    """A learning rate that is asked for before each step, and refuses a step after the end of the run's time."""

    def checked(n: int) -> float:
        if time.perf_counter() > end:
            raise _OverTimeError
        return rate(n)

    return checked


def stopped(why: str, seconds: float = 0.0) -> dict[str, Any]:
    """The result of a run that used more than it may: it would do so again."""
    return plain(Outcome(status="crashed", error=f"Stopped: {why}", seconds=seconds)) | {"stopped": True}


def _check_version(package: Package) -> None:
    """Refuse where this process would compute other numbers than the one that began the race."""
    own = code_version()
    if own != package.version:
        here = f"{platform.node()}, process {os.getpid()}"
        raise ExecutorError(
            f"A worker ({here}) has other code than the process that races: {own}; there {package.version}. "
            f"Install the same schuss, torch, numpy and numba on both. {RESUME}"
        )
