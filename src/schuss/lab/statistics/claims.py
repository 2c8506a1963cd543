"""What the textbooks say, tested on the runs of one task: holds, fails, no gap that counts, or undecided here.

Each claim compares two kinds of runs that differ in one thing only and are paired by seed. It *holds* if the
95 % interval of the difference lies on its side of zero and the difference exceeds one seed-sd (5 % of cost);
it *fails* if the whole interval lies on the other side of zero. There is *no gap that counts* if the interval
reaches across zero and yet stays below that smallest gap: nothing is refuted, there is just too little between
the two to matter here. Otherwise it is *undecided*. What the race did not run is undecided, and says what it
needs.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any, Literal, TypedDict

import numpy as np

from schuss.lab.statistics.compare import (
    Floats,
    Interval,
    IntervalDict,
    as_losses,
    further_seeds,
    holm_levels,
    mean_interval,
    paired_interval,
    smallest_gap_that_counts,
)
from schuss.lab.statistics.numbers import RunNumbers, numbers_of

Verdict = Literal["holds", "fails", "no gap that counts", "undecided"]
Kind = Callable[[RunNumbers], bool]
Same = Callable[[RunNumbers], Hashable]
Number = Callable[[RunNumbers], float]


class Claim(TypedDict):
    """A sentence of the textbooks, tested on the runs of one task; as `report.json` holds it."""

    id: str  # "momentum-beats-sgd", ...
    claim: str  # "Momentum beats plain SGD."
    verdict: Verdict
    interval: IntervalDict | None  # of the difference that decides; positive speaks for the claim
    unit: str
    entries: list[str]  # whose runs were compared
    runs: list[str]  # their ids
    why: str  # one plain sentence; for "undecided" also what would decide it


def claims_of(task: Mapping[str, Any]) -> list[Claim]:
    """Return `claims` for a task's report, as `report.json` holds it."""
    metric = task["metric"]
    return claims(numbers_of(task), metric=metric["name"], lower_is_better=metric["best"] == "min")


def claims(
    runs: Sequence[RunNumbers], *, metric: str = "metric", lower_is_better: bool = True
) -> list[Claim]:
    """Return the ten claims, in the textbooks' order, on the reporting runs of one task."""
    momentum, nesterov, adagrad, generalization, *others = (
        _compared(comparison, runs, metric, lower_is_better) for comparison in _comparisons(runs)
    )
    return [
        momentum,
        nesterov,
        _adagrad(adagrad, runs),
        _adam_first(runs),
        _usual_eps(generalization, runs),
        *others,
        _noisier_batches(runs),
    ]


def judge(interval: Interval, threshold: float) -> Verdict:
    """Return the verdict on "the difference is positive and worth having".

    Where every seed ended exactly equal, as on a task whose metric has a floor that all reach, it is undecided.
    """
    if interval.centre == interval.sd == 0:
        return "undecided"
    if interval.low > 0 and interval.centre > threshold:
        return "holds"
    if interval.high < 0:
        return "fails"
    return "no gap that counts" if interval.high <= threshold else "undecided"


def match(
    runs: Iterable[RunNumbers], one: Kind, other: Kind, same: Same, number: Number, *, ratio: bool = False
) -> tuple[Floats, Floats, list[RunNumbers]] | None:
    """Pair the runs of two kinds that agree in `same` and in the seed; None if no seed has both.

    Returns one value per seed for each kind, averaged over the contexts (with `ratio` geometrically), and the runs.
    Only contexts that both kinds ran on all the shared seeds count, so every seed averages the same thing.
    """
    sides: list[dict[tuple[Hashable, int], RunNumbers]] = [{}, {}]
    for run in runs:
        for side, kind in zip(sides, (one, other), strict=True):
            if kind(run):
                side[same(run), run.seed] = run
    shared: dict[Hashable, set[int]] = {}
    for context, seed in sides[0].keys() & sides[1].keys():
        shared.setdefault(context, set()).add(seed)
    contexts = [c for c in dict.fromkeys(c for c, _ in sides[0]) if c in shared]
    seeds = sorted(set.intersection(*shared.values())) if shared else []
    if not seeds:
        return None
    picked = [[[side[c, seed] for c in contexts] for seed in seeds] for side in sides]

    def average(side: list[list[RunNumbers]]) -> Floats:
        values = np.array([[number(run) for run in row] for row in side])
        with np.errstate(divide="ignore"):
            return np.exp(np.log(values).mean(axis=1)) if ratio else values.mean(axis=1)

    return average(picked[0]), average(picked[1]), [run for side in picked for row in side for run in row]


def _setting(run: RunNumbers) -> Hashable:
    return run.schedule, run.batch_size


def _score(run: RunNumbers) -> float:
    return run.score


def _optimizer(run: RunNumbers) -> tuple[str, int]:
    return run.optimizer, run.batch_size


@dataclass(frozen=True)
class _Comparison:
    """A claim that one kind of run ends better than another, and what a race needs for it."""

    id: str
    claim: str
    one: Kind
    other: Kind
    needs: str
    same: Same = _setting
    number: Number = _score


def _is(optimizer: str) -> Kind:
    return lambda run: run.optimizer == optimizer


def _comparisons(runs: Sequence[RunNumbers]) -> list[_Comparison]:
    """All claims of this form. Which schedules stand for a claim is chosen by name, so no result can choose it."""

    def entries(id: str, claim: str, one: str, other: str, number: Number = _score) -> _Comparison:
        return _Comparison(id, claim, _is(one), _is(other), f"the entries {one} and {other}", number=number)

    def schedules(id: str, claim: str, one: str, other: str, both: str) -> _Comparison:
        needs = f"one entry with the schedules {both}"
        return _Comparison(
            id, claim, lambda run: run.schedule == one, lambda run: run.schedule == other, needs, _optimizer
        )

    adam_l2 = re.compile(r"adam[\W_]?l2", re.IGNORECASE)
    seen = {run.schedule for run in runs}
    usual = next((name for name in ("cosine", "linear", "step", "warmup+cosine") if name in seen), "")
    single = "cosine" if "cosine" in seen else "constant"
    return [
        entries("momentum-beats-sgd", "Momentum beats plain SGD.", "momentum", "sgd"),
        entries("nesterov-beats-momentum", "Nesterov beats momentum.", "nesterov", "momentum"),
        entries("adagrad-rate-shrinks", "AdaGrad's rate shrinks too much.", "rmsprop", "adagrad"),
        entries(
            "momentum-generalizes-better",
            "SGD with momentum generalizes better than Adam.",
            "momentum",
            "adam",
            lambda run: run.test if isfinite(run.test) else run.score,
        ),
        _Comparison(
            "adamw-beats-adam-l2",
            "AdamW beats Adam with L2.",
            _is("adamw"),
            lambda run: bool(adam_l2.fullmatch(run.optimizer)) or (run.optimizer == "adam" and run.decayed),
            "the entries adamw and adam with an L2 weight decay",
        ),
        schedules("schedule-beats-none", "A schedule beats none.", usual, "constant", "constant and cosine"),
        _Comparison(
            "warmup-helps",
            "Warm-up helps.",
            lambda run: run.schedule.startswith("warmup"),
            lambda run: not run.schedule.startswith("warmup"),
            "one entry with the same schedule with and without warm-up (cosine and warmup+cosine)",
            lambda run: (*_optimizer(run), run.schedule.removeprefix("warmup").lstrip("+") or "constant"),
        ),
        schedules("restarts-help", "Cyclic restarts help.", "restarts", single, "restarts and cosine"),
    ]


def _compared(
    comparison: _Comparison, runs: Sequence[RunNumbers], metric: str, lower_is_better: bool
) -> Claim:
    sign, c = (1.0 if lower_is_better else -1.0), comparison

    def loss(run: RunNumbers) -> float:
        return float(as_losses(c.number(run), lower_is_better=lower_is_better))

    found = match(runs, c.one, c.other, c.same, loss)
    if found is None:
        return _claim(c.id, c.claim, metric, _untested(c.needs))
    one, other, used = found
    interval = paired_interval(one, other)
    threshold = smallest_gap_that_counts(one, other)
    verdict = judge(interval, threshold)
    means = (f"{_short(sign * float(np.mean(x)))}" for x in (one, other))
    why = (
        f"Mean {metric} {' against '.join(means)} over {interval.n} seeds; the advantage is "
        f"{_span(interval)}, and one seed-sd, the least that counts, is {_short(threshold)}."
        f"{_advice(interval, threshold, verdict)}"
    )
    return _claim(c.id, c.claim, metric, why, verdict, interval, used)


def _adagrad(compared: Claim, runs: Sequence[RunNumbers]) -> Claim:
    """Too much: it has at least halved, and RMSProp, which is AdaGrad that forgets, does better."""
    adagrad = [run.rate_fall for run in runs if run.id in compared["runs"] and run.optimizer == "adagrad"]
    falls = [x for x in adagrad if isfinite(x)]
    if not falls:
        return compared
    fall = mean_interval(falls)
    verdict = compared["verdict"]
    if fall.low > -log10(2):
        verdict = "fails"
    elif fall.high >= 0 and verdict == "holds":
        verdict = "undecided"
    why = (
        f"AdaGrad's effective rate ends at {_short(10**fall.centre)} × where it began; the question is "
        f"whether RMSProp, which forgets, does better. {compared['why']}"
    )
    return {**compared, "verdict": verdict, "why": why}


def _usual_eps(compared: Claim, runs: Sequence[RunNumbers]) -> Claim:
    """Say so where eps was not tuned: Adam with a large eps, and lr scaled by it, is momentum."""
    adam = (run for run in runs if run.id in compared["runs"] and run.optimizer == "adam")
    if all(run.eps_tuned for run in adam):
        return compared
    why = (
        f"{compared['why']} Adam's eps was not tuned: with a large eps, and its rate scaled by it, Adam is "
        "momentum, so this speaks of Adam at its usual eps only."
    )
    return {**compared, "why": why}


def _adam_first(runs: Sequence[RunNumbers]) -> Claim:
    """First means before every other optimizer: Holm over all of them; the closest rival is shown."""
    head = "adam-first", "Adam reaches a target first.", "log ratio of gradients to the target"
    others = dict.fromkeys(run.optimizer for run in runs if run.optimizer != "adam")
    pairs = {
        other: pair
        for other in others
        if (pair := match(runs, _is("adam"), _is(other), _setting, lambda run: run.cost, ratio=True))
    }
    if not any(np.isfinite([one, other]).any() for one, other, _ in pairs.values()):
        return _claim(*head, _untested("adam, another optimizer and a target that one of them reaches"))
    levels = holm_levels([paired_interval(one, other, ratio=True).p for one, other, _ in pairs.values()])
    adjusted = {
        name: paired_interval(one, other, ratio=True, level=level)
        for (name, (one, other, _)), level in zip(pairs.items(), levels, strict=True)
    }
    threshold = smallest_gap_that_counts([], [], ratio=True)
    verdicts = {judge(interval, threshold) for interval in adjusted.values()}
    worst: tuple[Verdict, ...] = ("fails", "no gap that counts", "undecided", "holds")
    verdict: Verdict = next(v for v in worst if v in verdicts)
    rival = min(adjusted, key=lambda other: (adjusted[other].centre, adjusted[other].low))
    interval, (*both, used) = adjusted[rival], pairs[rival]
    reached = [int(np.isfinite(x).sum()) for x in both]
    why = (
        f"The strongest rival is {rival}: {reached[0]} of {interval.n} seeds reached the target with adam, "
        f"{reached[1]} with {rival}; log(cost of {rival} / cost of adam) is {_span(interval)}, Holm-adjusted "
        f"over {len(adjusted)} rivals.{_advice(interval, threshold, verdict)}"
    )
    return _claim(*head, why, verdict, interval, used)


def _noisier_batches(runs: Sequence[RunNumbers]) -> Claim:
    head = "smaller-batches-noisier", "Smaller batches are noisier.", "log ratio of loss jumps"

    def context(run: RunNumbers) -> Hashable:
        return run.optimizer, run.schedule

    sizes: dict[Hashable, set[int]] = {}
    for run in runs:
        sizes.setdefault(context(run), set()).add(run.batch_size)

    def at(extreme: Callable[[set[int]], int]) -> Kind:
        def kind(run: RunNumbers) -> bool:
            here = sizes[context(run)]
            return len(here) > 1 and run.batch_size == extreme(here) and isfinite(run.noise) and run.noise > 0

        return kind

    found = match(runs, at(max), at(min), context, lambda run: run.noise, ratio=True)
    if found is None:
        return _claim(*head, _untested("one entry at two batch sizes (--batch-sizes 32,256)"))
    one, other, used = found
    interval = paired_interval(one, other, ratio=True)
    verdict = judge(interval, 0.0)
    why = (
        f"log(jumps at the smallest batch / jumps at the largest) of the training loss between evaluations, "
        f"in the second half of each run, is {_span(interval)} over {interval.n} seeds."
        f"{_advice(interval, 0.0, verdict)}"
    )
    return _claim(*head, why, verdict, interval, used)


def _claim(
    id: str,
    sentence: str,
    unit: str,
    why: str,
    verdict: Verdict = "undecided",
    interval: Interval | None = None,
    runs: Sequence[RunNumbers] = (),
) -> Claim:
    return {
        "id": id,
        "claim": sentence,
        "verdict": verdict,
        "interval": interval and interval.as_dict(),
        "unit": unit,
        "entries": list(dict.fromkeys(run.entry for run in runs)),
        "runs": [run.id for run in runs],
        "why": why,
    }


def _untested(needs: str) -> str:
    return f"Not tested here: it needs {needs}."


def _advice(interval: Interval, threshold: float, verdict: Verdict) -> str:
    if verdict != "undecided":
        return ""
    if interval.centre == interval.sd == 0:
        return " Every seed ended exactly equal: the metric cannot tell them apart here."
    _, seeds = further_seeds(interval, threshold, level=0.95)
    return f" About {seeds:,} further seeds would decide it." if seeds else " More seeds would decide it."


def _short(x: float) -> str:
    return f"{x:.3g}".replace("-", "−")


def _span(interval: Interval) -> str:
    return f"{_short(interval.centre)} ({_short(interval.low)} to {_short(interval.high)})"
