"""Race optimizers on tasks: the protocol from the first look at a task to the report."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy
import torch

import schuss
from schuss.errors import refusal, unknown, whole
from schuss.lab.entries import DEFAULT, Entry, find, wrap
from schuss.lab.files import UserCode
from schuss.lab.racing import assemble, curvature
from schuss.lab.racing.budget import Budget
from schuss.lab.racing.budget import budget as budget_of
from schuss.lab.racing.engine import Job, execute
from schuss.lab.racing.executors import Cluster, LocalProcesses, adopt, start_server
from schuss.lab.racing.limits import Limits
from schuss.lab.racing.plan import Contestant, Plan, Run, Stage, cross, renamed
from schuss.lab.racing.preflight import Facts, code_version, preflight
from schuss.lab.racing.processes import WATCHES_MEMORY
from schuss.lab.racing.ranges import search_spaces
from schuss.lab.racing.report import Report
from schuss.lab.racing.store import Store, StoreError
from schuss.lab.racing.work import Package, Source, calibrate_entry, train_run
from schuss.lab.schedules import check
from schuss.lab.tasks import Found
from schuss.lab.tasks import find as find_task
from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import check_applies
from schuss.machine import cores, processor


class Watcher(Protocol):
    """Whoever wants to see a race go by. `expected` counts the runs that are still to be done.

    One that also has `planned(words)` is told what a run may use.
    """

    def began(self, folder: Path) -> None:
        """The race is kept in this folder."""

    def stage(self, name: str, expected: int, known: int) -> None:
        """A stage begins."""

    def finished(self, task: str, run: Run, result: Mapping[str, Any]) -> None:
        """A run has ended."""


class _Nobody:
    def began(self, folder: Path) -> None:
        pass

    def stage(self, name: str, expected: int, known: int) -> None:
        pass

    def finished(self, task: str, run: Run, result: Mapping[str, Any]) -> None:
        pass


def race(
    task: str | Path | Task | Sequence[str | Path | Task],
    entries: Sequence[str | Entry | type] | None = None,
    budget: str | int | Budget = "default",
    *,
    schedules: Sequence[str] = ("constant",),
    batch_sizes: Sequence[int | str] = (),
    out: str | Path | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
    seed: int = 0,
    rank_by: assemble.RankBy = "metric",
    device: str = "cpu",
    data: str | Path | None = None,
    watcher: Watcher | None = None,
    diagnose: bool = False,
    retry_crashed: bool = False,
    run_minutes: float | None = None,
    run_memory: float | None = None,
) -> Report:
    """Race entries on one or several tasks and return the report; resume the race in `out`, if there is one.

    | argument      | meaning                                                                               |
    | `task`        | a name ("digits", "quadratic:kappa=100"), a file of your own, a `Task`, or a list     |
    | `entries`     | names, `file.py:name`, `Entry` objects or optimizer classes; the usual ones if None   |
    | `budget`      | "quick", "default", "careful", a number of trials per entry, or a `Budget`            |
    | `schedules`   | every entry is raced with each of them                                                |
    | `batch_sizes` | and at each of these; "full" is the whole training split                              |
    | `out`         | the folder of the race; `runs/TASK` if None                                           |
    | `executor`    | any `concurrent.futures.Executor`; local processes if None                            |
    | `workers`     | runs at a time; the usable cores if None                                              |
    | `seed`        | races with different seeds share no seed                                              |
    | `rank_by`     | "metric" at the horizon, or the cost to the target on one of the four axes            |
    | `device`      | "cpu" or "cuda" (one worker for each GPU)                                             |
    | `data`        | handed to a built-in task that reads files                                            |
    | `diagnose`    | measure the curvature along each winner's run, and report it with the verdict         |
    | `retry_crashed` | run again what crashed in an earlier race in `out`; else it stays crashed           |
    | `run_minutes` | a run that takes longer is stopped and counts as crashed; by default 30 times what is |
    |               | expected of it, at least 10 minutes                                                   |
    | `run_memory`  | GiB that a run's process and its children may use (Linux; local processes only);      |
    |               | by default four fifths of the machine's memory, divided by the workers                |

    The report is the same whatever the executor, the number of workers or the number of interruptions, but for runs
    that were stopped. Local processes are killed at their limit; elsewhere a run ends itself before its next step.
    Raises `ValueError` for what cannot be raced, `TypeError` for what cannot be sent to a worker, `StoreError` for a
    folder that cannot be used, `ExecutorError` for workers that do not work.
    """
    _check(task, rank_by, device, entries, schedules, batch_sizes, executor)
    if workers is not None:
        workers = whole("workers", workers, 1)
    Limits.of(run_minutes, run_memory, 0.0, 1)
    given = [task] if isinstance(task, str | Path | Task) else list(task)
    if not given:
        raise refusal("task", given, "at least one task")
    if executor is None:
        start_server()
    preset, spending = budget_of(budget)
    racing = _entries(entries)
    names = [check(name) for name in schedules] or ["constant"]
    words = _words(entries, budget, schedules, batch_sizes, seed, rank_by, data, device)
    lanes = [
        _Lane.of(each, racing, names, list(batch_sizes), spending, seed, rank_by, device, data, words)
        for each in given
    ]
    if len({lane.task.name for lane in lanes}) < len(lanes):
        raise refusal("task", [lane.task.name for lane in lanes], "a list of different tasks")
    UserCode.merged([lane.package.code for lane in lanes])
    folder = Path(out) if out is not None else Path("runs") / folder_name(lane.task.name for lane in lanes)
    words += _own_words(out, run_minutes, run_memory)
    began = time.perf_counter()
    with Store(folder) as store:
        _open(store, lanes, retry_crashed)
        watched = watcher or _Nobody()
        watched.began(folder)
        before = store.seconds()
        hands, capacity = _hands(executor, workers, device)
        _limit(
            lanes,
            hands,
            Limits.of(run_minutes, run_memory, max(lane.facts.seconds for lane in lanes), capacity),
        )
        told: Any = getattr(watched, "planned", None)
        if told is not None:
            told(_limits_in_words(lanes[0].limits, hands))
        report = partial(_report, lanes, store, preset, spending, seed, words)
        complete = False
        try:
            _drive(lanes, store, hands, capacity, watched)
            complete = True
            if diagnose:
                watched.stage("diagnose", len(lanes), 0)
                curvature.look_into(lanes, report(0.0, False).data["tasks"], store)
        finally:
            if executor is None and isinstance(hands, LocalProcesses):
                hands.shutdown() if complete else hands.kill()
            seconds = before + time.perf_counter() - began
            found = report(seconds, diagnose)
            # Where something has stopped the race, that is what is to be said.
            with nullcontext() if complete else suppress(StoreError):
                store.write_note("seconds", repr(seconds))
                found.save(folder)
    return found


def _check(
    task: object,
    rank_by: str,
    device: str,
    entries: object,
    schedules: object,
    batch_sizes: object,
    executor: object,
) -> None:
    """Refuse what no task has to be built for."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        advice = "None races in local processes."
        raise refusal("executor", executor, "a concurrent.futures.Executor or None", advice)
    if not isinstance(task, str | Path | Task | Iterable):
        advice = "Give a name, a file, a schuss.lab.Task, or a list of them."
        raise refusal("task", task, "a task", advice)
    if rank_by not in ("metric", *assemble.AXES):
        raise refusal("rank_by", rank_by, f"one of {', '.join(('metric', *assemble.AXES))}")
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ("cpu", "cuda"))
    for name, value in (("entries", entries), ("schedules", schedules), ("batch_sizes", batch_sizes)):
        if isinstance(value, str) or not isinstance(value, Sequence | None):
            raise refusal(name, value, "a list", f"Try {name}=[{value!r}].")


def _own_words(out: str | Path | None, run_minutes: float | None, run_memory: float | None) -> str:
    """What of the command says where and within which limits, and nothing of the result."""
    words = "" if out is None else f" --out {shlex.quote(str(out))}"
    for name, value in (("run-minutes", run_minutes), ("run-memory", run_memory)):
        words += "" if value is None else f" --{name} {value:g}"
    return words


def _hands(executor: Executor | None, workers: int | None, device: str) -> tuple[Executor, int]:
    """What does the work, and how many runs at a time."""
    if executor is None:
        own = LocalProcesses(_workers(workers, device), gpus=device == "cuda")
        return own, own.workers
    hands = adopt(executor)
    if isinstance(hands, Cluster):
        hands.verify(code_version())
    if isinstance(hands, LocalProcesses):
        return hands, hands.workers
    return hands, workers or cores()


def _open(store: Store, lanes: Sequence[_Lane], retry_crashed: bool) -> None:
    """Make sure that what the store holds is of these tasks and this code."""
    if retry_crashed:
        store.forget_crashed()
    for lane in lanes:
        store.guard(lane.task.name, lane.facts.fingerprint, code_version(), lane.facts.parts)


def _limit(lanes: Sequence[_Lane], hands: Executor, limits: Limits) -> None:
    for lane in lanes:
        lane.limits = limits
    if isinstance(hands, LocalProcesses):
        hands.limits = limits


def _limits_in_words(limits: Limits, executor: Executor) -> str:
    time_alone = Limits(limits.seconds)
    if not isinstance(executor, LocalProcesses):
        return f"Each run may use {time_alone} (--run-minutes), checked between its steps; memory is not watched here."
    if not WATCHES_MEMORY:
        return f"Each run may use {time_alone} (--run-minutes); memory is watched on Linux only."
    return f"Each run may use {limits} (--run-minutes, --run-memory); one that uses more is stopped."


def folder_name(tasks: Iterable[str]) -> str:
    """What the folder of a race is called: one name, whatever stands in those of its tasks.

    >>> folder_name(["digits", "text"]), folder_name(["../escaped"])
    ('digits+text', '_escaped-b6a1')
    """
    name = "+".join(tasks)
    plain = re.sub(r'[/\\<>:"|?*\x00-\x1f\x7f]+', "_", name).strip(" .")[:100].lstrip(".") or "_"
    if plain == name:
        return name
    # Two names may become one; each keeps a folder of its own.
    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=2).hexdigest()}"


def repeat_run(
    spec: str,
    entries: Sequence[str] | None,
    data: Path | None,
    work: Mapping[str, Any],
    device: str = "cpu",
) -> Generator[tuple[int, dict[str, Any]]]:
    """Run again what a report's command names, here; the same numbers, for one seed or each of several."""
    missing = {"entry", "schedule", "batch_size", "parameters", "seed", "open_test"} - set(work)
    if missing:
        raise refusal("run", dict(work), f"complete: {', '.join(sorted(missing))} is missing")
    racing = _entries(entries)
    known = {entry.name for entry in racing}
    if work["entry"] not in known:
        racing = [*racing, find(work["entry"])]
    found = find_task(spec, data)
    package = Package.of(_source(found, data), racing, found.code)
    seeds = work["seed"] if isinstance(work["seed"], list) else [work["seed"]]
    for seed in cast("list[int]", seeds):
        yield seed, train_run(package, {**work, "seed": seed, "device": work.get("device", device)})


@dataclass
class _Lane:
    """One task on its way through the protocol."""

    task: Task
    spec: str
    facts: Facts
    plan: Plan
    stages: Generator[Stage, Mapping[str, Any]]
    package: Package
    rank_by: assemble.RankBy
    device: str
    command: str
    stage: Stage | None = None
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(
        cls,
        given: str | Path | Task,
        entries: list[Entry],
        schedules: list[str],
        batch_sizes: list[int | str],
        spending: Budget,
        seed: int,
        rank_by: assemble.RankBy,
        device: str,
        data: str | Path | None,
        words: str,
    ) -> _Lane:
        found = find_task(given, data)
        task, package = found.task, Package.of(_source(found, data), entries, found.code)
        facts = preflight(task, found.files)
        check_applies(task, entries)
        sizes = _batch_sizes(task, batch_sizes)
        contestants = cross(entries, schedules, sizes, search_spaces(task, entries, sizes))
        plan = Plan(facts.fingerprint, task.best, contestants, spending, spending.seeds(seed))
        command = f"schuss race {shlex.quote(found.spec)}{words}"
        return cls(task, found.spec, facts, plan, plan.stages(), package, rank_by, device, command)

    def advance(self, results: Mapping[str, Any] | None) -> bool:
        """Go on to the next stage; False after the last."""
        try:
            self.stage = next(self.stages) if results is None else self.stages.send(results)
        except StopIteration:
            self.stage = None
        return self.stage is not None

    def job(self, run: Run) -> Job:
        contestant = run.contestant
        again = assemble.run_again(contestant, run.configuration.parameters, run.seed, run.stage == "report")
        work = again | {"device": self.device, "seconds": self.limits.seconds}
        return Job(run.id, train_run, self.package, work)


def _drive(lanes: Sequence[_Lane], store: Store, executor: Executor, capacity: int, watcher: Watcher) -> None:
    """All tasks through all stages, side by side; results go to the store as they come."""
    results: dict[str, dict[str, Any]] = store.results()
    going = [lane for lane in lanes if lane.advance(None)]
    while going:
        owner = {run.id: (lane, run) for lane in going if lane.stage for run in lane.stage.runs}
        todo = [lane.job(run) for id, (lane, run) in owner.items() if id not in results]
        name = next(lane.stage.name for lane in going if lane.stage)
        # A task whose range was widened comes later to its report than one whose was not.
        _calibrate([lane for lane in going if lane.stage and lane.stage.name == "report"], store, executor)
        watcher.stage(name, len(todo), len(owner) - len(todo))

        def done(job: Job, result: dict[str, Any], owner: Mapping[str, tuple[_Lane, Run]] = owner) -> None:
            lane, run = owner[job.id]
            store.save(job.id, lane.task.name, result)
            results[job.id] = result
            watcher.finished(lane.task.name, run, result)

        execute(todo, executor, capacity, done)
        going = [lane for lane in going if lane.advance(results)]


def _calibrate(lanes: Sequence[_Lane], store: Store, executor: Executor) -> None:
    """Time each contestant's step, one at a time: nothing else runs."""
    for lane in lanes:
        for configuration in lane.plan.chosen.values():
            id = assemble.calibration_id(lane.plan.fingerprint, configuration)
            if store.calibration(id) is None:
                contestant = configuration.contestant
                seed = lane.plan.seeds["tune"][0]
                work = {
                    "entry": contestant.entry.name,
                    "batch_size": contestant.batch_size,
                    "parameters": configuration.parameters,
                    "seed": seed,
                    "device": lane.device,
                }
                job = Job(id, calibrate_entry, lane.package, work)
                execute(
                    [job],
                    executor,
                    1,
                    lambda job, result: store.save_calibration(job.id, _calibrated(result)),
                )


def _calibrated(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A calibration that killed its worker, or was stopped, leaves the step unmeasured; the race goes on."""
    if "step" in result:
        return result
    return {"step": {"seconds": None}, "bytes_per_weight": None, "error": result["error"]}


def _report(
    lanes: Sequence[_Lane],
    store: Store,
    preset: str,
    spending: Budget,
    seed: int,
    words: str,
    seconds: float,
    diagnose: bool,
) -> Report:
    results = store.results()
    tasks: list[Any] = []
    for lane in lanes:
        calibrations = {
            name: found
            for name, configuration in lane.plan.chosen.items()
            if (found := store.calibration(assemble.calibration_id(lane.plan.fingerprint, configuration)))
        }
        raced = assemble.Raced(
            *(lane.task, lane.spec, lane.facts, lane.plan, results, calibrations, lane.rank_by, lane.command)
        )
        tasks.append(assemble.task_report(raced))
    if diagnose:
        curvature.attach(lanes, tasks, store)
    data: dict[str, Any] = {
        "format": "schuss-race-report",
        "version": 1,
        "schuss": schuss.__version__,
        "title": f"The race on {', '.join(lane.task.name for lane in lanes)}",
        "command": f"schuss race {shlex.quote(','.join(lane.spec for lane in lanes))}{words}{' --diagnose' * diagnose}",
        "preset": preset,
        "trials": spending.trials,
        "seeds": spending.seeds(seed),
        "tasks": tasks,
        "profiles": assemble.profiles(tasks),
        "machine": machine(),
        "complete": all(lane.plan.complete for lane in lanes),
        "seconds": seconds,
    }
    contestants: dict[tuple[str, str], Contestant] = {
        (lane.task.name, contestant.name): contestant
        for lane in lanes
        for contestant in lane.plan.contestants
    }
    return Report(data, contestants)


def machine() -> dict[str, Any]:
    """Where this is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _source(found: Found, data: str | Path | None) -> Source:
    """Where workers get a task from."""
    if not found.built_in:
        return Source(found.spec, task=found.task)
    return Source(found.spec, None if data is None else str(Path(data).resolve()))


def _entries(given: Sequence[str | Entry | type] | None) -> list[Entry]:
    found = list(DEFAULT) if given is None else list(given)
    if not found:
        raise refusal("entries", found, "at least one entry")
    return renamed([_entry(each) for each in found])


def _entry(given: Any) -> Entry:
    if isinstance(given, Entry):
        return given
    if isinstance(given, str):
        return find(given)
    if not callable(given):
        raise refusal("entry", given, "a name, file.py:name, an Entry or an optimizer class")
    return wrap(getattr(given, "__name__", "own"), given)


def _batch_sizes(task: Task, given: Sequence[int | str]) -> list[int]:
    if not given:
        return [task.batch_size]
    rows = task.length("train")
    if rows is None:
        raise refusal(
            "batch_sizes", list(given), "possible here", f"The data of {task.name!r} has no length."
        )
    sizes: list[int] = []
    for size in given:
        text = str(size).strip()
        number = rows if text == "full" else int(text) if text.isdecimal() else 0
        if not 1 <= number <= rows:
            raise refusal(
                "batch_size",
                size,
                f"a whole number in 1 .. {rows}, or 'full'",
                f"{task.name!r} has {rows} training examples.",
            )
        sizes.append(number)
    return list(dict.fromkeys(sizes))


def _workers(given: int | None, device: str) -> int:
    if device == "cuda":
        there = torch.cuda.device_count()
        if there == 0:
            raise refusal("device", device, "usable here", "torch sees no GPU.")
        return min(given or there, there)
    return given or cores()


def _words(
    entries: Sequence[Any] | None,
    budget: str | int | Budget,
    schedules: Sequence[str],
    batch_sizes: Sequence[Any],
    seed: int,
    rank_by: str,
    data: str | Path | None,
    device: str,
) -> str:
    """The options of the command line that say the same, quoted for a shell."""
    words: list[str] = []
    if data is not None:
        words += ["--data", str(data)]
    if entries is not None:
        words += [
            "--entries",
            ",".join(each if isinstance(each, str) else _entry(each).name for each in entries),
        ]
    if isinstance(budget, Budget):
        words += ["--trials", str(budget.trials)]
    else:
        words += ["--preset", budget] if isinstance(budget, str) else ["--trials", str(budget)]
    if tuple(schedules) != ("constant",):
        words += ["--schedules", ",".join(schedules)]
    if batch_sizes:
        words += ["--batch-sizes", ",".join(map(str, batch_sizes))]
    if seed:
        words += ["--seed", str(seed)]
    if rank_by != "metric":
        words += ["--rank-by", rank_by]
    if device != "cpu":
        words += ["--device", device]
    return "".join(f" {shlex.quote(word)}" for word in words)
