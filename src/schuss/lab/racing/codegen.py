"""Settings as code to paste."""

from __future__ import annotations

from collections.abc import Mapping

from schuss.lab.entries import Entry
from schuss.lab.schedules import schedule


def code(entry: Entry, schedule_name: str, parameters: Mapping[str, float], steps: int) -> str:
    """Python that builds the optimizer, and its schedule if it has one, with every digit that matters.

    >>> from schuss.lab.entries import find
    >>> print(code(find("sgd"), "cosine", {"lr": 0.1}, 400).splitlines()[-2])
    schedule = Cosine(0.1, steps=400)
    """
    module = entry.optimizer.__module__.replace("schuss.newton", "schuss.torch")
    name = entry.optimizer.__qualname__
    public = next((p for p in ("torch.optim", "schuss.torch") if f"{module}.".startswith(f"{p}.")), None)
    lines = [f"from {public} import {name}"] if public else [f"# {name} is {entry.name}"]
    scheduled = schedule_name != "constant"
    if scheduled:
        lines.append("from schuss.schedules import *")
    arguments = ", ".join(f"{key}={value!r}" for key, value in entry.arguments(parameters).items())
    weights = "model.parameters()"
    if entry.of_matrices:
        weights = "groups"
        lines += [
            "matrices = [w for w in model.parameters() if w.ndim > 1]",
            "vectors = [w for w in model.parameters() if w.ndim < 2]",
            f'rest = {{"params": vectors, "rule": "AdamW", "lr": {parameters["lr"]!r}, "weight_decay": 0.0}}',
            'groups = [{"params": matrices}, rest]',
        ]
    lines.append(f"optimizer = {name}({weights}, {arguments})")
    if entry.kind == "curvature":
        lines.append("# optimizer.step(closure), where closure() returns the loss over all training data")
    if scheduled:
        lines.append(f"schedule = {schedule(schedule_name, parameters['lr'], steps)!r}")
        each = ", for group in optimizer.param_groups" if entry.of_matrices else ""
        which = "group" if entry.of_matrices else "optimizer.param_groups[0]"
        lines.append(f'# before step n = 0, 1, 2, ...: {which}["lr"] = schedule(n){each}')
    return "\n".join(lines)
