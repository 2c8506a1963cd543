"""One step of every optimizer on dense gradients, compared with other implementations."""

from __future__ import annotations

import functools
import gc
from collections.abc import Mapping

import torch

from schuss.bench.contenders import Make, Page, contenders, disagreement
from schuss.bench.machine import adder
from schuss.bench.report import Skipped, Timing
from schuss.bench.shapes import Workload
from schuss.bench.sizes import Sizes
from schuss.bench.timing import in_turn
from schuss.machine import free_memory

ADD = "torch.add"


def bandwidth(section: str, sizes: Sizes) -> list[Timing]:
    """The machine's own: what a large `torch.add` moves a second, when nothing else runs."""
    add, moved = adder(sizes.add)
    rounds = in_turn({ADD: add}, sizes.short_rounds, sizes.least)[ADD]
    return [Timing(section, "", ADD, ADD, rounds, moved)]


def _needed(workload: Workload, page: Page, makers: Mapping[str, Make]) -> int:
    """Bytes: weights and gradients once, state for each contender, and two copies that torch's foreach makes."""
    return 4 * workload.elements * (4 + len(page.rule.slots) * len(makers))


def step(section: str, workload: Workload, page: Page, sizes: Sizes) -> list[Timing | Skipped]:
    """All contenders on the same weights and gradients, each with its own state, round by round."""
    makers = contenders(page)
    needed, free = _needed(workload, page, makers), free_memory()
    if free is not None and needed > free:
        reason = f"{page} at {workload} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} are free"
        return [Skipped(section, reason)]
    wrong = {name: problem for name, make in makers.items() if (problem := disagreement(page, make))}
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in workload.shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    actions = {name: make(weights).step for name, make in makers.items() if name not in wrong}
    add, added = adder(sizes.add)
    if workload.in_memory:
        actions[ADD] = add
    rounds = in_turn(actions, sizes.rounds_of(workload), sizes.least) if actions else {}
    machine = tuple(added / seconds for seconds in rounds.pop(ADD)) if workload.in_memory else ()
    moved = page.moved(workload.elements)
    del actions, weights, add
    gc.collect()  # an optimizer and its hooks hold each other, and the next page needs the memory
    timing = functools.partial(Timing, section, str(workload), str(page))
    return [
        timing(name, problem=wrong[name])
        if name in wrong
        else timing(name, rounds=rounds[name], moved=moved, machine=machine)
        for name in makers
    ]
