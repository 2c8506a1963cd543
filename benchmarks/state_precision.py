"""Does low-precision state train as well? The digits network and a small transformer, ten seeds each.

    python benchmarks/state_precision.py [--seeds 10] [--text-steps 400]

Each run ends with its validation metric. For each storage of AdamW's state the mean over seeds is compared with that
of float32 state on the same seeds, in units of float32's standard deviation between seeds. The bytes per weight are
those that the optimizer's tensors take in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence

import torch

from schuss.bench.grids import markdown_table
from schuss.lab.tasks.digits import digits
from schuss.lab.tasks.task import Task
from schuss.lab.tasks.text import text
from schuss.schedules import Cosine
from schuss.torch import AdamW, groups

STORAGE: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "int8": {"state_dtype": "int8"},
    "bfloat16 weights, stochastic, int8": {"state_dtype": "int8", "rounding": "stochastic"},
    "bfloat16 weights, compensated, int8": {"state_dtype": "int8", "compensated": True},
}


def trained(task: Task, lr: float, storage: str, seed: int) -> tuple[float, float]:
    """The validation metric after a run, and the bytes of state per weight."""
    torch.manual_seed(seed)
    model, steps, options = task.model(), task.total_steps(), dict(STORAGE[storage])
    dtype = torch.bfloat16 if storage.startswith("bfloat16 weights") else torch.float32
    # 16-bit weights are trained on gradients of the model that they are, which computes in float32.
    own = list(model.parameters())
    stored = [torch.nn.Parameter(p.detach().to(dtype, copy=True)) for p in own]
    chosen, twin = (
        groups(model, 0.01, state_dtype=options.pop("state_dtype", None)),
        dict(zip(own, stored, strict=True)),
    )
    for group in chosen:
        group["params"] = [twin[p] for p in group["params"]]
        del group["param_names"]

    @torch.no_grad()
    def load() -> None:
        for p, q in twin.items():
            p.copy_(q)

    optimizer = AdamW(chosen, lr=Cosine(lr, steps=steps), seed=seed, **options)
    load()
    for _, batch in zip(range(steps), task.stream(seed), strict=False):
        model.zero_grad()
        task.loss(model, batch).backward()
        for p, q in twin.items():
            q.grad = None if p.grad is None else p.grad.to(dtype)
        optimizer.step()
        load()
    model.eval()
    with torch.no_grad():
        assert task.metric is not None
        measured = [float(task.metric(model, batch)) for batch in task.batches("validation", whole=True)]
    state = [t for entry in optimizer.state.values() for name, t in entry.items() if name != "step"]
    size = sum(t.numel() * t.element_size() for t in state) / sum(p.numel() for p in stored)
    return statistics.fmean(measured), size


def wide_network() -> torch.nn.Module:
    """The digits task's network, four times as wide."""
    hidden = torch.nn.Linear(64, 256)
    return torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), torch.nn.Linear(256, 10))


def table(task: Task, lr: float, seeds: Sequence[int]) -> list[str]:
    """A row for each way to store the state."""
    heads = ["state", "mean", "sd", "difference in sd of float32", "bytes per weight"]
    rows: list[list[str]] = []
    base: list[float] = []
    for storage in STORAGE:
        found = [trained(task, lr, storage, seed) for seed in seeds]
        values = [value for value, _ in found]
        base = base or values
        mean, unit = statistics.fmean(values), statistics.stdev(base)
        away = (mean - statistics.fmean(base)) / unit if unit else float("nan")
        rows.append(
            [storage, f"{mean:.4f}", f"{statistics.stdev(values):.4f}", f"{away:+.2f}", f"{found[0][1]:.2f}"]
        )
    title = f"{task.description}, {task.metric_name}, AdamW, lr {lr:g} with a cosine, {len(seeds)} seeds"
    return [f"**{title}**", "", *markdown_table(heads, rows)]


def main() -> None:
    """Measure both tasks and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="runs of each storage")
    parser.add_argument("--text-steps", type=int, default=400, help="steps of the transformer")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # Wide enough for its first layer to have more weights than those whose state is in float32 in any case.
    network = dataclasses.replace(
        digits(), model=wide_network, description="8 × 8 digits, a network with a hidden layer of 256"
    )
    transformer = dataclasses.replace(text(width=64), steps=chosen.text_steps)
    for task, lr in ((network, 2e-3), (transformer, 3e-3)):
        print("\n".join([*table(task, lr, range(chosen.seeds)), ""]), flush=True)


if __name__ == "__main__":
    main()
