"""The curvature of a race's winner, as its report holds it: a reason beside the verdict.

Everything here repeats exactly, but for what rests on measured times, which is kept under `seconds`; as long as
everything fits the budget of a diagnosis. Where one product is so dear that it does not, what is cut rests on
the machine too, and the section counts what was spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

from schuss.curvature import NoiseScale
from schuss.lab.diagnose.advise import Advice, advise
from schuss.lab.diagnose.measure import Diagnosis, Progress, caveat, measure
from schuss.lab.entries import Entry
from schuss.lab.report.schema import Curvature
from schuss.lab.tasks.task import Task
from schuss.lab.training.quiet import quiet_process


def curvature_of(
    task: Task,
    entry: Entry,
    spec: str,
    parameters: Mapping[str, float],
    *,
    batch_size: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    schedule: str = "constant",
    progress: Progress | None = None,
) -> Curvature:
    """Train at the winner's own settings and schedule, over the whole horizon, and measure on the way.

    On one thread of the CPU, so that the same task gives the same numbers. See `measure` for `steps`, if they
    are to be fewer.
    """
    given = task
    if batch_size is not None and batch_size != task.batch_size:
        horizon = {} if task.steps is None else {"steps": task.total_steps(batch_size)}
        given = replace(task, batch_size=batch_size, **horizon)
    with quiet_process():
        found = measure(
            *(given, replace(entry, usual=dict(parameters)), spec),
            seed=seed,
            steps=steps or given.total_steps(),
            schedule=schedule,
            progress=progress,
        )
    timeless = replace(found, speeds=())
    kept = advise(timeless)
    timed = [asdict(each) for each in advise(found) if each.topic == "batch size"]
    section = {
        "entry": entry.name,
        "parameters": dict(parameters),
        "schedule": schedule,
        "steps": found.steps,
        "seed": seed,
        "examples": found.examples,
        "products": found.effort.products,
        "caveat": caveat(found),
        "text": in_words(timeless, kept),
        "looks": [asdict(look) | {"dial": look.dial, "bounds": look.bounds} for look in found.looks],
        "conditioning": None if found.conditioning is None else asdict(found.conditioning),
        "noise": [_noise(each, at) for each, at in zip(found.noise, (0, found.steps), strict=True) if each],
        "sparsity": None
        if found.sparsity is None
        else {name: getattr(found.sparsity, name) for name in ("zeros", "empty_rows", "spread")},
        "advice": [asdict(each) for each in kept],
        "missing": {what: why for what, why in found.missing.items() if what != "speed"},
        "seconds": {"steps": [asdict(speed) for speed in found.speeds], "advice": timed},
    }
    return cast("Curvature", _finite(section))


def in_words(found: Diagnosis, advice: list[Advice]) -> str:
    """What was measured along the winner's run, in two or three sentences."""
    settled = [look for look in found.settled if look.dial is not None]
    words: list[str] = []
    if settled:
        last = settled[-1]
        assert last.dial is not None
        where = (
            "at the edge of stability"
            if 0.8 <= last.dial <= 1.25
            else "above the stability limit of a quadratic"
            if last.dial > 1.25
            else "well below the limit"
        )
        rate = "" if found.schedule == "constant" else f" under {found.schedule}"
        words.append(
            f"After {last.step} steps of {found.optimizer}{rate} the sharpness is {last.sharpness:.3g}, "
            f"{last.dial:.2g} of the stability limit {last.limit:.3g} of these settings: {where}."
        )
        top = max(settled, key=lambda look: look.dial or 0.0)
        assert top.dial is not None
        if top.dial > 1.1 * last.dial:
            words.append(f"It was highest at step {top.step}: {top.dial:.2g} of the limit then.")
    if found.conditioning is not None:
        words.append(f"The curvature spreads over a factor of {found.conditioning.value:.3g}.")
    noise = found.noise[1] or found.noise[0]
    if noise is not None and math.isfinite(noise.simple):
        which = "noise" if noise.simple > found.batch_size else "signal"
        words.append(
            f"Noise and signal are equal at {noise.simple:.3g} examples, so a batch of {found.batch_size} "
            f"is mostly {which}."
        )
    other = next((each.take for each in advice if each.topic == "optimizer"), None)
    if other is not None and other != found.optimizer:
        words.append(f"By the curvature alone, {other} would be the first optimizer to try.")
    return " ".join(words) or "No curvature could be measured on this task."


def _noise(noise: NoiseScale | None, step: int) -> dict[str, Any]:
    assert noise is not None
    low, high = noise.interval
    return {"step": step, "simple": noise.simple, "low": low, "high": high, "batches": noise.batches}


def _finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_finite(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
