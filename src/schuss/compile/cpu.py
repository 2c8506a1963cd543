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
from schuss.compile.storage import BLOCK, LEVEL_LEAST, Column, columns, compute_dtype, drawn

# Rows of at most so many elements, as of a sparse gradient, are asked for so many rows ahead.
SHORT, AHEAD = 256, 4

# Products may fuse with sums. NaN, infinity, signed zeros and the order of operations stay what they are.
_FLAGS = 'error_model="numpy", fastmath={"contract"}'

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


def page(formula: Formula) -> str:
    """The page's `update`, with every number given the kernel's type."""
    tree = ast.parse(formula.source())
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.name = "update"
    if ast.get_docstring(function):
        function.body = function.body[1:]
    return ast.unparse(ast.fix_missing_locations(_TypedNumbers().visit(tree)))


class _Array:
    """The lines by which a kernel reads and writes one array, and what is beside it."""

    def __init__(self, index: int, column: Column, beside: int, where: int) -> None:
        self.name, self.storage = column.name, column.storage
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


def _arrays(names: Sequence[str], memory: Sequence[Column]) -> list[_Array]:
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
        )
        for k, column in enumerate(own)
    ]


def _words(formula: Formula) -> list[str]:
    """What the formula's words mean in a kernel; Python's own abs needs no line."""
    words = [word for word in formula.words() if word not in ("abs", "where")]
    return [_WORDS[word] for word in (*words, *(["where"] if "where" in formula.words() else []))]


def _loop(formula: Formula, arrays: Sequence[_Array]) -> list[str]:
    """The lines that move a row's weights, one by one or block by block."""
    weight, gradient, *slots = arrays
    written = [weight, *slots]
    blocks = any(array.blocks for array in arrays)
    loop = [
        "for i in range(first, last):" if blocks else "for i in range(length):",
        f"    new = {'moved' if formula.averaged else 'update'}(",
        f"        {weight.read()},",
        f"        scale_ * {gradient.read()},",
        *(f"        {slot.read()}," for slot in slots),
        *(f"        {name}_," for name in formula.coefficients),
        "    )",
        *(f"    {line}" for k, array in enumerate(written) for line in array.write(f"new[{k}]")),
    ]
    if not blocks:
        return loop
    return [
        f"for first in range(0, length, {BLOCK}):",
        f"    last = min(first + {BLOCK}, length)",
        *_indented([line for array in written for line in array.before_block()], 4),
        *_indented(loop, 4),
        *_indented([line for array in written for line in array.after_block()], 4),
    ]


def _row(memory: Sequence[Column], numbers: Sequence[str]) -> list[str]:
    """The lines that read a row of the table and its coefficients."""
    stride, keys = len(memory) + 3, ("key1", "key2")
    return [
        *(f"at_{column.name} = read_int64(table, {stride} * row + {k})" for k, column in enumerate(memory)),
        f"place = read_int64(table, {stride} * row + {stride - 3})",
        f"length = read_int64(table, {stride} * row + {stride - 2})",
        f"if length <= {SHORT}:  # far apart in memory: ask for rows to come while this one is worked on",
        f"    ahead = {stride} * min(row + {AHEAD}, last_row - 1)",
        *(
            line
            for k, column in enumerate(memory)
            if column.per == 1
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
    ]


def source(formula: Formula, kept: tuple[str, ...]) -> str:
    """The kernel's source: for weights, gradients and each slot `kept` so (names as in `storage`)."""
    names, real = ("w", "g", *formula.slots), compute_dtype(kept)
    memory = columns(names, kept)
    arrays = _arrays(names, memory)
    weight, _, *slots = arrays
    blocks = sum(array.blocks for array in arrays)
    lines = [
        *head(formula, kept, "on the CPU"),
        "from numba import cfunc, float64, int32, njit",
        f"from numba import {real} as real",
        "from schuss.compile.memory import Slots, draw, inverse_of, larger, prefetch, read_float64, read_int64",
        "from schuss.compile.memory import scale_of, spare, stream",
        *_words(formula),
        "",
        f'slots = Slots({len(memory) + blocks}, "{real}")',
        *(array.made() for array in arrays),
        "",
        "",
        f"@njit({_FLAGS})",
        page(formula),
        *(("", "", f"@njit({_FLAGS})", formula.with_average()) if formula.averaged else ()),
        "",
        "",
        f'@cfunc("void(int64, int64, int64, int64)", {_FLAGS})',
        "def launch(table, coefficients, first_row, last_row):",
        "    for row in range(first_row, last_row):",
        *_indented(_row(memory, scalars(formula, kept)), 8),
        *_indented([line for array in (weight, *slots) for line in array.before_row()], 8),
        *_indented(_loop(formula, arrays), 8),
        "",
    ]
    return "\n".join(lines)


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


# (table address, coefficients address, first row, last row) -> None, without the interpreter's lock
Kernel = Callable[[int, int, int, int], None]

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
        found = _kernels[formula, kept] = load(formula.name, source(formula, kept))
    return found


def count() -> int:
    """How many kernels this process has loaded."""
    return len(_loaded)


def load(title: str, text: str, prototype: Any = ctypes.CFUNCTYPE) -> Kernel:
    """The compiled `launch` of a source text, and the files in the cache folder that start with the title.

    With `ctypes.PYFUNCTYPE` it is called with the interpreter's lock, and may leave a Python exception.
    """
    with _compiling:
        return _loaded.get(text) or _loaded.setdefault(text, _load(title, text, prototype))


def _load(title: str, text: str, prototype: Any = ctypes.CFUNCTYPE) -> Kernel:
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
    signature = prototype(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
    return functools.partial(signature(engine.get_function_address(_SYMBOL)), _NOWHERE, _NOWHERE)


_NOWHERE = ctypes.addressof(_spare := ctypes.c_int64())
