"""A page as one Triton kernel: source in, one launch for all tensors of all groups.

A launch walks three small arrays on the device. `rows` cuts the tensors into stretches, a program each: which tensor,
and from which element on; it never changes. `tensors` has a line for each tensor: the addresses of weight, gradient
and slots, a length, and which row of the coefficients applies; it is sent again only when one of these changes.
`coefficients`, a few dozen numbers, are sent at every step. The kernel is keyed on the formula and the dtypes alone,
and is never autotuned: trial runs would move the weights.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schuss.compile import cache, cpu
from schuss.compile.formula import Formula

# Elements of one program, and of one of its rounds: with 4 warps a thread then asks for 16 bytes at a time, twice.
ROW, BLOCK = 4096, 1024
# Products may fuse with sums, as on the CPU.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}

_WORDS = {
    "abs": "def abs(x):\n    return tl.abs(x)",
    "exp": "def exp(x):\n    return tl.exp(x)",
    "log": "def log(x):\n    return tl.log(x)",
    "maximum": "def maximum(a, b):\n    return tl.where((a > b) | (a != a), a, b)",
    "minimum": "def minimum(a, b):\n    return tl.where((a < b) | (a != a), a, b)",
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


def _page(formula: Formula) -> str:
    """The page's `update` with numbers of the kernel's own type, as on the CPU."""
    tree = ast.parse(cpu.page(formula))
    return ast.unparse(ast.fix_missing_locations(_Quotients().visit(tree)))


def compute_dtype(dtypes: Sequence[str]) -> str:
    """What a kernel of these computes in."""
    return "float64" if "float64" in dtypes else "float32"


def _stretch(formula: Formula, dtypes: tuple[str, ...], whole: bool) -> list[str]:
    """The function that moves one stretch of a tensor: a whole one, or what is left at its end."""
    names, written = ("w", "g", *formula.slots), ("w", *formula.slots)
    coefficients = [f"{name}_" for name in formula.coefficients]
    kept = dict(zip(names, dtypes, strict=True))
    real = compute_dtype(dtypes)
    # A narrow number is rounded from float32, as everywhere here.
    by_way = {name: ".to(tl.float32)" if kept[name] != "float64" == real else "" for name in names}
    pointer = {name: f"to_{name}.to(tl.pointer_type(tl.{dtype}))" for name, dtype in kept.items()}
    arguments = ", ".join(("first", "length", *(f"to_{name}" for name in names), "scale", *coefficients))
    return [
        "@triton.jit",
        f"def {'whole' if whole else 'end'}({arguments}):",
        *(
            f"    at_{name} = {f'tl.multiple_of({pointer[name]}, 16)' if whole else pointer[name]}"
            for name in names
        ),
        f"    for block in range(0, {ROW if whole else 'length - first'}, {BLOCK}):",
        f"        i = first + block + tl.arange(0, {BLOCK})",
        *(() if whole else ("        inside = i < length",)),
        *(
            f"        {name} = tl.load(at_{name} + i{'' if whole else ', mask=inside, other=0'}).to(tl.{real})"
            for name in names
        ),
        f"        new = update({', '.join(('w', 'scale * g', *formula.slots, *coefficients))})",
        *(
            f"        tl.store(at_{name} + i, new[{k}]{by_way[name]}.to(tl.{kept[name]})"
            f"{'' if whole else ', mask=inside'})"
            for k, name in enumerate(written)
        ),
        "",
        "",
    ]


def source(formula: Formula, dtypes: tuple[str, ...]) -> str:
    """The kernel's source: for weights, gradients and each slot kept as `dtypes`."""
    names = ("w", "g", *formula.slots)
    real = compute_dtype(dtypes)
    columns, width = len(names) + 2, len(formula.coefficients) + 1
    vocabulary = [
        f"def real(x: tl.constexpr):\n    return tl.full((), x, tl.{real})",
        f"def divide(a, b):\n    return {'tl.div_rn(a, b)' if real == 'float32' else 'a / b'}",
        *(_word(word, real) for word in formula.words()),
        _page(formula),
    ]
    arguments = ", ".join(
        (*(f"to_{name}" for name in names), "scale", *(f"{c}_" for c in formula.coefficients))
    )
    lines = [
        f'"""{formula.rule.__name__}{f" ({formula.variant})" if formula.variant else ""} on a GPU: '
        + ", ".join(f"{name} {dtype}" for name, dtype in zip(names, dtypes, strict=True))
        + ".",
        "",
        f"Generated from {formula.rule.__module__}. To change it, change the page.",
        '"""',
        "",
        "import triton",
        "import triton.language as tl",
        "",
        "",
        *(f"@triton.jit\n{function}\n\n" for function in vocabulary),
        *_stretch(formula, dtypes, whole=True),
        *_stretch(formula, dtypes, whole=False),
        "@triton.jit",
        "def launch(rows, tensors, coefficients):",
        "    row = rows + 2 * tl.program_id(0).to(tl.int64)",
        f"    tensor = tensors + {columns} * tl.load(row)",
        f"    first = tl.multiple_of(tl.load(row + 1), {ROW})",
        *(f"    to_{name} = tl.load(tensor + {k})" for k, name in enumerate(names)),
        f"    length = tl.minimum(tl.load(tensor + {columns - 2}), first + {ROW})",
        f"    these = coefficients + {width} * tl.load(tensor + {columns - 1})",
        "    scale = tl.load(these)",
        *(f"    {name}_ = tl.load(these + {k})" for k, name in enumerate(formula.coefficients, 1)),
        f"    aligned = (({' | '.join(f'to_{name}' for name in names)}) & 15) == 0",
        f"    if aligned & (length == first + {ROW}):  # each thread takes 16 bytes at a time",
        f"        whole(first, length, {arguments})",
        "    else:  # the end of a tensor, or one that starts at an odd address",
        f"        end(first, length, {arguments})",
        "",
    ]
    return "\n".join(lines)


@functools.cache
def kernel(formula: Formula, dtypes: tuple[str, ...]) -> Any:
    """The Triton function of `launch(rows, tensors, coefficients)`; Triton compiles and keeps it at its first call."""
    text = source(formula, dtypes)
    name = f"{formula.name}-gpu-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    filename = str(cache.folder() / f"{name}.py")
    cache.write(f"{name}.py", text.encode())
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"__name__": Path(filename).stem}
    exec(compile(text, filename, "exec"), scope)
    return scope["launch"]
