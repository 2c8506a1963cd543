"""What is measured and how much of it: the sections, the weights by their shapes, and the number of rounds."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

Shape = tuple[int, ...]

# Bandwidth is measured in any case.
SECTIONS = (
    *("gpt2", "optimizers", "small", "mlp", "first-step"),
    *("sparse", "precision", "numpy", "memory", "gpu"),
)


@dataclass(frozen=True)
class Workload:
    """Weights of some shapes. `in_memory` says that they are too many for any cache, so that GB/s mean something."""

    name: str
    shapes: tuple[Shape, ...]
    in_memory: bool = False

    @property
    def elements(self) -> int:
        """The number of weights."""
        return sum(map(math.prod, self.shapes))

    def __str__(self) -> str:
        return f"{self.name} ({len(self.shapes)} tensors, {count(self.elements)} weights)"


def count(number: int) -> str:
    """A count as one says it: 124M, 26.1k, 400.

    >>> count(124_439_808), count(26_122), count(400)
    ('124M', '26.1k', '400')
    """
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Workload:
    """GPT-2's weights (Radford and others 2019), the head tied to the embedding; the smallest one by default.

    >>> len(gpt2().shapes), gpt2().elements
    (148, 124439808)
    """
    norm = ((width,), (width,))
    attention = ((width, 3 * width), (3 * width,), (width, width), (width,))
    feedforward = ((width, 4 * width), (4 * width,), (4 * width, width), (width,))
    block = (*norm, *attention, *norm, *feedforward)
    shapes = ((vocabulary, width), (context, width), *block * layers, *norm)
    return Workload("GPT-2 shapes", shapes, in_memory=True)


def small(tensors: int, elements: int = 1000, name: str = "small tensors") -> Workload:
    """Tensors of one length; many short ones show what a step costs per tensor."""
    return Workload(name, ((elements,),) * tensors)


def mlp(*widths: int) -> Workload:
    """A network of full layers, each with a bias.

    >>> mlp(64, 50, 10).shapes
    ((50, 64), (50,), (10, 50), (10,))
    """
    layers = itertools.pairwise(widths)
    shapes = (shape for inputs, outputs in layers for shape in ((outputs, inputs), (outputs,)))
    return Workload("small MLP", tuple(shapes))


@dataclass(frozen=True)
class Sizes:
    """One choice of all sizes.

    `rounds` are taken of what is in memory, `short_rounds` of what takes microseconds; a round of a contender lasts at
    least `least` seconds. `add` is the length of the vectors whose sum measures the machine.
    """

    rounds: int
    short_rounds: int
    least: float
    processes: int
    large: Workload = field(default_factory=gpt2)
    small: tuple[Workload, ...] = field(default_factory=lambda: (small(400), small(1000)))
    mlp: Workload = field(default_factory=lambda: mlp(64, 128, 64, 10))
    add: int = 2**25
    device: Workload = field(default_factory=lambda: small(4, 2**26, "1.07 GB of weights"))
    embedding: tuple[int, int] = (1_000_000, 64)
    touched: float = 0.01
    arrays: int = 10_000_000
    peak: Workload = field(default_factory=lambda: small(32, 2**20))


FULL = Sizes(rounds=9, short_rounds=25, least=5e-3, processes=5)
QUICK = Sizes(rounds=3, short_rounds=7, least=2e-3, processes=1)
