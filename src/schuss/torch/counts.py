"""What is remembered of each weight as a whole: its finished steps, then the numbers of its rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from schuss.rules import Row

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]


class Counts:
    """A row of float64 numbers for each weight. The state's own counts are views of it: one `+ 1` moves all.

    `unmoved` are the weights whose state a dry step has made; `shared` the counts that other processes step too.
    """

    def __init__(self, scalars: int) -> None:
        self.forget(scalars)

    def forget(self, scalars: int) -> None:
        """Begin anew, with rows of a count and so many numbers."""
        self.table: Array = np.zeros((0, 1 + scalars))
        self.weights: list[Tensor] = []
        self.views: list[tuple[Tensor, ...]] = []
        self.shared: dict[tuple[int, int], Tensor] = {}
        self.unmoved: set[int] = set()

    def stands_for(self, weights: Sequence[Tensor], scalars: int) -> bool:
        """Whether there is a row for each of these weights, in their order."""
        return list(map(id, weights)) == list(map(id, self.weights)) and self.table.shape[1] == 1 + scalars

    def renew(self, weights: Sequence[Tensor], scalars: int) -> None:
        """Have a row for each of these weights; those that had one keep what stands in it."""
        old = {id(weight): row for weight, row in zip(self.weights, self.table, strict=True)}
        self.table = np.zeros((len(weights), 1 + scalars))
        self.views = [row.unbind() for row in torch.from_numpy(self.table).unbind()]
        self.weights, self.shared = list(weights), {}
        for k, weight in enumerate(weights):
            if id(weight) in old:
                self.table[k, : len(old[id(weight)])] = old[id(weight)]

    def remember(
        self, k: int, entry: dict[str, Any], row: Row, first: Mapping[str, float], new: bool, steps: int
    ) -> None:
        """Bring weight `k`'s row and its state in agreement: what stands in the state is right."""
        own, views = self.table[k], self.views[k]
        if [view.data_ptr() - own.ctypes.data for view in views] != [8 * c for c in range(len(own))]:
            self.views[k] = torch.from_numpy(own).unbind()  # someone has given a view other memory
        if not row.counts_steps:
            self.table[k, 0] = 0 if new else max(self.table[k, 0], steps)
        else:
            self._view(k, 0, entry, "step", 0.0)
        for column, scalar in enumerate(row.rule.scalars, 1):
            self._view(k, column, entry, row.names[scalar], first.get(scalar, 0.0))

    def _view(self, k: int, column: int, entry: dict[str, Any], name: str, first: float) -> None:
        """Take a number from the state, and leave a view of the row there; what is shared stays itself."""
        value, view = entry.get(name), self.views[k][column]
        if value is view:
            return
        self.table[k, column] = first if value is None else float(value)
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.is_shared():
            self.shared[k, column] = value
        else:
            self.shared.pop((k, column), None)
            entry[name] = view

    def at_least(self, k: int, steps: int) -> None:
        """Count a weight without state as its group is counted."""
        self.table[k, 0] = max(self.table[k, 0], steps)

    def take_shared(self) -> None:
        """Read the counts that other processes step too."""
        for (weight, column), count in self.shared.items():
            self.table[weight, column] = float(count)

    def give_shared(self) -> None:
        """Write them back."""
        for (weight, column), count in self.shared.items():
            count.fill_(self.table[weight, column])

    def dry(self) -> None:
        """Note which weights have state without a step."""
        self.unmoved.update(id(w) for w, row in zip(self.weights, self.table, strict=True) if not row[0])

    def part(self, state: Mapping[Any, Any]) -> None:
        """Leave copies in the state in place of views: what is sent to another process is moved to shared memory."""
        for weight, views in zip(self.weights, self.views, strict=True):
            entry: dict[str, Any] = state.get(weight, {})
            own = {id(view) for view in views}
            for name, value in list(entry.items()):
                if id(value) in own:
                    entry[name] = value.clone()
