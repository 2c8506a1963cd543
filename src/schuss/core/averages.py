"""The averaged weights in the place of the weights, for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any


class Averages:
    """Whether the averages are in the weights' place now. `call` is how an API spells the call of `averaged`."""

    def __init__(self, call: str) -> None:
        self.call, self.in_place = call, False

    def refused(self) -> RuntimeError:
        """The refusal of a step from averaged weights."""
        return RuntimeError(
            f"A step inside `with optimizer.{self.call}` would be taken from the averaged weights and then be lost. "
            "Take it outside."
        )

    @contextmanager
    def swapped(
        self,
        name: str,
        pairs: Callable[[], Sequence[tuple[Any, Any]]] | None,
        copy: Callable[[Any], Any],
        write: Callable[[Any, Any], Any],
    ) -> Generator[None]:
        """Write each weight's average into the weight, and its own numbers back however the block is left.

        `name` is the optimizer's, and `pairs` finds the weights and their averages; None if there are no averages.
        """
        if pairs is None:
            raise ValueError(f"There is no average of the weights. Try {name}(..., ema_decay=0.999).")
        if self.in_place:
            raise RuntimeError(
                f"The averaged weights are in place already: a block `{self.call}` is inside another."
            )
        found = pairs()
        own = [copy(weight) for weight, _ in found]
        self.in_place = True
        try:
            for weight, average in found:
                write(weight, average)
            yield
        finally:
            for (weight, _), mine in zip(found, own, strict=True):
                write(weight, mine)
            self.in_place = False
