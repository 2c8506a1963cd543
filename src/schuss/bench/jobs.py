"""What is to be measured, listed before any of it is: one job a table's row, or a section that is one thing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from schuss.bench import arrays, first_step, gpu, memory, precision, sparse, steps
from schuss.bench.contenders import PAGES, Page
from schuss.bench.report import Record
from schuss.bench.sizes import Sizes

SECTIONS = (
    "bandwidth",
    "gpt2",
    "pages",
    "small",
    "mlp",
    "first-step",
    "sparse",
    "precision",
    "numpy",
    "memory",
    "gpu",
)
HEADLINE = Page("AdamW")


@dataclass(frozen=True)
class Job:
    """A part of the benchmark that is measured in one go."""

    section: str
    title: str
    run: Callable[[], Sequence[Record]]


def jobs(sizes: Sizes, only: Collection[str] = ()) -> list[Job]:
    """The jobs of the sections in `only`, or of all, in the order in which they are shown.

    `gpt2` is AdamW alone at GPT-2's shapes, `pages` every optimizer there. Bandwidth is always measured.
    """
    chosen = {"bandwidth", *(only or SECTIONS)}
    found = [Job("bandwidth", "torch.add", functools.partial(steps.bandwidth, "bandwidth", sizes))]
    every = [HEADLINE, *(page for page in PAGES if page != HEADLINE)]
    large = every if "pages" in chosen else [HEADLINE] if "gpt2" in chosen else []
    workloads = [("gpt2", sizes.large, large)]
    workloads += [("small", workload, every) for workload in sizes.small if "small" in chosen]
    workloads += [("mlp", sizes.mlp, every)] if "mlp" in chosen else []
    for section, workload, pages in workloads:
        for page in pages:
            run = functools.partial(steps.step, section, workload, page, sizes)
            found.append(Job(section, f"{workload.name}: {page}", run))
    whole = {
        "first-step": ("first step of a process", first_step.measure),
        "sparse": ("sparse gradients", sparse.measure),
        "precision": ("low precision, and clipping", precision.measure),
        "numpy": ("the NumPy API", arrays.measure),
        "memory": ("peak memory", memory.measure),
    }
    found += [
        Job(section, title, functools.partial(measure, section, sizes))
        for section, (title, measure) in whole.items()
        if section in chosen
    ]
    if "gpu" in chosen:
        found += [
            Job("gpu", title, functools.partial(measure, "gpu", sizes)) for title, measure in gpu.jobs()
        ]
    return found
