"""The averaged weights in the place of the weights, for a while."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from schuss.compile.formula import AVERAGE


class Averages:
    """Whether the averages are in the weights' place now."""

    def __init__(self) -> None:
        self.in_place = False

    def check_out(self) -> None:
        """Refuse a step from averaged weights."""
        if self.in_place:
            raise RuntimeError(
                "A step inside `with optimizer.averaged()` would be taken from the averaged weights and then be lost. "
                "Take it outside."
            )

    @contextmanager
    def swapped(
        self, name: str, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]
    ) -> Generator[None]:
        """Swap them in, and back however the block is left."""
        if all(group["ema_decay"] is None for group in groups):
            raise ValueError(f"There is no average of the weights. Try {name}(..., ema_decay=0.999).")
        if self.in_place:
            raise RuntimeError(
                "The averaged weights are in place already: a block `averaged()` is inside another."
            )
        every = [weight for group in groups for weight in group["params"]]
        pairs = [(w, state[w][AVERAGE]) for w in every if w in state and AVERAGE in state[w]]
        own = [weight.detach().clone() for weight, _ in pairs]
        self.in_place = True
        try:
            with torch.no_grad():
                for weight, average in pairs:
                    weight.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (weight, _), mine in zip(pairs, own, strict=True):
                    weight.copy_(mine)
            self.in_place = False
