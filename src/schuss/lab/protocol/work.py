"""What a worker does: plain words in, plain data out.

A *package* is the task and the entries of a race, pickled once; a worker unpacks it once. A *piece of work*
is a dict of plain values. Both can go to another thread, process or machine.
"""

from __future__ import annotations

import hashlib
import random
import statistics
import threading
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from schuss.lab.entries import Entry
from schuss.lab.protocol.run import Calibration, Outcome, calibrate, plain, train
from schuss.lab.schedules import schedule
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task

# torch's generator and its number of threads belong to the process: two runs in one process would share them.
_one_at_a_time = threading.Lock()


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
    """A task's source and the entries by name, as bytes with their digest."""

    digest: str
    content: bytes

    @classmethod
    def of(cls, source: Source, entries: Sequence[Entry]) -> Package:
        """Pack what all the runs of a task need."""
        content = cloudpickle.dumps((source, {entry.name: entry for entry in entries}))
        return cls(hashlib.blake2b(content, digest_size=8).hexdigest(), content)

    def __hash__(self) -> int:
        """By content; the digest stands for it."""
        return hash(self.digest)


@lru_cache(maxsize=8)
def _unpack(package: Package) -> tuple[Task, Mapping[str, Entry]]:
    source, entries = cloudpickle.loads(package.content)
    return cast("Source", source).load(), cast("Mapping[str, Entry]", entries)


def train_run(package: Package, work: Mapping[str, Any]) -> dict[str, Any]:
    """Train as the work says: entry, schedule, batch_size, parameters, seed, open_test, device.

    Never raises for what the task or the optimizer did: a run that raised has status "crashed" and its
    traceback.
    """
    began = time.perf_counter()
    with quiet_process():
        try:
            task, entries = _unpack(package)
            build = partial(entries[work["entry"]].build, parameters=work["parameters"])
            steps = task.total_steps(work["batch_size"])
            rate = schedule(work["schedule"], work["parameters"]["lr"], steps)
            outcome = train(
                *(task, build, work["seed"]),
                schedule=rate,
                batch_size=work["batch_size"],
                open_test=work["open_test"],
                device=work["device"],
            )
        except Exception:
            seconds = time.perf_counter() - began
            return plain(Outcome(status="crashed", error=traceback.format_exc(), seconds=seconds))
    return plain(outcome)


def calibrate_entry(package: Package, work: Mapping[str, Any]) -> dict[str, Any]:
    """Time one step of an entry, alone, and weigh its state."""
    with quiet_process():
        try:
            task, entries = _unpack(package)
            build = partial(entries[work["entry"]].build, parameters=work["parameters"])
            found = calibrate(task, build, work["seed"], work["batch_size"], work["device"])
        except Exception:
            found = Calibration([], None)
    median = statistics.median(found.seconds) if found.seconds else None
    return {"step": {"seconds": median}, "bytes_per_weight": found.bytes_per_weight}


@contextmanager
def quiet_process() -> Generator[None]:
    """One thread, one run at a time; the process's generators and thread count are put back."""
    with _one_at_a_time:
        threads, states = torch.get_num_threads(), _generators()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            _put_back(states)


def _generators() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _put_back(states: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
