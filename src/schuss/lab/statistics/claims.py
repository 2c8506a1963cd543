"""What the textbooks say, tested on the runs of one task: holds, fails, no gap that counts, or undecided here.

Each claim compares two kinds of runs that differ in one thing only and are paired by seed. It *holds* if the
95 % interval of the difference lies on its side of zero and the difference exceeds one seed-sd (5 % of cost);
it *fails* if the whole interval lies on the other side of zero. There is *no gap that counts* if the interval
reaches across zero and yet stays below that smallest gap: nothing is refuted, there is just too little between
the two to matter here. Otherwise it is *undecided*. What the race did not run is undecided, and says what it
needs.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log10
from typing import Any, Literal

import numpy as np

from schuss.lab.statistics.compare import (
    Floats,
    Interval,
    as_losses,
    further_seeds,
    holm_levels,
    mean_interval,
    paired_interval,
    smallest_gap_that_counts,
)
from schuss.lab.statistics.numbers import RunNumbers, numbers_of

Verdict = Literal["holds", "fails", "no gap that counts", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A sentence, its verdict, the interval that decided (positive speaks for it), and the runs behind it."""

    id: str
    claim: str
    verdict: Verdict
    interval: Interval | None
    unit: str
    entries: tuple[str, ...]
    runs: tuple[str, ...]
    why: str

    def as_dict(self) -> dict[str, Any]:
        """The claim as `report.json` holds it: a number that is not finite is None."""
        found = self.interval
        return {
            "id": self.id,
            "claim": self.claim,
            "verdict": self.verdict,
            "interval": None
            if found is None
            else {
                "mean": _finite(found.centre),
                "low": _finite(found.low),
                "high": _finite(found.high),
                "sd": _finite(found.sd),
                "n": found.n,
            },
            "unit": self.unit,
            "entries": list(self.entries),
            "runs": list(self.runs),
            "why": self.why,
        }


def _finite(x: float) -> float | None:
    return x if isfinite(x) else None


def judge(interval: Interval, threshold: float) -> Verdict:
    """Return the verdict on "the difference is positive and worth having".

    >>> judge(Interval(2.0, 1.0, 3.0, 0.01, 10, 1.0, "t"), threshold=1.0)
    'holds'
    >>> judge(Interval(0.0, -0.5, 0.5, 1.0, 10, 1.0, "t"), threshold=1.0)
    'no gap that counts'
    >>> judge(Interval(-2.0, -3.0, -1.0, 0.01, 10, 1.0, "t"), threshold=1.0)
    'fails'

    Where every seed ended exactly equal, as on a task whose metric has a floor that all reach, it is undecided.

    >>> judge(Interval(0.0, 0.0, 0.0, 1.0, 10, 0.0, "t"), threshold=1.0)
    'undecided'
    """
    if _indistinct(interval):
        return "undecided"
    if interval.low > 0 and interval.centre > threshold:
        return "holds"
    if interval.high < 0:
        return "fails"
    return "no gap that counts" if interval.high <= threshold else "undecided"


def _indistinct(interval: Interval) -> bool:
    """Whether the two were exactly equal on every seed."""
    return interval.centre == 0 and interval.sd == 0


Kind = Callable[[RunNumbers], bool]
Context = Callable[[RunNumbers], Hashable]
Number = Callable[[RunNumbers], float]


@dataclass(frozen=True)
class Matched:
    """Two kinds of runs in the same contexts: one value a seed for each, averaged over the contexts."""

    one: Floats
    other: Floats
    runs: tuple[RunNumbers, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries compared, each once, in order."""
        return tuple(dict.fromkeys(run.entry for run in self.runs))

    @property
    def ids(self) -> tuple[str, ...]:
        """The runs compared."""
        return tuple(run.id for run in self.runs)


def match(
    runs: Iterable[RunNumbers], one: Kind, other: Kind, same: Context, number: Number, *, ratio: bool = False
) -> Matched | None:
    """Pair the runs of two kinds that agree in `same` and in the seed; None if no seed has both.

    Only contexts that both kinds ran on all the shared seeds count, so every seed averages the same thing.
    With `ratio` the average over contexts is geometric.
    """
    sides: tuple[dict[Hashable, dict[int, RunNumbers]], ...] = ({}, {})
    for run in runs:
        for side, kind in zip(sides, (one, other), strict=True):
            if kind(run):
                side.setdefault(same(run), {})[run.seed] = run
    contexts = [context for context in sides[0] if context in sides[1]]
    shared = [set(sides[0][c]) & set(sides[1][c]) for c in contexts]
    contexts = [c for c, seeds in zip(contexts, shared, strict=True) if seeds]
    seeds = sorted(set.intersection(*(s for s in shared if s))) if contexts else []
    if not seeds:
        return None
    picked = [[[side[c][seed] for c in contexts] for seed in seeds] for side in sides]

    def average(side: list[list[RunNumbers]]) -> Floats:
        values = np.array([[number(run) for run in row] for row in side])
        with np.errstate(divide="ignore"):
            return np.exp(np.log(values).mean(axis=1)) if ratio else values.mean(axis=1)

    used = tuple(run for side in picked for row in side for run in row)
    return Matched(average(picked[0]), average(picked[1]), used)


@dataclass(frozen=True)
class _Comparison:
    """A claim that one kind of run ends better than another, and what a race needs for it."""

    id: str
    claim: str
    one: Kind
    other: Kind
    needs: str
    same: Context = lambda run: _setting(run)
    number: Number = lambda run: run.score


def claims(
    runs: Sequence[RunNumbers], *, metric: str = "metric", lower_is_better: bool = True
) -> list[Claim]:
    """Return the ten claims, in the textbooks' order, on the reporting runs of one task."""
    compared = [
        _compared(comparison, runs, metric, lower_is_better)
        for comparison in (*_between_optimizers(), *_between_schedules(runs))
    ]
    momentum, nesterov, adagrad, generalization, *others = compared
    return [
        momentum,
        nesterov,
        _adagrad(adagrad, runs),
        _adam_first(runs),
        _usual_eps(generalization, runs),
        *others,
        _noisier_batches(runs),
    ]


def _compared(
    comparison: _Comparison, runs: Sequence[RunNumbers], metric: str, lower_is_better: bool
) -> Claim:
    sign = 1.0 if lower_is_better else -1.0
    id, sentence = comparison.id, comparison.claim

    def loss(run: RunNumbers) -> float:
        return float(as_losses(comparison.number(run), lower_is_better=lower_is_better))

    found = match(runs, comparison.one, comparison.other, comparison.same, loss)
    if found is None:
        return _untested(id, sentence, metric, comparison.needs)
    interval = paired_interval(found.one, found.other)
    threshold = smallest_gap_that_counts(found.one, found.other)
    verdict = judge(interval, threshold)
    means = (f"{_short(sign * float(np.mean(x)))}" for x in (found.one, found.other))
    why = (
        f"Mean {metric} {' against '.join(means)} over {interval.n} seeds; the advantage is "
        f"{_span(interval)}, and one seed-sd, the least that counts, is {_short(threshold)}."
        f"{_advice(interval, threshold, verdict)}"
    )
    return Claim(id, sentence, verdict, interval, metric, found.entries, found.ids, why)


def _between_optimizers() -> list[_Comparison]:
    def entries(
        id: str, claim: str, one: str, other: str, number: Number = lambda run: run.score
    ) -> _Comparison:
        return _Comparison(id, claim, _is(one), _is(other), f"the entries {one} and {other}", number=number)

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
            lambda run: _plain(run.optimizer) == "adaml2" or (run.optimizer == "adam" and run.decayed),
            "the entries adamw and adam with an L2 weight decay",
        ),
    ]


def _between_schedules(runs: Sequence[RunNumbers]) -> list[_Comparison]:
    usual = _first_schedule(runs, ("cosine", "linear", "step", "warmup+cosine"))
    single = "cosine" if any(run.schedule == "cosine" for run in runs) else "constant"
    return [
        _Comparison(
            "schedule-beats-none",
            "A schedule beats none.",
            lambda run: run.schedule == usual,
            lambda run: run.schedule == "constant",
            "one entry with the schedules constant and cosine",
            _optimizer,
        ),
        _Comparison(
            "warmup-helps",
            "Warm-up helps.",
            lambda run: run.schedule.startswith("warmup"),
            lambda run: not run.schedule.startswith("warmup"),
            "one entry with the same schedule with and without warm-up (cosine and warmup+cosine)",
            lambda run: (
                *_optimizer(run),
                run.schedule.removeprefix("warmup").removeprefix("+") or "constant",
            ),
        ),
        _Comparison(
            "restarts-help",
            "Cyclic restarts help.",
            lambda run: run.schedule == "restarts",
            lambda run: run.schedule == single,
            "one entry with the schedules restarts and cosine",
            _optimizer,
        ),
    ]


def _is(optimizer: str) -> Kind:
    return lambda run: run.optimizer == optimizer


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _setting(run: RunNumbers) -> Hashable:
    return run.schedule, run.batch_size


def _optimizer(run: RunNumbers) -> tuple[str, int]:
    return run.optimizer, run.batch_size


def _first_schedule(runs: Iterable[RunNumbers], order: Sequence[str]) -> str:
    """The first of `order` that was run: chosen by name, so that no result can choose it."""
    seen = {run.schedule for run in runs}
    return next((name for name in order if name in seen), "")


def _adagrad(compared: Claim, runs: Sequence[RunNumbers]) -> Claim:
    """Too much: it has at least halved, and RMSProp, which is AdaGrad that forgets, does better."""
    falls = [run.rate_fall for run in runs if run.id in compared.runs and run.optimizer == "adagrad"]
    if compared.interval is None or not np.isfinite(falls).any():
        return compared
    fall = mean_interval([x for x in falls if isfinite(x)])
    verdict: Verdict = compared.verdict
    if fall.low > -log10(2):
        verdict = "fails"
    elif fall.high >= 0 and verdict == "holds":
        verdict = "undecided"
    why = (
        f"AdaGrad's effective rate ends at {_short(10**fall.centre)} × where it began; the question is "
        f"whether RMSProp, which forgets, does better. {compared.why}"
    )
    return replace(compared, verdict=verdict, why=why)


def _usual_eps(compared: Claim, runs: Sequence[RunNumbers]) -> Claim:
    """Say so where eps was not tuned: Adam with a large eps, and lr scaled by it, is momentum."""
    if compared.interval is None or all(
        run.eps_tuned for run in runs if run.id in compared.runs and run.optimizer == "adam"
    ):
        return compared
    why = (
        f"{compared.why} Adam's eps was not tuned: with a large eps, and its rate scaled by it, Adam is "
        "momentum, so this speaks of Adam at its usual eps only."
    )
    return replace(compared, why=why)


def _adam_first(runs: Sequence[RunNumbers]) -> Claim:
    """First means before every other optimizer: Holm over all of them; the closest rival is shown."""
    id, sentence, unit = "adam-first", "Adam reaches a target first.", "log ratio of gradients to the target"
    found = {
        other: pair
        for other in dict.fromkeys(run.optimizer for run in runs if run.optimizer != "adam")
        if (pair := match(runs, _is("adam"), _is(other), _setting, lambda run: run.cost, ratio=True))
    }
    if not any(np.isfinite(pair.one).any() or np.isfinite(pair.other).any() for pair in found.values()):
        needs = "adam, another optimizer and a target that one of them reaches"
        return _untested(id, sentence, unit, needs)
    first = {other: paired_interval(pair.one, pair.other, ratio=True) for other, pair in found.items()}
    _, levels = holm_levels([interval.p for interval in first.values()])
    adjusted = {
        other: paired_interval(found[other].one, found[other].other, ratio=True, level=level)
        for other, level in zip(first, levels, strict=True)
    }
    threshold = smallest_gap_that_counts([], [], ratio=True)
    verdicts = {other: judge(interval, threshold) for other, interval in adjusted.items()}
    rival = min(adjusted, key=lambda other: (adjusted[other].centre, adjusted[other].low))
    verdict: Verdict = (
        "fails"
        if "fails" in verdicts.values()
        else "no gap that counts"
        if "no gap that counts" in verdicts.values()
        else "holds"
        if set(verdicts.values()) == {"holds"}
        else "undecided"
    )
    reached = [int(np.isfinite(x).sum()) for x in (found[rival].one, found[rival].other)]
    interval = adjusted[rival]
    why = (
        f"The strongest rival is {rival}: {reached[0]} of {interval.n} seeds reached the target with adam, "
        f"{reached[1]} with {rival}; log(cost of {rival} / cost of adam) is {_span(interval)}, Holm-adjusted "
        f"over {len(adjusted)} rivals.{_advice(interval, threshold, verdict)}"
    )
    pair = found[rival]
    return Claim(id, sentence, verdict, interval, unit, pair.entries, pair.ids, why)


def _noisier_batches(runs: Sequence[RunNumbers]) -> Claim:
    id, sentence, unit = "smaller-batches-noisier", "Smaller batches are noisier.", "log ratio of loss jumps"
    sizes: dict[Hashable, list[int]] = {}
    for run in runs:
        sizes.setdefault((run.optimizer, run.schedule), []).append(run.batch_size)
    extremes = {same: (min(x), max(x)) for same, x in sizes.items() if min(x) < max(x)}

    def context(run: RunNumbers) -> Hashable:
        return run.optimizer, run.schedule

    def end(which: int) -> Kind:
        return lambda run: (
            context(run) in extremes
            and run.batch_size == extremes[context(run)][which]
            and isfinite(run.noise)
            and run.noise > 0
        )

    found = match(runs, end(1), end(0), context, lambda run: run.noise, ratio=True)
    if found is None:
        return _untested(id, sentence, unit, "one entry at two batch sizes (--batch-sizes 32,256)")
    interval = paired_interval(found.one, found.other, ratio=True)
    verdict = judge(interval, 0.0)
    why = (
        f"log(jumps at the smallest batch / jumps at the largest) of the training loss between evaluations, "
        f"in the second half of each run, is {_span(interval)} over {interval.n} seeds."
        f"{_advice(interval, 0.0, verdict)}"
    )
    return Claim(id, sentence, verdict, interval, unit, found.entries, found.ids, why)


def _untested(id: str, sentence: str, unit: str, needs: str) -> Claim:
    return Claim(id, sentence, "undecided", None, unit, (), (), f"Not tested here: it needs {needs}.")


def _advice(interval: Interval, threshold: float, verdict: Verdict) -> str:
    if verdict != "undecided":
        return ""
    if _indistinct(interval):
        return " Every seed ended exactly equal: the metric cannot tell them apart here."
    _, seeds = further_seeds(interval, threshold, level=0.95)
    return f" About {seeds:,} further seeds would decide it." if seeds else " More seeds would decide it."


def _short(x: float) -> str:
    return f"{x:.3g}".replace("-", "−")


def _span(interval: Interval) -> str:
    return f"{_short(interval.centre)} ({_short(interval.low)} to {_short(interval.high)})"


def claims_of(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return `claims` for a task's report, as `report.json` holds them."""
    metric = task["metric"]
    found = claims(numbers_of(task), metric=metric["name"], lower_is_better=metric["best"] == "min")
    return [claim.as_dict() for claim in found]
