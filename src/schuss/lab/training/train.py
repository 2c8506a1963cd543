"""Train a model from one seed over the whole horizon, with an optimizer of any kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

import torch

from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import CurvedRun
from schuss.lab.training.run import Build, ClosureIgnoredError, Outcome, Running, weights
from schuss.newton.base import CurvatureOptimizer

TIMED, PATIENCE = 200, 3.0  # steps, seconds: of a calibration

T = TypeVar("T")


def train(
    task: Task,
    build: Build,
    seed: int,
    *,
    schedule: Callable[[int], float] | None = None,
    batch_size: int | None = None,
    open_test: bool = False,
    device: str = "cpu",
) -> Outcome:
    """Train the task's model with the optimizer that `build` makes, and return its curve.

    `schedule(n)` is the learning rate after n finished gradients; without one the optimizer keeps its own.
    The test split is touched only if `open_test`. A run whose loss stops being finite, or stays above its
    start for a fifth of the horizon, ends there as diverged: that is a result, not an error.
    """
    began = time.perf_counter()
    run, outcome = _from_the_start(
        lambda run: run.through(), task, build, seed, schedule, batch_size, torch.device(device)
    )
    if open_test and outcome.status == "finished":
        outcome.test = run.measure("test", whole=True)
    outcome.seconds = time.perf_counter() - began
    return outcome


def calibrate(
    task: Task, build: Build, seed: int, batch_size: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Time `TIMED` steps after `UNTIMED` ones, without evaluations; fewer if they outlast `PATIENCE`.

    Returns the median step in seconds, and the bytes of state per weight.
    """

    def time_steps(run: Running) -> list[float]:
        times: list[float] = []
        began = time.perf_counter()
        for count in range(run.untimed + TIMED):
            start = time.perf_counter()
            run.step(watch=False)
            if device != "cpu":
                torch.cuda.synchronize()
            if count >= run.untimed:
                times.append(time.perf_counter() - start)
            if times and (run.at_rest or time.perf_counter() - began > PATIENCE):
                break
        return times

    run, times = _from_the_start(time_steps, task, build, seed, None, batch_size, torch.device(device))
    state = run.state_bytes() / max(1, weights(run.model))
    return {"step": {"seconds": median(times)}, "bytes_per_weight": state}


def _from_the_start(do: Callable[[Running], T], *given: Any) -> tuple[Running, T]:
    """Do this with a fresh run; again from its start where the first step shows that it must be run otherwise."""
    run = _fresh(*given)
    try:
        return run, do(run)
    except ClosureIgnoredError:
        run = _fresh(*given)
        run.calls_closure = False
        return run, do(run)


def _fresh(*given: Any) -> Running:
    """A run at its start, of the kind that its optimizer needs."""
    run = Running(*given)
    return CurvedRun(*given) if isinstance(run.optimizer, CurvatureOptimizer) else run
