"""How much is measured: everything where that is affordable, less of it where one Hessian-vector product is dear.

What is cut stays honest: the examples are counted, and eigenvalues that got too few products marked as bounds.
"""

from __future__ import annotations

import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from schuss.curvature import hvp
from schuss.lab.tasks.data import size as size_of
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import sample
from schuss.lab.training.run import first_step

EXAMPLES = 512  # of the sample on which curvature is measured, at most
BATCHES = 8  # of the task's own that it holds, if that is less and a product is dear: examples may be large
FEWEST = 64  # examples of it, where there are so many
SECONDS = 60.0
SOON = 0.5  # seconds of a product
RATES = 60  # learning rates of a range test
TIMED_BATCHES = 255  # batches' worth of examples in the timed steps and the searches along lines


@dataclass(frozen=True)
class Effort:
    """What a diagnosis spends.

    `examples` in the sample; `measurements` along the run, each of at most twice `products` Hessian-vector products;
    `lanczos` products for each of three vectors of the spectrum; `sweeps` of the range test;
    `batches` for the noise scale at either end. `seconds`: what all that should take here.
    """

    examples: int
    measurements: int = 5
    products: int = 60
    lanczos: int = 40
    sweeps: int = 3
    batches: int = 64
    seconds: float = 0.0

    @property
    def all_products(self) -> int:
        """Products of the whole diagnosis, at most."""
        return 2 * self.measurements * self.products + 3 * self.lanczos

    @property
    def all_batches(self) -> int:
        """Gradients of a batch, without those of the run."""
        return RATES * self.sweeps + 2 * self.batches + TIMED_BATCHES


def efforts(examples: int) -> list[Effort]:
    """From everything to the least from which anything can be said; examples are cut first, then products.

    >>> [(effort.examples, effort.all_products) for effort in efforts(512)]
    [(512, 720), (256, 720), (128, 490), (64, 490), (64, 240), (64, 126)]
    """
    half, quarter, eighth = (max(min(FEWEST, examples), examples // k) for k in (2, 4, 8))
    found = [
        Effort(examples),
        Effort(half),
        Effort(quarter, products=40, lanczos=30),
        Effort(eighth, products=40, lanczos=30),
        Effort(eighth, measurements=4, products=24, lanczos=16, sweeps=1, batches=32),
        Effort(eighth, measurements=3, products=16, lanczos=10, sweeps=1, batches=16),
    ]
    return list(dict.fromkeys(found))


def affordable(task: Task, steps: int, budget: float, seed: int) -> Effort:
    """The most that should take no longer than `budget` seconds, `steps` of training included; else the least.

    A product and a gradient are timed for it on `FEWEST` examples, and on all where that is soon done: most of a
    small product does not grow with the examples.
    """
    few = sample(task, FEWEST)
    least = size_of(few)
    low = _seconds(task, few, seed)
    # The largest eigenvalue of few examples is too large. What is soon done needs little memory too.
    soon = low[0] * EXAMPLES < SOON * least
    whole = sample(task, EXAMPLES if soon else min(EXAMPLES, max(FEWEST, BATCHES * task.batch_size)))
    most = size_of(whole)
    high = _seconds(task, whole, seed) if soon and most > least else tuple(x * most / least for x in low)

    def seconds(which: int, examples: int) -> float:
        """Of a product or a gradient: on the line through both timings; in proportion where there is only one."""
        if most == least or examples <= least:
            return low[which] if soon else low[which] * examples / least
        return low[which] + max(high[which] - low[which], 0.0) / (most - least) * (examples - least)

    gradient, found = seconds(1, task.batch_size), Effort(most)
    for effort in efforts(most):
        products = effort.all_products * seconds(0, effort.examples)
        found = replace(effort, seconds=products + (effort.all_batches + steps) * gradient)
        if found.seconds <= budget:
            break
    return found


def _seconds(task: Task, few: object, seed: int) -> tuple[float, float]:
    """Of a product and of a gradient; 0 for what cannot be measured, which later says so itself."""
    model = first_step(task, seed).model
    weights = [w for w in model.parameters() if w.requires_grad]
    draw = torch.Generator().manual_seed(seed)
    row = torch.cat([torch.randn(w.shape, generator=draw).reshape(-1) for w in weights])

    def product() -> object:
        return hvp(model, task.loss, few, row)

    def gradient() -> object:
        return torch.autograd.grad(task.loss(model, few), weights, allow_unused=True)

    def quickest(work: Callable[[], object]) -> float:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the measurements themselves will warn
                return min(timeit.repeat(work, number=1, repeat=3))
        except (ValueError, RuntimeError, NotImplementedError, MemoryError):
            return 0.0

    return quickest(product), quickest(gradient)
