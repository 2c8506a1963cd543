"""What is run: every run of a stage is named before the first of them starts.

The plan is a conversation. It hands out a stage, is given all of that stage's results at once, and only
then decides on the next. Nothing in it knows who ran what, where, or in which order, so the same results
always lead to the same race.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from schuss.lab.entries import Entry
from schuss.lab.racing.budget import Budget
from schuss.lab.statistics import Range, edges, sample

StageName = Literal["tune", "confirm", "report"]
Result = Mapping[str, Any]  # as `work.train_run` returns it: plain data


@dataclass(frozen=True)
class Contestant:
    """An entry with its schedule, batch size and searched space: one line of the final table."""

    name: str
    entry: Entry
    schedule: str
    batch_size: int
    space: Mapping[str, Range]

    @property
    def identity(self) -> str:
        """What this contestant's runs depend on, in words."""
        make = self.entry.optimizer
        return repr(
            (
                *(self.name, getattr(make, "__module__", ""), getattr(make, "__qualname__", repr(make))),
                *(sorted(self.entry.fixed.items()), self.entry.source, self.schedule, self.batch_size),
            )
        )


@dataclass
class Configuration:
    """One point of a contestant's space."""

    id: str
    contestant: Contestant
    index: int
    parameters: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training run; its id is a hash of all that its result depends on."""

    id: str
    configuration: Configuration
    stage: StageName
    seed: int

    @property
    def contestant(self) -> Contestant:
        """Whose run it is."""
        return self.configuration.contestant


@dataclass(frozen=True)
class Stage:
    """Runs that may go in any order, all of them before the next stage."""

    name: StageName
    runs: Sequence[Run]


@dataclass
class Plan:
    """A race on one task, as far as it has got."""

    fingerprint: str
    best: Literal["max", "min"]
    contestants: list[Contestant]
    budget: Budget
    seeds: Mapping[str, Sequence[int]]
    configurations: dict[str, list[Configuration]] = field(default_factory=dict[str, list[Configuration]])
    runs: list[Run] = field(default_factory=list[Run])
    widened: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    limited: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    finalists: dict[str, list[Configuration]] = field(default_factory=dict[str, list[Configuration]])
    chosen: dict[str, Configuration] = field(default_factory=dict[str, Configuration])
    complete: bool = False

    def stages(self) -> Generator[Stage, Mapping[str, Result]]:
        """Tune, confirm, report. Yields a stage; is sent the results of all runs so far, by id."""
        for contestant in self.contestants:
            points = sample(contestant.space, self.budget.trials)
            self.configurations[contestant.name] = self.configure(contestant, points)
        results = yield self.stage("tune", self.configurations)
        if self.widen(results):
            results = yield self.stage("tune", self.configurations)
        for contestant in self.contestants:
            ranked = self.best_first(self.configurations[contestant.name], "tune", results)
            self.finalists[contestant.name] = ranked[: self.budget.finalists]
            if ranked:
                found = edges(ranked[0].parameters, self.space(contestant))
                self.limited[contestant.name] = sorted(
                    name for name in found if name != "lr" or contestant.entry.widens
                )
        results = yield self.stage("confirm", self.finalists)
        for name, finalists in self.finalists.items():
            confirmed = self.best_first(finalists, "confirm", results)
            if confirmed:
                self.chosen[name] = confirmed[0]
        yield self.stage("report", {name: [winner] for name, winner in self.chosen.items()})
        self.complete = True

    def stage(self, name: StageName, configurations: Mapping[str, Sequence[Configuration]]) -> Stage:
        """Name every run of a stage, seed by seed, so that whoever stops early has been fair."""
        longest = max((len(each) for each in configurations.values()), default=0)
        runs = [
            self.name_run(each[index], name, seed)
            for seed in self.seeds[name]
            for index in range(longest)
            for each in configurations.values()
            if index < len(each)
        ]
        known = {run.id for run in self.runs}
        self.runs += [run for run in runs if run.id not in known]
        return Stage(name, runs)

    def configure(
        self, contestant: Contestant, points: Sequence[dict[str, float]], first: int = 0
    ) -> list[Configuration]:
        """Name points of a space, numbered from the first."""
        return [
            Configuration(digest(contestant.identity, point), contestant, index, point)
            for index, point in enumerate(points, first)
        ]

    def name_run(self, configuration: Configuration, stage: StageName, seed: int) -> Run:
        """Name a run by all that its result depends on."""
        split = "test" if stage == "report" else "validation"
        return Run(digest(self.fingerprint, configuration.id, seed, split), configuration, stage, seed)

    def space(self, contestant: Contestant) -> dict[str, Range]:
        """The space as searched in the end: widened by a decade where the edge rule said so."""
        space = dict(contestant.space)
        for widening in self.widened.get(contestant.name, []):
            low, high, log = space["lr"]
            space["lr"] = (low / 10, high, log) if widening.endswith("low") else (low, high * 10, log)
        return space

    def widen(self, results: Mapping[str, Result]) -> bool:
        """The edge rule: a best learning rate in the outer tenth of its range earns a decade more.

        Every entry gets as many extra trials: in the new decade if it has one, else further points of its
        own space. Returns whether there are any.
        """
        for contestant in self.contestants:
            ranked = self.best_first(self.configurations[contestant.name], "tune", results)
            side = edges(ranked[0].parameters, contestant.space).get("lr") if ranked else "low"
            if side and contestant.entry.widens:
                self.widened[contestant.name] = [f"lr {side}"]
        if not self.widened:
            return False
        trials, extra = self.budget.trials, self.budget.extra
        for contestant in self.contestants:
            space = dict(contestant.space)
            low, high, log = space["lr"]
            for widening in self.widened.get(contestant.name, []):
                space["lr"] = (low / 10, low, log) if widening.endswith("low") else (high, high * 10, log)
            more = sample(space, trials + extra)[trials:]
            own = self.configurations[contestant.name]
            own += self.configure(contestant, more, first=len(own))
        return True

    def best_first(
        self, configurations: Iterable[Configuration], stage: StageName, results: Mapping[str, Result]
    ) -> list[Configuration]:
        """Configurations by mean validation metric, then loss, without those of which no run finished.

        A diverged run counts with the metric of the untrained model, which is what one is left with.
        """
        keyed: list[tuple[float, float, int, Configuration]] = []
        for configuration in configurations:
            ids = [self.name_run(configuration, stage, seed).id for seed in self.seeds[stage]]
            found = [results[id] for id in ids if id in results and results[id]["status"] != "crashed"]
            if not any(result["status"] == "finished" for result in found):
                continue
            sign = -1 if self.best == "max" else 1
            metric = sum(sign * score(result) for result in found) / len(found)
            loss = sum(score(result, "validation_loss") for result in found) / len(found)
            keyed.append((metric, loss, configuration.index, configuration))
        return [configuration for *_, configuration in sorted(keyed, key=lambda key: key[:3])]


def score(result: Result, column: str = "metric") -> float:
    """Where a run ended; where it began, if it diverged."""
    values = result["curve"][column]
    return values[-1] if result["status"] == "finished" else values[0]


def digest(*parts: object) -> str:
    """Twelve hexadecimal digits that these parts alone decide."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def cross(
    entries: Sequence[Entry],
    schedules: Sequence[str],
    batch_sizes: Sequence[int],
    spaces: Mapping[tuple[str, int], Mapping[str, Range]],
) -> list[Contestant]:
    """Every entry with every schedule and batch size, named by what sets it apart.

    `spaces` holds what is searched, by entry name and batch size.
    """
    found: list[Contestant] = []
    for entry, schedule, batch_size in product(entries, schedules, batch_sizes):
        name = entry.name
        if len(schedules) > 1 or schedule != "constant":
            name += f" + {schedule}"
        if len(batch_sizes) > 1:
            name += f", batch {batch_size}"
        found.append(Contestant(name, entry, schedule, batch_size, spaces[entry.name, batch_size]))
    return found


def renamed(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries with names that differ: a second `adam` becomes `adam (2)`."""
    seen, unique = Counter[str](), list[Entry]()
    for entry in entries:
        seen[entry.name] += 1
        again = seen[entry.name]
        unique.append(entry if again == 1 else replace(entry, name=f"{entry.name} ({again})"))
    return unique
