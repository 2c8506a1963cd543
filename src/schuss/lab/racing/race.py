"""Race optimizers on tasks: the protocol from the preflight of a task to the report."""

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
from dataclasses import dataclass
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
from schuss.lab.racing.plan import Plan, Run, Stage, cross, renamed
from schuss.lab.racing.preflight import code_version, preflight
from schuss.lab.racing.processes import WATCHES_MEMORY
from schuss.lab.racing.ranges import search_spaces
from schuss.lab.racing.report import Report
from schuss.lab.racing.store import Store, StoreError
from schuss.lab.racing.work import NOT_CALIBRATED, Package, Source, calibrate_entry, train_run
from schuss.lab.schedules import check
from schuss.lab.tasks import Found
from schuss.lab.tasks import find as find_task
from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import check_applies
from schuss.machine import cores, processor


class Watcher(Protocol):
    """Sees a race go by. `expected` counts the runs that are still to be done."""

    def began(self, folder: Path) -> None:
        """The race is stored in this folder."""

    def planned(self, words: str) -> None:
        """What a run may use, in a sentence."""

    def stage(self, name: str, expected: int, known: int) -> None:
        """A stage begins."""

    def finished(self, task: str, run: Run, result: Mapping[str, Any]) -> None:
        """A run has ended."""


class _Nobody(Watcher):
    """Sees nothing."""


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
    _check(task, rank_by, device, executor, entries=entries, schedules=schedules, batch_sizes=batch_sizes)
    if workers is not None:
        workers = whole("workers", workers, 1)
    Limits.of(run_minutes, run_memory, 0.0, 1)
    if executor is None:
        start_server()
    settings = _Settings.of(entries, budget, schedules, batch_sizes, seed, rank_by, device, data)
    given = [task] if isinstance(task, str | Path | Task) else list(task)
    races = [_TaskRace.of(each, settings) for each in given]
    names = [race.task.name for race in races]
    if len(set(names)) < len(names) or not names:
        raise refusal("task", names, "a list of different tasks" if names else "at least one task")
    UserCode.merged([race.package.code for race in races])
    folder = Path(out) if out is not None else Path("runs") / folder_name(names)
    settings.options += _options(out=out, run_minutes=run_minutes, run_memory=run_memory)
    watcher = watcher or _Nobody()
    began = time.perf_counter()
    with Store(folder) as store:
        _open(store, races, retry_crashed)
        watcher.began(folder)
        began -= store.get("seconds") or 0.0
        using, capacity = _executor(executor, workers, device)
        limits = Limits.of(run_minutes, run_memory, max(race.facts.seconds for race in races), capacity)
        if isinstance(using, LocalProcesses):
            using.limits = limits
        watcher.planned(_limits_in_words(limits, using))
        complete = False
        try:
            _drive(races, store, using, capacity, limits, watcher)
            complete = True
            if diagnose:
                watcher.stage("diagnose", len(races), 0)
                curvature.measure_winners(races, _report(races, store, settings, 0.0).data["tasks"], store)
        finally:
            if executor is None and isinstance(using, LocalProcesses):
                using.shutdown() if complete else using.kill()
            seconds = time.perf_counter() - began
            report = _report(races, store, settings, seconds, diagnose)
            # Where something has stopped the race, that is what is to be said.
            with nullcontext() if complete else suppress(StoreError):
                store.put("seconds", seconds)
                report.save(folder)
    return report


def _open(store: Store, races: Sequence[_TaskRace], retry_crashed: bool) -> None:
    """Make sure that what the store holds is of these tasks and this code."""
    if retry_crashed:
        store.forget_crashed()
    for race in races:
        store.guard(race.task.name, race.facts.fingerprint, race.facts.parts)


def _check(task: object, rank_by: str, device: str, executor: object, **lists: object) -> None:
    """Refuse what no task has to be built for."""
    if executor is not None and not callable(getattr(executor, "submit", None)):
        advice = "None races in local processes."
        raise refusal("executor", executor, "a concurrent.futures.Executor or None", advice)
    if not isinstance(task, str | Path | Task | Iterable):
        advice = "Give a name, a file, a schuss.lab.Task, or a list of them."
        raise refusal("task", task, "a task", advice)
    if rank_by not in ("metric", *assemble.AXES):
        raise unknown("rank_by", rank_by, ("metric", *assemble.AXES))
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ("cpu", "cuda"))
    for name, value in lists.items():
        if isinstance(value, str) or not isinstance(value, Sequence | None):
            raise refusal(name, value, "a list", f"Try {name}=[{value!r}].")


def _options(**given: object) -> str:
    """Options of the command line, quoted for a shell, without those that are not given."""
    words = {name: f"{x:g}" if isinstance(x, float) else str(x) for name, x in given.items() if x is not None}
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(word)}" for name, word in words.items())


def _executor(given: Executor | None, workers: int | None, device: str) -> tuple[Executor, int]:
    """What does the work, and how many runs at a time."""
    if given is None:
        most = torch.cuda.device_count() if device == "cuda" else 0
        if device == "cuda" and not most:
            raise refusal("device", device, "usable here", "torch sees no GPU.")
        workers = min(workers or most, most) if most else workers or cores()
        return LocalProcesses(workers, gpus=device == "cuda"), workers
    using = adopt(given)
    if isinstance(using, Cluster):
        using.verify(code_version())
    return using, using.workers if isinstance(using, LocalProcesses) else workers or cores()


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
    if work["entry"] not in {entry.name for entry in racing}:
        racing.append(find(work["entry"]))
    found = find_task(spec, data)
    package = Package.of(_source(found, data), racing, found.code)
    seeds = work["seed"] if isinstance(work["seed"], list) else [work["seed"]]
    for seed in cast("list[int]", seeds):
        yield seed, train_run(package, {**work, "seed": seed, "device": work.get("device", device)})


@dataclass
class _Settings:
    """What all tasks of a race share."""

    entries: list[Entry]
    preset: str
    budget: Budget
    schedules: list[str]
    batch_sizes: list[int | str]
    seed: int
    rank_by: assemble.RankBy
    device: str
    data: str | Path | None
    options: str  # of the command line, as far as they decide the result

    @classmethod
    def of(
        cls,
        entries: Sequence[str | Entry | type] | None,
        budget: str | int | Budget,
        schedules: Sequence[str],
        batch_sizes: Sequence[int | str],
        seed: int,
        rank_by: assemble.RankBy,
        device: str,
        data: str | Path | None,
    ) -> _Settings:
        preset, spent = budget_of(budget)
        named = ["constant"] if not schedules else [check(name) for name in schedules]
        names = [each if isinstance(each, str) else _entry(each).name for each in entries or ()]
        options = _options(
            data=data,
            entries=None if entries is None else ",".join(names),
            trials=None if isinstance(budget, str) else spent.trials,
            preset=budget if isinstance(budget, str) else None,
            schedules=None if tuple(schedules) == ("constant",) else ",".join(schedules) or None,
            batch_sizes=",".join(map(str, batch_sizes)) or None,
            seed=seed or None,
            rank_by=None if rank_by == "metric" else rank_by,
            device=None if device == "cpu" else device,
        )
        racing = _entries(entries)
        return cls(racing, preset, spent, named, list(batch_sizes), seed, rank_by, device, data, options)


@dataclass
class _TaskRace(assemble.TaskRace):
    """One task on its way through the protocol."""

    package: Package
    device: str
    stages: Generator[Stage, Mapping[str, Any]]
    stage: Stage | None = None

    @classmethod
    def of(cls, given: str | Path | Task, settings: _Settings) -> _TaskRace:
        found = find_task(given, settings.data)
        task, entries = found.task, settings.entries
        package = Package.of(_source(found, settings.data), entries, found.code)
        facts = preflight(task, found.files)
        check_applies(task, entries)
        sizes = _batch_sizes(task, settings.batch_sizes)
        contestants = cross(entries, settings.schedules, sizes, search_spaces(task, entries, sizes))
        seeds = settings.budget.seeds(settings.seed)
        plan = Plan(facts.fingerprint, task.best, contestants, settings.budget, seeds)
        command = f"schuss race {shlex.quote(found.spec)}{settings.options}"
        return cls(
            *(task, found.spec, facts, plan, {}, {}, settings.rank_by, command),
            *(package, settings.device, plan.stages()),
        )

    def advance(self, results: Mapping[str, Any] | None) -> bool:
        """Go on to the next stage; False after the last."""
        try:
            self.stage = next(self.stages) if results is None else self.stages.send(results)
        except StopIteration:
            self.stage = None
        return self.stage is not None

    def job(self, run: Run, seconds: float | None) -> Job:
        work = assemble.run_again(
            run.contestant, run.configuration.parameters, run.seed, run.stage == "report"
        )
        return Job(run.id, train_run, self.package, work | {"device": self.device, "seconds": seconds})

    def calibrate(self, store: Store, executor: Executor) -> None:
        """Time each contestant's step, one at a time: nothing else runs."""
        for configuration in self.plan.chosen.values():
            id = assemble.calibration_id(self.plan.fingerprint, configuration)
            if store.get(id) is not None:
                continue
            work = {
                "entry": configuration.contestant.entry.name,
                "batch_size": configuration.contestant.batch_size,
                "parameters": configuration.parameters,
                "seed": self.plan.seeds["tune"][0],
                "device": self.device,
            }
            job = Job(id, calibrate_entry, self.package, work)
            # One that killed its worker, or was stopped, leaves the step unmeasured; the race goes on.
            execute([job], executor, 1, lambda job, result: store.put(job.id, NOT_CALIBRATED | result))


def _drive(
    races: Sequence[_TaskRace],
    store: Store,
    executor: Executor,
    capacity: int,
    limits: Limits,
    watcher: Watcher,
) -> None:
    """All tasks through all stages, side by side; results go to the store as they come."""
    results: dict[str, dict[str, Any]] = store.results()
    going = [race for race in races if race.advance(None)]
    while going:
        owner = {run.id: (race, run) for race in going if race.stage for run in race.stage.runs}
        todo = [race.job(run, limits.seconds) for id, (race, run) in owner.items() if id not in results]
        name = next(race.stage.name for race in going if race.stage)
        for race in going:  # a task whose range was widened comes later to its report than one whose was not
            if race.stage and race.stage.name == "report":
                race.calibrate(store, executor)
        watcher.stage(name, len(todo), len(owner) - len(todo))

        def done(
            job: Job, result: dict[str, Any], owner: Mapping[str, tuple[_TaskRace, Run]] = owner
        ) -> None:
            race, run = owner[job.id]
            store.save(job.id, race.task.name, result)
            results[job.id] = result
            watcher.finished(race.task.name, run, result)

        execute(todo, executor, capacity, done)
        going = [race for race in going if race.advance(results)]


def _report(
    races: Sequence[_TaskRace], store: Store, settings: _Settings, seconds: float, diagnose: bool = False
) -> Report:
    results = store.results()
    for race in races:
        race.results = results
        ids = {
            name: assemble.calibration_id(race.plan.fingerprint, c) for name, c in race.plan.chosen.items()
        }
        race.calibrations = {name: found for name, id in ids.items() if (found := store.get(id))}
    tasks: list[Any] = [assemble.task_report(race) for race in races]
    if diagnose:
        curvature.attach(races, tasks, store)
    specs = shlex.quote(",".join(race.spec for race in races))
    data: dict[str, Any] = {
        "format": "schuss-race-report",
        "version": 1,
        "schuss": schuss.__version__,
        "title": f"The race on {', '.join(race.task.name for race in races)}",
        "command": f"schuss race {specs}{settings.options}{' --diagnose' * diagnose}",
        "preset": settings.preset,
        "trials": settings.budget.trials,
        "seeds": settings.budget.seeds(settings.seed),
        "tasks": tasks,
        "profiles": assemble.profiles(tasks),
        "machine": machine(),
        "complete": all(race.plan.complete for race in races),
        "seconds": seconds,
    }
    return Report(data, {(race.task.name, c.name): c for race in races for c in race.plan.contestants})


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
    if given is not None and not given:
        raise refusal("entries", list(given), "at least one entry")
    return renamed([_entry(each) for each in (DEFAULT if given is None else given)])


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
        advice = f"The data of {task.name!r} has no length."
        raise refusal("batch_sizes", list(given), "possible here", advice)
    sizes: list[int] = []
    for size in given:
        text = str(size).strip()
        number = rows if text == "full" else int(text) if text.isdecimal() else 0
        if not 1 <= number <= rows:
            advice = f"{task.name!r} has {rows} training examples."
            raise refusal("batch_size", size, f"a whole number in 1 .. {rows}, or 'full'", advice)
        sizes.append(number)
    return list(dict.fromkeys(sizes))
