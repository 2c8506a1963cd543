"""The few numbers of each reporting run that the textbooks' claims are tested on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np

from schuss.lab.statistics.compare import Floats
from schuss.lab.statistics.costs import cost_to_target


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """What the claims need of one run of the reporting stage."""

    id: str
    entry: str
    optimizer: str
    schedule: str = "constant"
    batch_size: int = 0
    decayed: bool = False  # whether its weight decay was searched
    eps_tuned: bool = False  # whether its eps was searched
    seed: int
    score: float  # the metric at the end, on validation
    test: float = nan  # and on test
    cost: float = inf  # gradient equivalents to the target; infinite: not reached
    noise: float = nan  # how far the training loss jumps between evaluations
    rate_fall: float = nan  # log10 of the effective rate late over early; NaN where it is not known


def numbers_of(task: Mapping[str, Any]) -> list[RunNumbers]:
    """Return what the claims need of a task's report (as in `report.json`): its reporting runs, in order.

    A diverged run counts with the untrained model's metric; a crashed one is left out. Costs refer to the
    target that ranks.
    """
    entries = {entry["name"]: entry for entry in task["entries"]}
    lower = task["metric"]["best"] == "min"
    target = next((t["value"] for t in task["targets"] if t["ranking"]), nan)  # NaN: never reached
    numbers: list[RunNumbers] = []
    for run in task["runs"]:
        if run["stage"] != "report" or run["status"] == "crashed":
            continue
        entry, curve = entries[run["entry"]], run["curve"]
        metric = _column(curve["metric"])
        finished = run["status"] == "finished"
        numbers.append(
            RunNumbers(
                id=run["id"],
                entry=run["entry"],
                optimizer=entry["optimizer"],
                schedule=entry["schedule"],
                batch_size=entry["batch_size"],
                decayed="weight_decay" in entry["space"],
                eps_tuned="eps" in entry["space"],
                seed=run["seed"],
                score=float(metric[-1] if finished else metric[0]),
                test=float(_column([(run["test"] or {}).get("metric")])[0]),
                cost=cost_to_target(metric, curve["gradients"], target, lower_is_better=lower),
                noise=_jumps(_column(curve["train_loss"])) if finished else nan,
                rate_fall=_fall(_column(curve["effective_rate"])) if finished else nan,
            )
        )
    return numbers


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([nan if x is None else x for x in values], dtype=np.float64)


def _jumps(train_loss: Floats) -> float:
    """The sd of a point round the line through its neighbours, over the second half of the run."""
    bends = np.diff(train_loss[train_loss.size // 2 :], 2)
    return float(np.sqrt(np.mean(bends**2) / 6)) if bends.size else nan  # Var(a − 2b + c) = 6 Var


def _fall(rate: Floats) -> float:
    """log10 of the median of the last tenth over the median of the first tenth."""
    known = rate[np.isfinite(rate) & (rate > 0)]
    tenth = max(1, known.size // 10)
    return float(np.log10(np.median(known[-tenth:]) / np.median(known[:tenth]))) if known.size > 1 else nan
