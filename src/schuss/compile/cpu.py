"""A page as one compiled loop over memory: source in, machine code out.

The kernel walks a table with a row for each stretch of memory: the addresses of the weights, the gradient, each slot
and what is kept beside them, the stretch's place among all numbers, its length, and which coefficients apply. It is
keyed on the formula and on how each array is kept, so nothing that changes in training compiles anything.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import linecache
import os
import platform
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from schuss.compile import cache
from schuss.compile.formula import Formula
from schuss.compile.passes import Passes, Word
from schuss.compile.storage import BLOCK, LEVEL_LEAST, Column, columns, compute_dtype, drawn
from schuss.rules.rule import WHOLE_TENSOR

# Rows of at most so many elements, as of a sparse gradient, are asked for so many rows ahead.
SHORT, AHEAD = 256, 4

# Products may fuse with sums. NaN, infinity, signed zeros and the order of operations stay what they are.
_FLAGS = 'error_model="numpy", fastmath={"contract"}'

# The words that are of squares.
SQUARED = ("norm", "root_mean_square")

# The same for sums over a row, which may be taken in any order, so that several numbers are added at once.
_FREE_SUMS = 'error_model="numpy", fastmath={"contract", "reassoc"}'

_WORDS = {
    "abs": "abs = abs",
    "exp": "from math import exp",
    "log": "from math import log",
    "sqrt": "from math import sqrt",
    "where": f"@njit({_FLAGS})\ndef where(condition, yes, no):\n    return yes if condition else no",
    "maximum": f"@njit({_FLAGS})\ndef maximum(a, b):\n    return a if (a > b) | (a != a) else b",
    "minimum": f"@njit({_FLAGS})\ndef minimum(a, b):\n    return a if (a < b) | (a != a) else b",
    "sign": f"@njit({_FLAGS})\ndef sign(a):\n    return real(1) if a > 0 else (real(-1) if a < 0 else a)",
}


class _TypedNumbers(ast.NodeTransformer):
    """Give every number of the page the kernel's own type: one bare 1.0 would turn float32 into float64."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return ast.Call(ast.Name("real"), [node], [])
        return node


def functions(formula: Formula) -> list[str]:
    """The rule's `update`, with every number given the kernel's type, and what measures whole tensors for it."""
    passes = formula.passes
    if passes is None:
        texts = [formula.source()]
    else:
        texts = [*(passes.measure(level + 1) for level in range(passes.levels)), passes.update()]
    trees = [ast.parse(text) for text in texts]
    function = trees[-1].body[0]
    assert isinstance(function, ast.FunctionDef)
    function.name = "update"
    if ast.get_docstring(function):
        function.body = function.body[1:]
    found = [ast.unparse(ast.fix_missing_locations(_TypedNumbers().visit(tree))) for tree in trees]
    names = tuple(word.name for word in passes.words) if passes else ()
    return [*found, *([formula.with_average(names)] if formula.averaged else [])]


class _Array:
    """The lines by which a kernel reads and writes one array, and what is beside it."""

    def __init__(self, index: int, column: Column, beside: int, where: int, shape: str = "") -> None:
        self.name, self.storage, self.shape = column.name, column.storage, shape
        self.index, self.beside, self.where = index, beside, where
        self.blocks = self.storage.name == "int8"

    def made(self) -> str:
        """How its functions are made."""
        way, dtype = "nearest", f'{self.index}, "{self.storage.dtype}"'
        if self.blocks:
            return (
                f"load_{self.name}, store_{self.name} = slots.levels({self.index})\n"
                f"load_{self.name}_scale, store_{self.name}_scale = slots.raw({self.beside})\n"
                f"load_{self.name}_spare, store_{self.name}_spare = slots.raw({self.where})"
            )
        if self.storage.beside:
            way, dtype = "compensated", f'{dtype}, {self.beside}, "{self.storage.beside.dtype}"'
        elif self.storage.drawn:
            way = "by_chance"
        return f"load_{self.name}, store_{self.name} = slots.{way}({dtype})"

    def before_row(self) -> list[str]:
        """What is worked out once a row."""
        lines = [f"{self.name}_spare = spare({self.index})"] if self.blocks else []
        if self.storage.drawn:
            lines += [
                f"{self.name}_first = stream(key1_, place, {2 * self.index})",
                f"{self.name}_second = stream(key2_, place, {2 * self.index + 1})",
            ]
        return lines

    def before_block(self) -> list[str]:
        """What is worked out once a block."""
        if not self.blocks:
            return []
        return [
            f"{self.name}_scale = load_{self.name}_scale(at_{self.name}_scale, first // {BLOCK})",
            f"{self.name}_most = int32({LEVEL_LEAST})",
        ]

    def read(self) -> str:
        """Its number at `i`."""
        if self.shape:
            return (
                f"{self.name}_row" if self.shape == "row" else f"load_{self.name}(at_{self.name}, i - shift)"
            )
        if self.blocks:
            return f"load_{self.name}(at_{self.name}, i, {self.name}_scale)"
        beside = f"at_{self.name}_{self.storage.beside.name}, " if self.storage.beside else ""
        return f"load_{self.name}(at_{self.name}, {beside}i)"

    def _drawn(self) -> str:
        return f"draw(place + i, {self.name}_first, {self.name}_second)"

    def write(self, value: str) -> list[str]:
        """Its new number at `i`."""
        if self.blocks:
            return [
                f"store_{self.name}_spare({self.name}_spare, i - first, {value})",
                f"{self.name}_most = larger({self.name}_most, {value})",
            ]
        beside = f"at_{self.name}_{self.storage.beside.name}, " if self.storage.beside else ""
        chance = f", {self._drawn()}" if self.storage.drawn else ""
        return [f"store_{self.name}(at_{self.name}, {beside}i, {value}{chance})"]

    def after_block(self) -> list[str]:
        """The block's numbers, now that the largest of them is known."""
        if not self.blocks:
            return []
        kept = f"load_{self.name}_spare({self.name}_spare, i - first)"
        return [
            f"store_{self.name}_scale(at_{self.name}_scale, first // {BLOCK}, scale_of({self.name}_most))",
            f"{self.name}_inverse = inverse_of({self.name}_most)",
            "for i in range(first, last):",
            f"    store_{self.name}(at_{self.name}, i, {kept}, {self.name}_inverse, {self._drawn()})",
        ]


def measures(passes: Passes | None) -> tuple[str, ...]:
    """What a row says besides of an update in passes: where its sums, its tensor's numbers and its matrices are."""
    if passes is None:
        return ()
    names = "sums_", "found_", *(word.name for word in passes.matrices)
    if not passes.of_rows:
        return names
    vectors = *(word.name for word in passes.vectors), *map(part_of, column_words(passes))
    return (*names, *vectors, "width", "height", "top")


def column_words(passes: Passes) -> list[Word]:
    """The words that give a number for each column."""
    return [word for word in passes.vectors if word.vector == "column"]


def part_of(word: Word) -> str:
    """The name of what a row of the table adds to a number for each column."""
    return f"{word.name}_part"


def scalars(formula: Formula, kept: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of the coefficient matrix, by name."""
    return ("scale", *formula.coefficients, *(("key1", "key2") if drawn(kept) else ()))


def head(formula: Formula, kept: tuple[str, ...], where: str) -> list[str]:
    """What a generated file says of itself."""
    arrays = zip(("w", "g", *formula.slots), kept, strict=True)
    return [
        f'"""{formula.title} {where}: {", ".join(f"{name} {one}" for name, one in arrays)}.',
        "",
        f"Generated from {formula.rule.__module__}. To change it, change the rule.",
        '"""',
        "",
    ]


def _indented(lines: Iterable[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]


def _arrays(names: Sequence[str], memory: Sequence[Column], passes: Passes | None) -> list[_Array]:
    """The named arrays of a kernel's columns. Those in blocks have a place for a block's numbers after all columns."""
    place_of = {column.name: k for k, column in enumerate(memory)}
    own = memory[: len(names)]
    blocks = [column.name for column in own if column.storage.name == "int8"]
    return [
        _Array(
            k,
            column,
            place_of[f"{column.name}_{column.storage.beside.name}"] if column.storage.beside else -1,
            len(memory) + (blocks.index(column.name) if column.name in blocks else 0),
            passes.shapes.get(column.name, "") if passes else "",
        )
        for k, column in enumerate(own)
    ]


def _words(formula: Formula) -> list[str]:
    """What the formula's words mean in a kernel; Python's own abs needs no line."""
    words = [word for word in formula.words() if word not in ("abs", "where", *WHOLE_TENSOR)]
    return [_WORDS[word] for word in (*words, *(["where"] if "where" in formula.words() else []))]


def _called(
    coefficients: Sequence[str], arrays: Sequence[_Array], function: str, known: Sequence[Word]
) -> list[str]:
    """The lines that call a function of the formula for the element at `i`."""
    weight, gradient, *slots = arrays
    return [
        f"new = {function}(",
        f"    {weight.read()},",
        f"    scale_ * {gradient.read()},",
        *(f"    {slot.read()}," for slot in slots),
        *(f"    {name}_," for name in coefficients),
        *(f"    {_read(one)}," for one in known),
        ")",
    ]


def _read(word: Word) -> str:
    """What was measured, as it applies to the element at `i`."""
    if word.matrix:
        return f"load_{word.name}(at_{word.name}, i)"
    if word.vector == "column":
        return f"real(read_float64(at_{word.name}, i - shift))"
    return f"{word.name}_row" if word.vector else f"{word.name}_"


def _each(
    passes: Passes | None,
    arrays: Sequence[_Array],
    known: Sequence[Word],
    lines: list[str],
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    inner: bool = True,
) -> list[str]:
    """These lines for each element of a row of the table; where rows of a matrix are told apart, with what to do
    before and after each. Without `inner`, for the first element of each row of the matrix alone.
    """
    if passes is None or not passes.of_rows:
        return ["for i in range(length):", *_indented(lines, 4)]
    return [
        "for k in range(length // width):",
        "    base = k * width",
        "    shift = base - k // height * width  # of the first column of this matrix",
        *_indented(_row_numbers(arrays, known), 4),
        *_indented(before, 4),
        f"    {'for i in range(base, base + width):' if inner else 'i = base'}",
        *_indented(lines, 8 if inner else 4),
        *_indented(after, 4),
    ]


def _row_numbers(arrays: Sequence[_Array], known: Sequence[Word]) -> list[str]:
    """What is read once for row `k` of a matrix."""
    slots = [array.name for array in arrays if array.shape == "row"]
    words = [word.name for word in known if word.vector == "row"]
    return [
        *(f"{name}_row = load_{name}(at_{name}, k)" for name in slots),
        *(f"{name}_row = real(read_float64(at_{name}, k))" for name in words),
    ]


# How many numbers the columns of a row's matrices have: of those that begin in it.
_COLUMNS = "((length // width - 1) // height + 1) * width"


def _shaped_state(formula: Formula, passes: Passes, arrays: Sequence[_Array]) -> list[str]:
    """The lines that write the slots with a number for each row or column, after all elements have moved."""
    arrays, lines = arrays[: 2 + len(formula.page_slots)], list[str]()

    def called(kind: str) -> list[str]:
        """The update, of which only what is one number for each of this kind is asked: all else may be anything."""

        def slot(array: _Array) -> str:
            return array.read() if array.shape == kind else "real(0)"

        def word(one: Word) -> str:
            return "real(0)" if one.matrix or one.vector not in ("", kind) else _read(one)

        arguments = ", ".join(
            (
                *("real(0)", "real(0)"),
                *map(slot, arrays[2:]),
                *(f"{name}_" for name in formula.own_coefficients),
                *map(word, passes.words),
            )
        )
        stores = [
            f"store_{array.name}(at_{array.name}, {'k' if kind == 'row' else 'i'}, new[{number}])"
            for number, array in enumerate(arrays[2:], 1)
            if array.shape == kind
        ]
        return [f"new = update({arguments})", *stores]

    if "row" in passes.shapes.values():
        reading = _row_numbers(arrays, passes.words)
        lines += ["for k in range(length // width):", *_indented([*reading, *called("row")], 4)]
    if "column" in passes.shapes.values():
        lines += [
            "if top != 0:",
            "    shift = 0",
            f"    for i in range({_COLUMNS}):",
            *_indented(called("column"), 8),
        ]
    return lines


def _loop(formula: Formula, arrays: Sequence[_Array]) -> list[str]:
    """The lines that move a row's weights, one by one or block by block."""
    weight, _, *slots = arrays
    written = [weight, *slots]
    function = "moved" if formula.averaged else "update"
    known = formula.passes.words if formula.passes else ()
    moved = _called(formula.coefficients, arrays, function, known)
    lines = [
        *moved,
        *(line for k, array in enumerate(written) if not array.shape for line in array.write(f"new[{k}]")),
    ]
    if not any(array.blocks for array in arrays):
        return _each(formula.passes, arrays, known, lines)
    return [
        *_by_block([line for array in written for line in array.before_block()], lines),
        *_indented([line for array in written for line in array.after_block()], 4),
    ]


def _by_block(before: list[str], lines: list[str]) -> list[str]:
    """These lines for each element of a row, block by block."""
    return [
        f"for first in range(0, length, {BLOCK}):",
        f"    last = min(first + {BLOCK}, length)",
        *_indented(before, 4),
        "    for i in range(first, last):",
        *_indented(lines, 8),
    ]


def _sums(formula: Formula, passes: Passes, arrays: Sequence[_Array], level: int) -> list[str]:
    """The lines that sum over a row what the words of this level need, in float64."""
    words = passes.at(level)
    arrays = arrays[: 2 + len(formula.page_slots)]  # not the average, which no word is of
    lines = _called(formula.own_coefficients, arrays, f"measure_{level}", passes.known(level))
    for k, one in enumerate(words):
        if one.matrix:
            lines.append(f"store_{one.name}(at_{one.name}, i, new[{k}])")
        elif one.vector == "column":
            at = f"at_{part_of(one)}, i - shift"
            lines.append(f"write_float64({at}, read_float64({at}) + float64(new[{k}]))")
        else:
            lines += [f"x = float64(new[{k}])", f"{one.name}_ += {'x * x' if one.word in SQUARED else 'x'}"]
    numbers = [one for one in words if not one.matrix and not one.vector]
    of_rows = [one for one in words if one.vector == "row"]
    of_columns = [one for one in words if one.vector == "column"]
    # What is the same all along a row is summed once for all columns.
    inner = len(of_columns) < len(words) or not all(one.alike for one in words)
    each = _each(
        passes,
        arrays,
        passes.known(level),
        lines,
        [f"{one.name}_ = 0.0" for one in of_rows],
        [f"write_float64(at_{one.name}, k, {one.name}_ / width)" for one in of_rows],
        inner,
    )
    blocks = any(array.blocks for array in arrays)
    scales = [array.before_block()[0] for array in arrays if array.blocks]
    return [
        *(f"{one.name}_ = 0.0" for one in numbers),
        *(
            line
            for one in of_columns
            for line in (f"for i in range({_COLUMNS}):", f"    write_float64(at_{part_of(one)}, i, 0.0)")
        ),
        *(_by_block(scales, lines) if blocks else each),
        *(
            line
            for one in of_columns
            if not inner
            for line in (
                f"for i in range({_COLUMNS}):",
                f"    write_float64(at_{part_of(one)}, i, read_float64(at_{part_of(one)}, i // width * width))",
            )
        ),
        *(f"write_float64(at_sums_, {passes.numbers.index(one)}, {one.name}_)" for one in numbers),
    ]


def _row(memory: Sequence[Column], numbers: Sequence[str], passes: Passes | None, level: int) -> list[str]:
    """The lines that read a row of the table, its coefficients, and what earlier passes measured of its tensor."""
    more = measures(passes)
    known = [word for word in passes.known(level) if word in passes.numbers] if passes else []
    own = passes.shapes if passes else {}
    sizes = {"width", "height", "top"} if passes and passes.of_rows else set[str]()
    stride, keys = len(memory) + len(more) + 3, ("key1", "key2")
    return [
        *(f"at_{column.name} = read_int64(table, {stride} * row + {k})" for k, column in enumerate(memory)),
        *(
            f"{'' if name in sizes else 'at_'}{name} = read_int64(table, {stride} * row + {len(memory) + k})"
            for k, name in enumerate(more)
        ),
        f"place = read_int64(table, {stride} * row + {stride - 3})",
        f"length = read_int64(table, {stride} * row + {stride - 2})",
        f"if length <= {SHORT}:  # far apart in memory: ask for rows to come while this one is worked on",
        f"    ahead = {stride} * min(row + {AHEAD}, last_row - 1)",
        *(
            line
            for k, column in enumerate(memory)
            if column.per == 1 and column.name not in own
            for line in (
                f"    for line in range(0, length * {column.itemsize}, 64):",
                f"        prefetch(read_int64(table, ahead + {k}) + line)",
            )
        ),
        f"these = {len(numbers)} * read_int64(table, {stride} * row + {stride - 1})",
        *(
            f"{name}_ = {'float64' if name in keys else 'real'}(read_float64(coefficients, these + {k}))"
            for k, name in enumerate(numbers)
        ),
        *(
            f"{word.name}_ = real(read_float64(at_found_, {passes.numbers.index(word)}))"
            for word in known
            if passes
        ),
    ]


def source(formula: Formula, kept: tuple[str, ...]) -> str:
    """The kernel's source: for weights, gradients and each slot `kept` so (names as in `storage`)."""
    names, real = ("w", "g", *formula.slots), compute_dtype(kept)
    memory = columns(names, kept)
    passes = formula.passes
    arrays = _arrays(names, memory, passes)
    weight, _, *slots = arrays
    blocks = sum(array.blocks for array in arrays)
    products = passes.matrices if passes else ()
    moving = [
        *_row(memory, scalars(formula, kept), passes, passes.levels + 1 if passes else 0),
        *(line for array in (weight, *slots) for line in array.before_row()),
        *_loop(formula, arrays),
    ]
    lines = [
        *head(formula, kept, "on the CPU"),
        *(["from math import sqrt as root"] if passes else []),
        "from numba import cfunc, float64, int32, njit",
        f"from numba import {real} as real",
        "from schuss.compile.memory import Slots, draw, inverse_of, larger, prefetch, read_float64, read_int64",
        f"from schuss.compile.memory import scale_of, spare, stream{', write_float64' if passes else ''}",
        *_words(formula),
        "",
        f'slots = Slots({len(memory) + blocks + len(products)}, "{real}")',
        *(array.made() for array in arrays),
        *(
            f'load_{word.name}, store_{word.name} = slots.nearest({len(memory) + blocks + k}, "{real}")'
            for k, word in enumerate(products)
        ),
        *(line for text in functions(formula) for line in ("", "", f"@njit({_FLAGS})", text)),
        "",
        "",
    ]
    if passes is None:
        lines += [
            f'@cfunc("void(int64, int64, int64, int64)", {_FLAGS})',
            "def launch(table, coefficients, first_row, last_row):",
            "    for row in range(first_row, last_row):",
            *_indented(moving, 8),
        ]
    else:
        for level in range(1, passes.levels + 1):
            reading = _row(memory, scalars(formula, kept), passes, level)
            lines += _measuring(formula, passes, arrays, level, reading, len(memory))
        finishing: list[str] = []
        if passes.shapes:
            reading = _row(memory, scalars(formula, kept), passes, passes.levels + 1)
            finishing = [*reading, *_shaped_state(formula, passes, arrays)]
        lines += _in_turn(passes, moving, finishing, len(memory))
    return "\n".join([*lines, ""])


def _measuring(
    formula: Formula, passes: Passes, arrays: Sequence[_Array], level: int, reading: list[str], columns: int
) -> list[str]:
    """The functions that sum over a row, and over the rows of a tensor in their order: so for any number of threads."""
    finished = {
        "mean": "{} / count",
        "norm": "root({})",
        "root_mean_square": "root({} / count)",
        "total": "{}",
    }
    words = [(word, passes.numbers.index(word)) for word in passes.at(level) if word in passes.numbers]
    stride = columns + len(measures(passes)) + 3
    return [
        f"@njit({_FREE_SUMS})",
        f"def row_{level}(table, coefficients, row, last_row):",
        *_indented([*reading, *_sums(formula, passes, arrays, level)], 4),
        "",
        "",
        f"@njit({_FLAGS})",
        f"def tensor_{level}(table, first, last):",
        "    count = 0.0",
        *(f"    {word.name}_ = 0.0" for word, _ in words),
        "    for row in range(first, last):",
        f"        at_sums = read_int64(table, {stride} * row + {columns})",
        f"        count += float64(read_int64(table, {stride} * row + {stride - 2}))",
        *(f"        {word.name}_ += read_float64(at_sums, {k})" for word, k in words),
        f"    at_found = read_int64(table, {stride} * first + {columns + 1})",
        *(
            f"    write_float64(at_found, {k}, {finished[word.word].format(f'{word.name}_')})"
            for word, k in words
        ),
        *_indented(_column_sums(passes, level, columns), 4),
        "",
        "",
    ]


def _column_sums(passes: Passes, level: int, columns: int) -> list[str]:
    """The lines that add up what rows of the table have summed for each column, in their order.

    The first row of a matrix has summed where the mean is to be.
    """
    words = [word for word in column_words(passes) if word.level == level]
    if not words:
        return []
    more = measures(passes)
    stride = columns + len(more) + 3

    def cell(name: str) -> str:
        return f"read_int64(table, {stride} * row + {columns + more.index(name)})"

    return [
        "for row in range(first, last):",
        f"    width = {cell('width')}",
        f"    if {cell('top')} == 0:",
        *(
            line
            for word in words
            for line in (
                f"        at_sum, at_part = {cell(word.name)}, {cell(part_of(word))}",
                "        for i in range(width):",
                "            write_float64(at_sum, i, read_float64(at_sum, i) + read_float64(at_part, i))",
            )
        ),
        "for row in range(first, last):",
        f"    width, height, length = {cell('width')}, {cell('height')}, "
        f"read_int64(table, {stride} * row + {stride - 2})",
        f"    if {cell('top')} != 0:",
        *(
            line
            for word in words
            for line in (
                f"        at_sum = {cell(word.name)}",
                f"        for i in range({_COLUMNS}):",
                "            write_float64(at_sum, i, read_float64(at_sum, i) / height)",
            )
        ),
    ]


def _in_turn(passes: Passes, moving: list[str], finishing: list[str], columns: int) -> list[str]:
    """The kernel of an update in passes. Phase 0 takes one tensor after the other through all of them.

    Of the other phases each is one pass over rows: 1 sums over rows, 2 over tensors, 3 over rows for the next level,
    ...; the last one moves, but for one that writes state by rows and columns where there is any (`finishing`). Phase 0
    and those over tensors are given whole ones.
    """
    stride = columns + len(measures(passes)) + 3
    phases: list[tuple[int, str]] = []
    for level in range(1, passes.levels + 1):
        phases += [(2 * level - 1, f"row_{level}"), (2 * level, f"tensor_{level}")]
    lines = [
        f"@njit({_FLAGS})",
        "def move(table, coefficients, row, last_row):",
        *_indented(moving, 4),
        "",
        "",
        *(
            [
                f"@njit({_FLAGS})",
                "def finish(table, coefficients, row, last_row):",
                *_indented(finishing, 4),
                "",
                "",
            ]
            if finishing
            else []
        ),
        f"@njit({_FLAGS})",
        "def end_of(table, first, last_row):",
        f"    found = read_int64(table, {stride} * first + {columns + 1})",
        "    last = first + 1",
        f"    while last < last_row and read_int64(table, {stride} * last + {columns + 1}) == found:",
        "        last += 1",
        "    return last",
        "",
        "",
        f'@cfunc("void(int64, int64, int64, int64, int64)", {_FLAGS})',
        "def launch(phase, table, coefficients, first_row, last_row):",
        "    if phase == 0:",
        "        first = first_row",
        "        while first < last_row:",
        "            last = end_of(table, first, last_row)",
    ]
    for phase, function in phases:
        if phase % 2:
            lines += [
                "            for row in range(first, last):",
                f"                {function}(table, coefficients, row, last)",
            ]
        else:
            lines.append(f"            {function}(table, first, last)")
    lines += [
        "            for row in range(first, last):",
        "                move(table, coefficients, row, last)",
        *(
            [
                "            for row in range(first, last):",
                "                finish(table, coefficients, row, last)",
            ]
            if finishing
            else []
        ),
        "            first = last",
    ]
    for phase, function in phases:
        lines.append(f"    elif phase == {phase}:")
        if phase % 2:
            lines += [
                "        for row in range(first_row, last_row):",
                f"            {function}(table, coefficients, row, last_row)",
            ]
        else:
            lines += [
                "        first = first_row",
                "        while first < last_row:",
                "            last = end_of(table, first, last_row)",
                f"            {function}(table, first, last)",
                "            first = last",
            ]
    if finishing:
        lines += [
            f"    elif phase == {2 * passes.levels + 2}:",
            "        for row in range(first_row, last_row):",
            "            finish(table, coefficients, row, last_row)",
        ]
    return [
        *lines,
        "    else:",
        "        for row in range(first_row, last_row):",
        "            move(table, coefficients, row, last_row)",
    ]


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
        reloc="default",
        codemodel="jitdefault",
    )


_SYMBOL = "schuss_launch"


def _compile(text: str, filename: str, machine: llvm.TargetMachine) -> bytes:
    """Machine code of the kernel `text`, as an object file that needs nothing but libm."""
    scope: dict[str, Any] = {"__name__": Path(filename).stem}
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), scope)
    kernel = scope["launch"]
    # Numba wraps the loop for callers that want exceptions. The loop raises none: keep it alone, under a plain name.
    inner = kernel.native_name.removeprefix("cfunc.")
    module = llvm.parse_assembly(kernel.inspect_llvm().replace(inner, _SYMBOL))
    for function in module.functions:
        if not function.is_declaration and function.name != _SYMBOL:
            function.linkage = "internal"
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=0))
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)
    return machine.emit_object(module)


@functools.cache
def _fingerprint() -> str:
    """What a kernel depends on beside its own text: the code that writes it and the machine that runs it."""
    here = Path(__file__)
    parts = (
        here.read_text(),
        here.with_name("memory.py").read_text(),
        here.with_name("storage.py").read_text(),
        llvmlite.__version__,
        metadata.version("numba"),
        platform.python_version(),
        platform.machine(),
        platform.system(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    return "\0".join(parts)


# (table address, coefficients address, first row, last row) -> None, without the interpreter's lock; before these the
# phase, where a formula has passes
Kernel = Callable[..., None]

_engines: list[Any] = []  # machine code lives as long as its engine
_kernels: dict[tuple[Formula, tuple[str, ...]], Kernel] = {}  # found quickly
_loaded: dict[str, Kernel] = {}  # by their text
_compiling = threading.RLock()
# A process forked in the middle of a compilation would inherit locks of this module, Numba and LLVM that nobody there
# ever releases. So a fork waits for the compilation, a second at most.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release
    )


def kernel(formula: Formula, kept: tuple[str, ...]) -> Kernel:
    """The compiled kernel of `source`: from this process, else from the cache folder, else compiled now (a second)."""
    found = _kernels.get((formula, kept))
    if found is None:
        arguments = 4 if formula.passes is None else 5
        found = _kernels[formula, kept] = load(formula.name, source(formula, kept), arguments=arguments)
    return found


def count() -> int:
    """How many kernels this process has loaded."""
    return len(_loaded)


def load(title: str, text: str, prototype: Any = ctypes.CFUNCTYPE, arguments: int = 4) -> Kernel:
    """The compiled `launch` of a source text, which takes so many whole numbers; its files start with the title.

    With `ctypes.PYFUNCTYPE` it is called with the interpreter's lock, and may leave a Python exception.
    """
    with _compiling:
        return _loaded.get(text) or _loaded.setdefault(text, _load(title, text, prototype, arguments))


def _load(title: str, text: str, prototype: Any, arguments: int) -> Kernel:
    key = text + _fingerprint()
    name = f"{title}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    machine = _machine()
    code = cache.read(f"{name}.o", key)
    if code is None:
        filename = str(cache.folder() / f"{name}.py")
        code = _compile(text, filename, machine)
        cache.write(f"{name}.py", text.encode())
        cache.write_checked(f"{name}.o", code, key)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    # What Numba calls with: where to write a result (none) and an exception (none), then the arguments.
    signature = prototype(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * arguments)
    return functools.partial(signature(engine.get_function_address(_SYMBOL)), _NOWHERE, _NOWHERE)


_NOWHERE = ctypes.addressof(_spare := ctypes.c_int64())
