"""The averaged weights in the place of the weights, for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

# A weight, and what works out its average: when it is needed, so that not all of them take memory at once.
Pair = tuple[Any, Callable[[], Any]]


class Averages:
    """Whether the averages are in the weights' place now. `call` is how an API spells the call of `averaged`.

    While they are, `own` has the weights with their own numbers. A copy of an optimizer is outside of the block: it has
    them with it as `left`, and puts them into its own weights.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        self.own: list[tuple[Any, Any]] | None = None
        self.left: list[tuple[Any, Any]] = []

    @property
    def in_place(self) -> bool:
        """Whether the averages are in the weights' place."""
        return self.own is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"call": self.call, "own": self.own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.call, self.own, self.left = state["call"], None, state["own"] or []

    def put_back(self, write: Callable[[Any, Any], Any]) -> None:
        """Write their own numbers into the weights of a copy that was made inside a block."""
        for weight, mine in self.left:
            write(weight, mine)
        self.left = []

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
        pairs: Callable[[], Sequence[Pair]] | None,
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
        own = self.own = [(weight, copy(weight)) for weight, _ in found]
        try:
            for weight, average in found:
                write(weight, average())
            yield
        finally:
            for weight, mine in own:
                write(weight, mine)
            self.own = None
