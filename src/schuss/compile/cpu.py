"""A page as one compiled loop over memory: source in, machine code out.

The kernel walks a table with a row for each stretch of memory: the addresses of the weights, the gradient and each
slot, a length, and which row of the coefficient matrix applies. It is keyed on the formula and the dtypes alone, so
nothing that changes in training compiles anything.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import linecache
import platform
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from schuss.compile import cache
from schuss.compile.formula import Formula

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
DTYPES = tuple(_BYTES)

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


def source(formula: Formula, dtypes: tuple[str, ...]) -> str:
    """The kernel's source: for weights, gradients and each slot kept as `dtypes`."""
    names = ("w", "g", *formula.slots)
    real = "float64" if "float64" in dtypes else "float32"
    written = ("w", *formula.slots)
    columns = len(names) + 2
    width = len(formula.coefficients) + 1
    lines = [
        f'"""{formula.rule.__name__}{f" ({formula.variant})" if formula.variant else ""} on the CPU: '
        + ", ".join(f"{name} {dtype}" for name, dtype in zip(names, dtypes, strict=True))
        + ".",
        "",
        f"Generated from {formula.rule.__module__}. To change it, change the page.",
        '"""',
        "",
        "from numba import cfunc, njit",
        f"from numba import {real} as real",
        "from schuss.compile.memory import prefetch, read_float64, read_int64, slot",
        *(_WORDS[word] for word in formula.words() if word not in ("abs", "where")),
        *([_WORDS["where"]] if "where" in formula.words() else []),
        "",
        *(
            f'load_{name}, store_{name} = slot({k}, {len(names)}, "{dtype}", "{real}")'
            for k, (name, dtype) in enumerate(zip(names, dtypes, strict=True))
        ),
        "",
        "",
        f"@njit({_FLAGS})",
        page(formula),
        "",
        "",
        f'@cfunc("void(int64, int64, int64, int64)", {_FLAGS})',
        "def launch(table, coefficients, first, last):",
        "    for row in range(first, last):",
        *(f"        at_{name} = read_int64(table, {columns} * row + {k})" for k, name in enumerate(names)),
        f"        length = read_int64(table, {columns} * row + {columns - 2})",
        f"        if length <= {SHORT}:  # far apart in memory: ask for rows to come while this one is worked on",
        f"            ahead = {columns} * min(row + {AHEAD}, last - 1)",
        *(
            f"            for line in range(0, length * {_BYTES[dtype]}, 64):\n"
            f"                prefetch(read_int64(table, ahead + {k}) + line)"
            for k, dtype in enumerate(dtypes)
        ),
        f"        these = {width} * read_int64(table, {columns} * row + {columns - 1})",
        "        scale = real(read_float64(coefficients, these))",
        *(
            f"        {name}_ = real(read_float64(coefficients, these + {k}))"
            for k, name in enumerate(formula.coefficients, 1)
        ),
        "        for i in range(length):",
        "            new = update(",
        "                load_w(at_w, i),",
        "                scale * load_g(at_g, i),",
        *(f"                load_{name}(at_{name}, i)," for name in formula.slots),
        *(f"                {name}_," for name in formula.coefficients),
        "            )",
        *(f"            store_{name}(at_{name}, i, new[{k}])" for k, name in enumerate(written)),
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
_kernels: dict[tuple[Formula, tuple[str, ...]], Kernel] = {}
_compiling = threading.Lock()


def kernel(formula: Formula, dtypes: tuple[str, ...]) -> Kernel:
    """The compiled kernel: from this process, else from the cache folder, else compiled now (about a second)."""
    found = _kernels.get((formula, dtypes))
    if found is not None:
        return found
    with _compiling:
        return _kernels.get((formula, dtypes)) or _kernels.setdefault(
            (formula, dtypes), _load(formula, dtypes)
        )


def _load(formula: Formula, dtypes: tuple[str, ...]) -> Kernel:
    text = source(formula, dtypes)
    name = f"{formula.name}-{hashlib.sha256((text + _fingerprint()).encode()).hexdigest()[:24]}"
    machine = _machine()
    code = cache.read(f"{name}.o")
    if code is None:
        filename = str(cache.folder() / f"{name}.py")
        code = _compile(text, filename, machine)
        cache.write(f"{name}.py", text.encode())
        cache.write_checked(f"{name}.o", code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    # What Numba calls with: where to write a result (none) and an exception (none), then the arguments.
    signature = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
    return functools.partial(signature(engine.get_function_address(_SYMBOL)), _NOWHERE, _NOWHERE)


_NOWHERE = ctypes.addressof(_spare := ctypes.c_int64())
