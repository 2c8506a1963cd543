"""The curvature of a race's winner, as its report holds it: a reason for the verdict.

Everything here repeats exactly, but for what rests on measured times, which is under `seconds`; as long as
everything fits the budget of a diagnosis. Where one Hessian-vector product is so dear that it does not, what is cut
rests on the machine too, and the section counts what was spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from schuss.curvature import NoiseScale
from schuss.lab.diagnose.advise import Advice, advise
from schuss.lab.diagnose.measure import Diagnosis, caveat, measure
from schuss.lab.entries import Entry
from schuss.lab.pages.frame import plain
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
        )
    timed = [asdict(each) for each in advise(found) if each.topic == "batch size"]
    speeds, found = found.speeds, replace(found, speeds=())
    advice, sparsity = advise(found), found.sparsity
    section = {
        "entry": entry.name,
        "parameters": dict(parameters),
        "schedule": schedule,
        "steps": found.steps,
        "seed": seed,
        "examples": found.examples,
        "products": found.effort.products,
        "caveat": caveat(found),
        "text": in_words(found, advice),
        "looks": [
            asdict(each) | {"dial": each.sharpness_ratio, "bounds": each.bounds}
            for each in found.measurements
        ],
        "conditioning": found.conditioning and asdict(found.conditioning),
        "noise": [_noise(each, at) for each, at in zip(found.noise, (0, found.steps), strict=True) if each],
        "sparsity": sparsity and {key: getattr(sparsity, key) for key in ("zeros", "empty_rows", "spread")},
        "advice": [asdict(each) for each in advice],
        "missing": {what: why for what, why in found.missing.items() if what != "speed"},
        "seconds": {"steps": [asdict(speed) for speed in speeds], "advice": timed},
    }
    return plain(section)


def in_words(found: Diagnosis, advice: list[Advice]) -> str:
    """What was measured along the winner's run, in two or three sentences."""
    rated = [(each.sharpness_ratio, each) for each in found.settled if each.sharpness_ratio is not None]
    words: list[str] = []
    if rated:
        ratio, last = rated[-1]
        where = (
            "at the edge of stability"
            if 0.8 <= ratio <= 1.25
            else "above the stability limit of a quadratic"
            if ratio > 1.25
            else "well below the limit"
        )
        rate = "" if found.schedule == "constant" else f" under {found.schedule}"
        words.append(
            f"After {last.step} steps of {found.optimizer}{rate} the sharpness is {last.sharpness:.3g}, "
            f"{ratio:.2g} of the stability limit {last.limit:.3g} of these settings: {where}."
        )
        highest, top = max(rated, key=lambda pair: pair[0])
        if highest > 1.1 * ratio:
            words.append(f"It was highest at step {top.step}: {highest:.2g} of the limit then.")
    if found.conditioning is not None:
        words.append(f"The curvature spreads over a factor of {found.conditioning.value:.3g}.")
    noise = found.last_noise
    if noise is not None and math.isfinite(noise.simple):
        which = "noise" if noise.simple > found.batch_size else "signal"
        words.append(
            f"Noise and signal are equal at {noise.simple:.3g} examples, so a batch of {found.batch_size} "
            f"is mostly {which}."
        )
    other = next((each.take for each in advice if each.topic == "optimizer"), None)
    if other not in (None, found.optimizer):
        words.append(f"By the curvature alone, {other} would be the first optimizer to try.")
    return " ".join(words) or "No curvature could be measured on this task."


def _noise(noise: NoiseScale, step: int) -> dict[str, Any]:
    low, high = noise.interval
    return {"step": step, "simple": noise.simple, "low": low, "high": high, "batches": noise.batches}
