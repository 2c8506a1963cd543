"""Put a race's results together: plans and plain results in, `report.json` out.

Nothing is measured or decided here that the results do not hold, and every list has an order of its own, so
that the same results give the same text whatever order they came in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, Literal, cast

import numpy as np

from schuss.lab.racing.codegen import code
from schuss.lab.racing.plan import Configuration, Contestant, Plan, Result, Run, StageName, digest, score
from schuss.lab.racing.preflight import Facts
from schuss.lab.racing.store import CALIBRATION
from schuss.lab.report import schema
from schuss.lab.statistics import (
    Comparison,
    Ranking,
    budget_curve,
    cost_to_target,
    fixed_targets,
    lr_basin,
    mean_interval,
    median_interval,
    paired_differences,
    paired_interval,
    pairwise_profiles,
    performance_profiles,
    rank,
    time_to_target,
)
from schuss.lab.statistics.claims import claims_of
from schuss.lab.tasks.task import Task

RankBy = Literal["metric", "steps", "examples", "gradients", "seconds"]
AXES = ("steps", "examples", "gradients", "seconds")
QUANTILES = (0.5, 0.9, 1.0)
RANKING_QUANTILE = 0.9  # near the best, and yet most seeds of a good entry get there
MANY_SEEDS = 200  # more than anybody will run
LEAST_TRIALS = 5  # with fewer, a race compares the luck of tuning: it decides nothing
FRACTIONS = ("accuracy", "error rate", "auc", "f1", "precision", "recall")
UNTIMED = {"seconds": None}


@dataclass
class TaskRace:
    """All there is to say about one task: the task, its plan, and what its runs and calibrations gave."""

    task: Task
    spec: str
    facts: Facts
    plan: Plan
    results: Mapping[str, Result]
    calibrations: Mapping[str, Mapping[str, Any]]  # by contestant's name
    rank_by: RankBy
    command: str  # `schuss race SPEC ...`, as far as it names task and entries

    @property
    def lower(self) -> bool:
        """Whether a smaller metric is better."""
        return self.task.best == "min"

    @property
    def confirmed(self) -> list[Contestant]:
        """The contestants that were confirmed, and so have reporting runs."""
        return [c for c in self.plan.contestants if c.name in self.plan.chosen]

    def results_of(self, contestant: Contestant, stage: StageName) -> list[tuple[Run, Result]]:
        """A contestant's runs of a stage that have a result, by configuration and seed."""
        runs = [
            r
            for r in self.plan.runs
            if r.stage == stage and r.contestant is contestant and r.id in self.results
        ]
        return [(r, self.results[r.id]) for r in sorted(runs, key=lambda r: (r.configuration.index, r.seed))]

    def scores(self, contestant: Contestant, column: str = "metric") -> list[float]:
        """One number per reporting seed; NaN for a run that crashed or is not there."""
        found = {run.seed: _score(result, column) for run, result in self.results_of(contestant, "report")}
        return [found.get(seed, nan) for seed in self.plan.seeds["report"]]

    def tests(self, contestant: Contestant) -> list[float]:
        """The metric on the test split, one per reporting seed; NaN for a run that did not finish."""
        found = {
            run.seed: r["test"]["metric"] for run, r in self.results_of(contestant, "report") if r["test"]
        }
        return _column(found.get(seed) for seed in self.plan.seeds["report"])

    def trials(self, entry: str) -> int:
        """How many configurations of an entry were tuned; as many for every other."""
        return len(self.plan.configurations.get(entry, []))

    def calibration(self, entry: str) -> dict[str, Any]:
        """What was measured of an entry's step and state."""
        found = self.calibrations.get(entry, {})
        return {"bytes_per_weight": found.get("bytes_per_weight"), "step": found.get("step", UNTIMED)}


def task_report(race: TaskRace) -> schema.TaskReport:
    """One task's part of the report."""
    task, plan, facts = race.task, race.plan, race.facts
    targets = _targets(race)
    ranking = _ranking(race, _ranking_target(targets))
    sensitivity = {c.name: _sensitivity(race, c) for c in plan.contestants}
    steps, rows = task.total_steps(), task.length("train")
    examples = round(task.epochs * rows) if task.epochs and rows else steps * task.batch_size
    stages: tuple[StageName, ...] = ("tune", "confirm", "report")
    runs = [
        _run(race, c, run, result)
        for c in plan.contestants
        for stage in stages
        for run, result in race.results_of(c, stage)
    ]
    report: dict[str, Any] = {
        "name": task.name,
        "spec": race.spec,
        "description": task.description,
        "metric": {"name": task.metric_name, "best": task.best, "bounds": metric_bounds(race)},
        "optimum": task.optimum,
        "parameters": facts.parameters,
        "batch_size": task.batch_size,
        "horizon": {"steps": steps, "examples": examples, "gradients": steps},
        "evaluations": min(steps, 30),
        "splits": {**facts.lengths, "how": task.how},
        "fingerprint": facts.fingerprint,
        "entries": [_entry(race, c) for c in plan.contestants],
        "configurations": [
            _configuration(race, each)
            for c in plan.contestants
            for each in plan.configurations.get(c.name, [])
        ],
        "runs": runs,
        "ranking": _rows(race, ranking, _ranking_target(targets), sensitivity),
        "verdict": _verdict(race, ranking, _ranking_target(targets)),
        "budget_curves": {c.name: _budget_curve(race, c) for c in plan.contestants},
        "targets": targets,
        "sensitivity": sensitivity,
        "claims": [],
        "diverged": [_short(run) | run["divergence"] for run in runs if run["status"] == "diverged"],
        "crashed": [_short(run) | {"error": run["error"]} for run in runs if run["status"] == "crashed"],
        "settings": [_setting(race, c, plan.chosen[c.name]) for c in race.confirmed],
    }
    report["claims"] = claims_of(report)
    return cast("schema.TaskReport", report)


def _entry(race: TaskRace, contestant: Contestant) -> dict[str, Any]:
    name, space = contestant.name, race.plan.space(contestant)
    return {
        "name": name,
        "optimizer": contestant.entry.name,
        "schedule": contestant.schedule,
        "batch_size": contestant.batch_size,
        "space": {key: {"low": low, "high": high, "log": log} for key, (low, high, log) in space.items()},
        "fixed": {
            key: value if isinstance(value, float | int | bool | str) else repr(value)
            for key, value in contestant.entry.fixed.items()
        },
        "trials": race.trials(name),
        "widened": race.plan.widened.get(name, []),
        "space_limited": race.plan.limited.get(name, []),
        "parameters": race.facts.parameters,
        **race.calibration(name),
    }


def _configuration(race: TaskRace, configuration: Configuration) -> dict[str, Any]:
    contestant = configuration.contestant
    tuned, confirmed = (
        [result for run, result in race.results_of(contestant, stage) if run.configuration is configuration]
        for stage in ("tune", "confirm")
    )
    return {
        "id": configuration.id,
        "entry": contestant.name,
        "index": configuration.index,
        "parameters": configuration.parameters,
        "tune": next((score(result) for result in tuned if result["status"] == "finished"), None),
        "confirm": _spread([_score(result) for result in confirmed]) if confirmed else None,
        "chosen": race.plan.chosen.get(contestant.name) is configuration,
    }


def _run(race: TaskRace, contestant: Contestant, run: Run, result: Result) -> dict[str, Any]:
    curve, finished = result["curve"], result["status"] == "finished"
    work = run_again(contestant, run.configuration.parameters, run.seed, run.stage == "report")
    return {
        "id": run.id,
        "entry": contestant.name,
        "configuration": run.configuration.id,
        "stage": run.stage,
        "seed": run.seed,
        "status": result["status"],
        "parameters": run.configuration.parameters,
        **{name: curve[name][-1] if curve[name] else 0 for name in ("steps", "examples", "gradients")},
        **{
            name: curve[name][-1] if finished else None
            for name in ("train_loss", "validation_loss", "metric")
        },
        "test": result["test"] if run.stage == "report" else None,
        "curve": curve,
        "divergence": result["divergence"],
        "error": result["error"],
        "command": _command(race, work),
        "seconds": result["seconds"],
    }


def run_again(
    contestant: Contestant, parameters: Mapping[str, float], seed: int, test: bool
) -> dict[str, Any]:
    """A run as the arguments that `--run` takes."""
    return {
        "entry": contestant.entry.name,
        "schedule": contestant.schedule,
        "batch_size": contestant.batch_size,
        "parameters": dict(parameters),
        "seed": seed,
        "open_test": test,
    }


def _command(race: TaskRace, work: Mapping[str, Any]) -> str:
    return f"{race.command} --run {shlex.quote(json.dumps(work))}"


def _score(result: Result, column: str = "metric") -> float:
    return nan if result["status"] == "crashed" else score(result, column)


def _targets(race: TaskRace) -> list[dict[str, Any]]:
    """Fixed from what was confirmed, before any reporting seed ran."""
    starts, bests = list[float](), dict[str, list[float]]()
    for contestant in race.confirmed:
        chosen = race.plan.chosen[contestant.name]
        confirmed = [r for run, r in race.results_of(contestant, "confirm") if run.configuration is chosen]
        curves = [result["curve"]["metric"] for result in confirmed if result["status"] != "crashed"]
        starts += [curve[0] for curve in curves]
        if curves:
            best = min if race.lower else max
            bests[contestant.name] = [best(x for x in curve if x is not None) for curve in curves]
    if not starts:
        return []
    values = fixed_targets(float(np.mean(starts)), bests, lower_is_better=race.lower, quantiles=QUANTILES)
    return [
        {
            "q": q,
            "value": value,
            "ranking": q == RANKING_QUANTILE,
            "entries": {c.name: _to_target(race, c, value) for c in race.confirmed},
        }
        for q, value in zip(QUANTILES, values, strict=False)
    ]


def _to_target(race: TaskRace, contestant: Contestant, target: float) -> dict[str, Any]:
    times: dict[str, list[float]] = {axis: [] for axis in AXES}
    spent: dict[str, list[float]] = {axis: [] for axis in AXES}
    runs = race.results_of(contestant, "report")
    seconds = race.calibration(contestant.name)["step"]["seconds"]
    for _, result in runs:
        curve = result["curve"]
        timed = [s * (nan if seconds is None else seconds) for s in curve["steps"]]
        values = _column(curve["metric"])
        for axis in AXES:
            column = timed if axis == "seconds" else curve[axis]
            times[axis].append(
                cost_to_target(values, column, target, lower_is_better=race.lower) if values else inf
            )
            spent[axis].append(column[-1] if column else 0.0)
    found = {axis: time_to_target(times[axis], spent[axis]) for axis in AXES} if runs else {}
    return {
        "reached": found["steps"].reached if found else 0,
        "n": len(runs),
        "median": {axis: _finite(found[axis].median) if found else None for axis in AXES},
        "ert": {axis: _finite(found[axis].ert) if found else None for axis in AXES},
        "seeds": [run.seed for run, _ in runs],
        "times": {axis: [_finite(x) for x in times[axis]] for axis in AXES},
    }


def _ranking_target(targets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The target that costs in the ranking refer to."""
    return next((target for target in targets if target["ranking"]), None)


def _costs(entry: Mapping[str, Any], axis: str, seeds: Iterable[int]) -> list[float]:
    """What an entry paid to reach a target, seed by seed; ∞ where it did not reach it or did not run."""
    times = dict(zip(entry["seeds"], entry["times"][axis], strict=True))
    return [_cost(times.get(seed)) for seed in seeds]


def _ranking(race: TaskRace, target: Mapping[str, Any] | None) -> Ranking | None:
    """Rank those that have reporting runs, by the metric at the horizon or by the cost to the target."""
    ran = [c for c in race.plan.contestants if race.results_of(c, "report")]
    if not any(result["status"] != "crashed" for c in ran for _, result in race.results_of(c, "report")):
        return None
    price = {c.name: _cost(target["entries"][c.name]["ert"]["gradients"]) for c in ran} if target else None
    if race.rank_by == "metric":
        return rank({c.name: race.scores(c) for c in ran}, lower_is_better=race.lower, costs=price)
    if target is None:
        return None
    seeds = race.plan.seeds["report"]
    costs = {c.name: _costs(target["entries"][c.name], race.rank_by, seeds) for c in ran}
    return rank(costs, ratio=True, costs=price)


def _rows(
    race: TaskRace,
    ranking: Ranking | None,
    target: Mapping[str, Any] | None,
    sensitivity: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The final table, the best entry first."""
    by_name = {c.name: c for c in race.plan.contestants}
    rows: list[dict[str, Any]] = []
    for place in ranking.places if ranking else ():
        contestant, chosen = by_name[place.entry], race.plan.chosen[place.entry]
        to_target = target["entries"][place.entry] if target else None
        rows.append(
            {
                "rank": place.rank,
                "tied": place.tied,
                "entry": place.entry,
                "configuration": chosen.id,
                "parameters": chosen.parameters,
                "metric": _spread(race.scores(contestant)),
                "test_metric": _spread(race.tests(contestant)),
                "validation_loss": _spread(race.scores(contestant, "validation_loss")),
                "train_loss": _spread(race.scores(contestant, "train_loss")),
                "cost": to_target["median"] if to_target else dict.fromkeys(AXES),
                "ert": to_target["ert"] if to_target else dict.fromkeys(AXES),
                "reached": to_target["reached"] / to_target["n"] if to_target else 0.0,
                "sensitivity": sensitivity[place.entry]["decades"],
                **race.calibration(place.entry),
            }
        )
    return rows


def _verdict(race: TaskRace, ranking: Ranking | None, target: Mapping[str, Any] | None) -> dict[str, Any]:
    if ranking is None:
        return {
            "headline": "No result",
            "text": "No run of the report stage has finished, so there is no verdict.",
            "kind": "none",
            "winner": None,
            "take": None,
            "rank_by": race.rank_by,
            "notes": [],
            "tied": [],
            "comparisons": [],
        }
    leader, *others = ranking.places
    tied = [place.entry for place in others if place.rank == 1]
    behind = {place.entry: place.behind for place in others if place.behind is not None}
    comparisons = [_comparison(race, c) for c in behind.values()]
    against = [c for c in comparisons if c["verdict"] == "better" and c["test_agrees"] is False]
    kind, headline = "better", "Decided"
    if not behind:
        headline = "Ran alone"
    elif tied:
        kind, headline = "tie", "A tie"
    elif race.trials(leader.entry) < LEAST_TRIALS:
        kind, headline = "unsure", "Not decided: too few trials"
    elif against:
        kind, headline = "unsure", "Not decided: the test split disagrees"
    return {
        "headline": headline,
        "text": _sentences(race, ranking, tied, behind, target),
        "notes": _notes(race, ranking, against) if behind else [],
        "winner": leader.entry,
        "kind": kind,
        "tied": tied,
        "take": ranking.pick,
        "rank_by": race.rank_by,
        "comparisons": comparisons,
    }


def _sentences(
    race: TaskRace,
    ranking: Ranking,
    tied: Sequence[str],
    behind: Mapping[str, Comparison],
    target: Mapping[str, Any] | None,
) -> str:
    """Which entry leads, by how much, which to take, and what more seeds would show."""
    seeds, leader, pick = len(race.plan.seeds["report"]), ranking.places[0].entry, ranking.pick
    if race.rank_by == "metric":
        reached = f"(mean {race.task.metric_name} {ranking.places[0].mean:.4g} over {seeds} fresh seeds)"
    else:
        reached = f"(by {race.rank_by} to the target, {seeds} fresh seeds)"
    if not behind:
        return f"{leader} ran alone {reached}. There is nothing to compare it with."
    if not tied:
        gap = behind[ranking.places[1].entry]
        span = (
            f"interval {gap.low:.3g} to {gap.high:.3g}, adjusted for all pairs of {len(behind) + 1} entries"
        )
        first = f"{leader} is best on {race.task.name} {reached}."
        return f"{first} The next, {gap.entry}, is {gap.gap:.3g} behind ({span})."
    first = f"{leader} leads on {race.task.name} {reached}, tied with {', '.join(tied)}."
    take = f"Take {pick}: of these entries it needs the fewest gradients to reach the target."
    if target is None or target["entries"][pick]["ert"]["gradients"] is None:
        take = f"Take {leader}: none of these entries reached the target, so none is cheaper."
    return f"{first} {take}{_settling([behind[name] for name in tied])}"


def _settling(ties: Sequence[Comparison]) -> str:
    """How many further seeds would settle the tie that takes most, and what they would show; "" if none would."""
    if any(tie.further_seeds is None for tie in ties):
        return ""
    most = max(ties, key=lambda tie: tie.further_seeds or 0)
    if not most.further_seeds:
        return ""
    pair = f"{most.leader} and {most.entry}"
    if most.further_seeds > MANY_SEEDS:
        return f" More than {MANY_SEEDS} further seeds would be needed to tell {pair} apart, or to show them equal."
    shown = "one that counts" if most.settles_as == "better" else "too small to count"
    return (
        f" If the gap between {pair} is as large as it looks, about {most.further_seeds} further seeds would show, "
        f"4 times in 5, that it is {shown}."
    )


def _notes(race: TaskRace, ranking: Ranking, against: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the verdict does not cover, where the test split disagrees, and why an order may look odd."""
    leader = ranking.places[0].entry
    trials, seeds = race.trials(leader), len(race.plan.seeds["report"])
    notes = [
        f"The intervals are over {seeds} training seeds on one validation split, at settings found in {trials} "
        f"trial{'s' if trials > 1 else ''} per entry. They do not cover another split, nor better tuning."
    ]
    if trials < LEAST_TRIALS:
        notes.append(
            f"With fewer than {LEAST_TRIALS} trials per entry a race compares the luck of tuning, not optimizers: this "
            "race says which of the settings tried did best, and decides nothing else."
        )
    if against:
        gaps = " and ".join(f"{c['other']} (by {-c['test']['mean']:.2g})" for c in against)
        are = "is" if len(against) == 1 else "are"
        notes.append(f"On the test split {gaps} {are} better than {leader}: its lead is not confirmed there.")
    for i, place in enumerate(ranking.places):
        above = [p.entry for p in ranking.places[:i] if p.rank > place.rank]
        if above:
            whom = "the leader" if place.rank == 1 else "as many of the entries above"
            notes.append(
                f"{place.entry} has rank {place.rank} although {', '.join(above)} did better on average. Its seeds "
                f"differ more, so {place.entry} cannot be told apart from {whom}, and they can."
            )
    return notes


def _comparison(race: TaskRace, found: Comparison) -> dict[str, Any]:
    by_name = {c.name: c for c in race.plan.contestants}
    leader, other = by_name[found.leader], by_name[found.entry]
    metric = race.rank_by == "metric"
    test, p = None, None
    difference = {"mean": _finite(found.gap), "low": None, "high": None, "sd": None, "n": found.seeds}
    if metric:
        sign = 1 if race.lower else -1
        pair = [sign * np.array(race.scores(each)) for each in (leader, other)]
        difference, p = _interval(paired_differences(*pair)), _finite(paired_interval(*pair).p)
        test = _interval(sign * (np.array(race.tests(other)) - np.array(race.tests(leader))))
    tested = test["mean"] if test else None
    return {
        "leader": found.leader,
        "other": found.entry,
        "unit": race.task.metric_name if metric else f"log ratio of {race.rank_by} to the target",
        "difference": difference,
        "adjusted_low": _finite(found.low),
        "adjusted_high": _finite(found.high),
        "p": p,
        "p_adjusted": _finite(found.p),
        "verdict": found.verdict,
        "seeds_needed": found.further_seeds,
        "settles_as": found.settles_as,
        "gap_needed": _finite(found.threshold),
        "test": test if tested is not None else None,
        "test_agrees": tested > 0 if tested else None,
    }


def _tuned(tuned: Iterable[tuple[Run, Result]]) -> list[float]:
    """The metric of each tuning run; NaN where it did not finish."""
    return [score(result) if result["status"] == "finished" else nan for _, result in tuned]


def _budget_curve(race: TaskRace, contestant: Contestant) -> dict[str, Any]:
    pool = _tuned(race.results_of(contestant, "tune"))
    if not pool:
        return {"n": [], "expected": [], "low": [], "high": []}
    found = budget_curve(pool, lower_is_better=race.lower)
    least, most = metric_bounds(race)
    inside = {"low": np.clip(found.low, least, None), "high": np.clip(found.high, None, most)}
    columns = {"expected": found.expected, **inside}
    return {"n": found.n.tolist()} | {name: [_finite(x) for x in column] for name, column in columns.items()}


def _sensitivity(race: TaskRace, contestant: Contestant) -> dict[str, Any]:
    tuned = race.results_of(contestant, "tune")
    tuned.sort(key=lambda pair: pair[0].configuration.parameters["lr"])
    rates = [run.configuration.parameters["lr"] for run, _ in tuned]
    scores = _tuned(tuned)
    starts = [result["curve"]["metric"][0] for _, result in tuned if result["status"] != "crashed"]
    basin = lr_basin(rates, scores, lower_is_better=race.lower, initial=starts[0]) if starts else None
    return {
        "lr": rates,
        "metric": [_finite(x) for x in scores],
        "status": [result["status"] for _, result in tuned],
        **{name: getattr(basin, name, None) for name in ("best_lr", "low", "high", "decades")},
    }


def _setting(race: TaskRace, contestant: Contestant, chosen: Configuration) -> dict[str, Any]:
    work = run_again(contestant, chosen.parameters, 0, True) | {"seed": list(race.plan.seeds["report"])}
    steps = race.task.total_steps(contestant.batch_size)
    return {
        "entry": contestant.name,
        "code": code(contestant.entry, contestant.schedule, chosen.parameters, steps),
        "command": _command(race, work),
    }


def profiles(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Dolan–Moré over tasks and seeds, by gradients to the ranking target; None for a single task."""
    if len(tasks) < 2:
        return None
    entries = [[entry["name"] for entry in task["entries"]] for task in tasks]
    shared = [name for name in entries[0] if all(name in each for each in entries)]
    costs: dict[str, list[float]] = {name: [] for name in shared}
    for target in filter(None, (_ranking_target(task["targets"]) for task in tasks)):
        seeds = sorted({seed for entry in target["entries"].values() for seed in entry["seeds"]})
        for name in shared:
            entry = target["entries"].get(name, {"seeds": [], "times": {"gradients": []}})
            costs[name] += _costs(entry, "gradients", seeds)
    if not shared or not costs[shared[0]]:
        return None
    found = performance_profiles(costs)
    return {
        "cost": "gradients",
        "tau": found.tau.tolist(),
        "share": {name: share.tolist() for name, share in found.share.items()},
        "score": dict(found.score),
        "pairs": [
            {"a": a, "b": b, "a_share": pair.share[a].tolist(), "b_share": pair.share[b].tolist()}
            for (a, b), pair in pairwise_profiles(costs).items()
        ],
    }


def calibration_id(fingerprint: str, configuration: Configuration) -> str:
    """The name under which a calibration is stored: all that it depends on."""
    return f"{CALIBRATION}{digest(fingerprint, configuration.id)}"


def _short(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"run": run["id"]} | {name: run[name] for name in ("entry", "stage", "seed", "parameters")}


def metric_bounds(race: TaskRace) -> list[float | None]:
    """The lowest and highest value that the metric can have: 0 and 1 where it is called, and is, a fraction."""
    called = any(word in race.task.metric_name.lower() for word in FRACTIONS)
    curves = (result["curve"]["metric"] for result in race.results.values())
    is_one = called and all(0 <= x <= 1 for curve in curves for x in curve if x is not None)
    return [0.0, 1.0] if is_one else [None, None]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    known = [x for x in values if isfinite(x)]
    if not known:
        return dict.fromkeys(("mean", "median", "low", "high", "coverage", "sd")) | {"n": 0}
    found = median_interval(known)
    return {
        "mean": float(np.mean(known)),
        "median": found.centre,
        "low": _finite(found.low),
        "high": _finite(found.high),
        "coverage": found.coverage if isfinite(found.low) else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }


def _interval(values: Iterable[float]) -> dict[str, Any]:
    known = [x for x in values if isfinite(x)]
    if not known:
        return {"mean": None, "low": None, "high": None, "sd": None, "n": 0}
    found = mean_interval(known)
    numbers = {"mean": found.centre, "low": found.low, "high": found.high, "sd": found.sd}
    return {name: _finite(x) for name, x in numbers.items()} | {"n": found.n}


def _column(values: Iterable[float | None]) -> list[float]:
    """A column of the report; None there is NaN here."""
    return [nan if x is None else x for x in values]


def _cost(paid: float | None) -> float:
    """A cost from the report: None there is a target that was not reached; 0 is one met from the start."""
    return inf if paid is None else paid


def _finite(x: float) -> float | None:
    return float(x) if isfinite(x) else None
