"""Put a race's results together: plans and plain results in, `report.json` out.

Nothing is measured or decided here that the results do not hold, and every list has an order of its own, so
that the same results give the same text whatever order they came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, Literal, cast

import numpy as np

from schuss.lab.racing.codegen import code
from schuss.lab.racing.plan import Configuration, Contestant, Plan, Result, Run, digest, score
from schuss.lab.racing.preflight import Facts
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
STAGES = ("tune", "confirm", "report")


@dataclass(frozen=True)
class Raced:
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

    def stage(self, contestant: Contestant, stage: str) -> list[tuple[Run, Result]]:
        """A contestant's runs of a stage that have a result, by configuration and seed."""
        runs = [
            r
            for r in self.plan.runs
            if r.stage == stage and r.contestant is contestant and r.id in self.results
        ]
        return [(r, self.results[r.id]) for r in sorted(runs, key=lambda r: (r.configuration.index, r.seed))]

    def step_seconds(self, contestant: Contestant) -> float:
        """The calibrated step, NaN before there is one."""
        found = self.calibrations.get(contestant.name, {}).get("step", {}).get("seconds")
        return nan if found is None else found


def task_report(raced: Raced) -> schema.TaskReport:
    """One task's part of the report."""
    task, plan, facts = raced.task, raced.plan, raced.facts
    targets = _targets(raced)
    ranking = _ranking(raced, targets)
    sensitivity = {c.name: _sensitivity(raced, c) for c in plan.contestants}
    steps = task.total_steps()
    runs = [
        _run(raced, c, run, result)
        for c in plan.contestants
        for s in STAGES
        for run, result in raced.stage(c, s)
    ]
    report: dict[str, Any] = {
        "name": task.name,
        "spec": raced.spec,
        "description": task.description,
        "metric": {"name": task.metric_name, "best": task.best, "bounds": metric_bounds(raced)},
        "optimum": task.optimum,
        "parameters": facts.parameters,
        "batch_size": task.batch_size,
        "horizon": {"steps": steps, "examples": _examples(task), "gradients": steps},
        "evaluations": min(steps, 30),
        "splits": {**facts.lengths, "how": task.how},
        "fingerprint": facts.fingerprint,
        "entries": [_entry(raced, c) for c in plan.contestants],
        "configurations": [
            _configuration(raced, configuration)
            for contestant in plan.contestants
            for configuration in plan.configurations.get(contestant.name, [])
        ],
        "runs": runs,
        "ranking": _rows(raced, ranking, targets, sensitivity),
        "verdict": _verdict(raced, ranking, targets),
        "budget_curves": {c.name: _budget_curve(raced, c) for c in plan.contestants},
        "targets": targets,
        "sensitivity": sensitivity,
        "claims": [],
        "diverged": [_short(run) | _diverged(run) for run in runs if run["status"] == "diverged"],
        "crashed": [_short(run) | {"error": run["error"]} for run in runs if run["status"] == "crashed"],
        "settings": [
            _setting(raced, c, plan.chosen[c.name]) for c in plan.contestants if c.name in plan.chosen
        ],
    }
    report["claims"] = claims_of(report)
    return cast("schema.TaskReport", report)


def _entry(raced: Raced, contestant: Contestant) -> dict[str, Any]:
    calibration = raced.calibrations.get(contestant.name, {})
    space = raced.plan.space(contestant)
    return {
        "name": contestant.name,
        "optimizer": contestant.entry.name,
        "schedule": contestant.schedule,
        "batch_size": contestant.batch_size,
        "space": {name: {"low": low, "high": high, "log": log} for name, (low, high, log) in space.items()},
        "fixed": {name: _plain(value) for name, value in contestant.entry.fixed.items()},
        "trials": len(raced.plan.configurations.get(contestant.name, [])),
        "widened": raced.plan.widened.get(contestant.name, []),
        "space_limited": raced.plan.limited.get(contestant.name, []),
        "parameters": raced.facts.parameters,
        "bytes_per_weight": calibration.get("bytes_per_weight"),
        "step": calibration.get("step", {"seconds": None}),
    }


def _configuration(raced: Raced, configuration: Configuration) -> dict[str, Any]:
    plan, contestant = raced.plan, configuration.contestant
    tuned = [result for run, result in raced.stage(contestant, "tune") if run.configuration is configuration]
    confirmed = [
        result for run, result in raced.stage(contestant, "confirm") if run.configuration is configuration
    ]
    finished = [result for result in tuned if result["status"] == "finished"]
    return {
        "id": configuration.id,
        "entry": contestant.name,
        "index": configuration.index,
        "parameters": configuration.parameters,
        "tune": score(finished[0]) if finished else None,
        "confirm": _spread([_score(result) for result in confirmed]) if confirmed else None,
        "chosen": plan.chosen.get(contestant.name) is configuration,
    }


def _run(raced: Raced, contestant: Contestant, run: Run, result: Result) -> dict[str, Any]:
    curve, finished = result["curve"], result["status"] == "finished"
    last = {name: values[-1] if finished else None for name, values in curve.items()}
    counts = {name: curve[name][-1] if curve[name] else 0 for name in ("steps", "examples", "gradients")}
    work = run_again(contestant, run.configuration.parameters, run.seed, run.stage == "report")
    return {
        "id": run.id,
        "entry": contestant.name,
        "configuration": run.configuration.id,
        "stage": run.stage,
        "seed": run.seed,
        "status": result["status"],
        "parameters": run.configuration.parameters,
        **counts,
        "train_loss": last["train_loss"],
        "validation_loss": last["validation_loss"],
        "metric": last["metric"],
        "test": result["test"] if run.stage == "report" else None,
        "curve": curve,
        "divergence": result["divergence"],
        "error": result["error"],
        "command": f"{raced.command} --run {digest_free(work)}",
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


def digest_free(work: Mapping[str, Any]) -> str:
    """The arguments of `--run` as one shell argument."""
    import json
    import shlex

    return shlex.quote(json.dumps(work))


def _scores(raced: Raced, contestant: Contestant, column: str = "metric") -> list[float]:
    """One number per reporting seed; NaN for a run that crashed or is not there."""
    found = {run.seed: _score(result, column) for run, result in raced.stage(contestant, "report")}
    return [found.get(seed, nan) for seed in raced.plan.seeds["report"]]


def _score(result: Result, column: str = "metric") -> float:
    return nan if result["status"] == "crashed" else score(result, column)


def _targets(raced: Raced) -> list[dict[str, Any]]:
    """Fixed from what was confirmed, before any reporting seed ran."""
    starts, bests = list[float](), dict[str, list[float]]()
    for contestant in raced.plan.contestants:
        chosen = raced.plan.chosen.get(contestant.name)
        confirmed = [r for run, r in raced.stage(contestant, "confirm") if run.configuration is chosen]
        curves = [result["curve"]["metric"] for result in confirmed if result["status"] != "crashed"]
        starts += [curve[0] for curve in curves]
        if curves:
            bests[contestant.name] = [(min if raced.lower else max)(_known(curve)) for curve in curves]
    if not starts:
        return []
    values = fixed_targets(float(np.mean(starts)), bests, lower_is_better=raced.lower, quantiles=QUANTILES)
    return [
        {
            "q": q,
            "value": value,
            "ranking": q == RANKING_QUANTILE,
            "entries": {
                c.name: _to_target(raced, c, value)
                for c in raced.plan.contestants
                if c.name in raced.plan.chosen
            },
        }
        for q, value in zip(QUANTILES, values, strict=False)
    ]


def _to_target(raced: Raced, contestant: Contestant, target: float) -> dict[str, Any]:
    times: dict[str, list[float]] = {axis: [] for axis in AXES}
    spent: dict[str, list[float]] = {axis: [] for axis in AXES}
    seeds: list[int] = []
    for run, result in raced.stage(contestant, "report"):
        curve, seconds = result["curve"], raced.step_seconds(contestant)
        columns = {axis: curve[axis] for axis in AXES[:3]} | {
            "seconds": [s * seconds for s in curve["steps"]]
        }
        seeds.append(run.seed)
        for axis, column in columns.items():
            values = [nan if x is None else x for x in curve["metric"]]
            times[axis].append(
                cost_to_target(values, column, target, lower_is_better=raced.lower) if values else inf
            )
            spent[axis].append(column[-1] if column else 0.0)
    found = {axis: time_to_target(times[axis], spent[axis]) for axis in AXES} if seeds else {}
    return {
        "reached": found["steps"].reached if found else 0,
        "n": len(seeds),
        "median": {axis: _finite(found[axis].median) if found else None for axis in AXES},
        "ert": {axis: _finite(found[axis].ert) if found else None for axis in AXES},
        "seeds": seeds,
        "times": {axis: [_finite(x) for x in times[axis]] for axis in AXES},
    }


def ranking_target(targets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The target that costs in the ranking refer to."""
    return next((target for target in targets if target["ranking"]), None)


def _ranking(raced: Raced, targets: Sequence[Mapping[str, Any]]) -> Ranking | None:
    """Rank those that have reporting runs, by the metric at the horizon or by the cost to the target."""
    target = ranking_target(targets)
    ran = [c for c in raced.plan.contestants if raced.stage(c, "report")]
    if not any(result["status"] != "crashed" for c in ran for _, result in raced.stage(c, "report")):
        return None
    price = {c.name: _cost(target["entries"][c.name]["ert"]["gradients"]) for c in ran} if target else None
    if raced.rank_by == "metric":
        scores = {c.name: _scores(raced, c) for c in ran}
        return rank(scores, lower_is_better=raced.lower, costs=price)
    if target is None:
        return None
    costs: dict[str, list[float]] = {}
    for contestant in ran:
        entry = target["entries"][contestant.name]
        times = dict(zip(entry["seeds"], entry["times"][raced.rank_by], strict=True))
        costs[contestant.name] = [_cost(times.get(seed)) for seed in raced.plan.seeds["report"]]
    return rank(costs, ratio=True, costs=price)


def _rows(
    raced: Raced,
    ranking: Ranking | None,
    targets: Sequence[Mapping[str, Any]],
    sensitivity: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    target = ranking_target(targets)
    by_name = {c.name: c for c in raced.plan.contestants}
    nothing = dict.fromkeys(AXES)
    rows: list[dict[str, Any]] = []
    for place in ranking.places if ranking else ():
        contestant = by_name[place.entry]
        chosen, calibration = raced.plan.chosen[place.entry], raced.calibrations.get(place.entry, {})
        to_target = target["entries"][place.entry] if target else None
        tests = [r["test"]["metric"] for _, r in raced.stage(contestant, "report") if r["test"]]
        rows.append(
            {
                "rank": place.rank,
                "tied": place.tied,
                "entry": place.entry,
                "configuration": chosen.id,
                "parameters": chosen.parameters,
                "metric": _spread(_scores(raced, contestant)),
                "test_metric": _spread([nan if x is None else x for x in tests]),
                "validation_loss": _spread(_scores(raced, contestant, "validation_loss")),
                "train_loss": _spread(_scores(raced, contestant, "train_loss")),
                "cost": to_target["median"] if to_target else nothing,
                "ert": to_target["ert"] if to_target else nothing,
                "reached": to_target["reached"] / to_target["n"] if to_target else 0.0,
                "sensitivity": sensitivity[place.entry]["decades"],
                "bytes_per_weight": calibration.get("bytes_per_weight"),
                "step": calibration.get("step", {"seconds": None}),
            }
        )
    return rows


def _verdict(raced: Raced, ranking: Ranking | None, targets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if ranking is None:
        text = "No run of the report stage has finished, so there is no verdict."
        empty: dict[str, Any] = {"winner": None, "tied": [], "take": None, "comparisons": []}
        head: dict[str, Any] = {"headline": "No result", "kind": "none", "notes": []}
        return {"text": text, **head, **empty, "rank_by": raced.rank_by}
    leader, *others = ranking.places
    tied = [place.entry for place in others if place.rank == 1]
    behind = {place.entry: place.behind for place in others if place.behind is not None}
    comparisons = [_comparison(raced, c) for c in behind.values()]
    reversed_ = [c["other"] for c in comparisons if c["verdict"] == "better" and c["test_agrees"] is False]
    few = _trials(raced, leader.entry) < LEAST_TRIALS
    kind, headline = "better", "Decided"
    if not behind:
        headline = "Ran alone"
    elif tied:
        kind, headline = "tie", "A tie"
    elif few or reversed_:
        because = "too few trials" if few else "the test split disagrees"
        kind, headline = "unsure", f"Not decided: {because}"
    return {
        "headline": headline,
        "text": _sentences(raced, ranking, tied, behind, ranking_target(targets)),
        "notes": _notes(raced, ranking, comparisons) if behind else [],
        "winner": leader.entry,
        "kind": kind,
        "tied": tied,
        "take": ranking.pick,
        "rank_by": raced.rank_by,
        "comparisons": comparisons,
    }


def _sentences(
    raced: Raced,
    ranking: Ranking,
    tied: Sequence[str],
    behind: Mapping[str, Comparison],
    target: Mapping[str, Any] | None,
) -> str:
    """Which entry leads, by how much, which to take, and what more seeds would show."""
    seeds, leader = len(raced.plan.seeds["report"]), ranking.places[0].entry
    by = raced.task.metric_name if raced.rank_by == "metric" else f"{raced.rank_by} to the target"
    value = f"{ranking.places[0].mean:.4g}" if raced.rank_by == "metric" else ""
    reached = (
        f" (mean {by} {value} over {seeds} fresh seeds)" if value else f" (by {by}, {seeds} fresh seeds)"
    )
    if not behind:
        return f"{leader} ran alone{reached}. There is nothing to compare it with."
    if not tied:
        gap = behind[ranking.places[1].entry]
        span = (
            f"interval {gap.low:.3g} to {gap.high:.3g}, adjusted for all pairs of {len(behind) + 1} entries"
        )
        first = f"{leader} is best on {raced.task.name}{reached}."
        return f"{first} The next, {gap.entry}, is {gap.gap:.3g} behind ({span})."
    first = f"{leader} leads on {raced.task.name}{reached}, tied with {', '.join(tied)}."
    return f"{first} {_take(ranking, target)}{_settling([behind[name] for name in tied])}"


def _trials(raced: Raced, entry: str) -> int:
    """How many configurations of an entry were tuned; as many for every other."""
    return len(raced.plan.configurations.get(entry, []))


def _take(ranking: Ranking, target: Mapping[str, Any] | None) -> str:
    """Which of the tied entries to take, and why."""
    pick, leader = ranking.pick, ranking.places[0].entry
    if target is None or target["entries"][pick]["ert"]["gradients"] is None:
        return f"Take {leader}: none of these entries reached the target, so none is cheaper."
    return f"Take {pick}: of these entries it needs the fewest gradients to reach the target."


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


def _notes(raced: Raced, ranking: Ranking, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the verdict does not cover, where the test split disagrees, and why an order may look odd."""
    leader = ranking.places[0].entry
    trials, seeds = _trials(raced, leader), len(raced.plan.seeds["report"])
    notes = [
        f"The intervals are over {seeds} training seeds on one validation split, at settings found in {trials} "
        f"trial{'s' if trials > 1 else ''} per entry. They do not cover another split, nor better tuning."
    ]
    if trials < LEAST_TRIALS:
        notes.append(
            f"With fewer than {LEAST_TRIALS} trials per entry a race compares the luck of tuning, not optimizers: this "
            "race says which of the settings tried did best, and decides nothing else."
        )
    against = [c for c in comparisons if c["verdict"] == "better" and c["test_agrees"] is False]
    if against:
        gaps = " and ".join(f"{c['other']} (by {-c['test']['mean']:.2g})" for c in against)
        are = "is" if len(against) == 1 else "are"
        notes.append(f"On the test split {gaps} {are} better than {leader}: its lead is not confirmed there.")
    for place in ranking.places:
        above = [p.entry for p in ranking.places[: ranking.places.index(place)] if p.rank > place.rank]
        if above:
            whom = "the leader" if place.rank == 1 else "as many of the entries above"
            notes.append(
                f"{place.entry} has rank {place.rank} although {', '.join(above)} did better on average. Its seeds "
                f"differ more, so {place.entry} cannot be told apart from {whom}, and they can."
            )
    return notes


def _comparison(raced: Raced, found: Comparison) -> dict[str, Any]:
    plan = raced.plan
    by_name = {c.name: c for c in plan.contestants}
    metric = raced.rank_by == "metric"
    sign = 1 if raced.lower else -1
    test = None
    if metric:
        own, other = (np.array(_scores(raced, by_name[name])) for name in (found.leader, found.entry))
        difference = _interval(list(paired_differences(sign * own, sign * other)))
        p = _finite(paired_interval(sign * own, sign * other).p)
        tests = [np.array(_tests(raced, by_name[name])) for name in (found.leader, found.entry)]
        test = _interval(list(sign * (tests[1] - tests[0])))
    else:
        p = None
        difference = {"mean": _finite(found.gap), "low": None, "high": None, "sd": None, "n": found.seeds}
    tested = test["mean"] if test else None
    return {
        "leader": found.leader,
        "other": found.entry,
        "unit": raced.task.metric_name if metric else f"log ratio of {raced.rank_by} to the target",
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


def _tests(raced: Raced, contestant: Contestant) -> list[float]:
    """The metric on the test split, one per reporting seed; NaN for a run that did not finish."""
    found = {run.seed: r["test"]["metric"] for run, r in raced.stage(contestant, "report") if r["test"]}
    return [nan if (x := found.get(seed)) is None else x for seed in raced.plan.seeds["report"]]


def _budget_curve(raced: Raced, contestant: Contestant) -> dict[str, Any]:
    pool = [score(r) if r["status"] == "finished" else nan for _, r in raced.stage(contestant, "tune")]
    if not pool:
        return {"n": [], "expected": [], "low": [], "high": []}
    found = budget_curve(pool, lower_is_better=raced.lower)
    least, most = metric_bounds(raced)
    inside = {"low": np.clip(found.low, least, None), "high": np.clip(found.high, None, most)}
    columns = {"expected": found.expected, **inside}
    return {"n": found.n.tolist()} | {name: [_finite(x) for x in column] for name, column in columns.items()}


def _sensitivity(raced: Raced, contestant: Contestant) -> dict[str, Any]:
    tuned = raced.stage(contestant, "tune")
    tuned.sort(key=lambda pair: pair[0].configuration.parameters["lr"])
    rates = [run.configuration.parameters["lr"] for run, _ in tuned]
    scores = [score(result) if result["status"] == "finished" else nan for _, result in tuned]
    starts = [result["curve"]["metric"][0] for _, result in tuned if result["status"] != "crashed"]
    basin = lr_basin(rates, scores, lower_is_better=raced.lower, initial=starts[0]) if starts else None
    return {
        "lr": rates,
        "metric": [_finite(x) for x in scores],
        "status": [result["status"] for _, result in tuned],
        "best_lr": basin.best_lr if basin else None,
        "low": basin.low if basin else None,
        "high": basin.high if basin else None,
        "decades": basin.decades if basin else None,
    }


def _setting(raced: Raced, contestant: Contestant, chosen: Configuration) -> dict[str, Any]:
    work = run_again(contestant, chosen.parameters, 0, True) | {"seed": list(raced.plan.seeds["report"])}
    steps = raced.task.total_steps(contestant.batch_size)
    return {
        "entry": contestant.name,
        "code": code(contestant.entry, contestant.schedule, chosen.parameters, steps),
        "command": f"{raced.command} --run {digest_free(work)}",
    }


def profiles(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Dolan–Moré over tasks and seeds, by gradients to the ranking target; None for a single task."""
    if len(tasks) < 2:
        return None
    shared = [
        e["name"]
        for e in tasks[0]["entries"]
        if all(e["name"] in {o["name"] for o in t["entries"]} for t in tasks)
    ]
    costs: dict[str, list[float]] = {name: [] for name in shared}
    for task in tasks:
        target = ranking_target(task["targets"])
        if target is None:
            continue
        seeds = sorted({seed for entry in target["entries"].values() for seed in entry["seeds"]})
        for name in shared:
            entry = target["entries"].get(name, {"seeds": [], "times": {"gradients": []}})
            times = dict(zip(entry["seeds"], entry["times"]["gradients"], strict=True))
            costs[name] += [_cost(times.get(seed)) for seed in seeds]
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


def calibration_id(raced_fingerprint: str, configuration: Configuration) -> str:
    """What a calibration depends on."""
    return digest("calibration", raced_fingerprint, configuration.id)


def _short(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"run": run["id"]} | {name: run[name] for name in ("entry", "stage", "seed", "parameters")}


def _diverged(run: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": run["divergence"]["step"], "reason": run["divergence"]["reason"]}


def _examples(task: Task) -> int:
    rows = task.length("train")
    return round(task.epochs * rows) if task.epochs and rows else task.total_steps() * task.batch_size


def metric_bounds(raced: Raced) -> list[float | None]:
    """The lowest and highest value that the metric can have: 0 and 1 where it is called, and is, a fraction."""
    called = any(word in raced.task.metric_name.lower() for word in FRACTIONS)
    curves = (result["curve"]["metric"] for result in raced.results.values())
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


def _interval(values: Sequence[float]) -> dict[str, Any]:
    known = [x for x in values if isfinite(x)]
    if not known:
        return {"mean": None, "low": None, "high": None, "sd": None, "n": 0}
    if len(known) == 1:
        return {"mean": known[0], "low": None, "high": None, "sd": None, "n": 1}
    found = mean_interval(known)
    return {
        "mean": _finite(found.centre),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "sd": _finite(found.sd),
        "n": found.n,
    }


def _known(curve: Sequence[float | None]) -> list[float]:
    return [x for x in curve if x is not None]


def _cost(paid: float | None) -> float:
    """A cost from the report: None there is a target that was not reached; 0 is one met from the start."""
    return inf if paid is None else paid


def _finite(x: float) -> float | None:
    return float(x) if isfinite(x) else None


def _plain(value: Any) -> Any:
    return value if isinstance(value, float | int | bool | str) else repr(value)
