"""Where to search the learning rate on a model that nobody has published ranges for: measure it.

An optimizer whose step is as long as the gradient is stable up to 2(1 + β)/L, where L is the largest
curvature of the loss (gradient descent: β = 0; heavy ball: Polyak, 1964). One whose step is as long as its
learning rate has gone too far where one step changes the weights by a tenth of their own size.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import isfinite

from schuss.curvature import extreme_eigenvalues
from schuss.lab.entries import Entry
from schuss.lab.statistics import Range
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import flat
from schuss.lab.training.quiet import quiet_process
from schuss.lab.training.run import first_step

DECADES = 3.0
PRODUCTS = 30  # Hessian-vector products: the largest curvature to a few per cent
TENTH = 0.1

Spaces = dict[tuple[str, int], dict[str, Range]]  # by entry name and batch size


def search_spaces(task: Task, entries: list[Entry], batch_sizes: list[int]) -> Spaces:
    """What is searched for each entry at each batch size.

    Published ranges as they are; or three decades of learning rate that end at twice the entry's own limit,
    measured at the start. Weight decay is left out where the task says that it would move the optimum.
    """
    spaces: Spaces = {}
    ends = None if task.search == "published" else limits(task)
    for entry in entries:
        space = {name: bounds for name, bounds in entry.space.items() if task.decay or name != "weight_decay"}
        if ends is not None and not entry.source and ends.get(entry.kind, 0) > 0:
            # Momentum is stable farther than gradient descent by 1 + β, taken at its usual β.
            farther = 1 + (1 - entry.usual["1 - momentum"]) if "1 - momentum" in entry.usual else 1.0
            # Two digits: the last bits of a measurement cannot move the search.
            end = float(f"{2 * farther * ends[entry.kind]:.1e}")
            space["lr"] = (end / 10**DECADES, end, True)
        for batch_size in batch_sizes:
            spaces[entry.name, batch_size] = space
    return spaces


def limits(task: Task) -> Mapping[str, float]:
    """The learning rate at which each kind of step goes too far at the start; 0 where that is unknown."""
    with quiet_process():
        curvature = largest_curvature(task)
        size = flat(first_step(task, 0).model).square().mean().sqrt().item()
    return {"gradient": 2 / curvature if curvature > 0 else 0.0, "unit": TENTH * size / 2}


def largest_curvature(task: Task, seed: int = 0) -> float:
    """The largest |eigenvalue| of the Hessian on the first batch; 0 if it has none."""
    step = first_step(task, seed)
    try:
        with warnings.catch_warnings():  # differences of gradients, where it must be, are good for two digits
            warnings.simplefilter("ignore")
            found = extreme_eigenvalues(step.model, task.loss, step.batch, k=1, products=PRODUCTS)
    # No weight to move, sparse gradients, a loss that is not steady.
    except (ValueError, RuntimeError, MemoryError):
        return 0.0
    largest = float(max(abs(found.largest[0]), abs(found.smallest[0])))
    return largest if isfinite(largest) else 0.0
