"""The models whose weights the benchmark moves, by their shapes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

Shape = tuple[int, ...]


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

    def named(self, name: str) -> Workload:
        """The same weights, under another name."""
        return replace(self, name=name)

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


def small(tensors: int, elements: int = 1000) -> Workload:
    """Many tensors of few weights: what a step costs a tensor."""
    return Workload("small tensors", ((elements,),) * tensors)


def mlp(*widths: int) -> Workload:
    """A network of full layers, each with a bias.

    >>> mlp(64, 50, 10).shapes
    ((50, 64), (50,), (10, 50), (10,))
    """
    layers = itertools.pairwise(widths)
    return Workload(
        "small MLP", tuple(s for inputs, outputs in layers for s in ((outputs, inputs), (outputs,)))
    )
