"""What only a new process can tell: how long it waits for its first step, and the most memory that a step holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import schuss
from schuss.bench.contenders import IMPLEMENTATIONS, OURS
from schuss.bench.program import RESET
from schuss.bench.report import Peak, Skipped, Timing
from schuss.bench.sizes import Shape, Sizes, Workload

COLD, WARM, THEIRS, IMPORT = (
    "schuss, empty cache",
    "schuss, warm cache",
    "torch default",
    "import schuss.torch",
)


def answer(
    what: str,
    api: str,
    optimizer: str,
    options: Mapping[str, Any],
    shapes: Sequence[Shape],
    **environment: str,
) -> Mapping[str, Any]:
    """What `program.py` measures in a new process of this Python.

    It is run by path: importing it by name would import its package first, and with it what is to be timed.
    Raises `RuntimeError` with the program's last words if it fails.
    """
    package = str(Path(schuss.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    program = Path(__file__).with_name("program.py")
    arguments = (what, api, optimizer, json.dumps(options), str(torch.get_num_threads()), json.dumps(shapes))
    ended = subprocess.run(
        [sys.executable, "-P", program, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1])
    return json.loads(ended.stdout)


def first_step(section: str, sizes: Sizes) -> list[Timing | Skipped]:
    """AdamW's first step, and what importing the API takes beyond torch, each in processes of their own."""
    records: list[Timing | Skipped] = []
    # As many tensors as GPT-2 has, of ten weights each: what a first step costs is not in their length.
    short = Workload(f"as many tensors as {sizes.large.name} have", ((10,),) * len(sizes.large.shapes))
    for workload in (sizes.mlp, short):
        found: dict[str, list[float]] = {COLD: [], WARM: [], THEIRS: [], IMPORT: []}
        try:
            for _ in range(sizes.processes):
                with tempfile.TemporaryDirectory() as cache:
                    for name, api in ((COLD, "schuss"), (WARM, "schuss"), (THEIRS, "torch")):
                        took = answer("first_step", api, "AdamW", {}, workload.shapes, SCHUSS_CACHE_DIR=cache)
                        found[name].append(took["step"])
                        if name == WARM:
                            found[IMPORT].append(took["import"])
        except RuntimeError as problem:
            records.append(Skipped(section, f"a new process failed: {problem}"))
            continue
        records += [Timing(section, str(workload), "AdamW", who, tuple(took)) for who, took in found.items()]
    return records


def peak_memory(section: str, sizes: Sizes) -> list[Peak | Skipped]:
    """The most memory that a step of AdamW holds by every implementation, each in a process of its own."""
    if not RESET.exists():
        return [Skipped(section, "peak memory is read from Linux's /proc, which is not here")]
    needed = 4 * 4 * sizes.peak.elements  # float32: weight, gradient, two averages
    records: list[Peak | Skipped] = []
    for name, options in {OURS: dict[str, bool](), **IMPLEMENTATIONS}.items():
        api = "schuss" if name == OURS else "torch"
        try:
            peak = answer("peak_memory", api, "AdamW", options, sizes.peak.shapes)["peak"]
        except RuntimeError as problem:
            records.append(Skipped(section, f"{name}: {problem}"))
        else:
            records.append(Peak("AdamW", name, peak, needed))
    return records
