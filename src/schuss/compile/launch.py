"""Many tensors, one call: the table that a kernel walks, and the scalars that its rows share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from schuss.compile import matrices, threads
from schuss.compile.cpu import Kernel, column_words, measures
from schuss.compile.formula import Formula
from schuss.compile.passes import Passes, Word
from schuss.compile.storage import Column, keys
from schuss.rules.rule import Rule

Array = np.ndarray[Any, Any]

# Elements of one row: long enough to forget the row's own cost, short enough to share among threads.
ROW = 32768
# A tensor of at most so many rows goes through all passes of an update before the next tensor.
IN_CACHE = 16
# Of the rows of a large matrix at least so many go together, so that sums for each column are few.
TOGETHER = 64
# A tensor has fewer than 2⁴⁰ numbers: above these bits of a place stands which tensor it is in.
TENSOR_BITS = 40


class Table:
    """Rows of memory for one kernel: addresses by column, place, length, and which coefficients apply.

    `owner` says which tensor each row belongs to, `offsets` where in it the row starts, `lengths` how many numbers it
    has.
    """

    def __init__(
        self, columns: Sequence[Column], owner: Array, offsets: Array, lengths: Array, more: int = 0
    ) -> None:
        self.columns, self.owner, self.offsets = columns, owner, offsets
        self.elements = int(lengths.sum())
        self.cells = np.empty((len(owner), len(columns) + more + 3), dtype=np.int64)
        self.cells[:, -2] = lengths
        self.address = self.cells.ctypes.data

    def number(self, members: Array) -> None:
        """Say which of all tensors each is: so each of their numbers has a place of its own."""
        self.cells[:, -3] = (members[self.owner] << TENSOR_BITS) + self.offsets

    def point(self, column: int, addresses: Array | int, offsets: Array) -> None:
        """Say where the rows of a column start: at the addresses, `offsets` numbers on."""
        kept = self.columns[column]
        self.cells[:, column] = addresses + offsets // kept.per * kept.itemsize

    def assign(self, which: Array) -> None:
        """Say which row of the coefficient matrix moves each tensor."""
        self.cells[:, -1] = which[self.owner]


@dataclass(frozen=True)
class Batch:
    """Tensors that go through the passes of an update together: their rows, and their matrices' common shape."""

    rows: slice
    group: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    one_by_one: bool = False


def _cut(whole: Array, units: Array, most: Array) -> tuple[Array, Array, Array]:
    """Cut tensors of these lengths into rows of at most so many elements, each within one unit of its tensor.

    Return which tensor each row is of, where in it the row starts, and its length.
    """
    each = -(-units // most)
    rows_of = each * (whole // np.maximum(units, 1))
    owner = np.repeat(np.arange(len(whole)), rows_of)
    nth = np.arange(len(owner)) - (np.cumsum(rows_of) - rows_of)[owner]
    inside = nth % each[owner] * most[owner]
    return owner, nth // each[owner] * units[owner] + inside, np.minimum(units[owner] - inside, most[owner])


class WholeTensors(Table):
    """A table over whole tensors, cut into rows of `ROW` elements.

    For an update in `passes` a row also says where its sums, its tensor's numbers and its tensor's matrices are; the
    rows then stand in the order of `batches`. It needs the tensors' `shapes` as matrices, and their `groups`; and to
    tell rows and columns apart `sides`, the last two axes of each.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        lengths: Sequence[int],
        passes: Passes | None = None,
        shapes: Sequence[tuple[int, int]] = (),
        groups: Sequence[int] = (),
        real: str = "float32",
        sides: Sequence[Sequence[int]] = (),
    ) -> None:
        whole = np.asarray(lengths, dtype=np.int64)
        units, most = whole, np.full_like(whole, ROW)
        height = width = whole
        if passes is not None and passes.of_rows:
            height, width = np.array(sides, dtype=np.int64).reshape(-1, 2).T
            one = height * width
            # Whole matrices together, or some rows of one.
            units = np.where(one <= ROW, whole, one)
            few = np.maximum(ROW // np.maximum(width, 1), TOGETHER) * width
            most = np.maximum(np.where(one <= ROW, ROW // np.maximum(one, 1) * one, few), 1)
        owner, offsets, lengths_of = _cut(whole, units, most)
        self.along: dict[str, Array] = {}  # where in state by rows and columns each row of the table starts
        self.shapes = passes.shapes if passes else {}
        if passes is None:
            super().__init__(columns, owner, offsets, lengths_of)
            return
        if passes.matrices:
            keys = [(*shape, group) for shape, group in zip(shapes, groups, strict=True)]
        else:  # those that fit in a cache come first
            keys = [(int(length > IN_CACHE * ROW), 0, 0) for length in whole.tolist()]
        every = sorted(set(keys))
        batch_of = np.array([every.index(key) for key in keys], dtype=np.int64)
        order = np.argsort(batch_of[owner], kind="stable")
        owner, offsets = owner[order], offsets[order]
        super().__init__(columns, owner, offsets, lengths_of[order], len(measures(passes)))
        self.starts = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
        ends = np.searchsorted(batch_of[owner], np.arange(len(every) + 1))
        members = [np.flatnonzero(batch_of == k) for k in range(len(every))]
        self.batches = [
            Batch(slice(ends[k], ends[k + 1]), key[2], (len(members[k]), key[0], key[1]))
            if passes.matrices
            else Batch(slice(ends[k], ends[k + 1]), one_by_one=not key[0])
            for k, key in enumerate(every)
        ]
        numbers = len(passes.numbers)
        self.sums, self.found = np.zeros((len(owner), numbers)), np.zeros((len(whole), numbers))
        for k, known in passes.known_before(shapes, columns[0].storage.dtype).items():
            self.found[:, k] = known
        self.cells[:, len(columns)] = self.sums.ctypes.data + self.sums.strides[0] * np.arange(len(owner))
        self.cells[:, len(columns) + 1] = self.found.ctypes.data + self.found.strides[0] * owner
        # Where the matrices of one batch are, one after the other, and then those of the next.
        begun = np.zeros_like(whole)
        for some in members:
            begun[some] = np.cumsum(whole[some]) - whole[some]
        most = max((int(whole[some].sum()) for some in members), default=0)
        self.products = {word.name: np.zeros(most, dtype=real) for word in passes.matrices}
        for k, array in enumerate(self.products.values()):
            self.cells[:, len(columns) + 2 + k] = array.ctypes.data + array.itemsize * (
                begun[owner] + offsets
            )

        if passes.of_rows:
            self._tell_rows_apart(passes, whole, height, width)

    def _tell_rows_apart(self, passes: Passes, whole: Array, height: Array, width: Array) -> None:
        """Say where the numbers for each row and column are that passes measure, and how large the matrices are."""
        owner, one = self.owner, (height * width)[self.owner]
        matrix = self.offsets // one
        top = self.offsets == matrix * one
        self.along = {"row": self.offsets // width[owner], "column": matrix * width[owner]}
        counts = {
            "row": whole // np.maximum(width, 1),
            "column": whole // np.maximum(height, 1),
        }
        at = len(self.columns) + 2 + len(passes.matrices)
        self.vectors: list[Array] = []  # the table holds addresses only: keep the memory alive
        for word in passes.vectors:
            count = counts[word.vector]
            self.vectors.append(np.zeros(int(count.sum())))
            begun = (np.cumsum(count) - count)[owner] + self.along[word.vector]
            self.cells[:, at] = self.vectors[-1].ctypes.data + 8 * begun
            at += 1
        # What rows of the table other than a matrix's first sum for each column.
        parts = np.where(top, 0, width[owner])
        for word in column_words(passes):
            self.vectors.append(np.zeros(int(parts.sum())))
            of_word = self.cells[:, len(self.columns) + measures(passes).index(word.name)]
            own = self.vectors[-1].ctypes.data + 8 * (np.cumsum(parts) - parts)
            self.cells[:, at] = np.where(top, of_word, own)
            at += 1
        self.cells[:, at : at + 3] = np.column_stack([width[owner], height[owner], top])

    def place(self, column: int, addresses: Array) -> None:
        """Say where each tensor's memory of this column is."""
        offsets = self.along.get(self.shapes.get(self.columns[column].name, ""), self.offsets)
        self.point(column, addresses[self.owner], offsets)


class TouchedRows(Table):
    """A table over some rows of one tensor: `rows` by number, each `width` elements long."""

    def __init__(self, columns: Sequence[Column], rows: Array, width: int) -> None:
        super().__init__(
            columns, np.zeros(len(rows), dtype=np.int64), rows * width, np.full(len(rows), width)
        )
        self.packed = np.arange(len(rows)) * width

    def place(self, column: int, address: int, *, packed: bool = False) -> None:
        """Say where the column's tensor is; `packed` if it holds the touched rows alone."""
        self.point(column, address, self.packed if packed else self.offsets)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a group takes a step: what its gradients are multiplied by, the part of the running average that
    is renewed, what chance starts from, and the largest change in units of the learning rate, where one is set.
    """

    scale: float = 1.0
    renewed: float = 1.0
    seed: int = 0
    max_update: float | None = None


def numbers(
    formula: Formula, drawn: bool, rule: Rule, remembered: list[float], terms: Terms
) -> tuple[list[float], list[float]]:
    """A kernel's coefficients for a tensor's next step, and what is remembered of the tensor afterwards.

    That is its steps, then the rule's own scalars.
    """
    step, names = int(remembered[0]) + 1, rule.scalars
    values = (
        rule.coefficients(step, **dict(zip(names, remembered[1 : 1 + len(names)], strict=True)))
        if names
        else rule.coefficients(step)
    )
    found = [
        terms.scale,
        *(formula.values(rule, values, terms.max_update) if formula.limited else formula.pick(values)),
    ]
    if formula.averaged:  # the first average is the weight itself
        found.append(terms.renewed if step > 1 else 1.0)
    if drawn:
        found += keys(terms.seed, step)
    return found, [float(step), *[values[name] for name in names]]


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
        self.table.number(self.members)
        self.drawn = any(column.storage.drawn for column in table.columns)
        # Rows that follow each other are looked at where they are.
        follow = len(self.members) > 0 and bool((np.diff(self.members) == 1).all())
        rows: Any = slice(self.members[0], self.members[-1] + 1) if follow else self.members
        # Another rule may remember more of a tensor: of the ledger's columns the first are this one's.
        self.place = rows, slice(1 + len(formula.rule.scalars))
        self.written: bytes | None = None
        self.library: Callable[[Array], Any] = np.asarray  # whose products of matrices are taken
        self.products: dict[int, tuple[matrices.Polynomials, float]] = {}
        self.call: tuple[int, functools.partial[None]] | None = None

    def stands(self, ledger: Array) -> bool:
        """Whether the ledger says what this launch has written to it."""
        return ledger[self.place].tobytes() == self.written

    def write(self, ledger: Array, histories: Sequence[Sequence[float]]) -> None:
        """Write what is remembered of each cohort to its tensors' rows."""
        each = np.array(histories)
        ledger[self.place] = each if len(each) == 1 else each[self.which]
        self.written = ledger[self.place].tobytes()

    def _gather(self, remembered: Array) -> None:
        """Tensors of the same group with the same history share their scalars: find these cohorts."""
        keys, which = np.unique(np.column_stack([self.groups, remembered]), axis=0, return_inverse=True)
        self.which = which.reshape(-1)
        self.cohorts = [(int(group), history) for group, *history in keys.tolist()]
        self.table.assign(self.which)
        width = 1 + len(self.formula.coefficients) + 2 * self.drawn
        self.matrix = np.empty((len(self.cohorts), width))
        self.at_matrix = self.matrix.ctypes.data
        self.call = None

    def prepare(
        self, ledger: Array, rules: Sequence[Rule] | Mapping[int, Rule], terms: Sequence[Terms]
    ) -> None:
        """Work out the scalars of the next step. Whatever is wrong with them is raised here, with nothing changed.

        `rules` and `terms` are by group. `ledger` has a row a tensor, what is remembered of it as a whole: its finished
        steps, then the rule's scalars; float64, so counts are exact to 2⁵³.
        """
        if not self.stands(ledger):
            self._gather(ledger[self.place])
        self.written = None  # until this step is taken
        if self.formula.of_matrices:
            groups = {group for group, _ in self.cohorts}
            self.products = {k: (rules[k].iterations, rules[k].smallest_norm) for k in groups}
        for row, (group, history) in enumerate(self.cohorts):
            self.matrix[row], after = numbers(self.formula, self.drawn, rules[group], history, terms[group])
            self.cohorts[row] = group, after

    def counting(self, ledger: Array) -> functools.partial[None]:
        """What writes to the ledger that the step which was prepared is taken."""
        # An array: NumPy would let a signal's handler run while it makes one of a list.
        each = np.array([history for _, history in self.cohorts])
        return functools.partial(ledger.__setitem__, self.place, each if len(each) == 1 else each[self.which])

    def moving(self, workers: int) -> functools.partial[None]:
        """What takes the step that was prepared."""
        if self.call is None or self.call[0] != workers:
            passes = self.formula.passes
            calls = (
                [self._call(self.kernel, workers, slice(len(self.table.cells)))]
                if passes is None
                else self._in_passes(passes, workers)
            )
            self.call = workers, calls[0] if len(calls) == 1 else functools.partial(threads.together, calls)
        return self.call[1]

    def _call(
        self, kernel: Kernel, workers: int, rows: slice, starts: Array | None = None
    ) -> functools.partial[None]:
        elements = int(self.table.cells[rows, -2].sum())
        return threads.call(kernel, self.table.address, self.at_matrix, rows, elements, workers, starts)

    def _in_passes(self, passes: Passes, workers: int) -> list[functools.partial[None]]:
        """Batch by batch: tensors that fit in a cache one by one through all passes, the others together."""
        table = self.table
        assert isinstance(table, WholeTensors)
        calls: list[functools.partial[None]] = []

        def run(phase: int, batch: Batch, starts: Array | None = None) -> None:
            calls.append(self._call(functools.partial(self.kernel, phase), workers, batch.rows, starts))

        for batch in table.batches:
            if batch.one_by_one:
                run(0, batch, table.starts)
                continue
            for level in range(1, passes.levels + 1):
                run(2 * level - 1, batch)
                run(2 * level, batch, table.starts)
                calls += [
                    functools.partial(threads.apart, self._multiply, word, batch)
                    for word in passes.at(level)
                    if word.matrix
                ]
            run(2 * passes.levels + 1, batch)
            if passes.shapes:
                run(2 * passes.levels + 2, batch)
        return calls

    def _multiply(self, word: Word, batch: Batch) -> None:
        """Put the product of matrices that the word is in the place of its argument."""
        table = self.table
        assert isinstance(table, WholeTensors)
        given = table.products[word.name][: math.prod(batch.shape)].reshape(batch.shape)
        given[...] = matrices.orthogonal(self.library(given), *self.products[batch.group])

    def taken(self, ledger: Array) -> None:
        """Note that the step which was prepared is taken and counted."""
        self.written = ledger[self.place].tobytes()

    def step(
        self, ledger: Array, rules: Sequence[Rule] | Mapping[int, Rule], terms: Sequence[Terms], workers: int
    ) -> None:
        """Take one step of every tensor: what `prepare` takes, on at most so many threads."""
        self.prepare(ledger, rules, terms)
        threads.together([self.counting(ledger), self.moving(workers)])
        self.taken(ledger)
