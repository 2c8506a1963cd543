"""From measurements to advice: what to take, what was measured, how sure, and what race could overturn it.

Advice is a guess with a reason; the race named with it is how to find out. Nothing here measures.

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

from schuss.curvature import NoiseScale
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
    """A batch size: steps to a goal relative to one with all data, seconds per step, and steps times seconds."""

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


def _race(found: Diagnosis, entries: str = "", *options: str) -> str:
    """The race of this task that compares some entries, or tunes the one that ran."""
    words = ["schuss race", quote(found.spec)]
    if found.data:
        words += ["--data", quote(found.data)]
    words += ["--entries", entries or quote(found.named or found.optimizer)]
    return " ".join([*words, *options, "--preset quick"])


def _optimizer(found: Diagnosis) -> Advice:
    take, rivals, sure, because = _first_choice(found)
    return Advice("optimizer", take, because, sure, _race(found, f"{take},{rivals}"))


def _first_choice(found: Diagnosis) -> tuple[str, str, Sure, str]:
    """An optimizer, those to race it against, how sure that is, and why."""
    if found.sparsity is not None:
        large = [table for table in found.sparsity.tensors if table.size > found.weights / 4]
        table = max(large, key=lambda t: (t.empty_rows, t.size), default=None)
        if table is not None and table.empty_rows > SPARSE:
            because = (
                f"A batch leaves {table.empty_rows:.0%} of the rows of {table.name} untouched "
                f"({table.size / found.weights:.0%} of all weights). AdaGrad takes longer steps in rows that are "
                "rarely touched, and a sparse step does not visit the other rows."
            )
            return "adagrad", "adam,momentum", "an indication", because
    if not found.has_data and found.conditioning is not None:
        kappa = found.conditioning.value
        because = (
            f"There is no gradient noise, and the curvature spreads over a factor of {kappa:.3g}. To lower the error "
            f"by a factor of e, gradient descent needs about {kappa / 2:.3g} steps, and momentum at its best about "
            f"{kappa**0.5 / 2:.3g}. schuss.torch.LBFGS may need fewer still."
        )
        return "momentum", "nesterov,adam", "an indication", because
    if found.directions is None:
        because = "No measurement favours an optimizer; AdamW needs the least tuning on most models."
        return "adamw", "momentum", "a guess", because
    plain, scaled = found.directions.plain, found.directions.scaled
    ratio = scaled / plain if plain > 0 else inf
    because = (
        f"After {found.steps} steps, a line search along the gradient lowers the loss by {plain:.3g}. A line "
        f"search along the gradient divided by each weight's typical gradient lowers it by {scaled:.3g}."
    )
    if ratio >= CLEAR:
        return "adamw", "momentum", "an indication", because
    if ratio <= 1 / CLEAR:
        return "momentum", "adamw", "an indication", because
    because += " That is no clear difference; momentum has half the state of AdamW."
    return "momentum", "adamw", "a guess", because


def _rate(found: Diagnosis, optimizer: str) -> Advice | None:
    """A range of rates of the optimizer that ran: where its first steps make progress, below what is stable.

    None of these rates was trained to the horizon, so nothing here is called measured.
    """
    bounded = _range(found)
    if bounded is None:
        return None
    low, high, words = bounded
    because = f"For {found.optimizer}: {'; '.join(words)}."
    command = _race(found, "", *([] if found.schedule == "constant" else [f"--schedules {found.schedule}"]))
    if high <= low:
        because += " No learning rate satisfies both, so none is advised: the race searches them."
        return Advice("learning rate", "no range", because, "a guess", command)
    low = min(low, high / 3)  # half a decade at least: no measurement here is finer
    low, high = (float(f"{x:.2g}") for x in (low, high))  # judged as it is printed
    where = "below" if found.lr < low else "above" if found.lr > high else "inside"
    because += f" The run's own learning rate, {found.lr:g}, is {where} this range."
    if optimizer != found.optimizer:
        because += (
            f" For the learning rate of {optimizer}, which is advised above, run: "
            f"schuss diagnose {quote(found.spec)} --optimizer {optimizer}."
        )
    take = f"{low:.2g} to {high:.2g} for {found.optimizer}"
    return Advice("learning rate", take, because, "an indication", command)


def _range(found: Diagnosis) -> tuple[float, float, list[str]] | None:
    """The lowest and the highest rate to try (none, if the first is not below the second), and what they rest on."""
    tested = None if found.range_test is None else found.range_test.interval
    stable = min((x for each in found.settled if isfinite(x := each.largest_lr or inf)), default=None)
    if tested is None and (stable is None or found.adaptive):
        return None
    low, high = tested or (0.0, inf)
    words = [f"in the range test the loss falls between {low:.2g} and {high:.2g}"] if tested else []
    if stable is not None and found.adaptive:
        # That limit is of the preconditioner as it is now, which moves with training: it bounds no rate.
        words.append(
            f"with its denominators as they were, {stable:.2g} was stable, but they change with the learning rate"
        )
    elif stable is not None:
        high, limit = _largest(found, stable)
        low = max(low, high / SPAN)
        words.append(limit)
    return low, high, words


def _largest(found: Diagnosis, stable: float) -> tuple[float, str]:
    """The largest rate of a plain method that is stable with the noise of a batch, and what that rests on.

    Noise lowers the limit by B / (B + noise scale). Of the scales at start and end the smaller counts: the noise
    that grows with the distance from the minimum makes steps unstable, and the gradient at the start is mostly that.
    What is left at the minimum only blurs it.
    """
    at_most = "at most " if any(each.bounds[3] for each in found.settled) else ""
    words = f"at the sharpest point of the run learning rates are stable up to {at_most}{stable:.2g}"
    scales = [noise.simple for noise in found.noise if noise is not None and noise.simple > 0]
    high = stable
    if scales:
        fraction = found.batch_size / (found.batch_size + min(scales))
        high = fraction * stable
        if fraction < 1:
            words += f", and with the noise of a batch of {found.batch_size} to about {high:.2g}"
    if found.range_test is not None:
        high = min(high, median(found.range_test.stopped_at))
    return high, words


def _best_batches(speeds: Sequence[Speed], noise: NoiseScale) -> list[int]:
    """Where a goal costs least: on the whole, and by each round of timings and end of the noise interval."""
    rounds = zip(*(speed.rounds or (speed.seconds,) for speed in speeds), strict=True)
    timings = [[replace(s, seconds=x) for s, x in zip(speeds, each, strict=True)] for each in rounds]
    return [
        min(costs(timed, scale), key=lambda cost: cost.time).batch
        for timed in (speeds, *timings)
        for scale in (noise.simple, *noise.interval)
        if isfinite(scale)
    ] or [speeds[-1].batch]


def _batch(found: Diagnosis) -> Advice | None:
    noise, speeds = found.last_noise, found.speeds  # the goal lies at the end, where the noise is larger
    if noise is None or not speeds:
        return None
    best = _best_batches(speeds, noise)
    times = {cost.batch: cost.time for cost in costs(speeds, min(noise.simple, 1e9))}
    own = min(times, key=lambda batch: abs(batch - found.batch_size))
    low, high = noise.interval
    gain = times[own] / min(times.values())
    compared = "which is in use" if best[0] == own else f"at B = {own} a goal takes {gain:.2g} times as long"
    because = (
        f"Noise and signal are equal at {noise.simple:.3g} examples ({low:.3g} to "
        f"{f'{high:.3g}' if isfinite(high) else '∞'}). With the measured seconds per step, "
        f"(1 + {noise.simple:.3g}/B) × seconds is least at B = {best[0]}; {compared}."
    )
    least, most = min(best), max(best)
    if least < most:
        because += (
            f" Within the errors of noise scale and timings the best B may lie between {least} and {most}."
        )
    sizes = f"--batch-sizes {own},{4 * own if best[0] == own else best[0]}"
    sure = "measured" if least == most and isfinite(high) else "an indication"
    return Advice("batch size", str(best[0]), because, sure, _race(found, "", sizes, "--rank-by seconds"))


def _schedule(found: Diagnosis, optimizer: str) -> Advice | None:
    before, after = found.noise
    words: list[str] = []
    warm = falling = False
    if len(found.settled) > 1:
        first, last = found.settled[0], found.settled[-1]
        if first.largest_lr and last.largest_lr:
            warm = last.largest_lr / first.largest_lr > MOVING or (first.sharpness_ratio or 0) > 1
            words.append(
                f"the largest stable learning rate went from {first.largest_lr:.2g} at step {first.step} to "
                f"{last.largest_lr:.2g} at step {last.step}{': it is lowest at the start' * warm}"
            )
    if before is not None and after is not None and isfinite(after.simple):
        falling = after.simple > found.batch_size
        words.append(
            f"the noise scale went from {before.simple:.3g} to {after.simple:.3g} examples, "
            f"{'above' if falling else 'below'} the batch of {found.batch_size}"
            f"{': a falling learning rate averages the noise out' * falling}"
        )
    if not words:
        return None
    text = "; ".join(words)
    take = "warmup+" * warm + ("cosine" if falling or warm else "constant")
    compared = f"--schedules {take},{'cosine' if take == 'constant' else 'constant'}"
    sure = "an indication" if warm or falling else "a guess"
    return Advice(
        *("schedule", take, f"{text[:1].upper()}{text[1:]}."), sure, _race(found, optimizer, compared)
    )
