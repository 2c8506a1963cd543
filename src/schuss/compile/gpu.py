"""A page as one Triton kernel: source in, one launch for all tensors of all groups.

A launch walks three small arrays on the device. `rows` cuts the tensors into stretches, a program each: which tensor,
and from which element on; it never changes. `tensors` has a line for each tensor: the addresses of weight, gradient,
slots and what is kept beside them, its place among all numbers, a length, and which row of the coefficients applies; it
is sent again only when one of these changes. `coefficients` are a few dozen numbers. The kernel is keyed on the formula
and on how each array is kept, and is never autotuned: trial runs would move the weights.

An update with whole-tensor words has kernels for its measuring passes too: each program sums over its stretch, then a
program for each tensor adds up what its stretches gave, in their order. So nothing depends on which program ends first.

Each kernel has two entries. `launch` takes the coefficients of this step, sent with it. `launch_gated` takes those of
all steps that may be next, and asks a gate on the device which of them this is, what gradients are multiplied by, and
whether the step is taken at all (`device` has the reasons).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from schuss.compile import cache, cpu
from schuss.compile.formula import Formula
from schuss.compile.passes import Passes
from schuss.compile.storage import BLOCK as SHARED
from schuss.compile.storage import Column, columns, compute_dtype
from schuss.rules.rule import WHOLE_TENSOR

# Elements of one program, and of one of its rounds: with 4 warps a thread then asks for 16 bytes at a time, twice.
ROW, BLOCK = 4096, 1024
# Products may fuse with sums, as on the CPU.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
# What a gate says, in float64: what gradients are multiplied by, whether the step is taken, which of the rows of
# coefficients applies; then what it counts: steps taken and skipped, and the last norm.
GATE = ("coefficient", "taken", "row", "steps", "skipped", "norm")
# What the host asks of it: which count of taken steps the first row is for, how many rows follow it, the largest norm
# (infinite for none), and whether gradients that are not finite are a reason to skip.
ASKED = ("base", "last", "most", "skip")

_WORDS = {
    "abs": "def abs(x):\n    return tl.abs(x)",
    "exp": "def exp(x):\n    return tl.exp(x)",
    "log": "def log(x):\n    return tl.log(x)",
    # A condition on scalars alone may stand beside a block only in `where`: the interpreter has no `|` of both.
    "maximum": "def maximum(a, b):\n    return tl.where(a > b, a, tl.where(a != a, a, b))",
    "minimum": "def minimum(a, b):\n    return tl.where(a < b, a, tl.where(a != a, a, b))",
    "sign": "def sign(a):\n    return tl.where(a > 0, real(1), tl.where(a < 0, real(-1), a))",
    "where": "def where(condition, yes, no):\n    return tl.where(condition, yes, no)",
}


def _word(word: str, real: str) -> str:
    """One word of the vocabulary, as Triton knows it."""
    if word == "sqrt":  # Triton's own float32 root is approximate
        return f"def sqrt(x):\n    return {'tl.sqrt_rn(x)' if real == 'float32' else 'tl.sqrt(x)'}"
    return _WORDS[word]


class _Quotients(ast.NodeTransformer):
    """Quotients by name, since Triton's own float32 division is approximate."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Div):
            return ast.Call(ast.Name("divide"), [left, right], [])
        return ast.BinOp(left, node.op, right)


def _functions(formula: Formula) -> list[str]:
    """The rule's `update` with numbers of the kernel's own type, as on the CPU."""
    trees = [_Quotients().visit(ast.parse(text)) for text in cpu.functions(formula)]
    return [ast.unparse(ast.fix_missing_locations(tree)) for tree in trees]


def _indented(lines: Iterable[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]


class _Array:
    """The lines by which a kernel reads and writes one array, and what is beside it, in one round.

    A number's place is `i`; of an array in blocks, that of its scale is `block`.
    """

    def __init__(self, index: int, column: Column, real: str, whole: bool) -> None:
        self.name, self.storage, self.index, self.real = column.name, column.storage, index, real
        self.whole = whole
        self.blocks = self.storage.name == "int8"
        # A narrow number is rounded from float32, as everywhere here.
        self.way = ".to(tl.float32)" if real == "float64" != self.storage.dtype else ""

    def _at(self, name: str, place: str) -> str:
        return f"at_{name} + {place}" + (
            "" if self.whole else f", mask=inside{'_block' * (place == 'block')}"
        )

    def _load(self, name: str, place: str = "i") -> str:
        return f"tl.load({self._at(name, place)}{'' if self.whole else ', other=0'})"

    def _store(self, name: str, value: str, place: str = "i") -> str:
        address, _, mask = self._at(name, place).partition(", ")
        return f"tl.store({address}, {value}{mask and ', ' + mask})"

    def _beside(self) -> str:
        assert self.storage.beside
        return f"{self.name}_{self.storage.beside.name}"

    def before(self) -> list[str]:
        """What is worked out once a stretch."""
        if not self.storage.drawn:
            return []
        return [
            f"{self.name}_first = stream(key1_, place, {2 * self.index})",
            f"{self.name}_second = stream(key2_, place, {2 * self.index + 1})",
        ]

    def read(self) -> str:
        """Its numbers."""
        found = self._load(self.name)
        if self.blocks:
            return f"from_level({found}, {self._load(self._beside(), 'block')}[:, None]).to(tl.{self.real})"
        if self.storage.beside:
            found = f"join_{self.storage.dtype}({found}, {self._load(self._beside())})"
        return f"{found}.to(tl.{self.real})"

    def write(self, value: str) -> list[str]:
        """Its new numbers."""
        name, dtype = self.name, self.storage.dtype
        chance = f"draw(place + (i - first), {name}_first, {name}_second)"
        if self.blocks:
            return [
                f"new_{name} = {value}{self.way}",
                f"most = largest(new_{name}, {'True' if self.whole else 'inside'})",
                self._store(self._beside(), "most * PER_TOP", "block"),
                self._store(name, f"to_level(new_{name}, most, {chance})"),
            ]
        if self.storage.beside:
            return [
                f"upper, rest = split_{dtype}({value}{self.way})",
                self._store(name, "upper"),
                self._store(self._beside(), "rest"),
            ]
        if self.storage.drawn:
            return [self._store(name, f"draw_{dtype}({value}{self.way}, {chance})")]
        return [self._store(name, f"{value}{self.way}.to(tl.{dtype})")]


def _stretch(formula: Formula, kept: tuple[str, ...], whole: bool, level: int) -> list[str]:
    """The function that moves one stretch of a tensor: a whole one, or what is left at its end.

    Of a formula in passes, that of a level below the last one gives the sums over the stretch instead.
    """
    names = ("w", "g", *formula.slots)
    memory, real = columns(names, kept), compute_dtype(kept)
    arrays = [_Array(k, column, real, whole) for k, column in enumerate(memory[: len(names)])]
    blocks = any(array.blocks for array in arrays)
    measuring = formula.passes if formula.passes and level <= formula.passes.levels else None
    drawing = [] if measuring else [line for one in arrays if one.name != "g" for line in one.before()]
    words = measuring.at(level) if measuring else ()
    shape = f"({BLOCK // SHARED}, {SHARED})" if blocks else f"({BLOCK},)"
    lines = _sums(formula, measuring, level, arrays, whole) if measuring else _moves(formula, arrays)
    return [
        "@triton.jit",
        f"def {'whole' if whole else 'end'}{_suffix(formula, level)}({_arguments(formula, kept, level)}):",
        *(f"    at_{column.name} = {_pointer(column, whole)}" for column in memory),
        *_indented(drawing, 4),
        *(f"    {word.name}_ = tl.zeros({shape}, tl.float64)" for word in words),
        f"    for done in range(0, {ROW if whole else 'length - first'}, {BLOCK}):",
        *_indented([*_places(blocks, whole), *lines], 8),
        *([f"    return {', '.join(f'tl.sum({word.name}_)' for word in words)}"] if words else []),
        "",
        "",
    ]


def _suffix(formula: Formula, level: int) -> str:
    """What a function's name ends in, of a pass that only measures."""
    return f"_{level}" if formula.passes and level <= formula.passes.levels else ""


def _pointer(column: Column, whole: bool) -> str:
    """The address of a column's numbers, with their type; those of a whole stretch start at 16 bytes."""
    beside = column.storage.beside
    dtype = beside.dtype if column.beside and beside else column.storage.dtype
    found = f"to_{column.name}.to(tl.pointer_type(tl.{dtype}))"
    return f"tl.multiple_of({found}, 16)" if whole and column.per == 1 else found


def _places(blocks: bool, whole: bool) -> list[str]:
    """Which numbers a round is about: row by row of a block where any array is kept in blocks."""
    inside = [] if whole else ["inside = i < length"]
    if not blocks:
        return [f"i = first + done + tl.arange(0, {BLOCK})", *inside]
    per = BLOCK // SHARED
    return [
        f"i = first + done + {SHARED} * tl.arange(0, {per})[:, None] + tl.arange(0, {SHARED})[None, :]",
        f"block = (first + done) // {SHARED} + tl.arange(0, {per})",
        *inside,
        *([] if whole else [f"inside_block = {SHARED} * block < length"]),
    ]


def _moves(formula: Formula, arrays: list[_Array]) -> list[str]:
    """Read all arrays, work out the new numbers, write them."""
    scalars = (f"{name}_" for name in (*formula.coefficients, *_known(formula)))
    arguments = ("w_", "scale * g_", *(f"{name}_" for name in formula.slots), *scalars)
    written = [array for array in arrays if array.name != "g"]
    return [
        *(f"{array.name}_ = {array.read()}" for array in arrays),
        f"new = {'moved' if formula.averaged else 'update'}({', '.join(arguments)})",
        *(line for k, array in enumerate(written) for line in array.write(f"new[{k}]")),
    ]


def _sums(formula: Formula, passes: Passes, level: int, arrays: list[_Array], whole: bool) -> list[str]:
    """Read the rule's own arrays, and add up what the words of this level need, in float64."""
    slots = formula.page_slots
    others = (f"{name}_" for name in (*slots, *formula.own_coefficients, *_known(formula, level)))
    lines = [f"{array.name}_ = {array.read()}" for array in arrays[: 2 + len(slots)]]
    lines.append(f"new = measure_{level}({', '.join(('w_', 'scale * g_', *others))})")
    for k, word in enumerate(passes.at(level)):
        lines.append(f"x = {f'new[{k}]' if whole else f'tl.where(inside, new[{k}], 0)'}.to(tl.float64)")
        lines.append(f"{word.name}_ += {'x * x' if word.word in cpu.SQUARED else 'x'}")
    return lines


def _known(formula: Formula, level: int = sys.maxsize) -> tuple[str, ...]:
    """What passes before this level's have measured of a tensor, by name."""
    return tuple(word.name for word in formula.passes.known(level)) if formula.passes else ()


def _arguments(formula: Formula, kept: tuple[str, ...], level: int) -> str:
    """What a stretch is: from where to where, its place, its memory, the step's scalars, and its tensor's numbers."""
    memory = columns(("w", "g", *formula.slots), kept)
    names = (*cpu.scalars(formula, kept)[1:], *_known(formula, level))
    scalars = ("scale", *(f"{name}_" for name in names))
    return ", ".join(("first", "length", "place", *(f"to_{c.name}" for c in memory), *scalars))


# What a kernel may use of `triton_memory`.
_MEMORY = (
    *("stream", "draw", "from_level", "to_level", "largest", "PER_TOP"),
    *("draw_bfloat16", "join_bfloat16", "split_bfloat16"),
    *("draw_float16", "join_float16", "split_float16"),
)


def source(formula: Formula, kept: tuple[str, ...]) -> str:
    """The kernel's source: for weights, gradients and each slot `kept` so (names as in `storage`).

    Raises `ValueError` for a formula of matrices, which has none.
    """
    if formula.passes and formula.passes.matrices:
        raise ValueError(
            f"{formula.rule.__name__} has no GPU kernel: it uses {formula.passes.matrices[0].word}, which is made of "
            "products of matrices. On a GPU it takes the eager path, by PyTorch's own kernels."
        )
    last = formula.passes.levels + 1 if formula.passes else 1
    stretches = [
        line
        for level in range(1, last + 1)
        for whole in (True, False)
        for line in _stretch(formula, kept, whole, level)
    ]
    text = "\n".join(stretches)
    shared = [name for name in _MEMORY if re.search(rf"\b{name}\b", text)]
    lines = [
        *cpu.head(formula, kept, "on a GPU"),
        "import triton",
        "import triton.language as tl",
        *([f"from schuss.compile.triton_memory import {', '.join(shared)}"] if shared else []),
        "",
        "",
        *(f"@triton.jit\n{function}\n\n" for function in _vocabulary(formula, compute_dtype(kept))),
        *stretches,
        *(line for level in range(1, last + 1) for line in _program(formula, kept, level)),
        *_entries(formula, len(cpu.scalars(formula, kept)), compute_dtype(kept)),
    ]
    return "\n".join(lines)


def _vocabulary(formula: Formula, real: str) -> list[str]:
    """The functions that the formula speaks of, and the formula."""
    return [
        f"def real(x: tl.constexpr):\n    return tl.full((), x, tl.{real})",
        f"def divide(a, b):\n    return {'tl.div_rn(a, b)' if real == 'float32' else 'a / b'}",
        *(_word(word, real) for word in formula.words() if word not in WHOLE_TENSOR),
        *_functions(formula),
    ]


def _program(formula: Formula, kept: tuple[str, ...], level: int) -> list[str]:
    """What one program does: look up its stretch, and move it; or measure it, and write its sums."""
    memory = columns(("w", "g", *formula.slots), kept)
    numbers, suffix = cpu.scalars(formula, kept), _suffix(formula, level)
    stride, arguments = len(memory) + 3, _arguments(formula, kept, level)
    addresses = " | ".join(f"to_{column.name}" for column in memory if column.per == 1)
    measured = _known(formula)
    words = [word.name for word in formula.passes.at(level)] if formula.passes else []
    sums = f"{', '.join(words)} = " if words else ""
    return [
        "@triton.jit",
        f"def stretch{suffix}(rows, tensors, coefficients, coefficient, taken{_more(formula)}):",
        "    program = tl.program_id(0).to(tl.int64)",
        "    row = rows + 2 * program",
        f"    tensor = tensors + {stride} * tl.load(row)",
        f"    first = tl.multiple_of(tl.load(row + 1), {ROW})",
        *(f"    to_{column.name} = tl.load(tensor + {k})" for k, column in enumerate(memory)),
        f"    place = tl.load(tensor + {stride - 3}) + first",
        f"    length = tl.minimum(tl.load(tensor + {stride - 2}), first + {ROW})",
        f"    these = coefficients + {len(numbers)} * tl.load(tensor + {stride - 1})",
        "    scale = tl.load(these) * coefficient",
        *(f"    {name}_ = tl.load(these + {k})" for k, name in enumerate(numbers) if k),
        *(
            f"    {name}_ = tl.load(found + {len(measured)} * tl.load(row) + {measured.index(name)})"
            for name in _known(formula, level)
        ),
        f"    aligned = (({addresses}) & 15) == 0",
        f"    if {'' if words else 'taken & '}aligned & (length == first + {ROW}):"
        "  # each thread takes 16 bytes at a time",
        f"        {sums}whole{suffix}({arguments})",
        f"    {'else' if words else 'elif taken'}:  # the end of a tensor, or one that starts at an odd address",
        f"        {sums}end{suffix}({arguments})",
        *(
            f"    tl.store(sums + {len(measured)} * program + {measured.index(name)}, {name})"
            for name in words
        ),
        "",
        "",
    ]


def _more(formula: Formula) -> str:
    """What a kernel in passes takes besides: sums, a row for each program, and found numbers, one for each tensor."""
    return ", sums, found" if formula.passes else ""


def _entries(formula: Formula, width: int, real: str) -> list[str]:
    """The two kernels of each pass, and what adds up sums; a row of coefficients is `width` numbers."""
    more, lines = _more(formula), list[str]()
    levels = range(1, formula.passes.levels + 1) if formula.passes else ()
    for suffix in suffixes(formula):
        entry = f"launch{suffix}"
        lines += [
            "@triton.jit",
            f"def {entry}(rows, tensors, coefficients{more}):",
            f"    stretch{suffix}(rows, tensors, coefficients, real(1), True{more})",
            "",
            "",
            "@triton.jit(do_not_specialize=['cohorts'])",
            f"def {entry}_gated(rows, tensors, coefficients, cohorts, gate{more}):",
            f"    these = coefficients + {width} * cohorts * tl.load(gate + {GATE.index('row')}).to(tl.int64)",
            f"    coefficient = tl.load(gate + {GATE.index('coefficient')}).to(tl.{real})",
            f"    taken = tl.load(gate + {GATE.index('taken')}) != 0",
            f"    stretch{suffix}(rows, tensors, these, coefficient, taken{more})",
            "",
        ]
    for level in levels:
        lines += ["", *_finish(formula, level)]
    return lines


def _finish(formula: Formula, level: int) -> list[str]:
    """The kernel that adds up a tensor's sums, a program for each, in the order of its stretches."""
    assert formula.passes
    # Of an empty tensor nobody reads it, but the interpreter warns of 0 / 0.
    mean = "{} / tl.maximum(length, 1).to(tl.float64)"
    finished = {"mean": mean, "norm": "tl.sqrt({})", "root_mean_square": f"tl.sqrt({mean})", "total": "{}"}
    count, words = len(_known(formula)), formula.passes.at(level)
    lines = [
        "@triton.jit",
        f"def finish_{level}(starts, tensors, stride, sums, found):",
        "    tensor = tl.program_id(0).to(tl.int64)",
        "    first = tl.load(starts + tensor)",
        "    length = tl.load(tensors + stride * tensor + stride - 2)",
        f"    last = first + (length + {ROW - 1}) // {ROW}",
        *(f"    {word.name}_ = tl.zeros(({BLOCK},), tl.float64)" for word in words),
        f"    for done in range(first, last, {BLOCK}):",
        f"        i = done + tl.arange(0, {BLOCK})",
    ]
    for word in words:
        k = _known(formula).index(word.name)
        lines.append(f"        {word.name}_ += tl.load(sums + {count} * i + {k}, mask=i < last, other=0.0)")
    for word in words:
        k, sum_ = _known(formula).index(word.name), f"tl.sum({word.name}_)"
        lines.append(f"    tl.store(found + {count} * tensor + {k}, {finished[word.word].format(sum_)})")
    return [*lines, ""]


_ENTRIES = (("launch", ""), ("launch", "_gated"), ("finish", ""))


@functools.cache
def kernels(formula: Formula, kept: tuple[str, ...]) -> dict[str, Any]:
    """The Triton functions of all passes (`suffixes`); Triton compiles and keeps each at its first call."""
    text = source(formula, kept)
    name = f"{formula.name}-gpu-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    filename = str(cache.folder() / f"{name}.py")
    cache.write(f"{name}.py", text.encode())
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"__name__": Path(filename).stem}
    exec(compile(text, filename, "exec"), scope)
    names = (f"{name}{one}{gated}" for one in suffixes(formula) for name, gated in _ENTRIES)
    return {name: scope[name] for name in names if name in scope}


def suffixes(formula: Formula) -> tuple[str, ...]:
    """What the names of a formula's passes end in, in their order: each is `launch...` and `launch..._gated`.

    The last one moves; what another one measures is added up by `finish...`.
    """
    return (*(f"_{level + 1}" for level in range(formula.passes.levels if formula.passes else 0)), "")


def compiled(function: Any, signature: dict[str, str], target: int | str = 90) -> Any:
    """A Triton function's machine code for a GPU that need not be here; pointers start at 16 bytes.

    `target` is NVIDIA's compute capability, as 90, or AMD's name of an architecture, as "gfx942". The result's `asm`
    holds "ptx" or "amdgcn".
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place = GPUTarget("hip", target, 64) if isinstance(target, str) else GPUTarget("cuda", target, 32)
    aligned = {
        (k,): [["tt.divisibility", 16]] for k, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    return triton.compile(ASTSource(function, signature, attrs=aligned), target=place, options=OPTIONS)


def machine_code(
    formula: Formula, kept: tuple[str, ...], target: int | str = 90, entry: str = "launch"
) -> Any:
    """A rule's kernel, compiled for a GPU that need not be here."""
    real = "*fp64" if compute_dtype(kept) == "float64" else "*fp32"
    more = {"sums": "*fp64", "found": real} if formula.passes else {}
    if entry.startswith("finish"):
        signature = {"starts": "*i64", "tensors": "*i64", "stride": "i32", **more}
    else:
        signature = {
            "rows": "*i64",
            "tensors": "*i64",
            "coefficients": real,
            **({"cohorts": "i32", "gate": "*fp64"} if entry.endswith("_gated") else {}),
            **more,
        }
    return compiled(kernels(formula, kept)[entry], signature, target)
