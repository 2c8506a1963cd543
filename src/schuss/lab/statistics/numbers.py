"""The few numbers of each reporting run that the textbooks' claims are tested on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np

from schuss.lab.statistics.compare import Floats
from schuss.lab.statistics.targets import cost_to_target


@dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """What the claims need of one run of the reporting stage.

    | field                  | meaning                                                                 |
    | `id`, `entry`, `seed`  | which run it was                                                        |
    | `optimizer`, `decayed` | its optimizer, and whether a weight decay was searched                  |
    | `eps_tuned`            | whether its eps was searched                                            |
    | `score`, `test`        | the metric at the end, on validation and on test                        |
    | `cost`                 | gradient equivalents to the target, ∞ = not reached                     |
    | `noise`                | how far the training loss jumps between evaluations                     |
    | `rate_fall`            | log10 of the effective rate late over early; NaN where it is not known  |
    """

    id: str
    entry: str
    optimizer: str
    schedule: str = "constant"
    batch_size: int = 0
    decayed: bool = False
    eps_tuned: bool = False
    seed: int
    score: float
    test: float = nan
    cost: float = inf
    noise: float = nan
    rate_fall: float = nan


def numbers_of(task: Mapping[str, Any]) -> list[RunNumbers]:
    """Return what the claims need of a task's report (as in `report.json`): its reporting runs, in order.

    A diverged run counts with the untrained model's metric; a crashed one is left out. Costs refer to the
    target that ranks.
    """
    entries = {entry["name"]: entry for entry in task["entries"]}
    lower = task["metric"]["best"] == "min"
    target = next((t["value"] for t in task["targets"] if t["ranking"]), None)
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
                test=_number((run["test"] or {}).get("metric")),
                cost=inf
                if target is None
                else cost_to_target(metric, curve["gradients"], target, lower_is_better=lower),
                noise=_jumps(_column(curve["train_loss"])) if finished else nan,
                rate_fall=_fall(_column(curve["effective_rate"])) if finished else nan,
            )
        )
    return numbers


def _number(x: float | None) -> float:
    return nan if x is None else float(x)


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([_number(x) for x in values])


def _jumps(train_loss: Floats) -> float:
    """The sd of a point round the line through its neighbours, over the second half of the run."""
    bends = np.diff(train_loss[train_loss.size // 2 :], 2)
    return float(np.sqrt(np.mean(bends**2) / 6)) if bends.size else nan  # Var(a − 2b + c) = 6 Var


def _fall(rate: Floats) -> float:
    """log10 of the median of the last tenth over the median of the first tenth."""
    known = rate[np.isfinite(rate) & (rate > 0)]
    tenth = max(1, known.size // 10)
    return float(np.log10(np.median(known[-tenth:]) / np.median(known[:tenth]))) if known.size > 1 else nan
