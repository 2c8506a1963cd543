"""Many tensors, one call: the table that a kernel walks, and the scalars that its rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schuss.compile import threads
from schuss.compile.cpu import Kernel
from schuss.compile.formula import Formula
from schuss.rules.rule import Rule

Array = np.ndarray[Any, Any]

# Elements of one row: long enough to forget the row's own cost, short enough to share among threads.
ROW = 32768


class Table:
    """Rows of memory for one kernel: addresses by column, length, and which coefficients apply.

    `owner` says which tensor each row belongs to, `lengths` how many elements it has.
    """

    def __init__(self, itemsizes: Sequence[int], owner: Array, lengths: Array) -> None:
        self.itemsizes = np.asarray(itemsizes, dtype=np.int64)
        self.owner = owner
        self.elements = int(lengths.sum())
        self.cells = np.empty((len(owner), len(self.itemsizes) + 2), dtype=np.int64)
        self.cells[:, -2] = lengths
        self.address = self.cells.ctypes.data

    def point(self, column: int, addresses: Array | int, offsets: Array) -> None:
        """Say where the rows of a column start: at the addresses, `offsets` elements on."""
        self.cells[:, column] = addresses + offsets * self.itemsizes[column]

    def assign(self, which: Array) -> None:
        """Say which row of the coefficient matrix moves each tensor."""
        self.cells[:, -1] = which[self.owner]


class WholeTensors(Table):
    """A table over whole tensors, cut into rows of `ROW` elements."""

    def __init__(self, itemsizes: Sequence[int], lengths: Sequence[int]) -> None:
        whole = np.asarray(lengths, dtype=np.int64)
        rows_of = -(-whole // ROW)
        owner = np.repeat(np.arange(len(whole)), rows_of)
        first = np.cumsum(rows_of) - rows_of
        self.offsets = (np.arange(len(owner)) - first[owner]) * ROW
        super().__init__(itemsizes, owner, np.minimum(whole[owner] - self.offsets, ROW))

    def place(self, column: int, addresses: Array) -> None:
        """Say where each tensor's memory of this column is."""
        self.point(column, addresses[self.owner], self.offsets)


class TouchedRows(Table):
    """A table over some rows of one tensor: `rows` by number, each `width` elements long."""

    def __init__(self, itemsizes: Sequence[int], rows: Array, width: int) -> None:
        super().__init__(itemsizes, np.zeros(len(rows), dtype=np.int64), np.full(len(rows), width))
        self.offsets = rows * width
        self.packed = np.arange(len(rows)) * width

    def place(self, column: int, address: int, *, packed: bool = False) -> None:
        """Say where the column's tensor is; `packed` if it holds the touched rows alone."""
        self.point(column, address, self.packed if packed else self.offsets)


def advance(rule: Rule, remembered: list[float]) -> tuple[dict[str, float], list[float]]:
    """The scalars of a tensor's next step, and what is remembered of it afterwards: its steps, its own scalars."""
    step, *scalars = remembered
    values = rule.coefficients(int(step) + 1, **dict(zip(rule.scalars, scalars, strict=True)))
    return values, [step + 1, *(values[name] for name in rule.scalars)]


class Launch:
    """All tensors that one kernel moves in one call.

    `groups` and `members` say, tensor by tensor, whose hyperparameters apply and which row of the ledger is its own.
    """

    def __init__(
        self,
        formula: Formula,
        kernel: Kernel,
        table: Table,
        groups: Sequence[int],
        members: Sequence[int],
    ) -> None:
        self.formula, self.kernel, self.table = formula, kernel, table
        self.groups = np.asarray(groups, dtype=np.int64)
        self.members = np.asarray(members, dtype=np.int64)
        self.remembered: Array | None = None

    def _gather(self, remembered: Array) -> None:
        """Tensors of the same group with the same history share their scalars: find these cohorts."""
        keys, which = np.unique(np.column_stack([self.groups, remembered]), axis=0, return_inverse=True)
        self.which = which.reshape(-1)
        self.cohorts = [(int(group), history) for group, *history in keys.tolist()]
        self.table.assign(self.which)
        self.matrix = np.empty((len(self.cohorts), 1 + len(self.formula.coefficients)))
        self.at_matrix = self.matrix.ctypes.data

    def step(
        self, ledger: Array, rules: Sequence[Rule] | Mapping[int, Rule], scales: Sequence[float], workers: int
    ) -> None:
        """Take one step of every tensor.

        `rules` and `scales` (of the gradient) are by group. `ledger` has a row a tensor, what is remembered of it as a
        whole: its finished steps, then the rule's scalars; float64, so counts are exact to 2⁵³.
        """
        remembered = ledger[self.members]
        if self.remembered is None or (remembered != self.remembered).any():
            self._gather(remembered)
        for row, (group, history) in enumerate(self.cohorts):
            values, after = advance(rules[group], history)
            self.cohorts[row] = group, after
            self.matrix[row] = (scales[group], *[values[name] for name in self.formula.coefficients])
        self.remembered = np.array([history for _, history in self.cohorts])[self.which]
        ledger[self.members] = self.remembered
        threads.run(
            self.kernel,
            self.table.address,
            self.at_matrix,
            len(self.table.cells),
            self.table.elements,
            workers,
        )
