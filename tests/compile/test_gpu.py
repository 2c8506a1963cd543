"""The GPU kernels: compiled for two GPUs without one, and run in Triton's interpreter against the float64 reference."""

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from schuss.compile import gpu, source
from schuss.compile.device import DeviceLaunch, runs_on
from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.rules import SGD, Adam

triton = pytest.importorskip("triton", reason="Triton is not installed")

# Weight, gradient, every slot.
KEPT = {
    "float32": ("float32", "float32", "float32"),
    "float64": ("float64", "float64", "float64"),
    "bfloat16": ("bfloat16", "bfloat16", "float32"),
    "float16": ("float16", "float16", "float32"),
}
SIZES = (0, 1, 63, 1000, gpu.ROW, gpu.ROW + 1)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = torch.device("cpu")


def dtypes_of(rule, kept):
    w, g, slot = KEPT[kept]
    return (w, g, *[slot] * len(rule.slots))


# As text


def test_the_page_stands_in_its_kernel(variant):
    text = source(variant.rule, "gpu")
    compile(text, "kernel", "exec")
    assert f"def update({', '.join(formula(variant.rule).source().split('(', 1)[1].split(')')[0].split(', '))})" in text
    for parameter in ("ROW", "lr=", "0.001"):
        assert parameter not in text


def test_no_hyperparameter_and_no_shape_is_in_the_kernel():
    assert source(Adam(lr=0.123, beta1=0.456), "gpu") == source(Adam(), "gpu")
    one, dtypes = formula(SGD), ("float32", "float32")
    assert gpu.kernel(one, dtypes) is gpu.kernel(formula(SGD(lr=0.5)), dtypes)


# Compiled for GPUs that are not here

INSTRUCTION = re.compile(r"^\s+(?:@!?%\w+ )?([a-z][\w.:]+)", re.MULTILINE)


def compiled(rule, kept, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dtypes = dtypes_of(rule, kept)
    real = "*fp64" if gpu.compute_dtype(dtypes) == "float64" else "*fp32"
    signature = {"rows": "*i64", "tensors": "*i64", "coefficients": real}
    aligned = {(k,): [["tt.divisibility", 16]] for k in range(3)}
    asked = ASTSource(gpu.kernel(formula(rule), dtypes), signature, attrs=aligned)
    return triton.compile(asked, target=GPUTarget("cuda", capability, 32), options=gpu.OPTIONS)


@pytest.mark.skipif(INTERPRETED, reason="a compiled kernel is asked for")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_machine_code(kept, capability, variant):
    """Whole stretches move 16 bytes a thread at a time; nothing is spilled; float32 stays float32; roots are exact."""
    rule = variant.rule
    made = compiled(rule, kept, capability)
    used = INSTRUCTION.findall(made.asm["ptx"])
    whole_stretch = [name for name in used if re.match(r"(ld|st)\.global\.v\d", name)]
    per_tensor = gpu.BLOCK // 128 * 4 // 16
    wide = 1 + len(rule.slots) if kept == "bfloat16" else 2 + len(rule.slots)
    loads = sum(name.startswith("ld") for name in whole_stretch)
    stores = sum(name.startswith("st") for name in whole_stretch)
    narrow = 1 if kept == "bfloat16" else 0  # 8 narrow numbers are 16 bytes
    assert loads == per_tensor * (2 + len(rule.slots) - 2 * narrow) + 2 * narrow, used
    assert stores == per_tensor * (1 + len(rule.slots) - narrow) + narrow, used
    assert wide
    assert not [name for name in used if "f64" in name or "local" in name or "ftz" in name or "approx" in name]
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert ".local" not in made.asm["ptx"]
