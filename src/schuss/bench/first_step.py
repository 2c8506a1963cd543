"""How long a new process waits for its first step: with nothing compiled before, and with a warm cache."""

from __future__ import annotations

import json
import tempfile

import torch

from schuss.bench.processes import answer
from schuss.bench.report import Skipped, Timing
from schuss.bench.shapes import Shape, Workload, count
from schuss.bench.sizes import Sizes

COLD, WARM, THEIRS, IMPORT = (
    "schuss, empty cache",
    "schuss, warm cache",
    "torch default",
    "import schuss.torch",
)


def _of_ten(workload: Workload) -> tuple[Shape, ...]:
    """As many tensors as the workload has, of ten weights each: what a first step costs is not in their length."""
    return ((10,),) * len(workload.shapes)


def measure(section: str, sizes: Sizes) -> list[Timing | Skipped]:
    """AdamW's first step, and what importing the front takes beyond torch, each in processes of their own."""
    records: list[Timing | Skipped] = []
    threads = str(torch.get_num_threads())
    for workload, shapes in ((sizes.mlp, sizes.mlp.shapes), (sizes.large, _of_ten(sizes.large))):
        found: dict[str, list[float]] = {COLD: [], WARM: [], THEIRS: [], IMPORT: []}
        try:
            for _ in range(sizes.processes):
                with tempfile.TemporaryDirectory() as cache:
                    for name, front in ((COLD, "schuss"), (WARM, "schuss"), (THEIRS, "torch")):
                        took = answer(
                            "first_step", front, "AdamW", threads, json.dumps(shapes), SCHUSS_CACHE_DIR=cache
                        )
                        found[name].append(took["step"])
                        if name == WARM:
                            found[IMPORT].append(took["import"])
        except RuntimeError as problem:
            records.append(Skipped(section, f"a new process failed: {problem}"))
            continue
        what = f"as many tensors as {workload.name} have" if shapes != workload.shapes else workload.name
        name = f"{what} ({len(shapes)} tensors, {count(sum(torch.Size(s).numel() for s in shapes))} weights)"
        records += [Timing(section, name, "AdamW", who, tuple(took)) for who, took in found.items()]
    return records
