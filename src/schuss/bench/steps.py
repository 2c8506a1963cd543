"""One step of every optimizer on dense gradients, compared with other implementations."""

from __future__ import annotations

import torch

from schuss.bench.contenders import Case, contenders, disagreement
from schuss.bench.report import Skipped, Timing
from schuss.bench.sizes import Sizes, Workload
from schuss.bench.timing import Action, timings, too_large

ADD = "torch.add"


def adder(elements: int) -> tuple[Action, int]:
    """A large `torch.add` into a third vector, and the bytes that it cannot but move."""
    a, b, c = torch.ones(elements), torch.ones(elements), torch.empty(elements)
    return lambda: torch.add(a, b, out=c), 3 * 4 * elements


def bandwidth(section: str, sizes: Sizes) -> list[Timing]:
    """The machine's own: what a large `torch.add` moves per second, when nothing else runs."""
    add, moved = adder(sizes.add)
    return timings((section, "", ADD), {ADD: add}, sizes.short_rounds, sizes.least, moved=moved)


def weights(
    workload: Workload, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[torch.nn.Parameter]:
    """Random weights of these shapes, with gradients."""
    torch.manual_seed(0)
    found = [torch.nn.Parameter(torch.randn(s, device=device).to(dtype)) for s in workload.shapes]
    for weight in found:
        weight.grad = torch.randn(weight.shape, device=device).to(dtype)
    return found


def step(section: str, workload: Workload, case: Case, sizes: Sizes) -> list[Timing] | list[Skipped]:
    """All contenders on the same weights and gradients, each with its own state, round by round."""
    makers = contenders(case)
    # Weights and gradients once, state for each contender, and two copies that torch's foreach makes.
    needed = 4 * workload.elements * (4 + len(case.rule.slots) * len(makers))
    if skipped := too_large(section, f"{case} at {workload}", needed):
        return skipped
    wrong = {name: disagreement(case, make) for name, make in makers.items()}
    own = weights(workload)
    return timings(
        (section, str(workload), str(case)),
        {name: wrong[name] or make(own).step for name, make in makers.items()},
        sizes.rounds if workload.in_memory else sizes.short_rounds,
        sizes.least,
        moved=case.moved(workload.elements),
        machine=adder(sizes.add) if workload.in_memory else None,
    )
