"""From measurements to advice: what to take, what was measured, how sure, and what race could overturn it.

Advice is a guess with a reason; the race beside it is how to find out. Nothing here measures.

Source: McCandlish, Kaplan, Amodei et al. 2018 (steps to a goal fall with the batch B as 1 + S/B, S the noise
scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from shlex import quote
from statistics import median
from typing import Literal

from schuss.lab.diagnose.measure import Diagnosis, Speed

Sure = Literal["measured", "an indication", "a guess"]

SPARSE = 0.5  # of a large table's rows empty in a batch: per-weight rates pay
CLEAR = 1.5  # factor between two directions that counts as a difference
SPAN = 10.0  # largest over smallest rate of a range below a stability limit
MOVING = 2.0  # factor by which something must change along the run to speak of a change


@dataclass(frozen=True)
class Advice:
    """`topic`: take this, because of that measurement; this sure; the race that could overturn it."""

    topic: str
    take: str
    because: str
    sure: Sure
    command: str


@dataclass(frozen=True)
class Cost:
    """A batch size: steps to a goal relative to one with all data, seconds per step, and their product."""

    batch: int
    steps: float
    seconds: float
    time: float


def advise(found: Diagnosis) -> list[Advice]:
    """Optimizer, learning rate, batch size and schedule, where the measurements allow a word on them."""
    optimizer = _optimizer(found)
    advice = [optimizer, _rate(found, optimizer.take), _batch(found), _schedule(found, optimizer.take)]
    return [each for each in advice if each is not None]


def costs(speeds: Sequence[Speed], scale: float) -> list[Cost]:
    """What a goal costs at each batch size, for a noise scale in examples.

    >>> [round(cost.time, 3) for cost in costs([Speed(1, 0.1), Speed(99, 0.2)], 99.0)]
    [10.0, 0.4]
    """
    return [Cost(s.batch, 1 + scale / s.batch, s.seconds, (1 + scale / s.batch) * s.seconds) for s in speeds]


def _race(found: Diagnosis) -> str:
    """The race of this task, without its options."""
    return f"schuss race {quote(found.spec)}" + (f" --data {quote(found.data)}" if found.data else "")


def _optimizer(found: Diagnosis) -> Advice:
    race = f"{_race(found)} --preset quick --entries "
    if found.sparsity is not None:
        table = max(
            found.sparsity.tensors, key=lambda t: (t.empty_rows * (t.size > found.weights / 4), t.size)
        )
        if table.size > found.weights / 4 and table.empty_rows > SPARSE:
            return Advice(
                "optimizer",
                "adagrad",
                f"A batch leaves {table.empty_rows:.0%} of the rows of {table.name} untouched "
                f"({table.size / found.weights:.0%} of all weights). AdaGrad takes longer steps in rows that are "
                "rarely touched, and a sparse step does not visit the other rows.",
                "an indication",
                f"{race}adagrad,adam,momentum",
            )
    if not found.has_data and found.conditioning is not None:
        kappa = found.conditioning.value
        return Advice(
            "optimizer",
            "momentum",
            f"There is no gradient noise, and the curvature spreads over a factor of {kappa:.3g}. To lower the error "
            f"by a factor of e, gradient descent needs about {kappa / 2:.3g} steps, and momentum at its best about "
            f"{kappa**0.5 / 2:.3g}. schuss.torch.LBFGS may need fewer still.",
            "an indication",
            f"{race}momentum,nesterov,adam",
        )
    if found.directions is not None:
        plain, scaled = found.directions.plain, found.directions.scaled
        ratio = scaled / plain if plain > 0 else inf
        words = (
            f"After {found.steps} steps, a line search along the gradient lowers the loss by {plain:.3g}. A line "
            f"search along the gradient divided by each weight's typical gradient lowers it by {scaled:.3g}."
        )
        if ratio >= CLEAR:
            return Advice("optimizer", "adamw", words, "an indication", f"{race}adamw,momentum")
        if ratio <= 1 / CLEAR:
            return Advice("optimizer", "momentum", words, "an indication", f"{race}momentum,adamw")
        return Advice(
            "optimizer",
            "momentum",
            f"{words} That is no clear difference; momentum has half the state of AdamW.",
            "a guess",
            f"{race}momentum,adamw",
        )
    return Advice(
        "optimizer",
        "adamw",
        "No measurement favours an optimizer; AdamW needs the least tuning on most models.",
        "a guess",
        f"{race}momentum,adamw",
    )


def _rate(found: Diagnosis, optimizer: str) -> Advice | None:
    """A range of rates of the optimizer that ran: where its first steps make progress, below what is stable.

    The limit of a method with a preconditioner is that of the preconditioner as it is now, which moves with training:
    it bounds no rate. None of these rates was trained to the horizon, so nothing here is called measured.
    """
    limits = [look.largest_lr or inf for look in found.settled]
    stable = min((x for x in limits if isfinite(x)), default=None)
    ladder = None if found.ladder is None else found.ladder.interval
    if ladder is None and (stable is None or found.adaptive):
        return None
    words: list[str] = []
    low, high = ladder or (0.0, inf)
    if ladder is not None:
        words.append(f"in the range test the loss falls between {low:.2g} and {high:.2g}")
    if stable is not None and found.adaptive:
        words.append(
            f"with its denominators as they were, {stable:.2g} was stable, but they change with the learning rate"
        )
    elif stable is not None:
        bounded = any(look.bounds[3] != "" for look in found.settled)
        words.append(
            f"at the sharpest point of the run learning rates are stable up to {'at most ' * bounded}{stable:.2g}"
        )
        fraction = _signal(found)
        if fraction < 1:
            words[-1] += (
                f", and with the noise of a batch of {found.batch_size} to about {fraction * stable:.2g}"
            )
        high = fraction * stable
        if found.ladder is not None:
            high = min(high, median(found.ladder.stopped_at))
    because = f"For {found.optimizer}: {'; '.join(words)}."
    settings = f"{_race(found)} --entries {quote(found.named or found.optimizer)}"
    schedule = "" if found.schedule == "constant" else f" --schedules {found.schedule}"
    command = f"{settings}{schedule} --preset quick"
    if high <= low:
        because += " No learning rate satisfies both, so none is advised: the race searches them."
        return Advice("learning rate", "no range", because, "a guess", command)
    if stable is not None and not found.adaptive:
        low = max(low, high / SPAN)
    low = min(low, high / 3)  # half a decade at least: no measurement here is finer
    low, high = (float(f"{x:.2g}") for x in (low, high))  # judged as it is printed
    where = "below" if found.lr < low else "above" if found.lr > high else "inside"
    because += f" The run's own learning rate, {found.lr:g}, is {where} this range."
    if optimizer != found.optimizer:
        because += (
            f" For the learning rate of {optimizer}, which is advised above, run: "
            f"schuss diagnose {quote(found.spec)} --optimizer {optimizer}."
        )
    return Advice(
        "learning rate", f"{low:.2g} to {high:.2g} for {found.optimizer}", because, "an indication", command
    )


def _signal(found: Diagnosis) -> float:
    """B / (B + noise scale): by what the noise of a batch lowers a plain method's largest stable rate.

    Of the scales at start and end the smaller: the noise that grows with the distance from the minimum makes steps
    unstable, and the gradient at the start is mostly that. What is left at the minimum blurs, but is borne.
    """
    scales = [noise.simple for noise in found.noise if noise is not None and noise.simple > 0]
    return found.batch_size / (found.batch_size + min(scales)) if scales else 1.0


def _batch(found: Diagnosis) -> Advice | None:
    noise = found.noise[1] or found.noise[0]
    if noise is None or not found.speeds:
        return None
    # The goal lies at the end, where the noise is larger: its scale decides. Each round of timings has its say.
    rounds = list(zip(*(speed.rounds or (speed.seconds,) for speed in found.speeds), strict=True))
    timings = [
        found.speeds,
        *(
            [replace(speed, seconds=x) for speed, x in zip(found.speeds, each, strict=True)]
            for each in rounds
        ),
    ]
    best = [
        min(costs(speeds, scale), key=lambda cost: cost.time).batch
        for speeds in timings
        for scale in (noise.simple, *noise.interval)
        if isfinite(scale)
    ]
    if not best:
        best = [found.speeds[-1].batch]
    times = {cost.batch: cost.time for cost in costs(found.speeds, min(noise.simple, 1e9))}
    own = min(times, key=lambda batch: abs(batch - found.batch_size))
    low, high = noise.interval
    high_words = f"{high:.3g}" if isfinite(high) else "∞"
    gain = times[own] / min(times.values())
    named = ",".join(dict.fromkeys(map(str, (own, best[0])))) if best[0] != own else f"{own},{4 * own}"
    compared = "which is in use" if best[0] == own else f"at B = {own} a goal takes {gain:.2g} times as long"
    because = (
        f"Noise and signal are equal at {noise.simple:.3g} examples ({low:.3g} to {high_words}). With the measured "
        f"seconds per step, (1 + {noise.simple:.3g}/B) × seconds is least at B = {best[0]}; {compared}."
    )
    if len(set(best)) > 1:
        least, most = min(best), max(best)
        because += (
            f" Within the errors of noise scale and timings the best B may lie between {least} and {most}."
        )
    return Advice(
        "batch size",
        str(best[0]),
        because,
        "measured" if len(set(best)) == 1 and isfinite(high) else "an indication",
        f"{_race(found)} --entries {quote(found.named or found.optimizer)} --batch-sizes {named} --rank-by seconds "
        "--preset quick",
    )


def _schedule(found: Diagnosis, optimizer: str) -> Advice | None:
    first, last = (found.settled[0], found.settled[-1]) if found.settled else (None, None)
    before, after = found.noise
    words: list[str] = []
    warm = False
    if first is not None and last is not None and first.largest_lr and last.largest_lr and first is not last:
        grown = last.largest_lr / first.largest_lr
        warm = grown > MOVING or (first.dial or 0) > 1
        words.append(
            f"the largest stable learning rate went from {first.largest_lr:.2g} at step {first.step} to "
            f"{last.largest_lr:.2g} at step {last.step}{': it is lowest at the start' if warm else ''}"
        )
    falling = False
    if before is not None and after is not None and isfinite(after.simple):
        falling = after.simple > found.batch_size
        words.append(
            f"the noise scale went from {before.simple:.3g} to {after.simple:.3g} examples, "
            f"{'above' if falling else 'below'} the batch of {found.batch_size}"
            f"{': a falling learning rate averages the noise out' if falling else ''}"
        )
    if not words:
        return None
    take = ("warmup+" if warm else "") + ("cosine" if falling or warm else "constant")
    other = "constant" if take != "constant" else "cosine"
    text = "; ".join(words)
    return Advice(
        "schedule",
        take,
        f"{text[:1].upper()}{text[1:]}.",
        "an indication" if warm or falling else "a guess",
        f"{_race(found)} --entries {optimizer} --schedules {take},{other} --preset quick",
    )
