"""What the tests of the compilers share: one launch by hand, and hyperparameters from all of their domains."""

import importlib.util
import itertools
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from schuss.compile import cpu
from schuss.compile.formula import formula

# Triton reads this when a kernel is made. Tests named `test_interpreted_...` run in a process of their own, which
# `test_in_the_interpreter` starts; those that compile do not run there.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if item.name.startswith("test_interpreted") and not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="run by test_in_the_interpreter"))
        if item.get_closest_marker("gpu") and (INTERPRETED or not torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(scope="session")
def gpus():
    """The functions beside this file that compile and launch GPU kernels; tests of them are skipped without Triton."""
    pytest.importorskip("triton", reason="Triton is not installed")
    return _beside("gpus")


@pytest.fixture(autouse=INTERPRETED)
def bfloat16_as_on_a_gpu(monkeypatch):
    """The interpreter cuts a bfloat16 off, and misreads a denormal one. GPUs do not: `test_machine_code` sees that."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def truncated(self, given, kind):
        if (given.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return self.cast_impl(given, kind)
        bits = torch.from_numpy(given.data).bfloat16().view(torch.int16)
        return TensorHandle(bits.numpy().view(np.uint16), kind.scalar)

    def extended(self, given, kind):
        if (given.dtype.scalar, kind.scalar) != (tl.bfloat16, tl.float32):
            return self.cast_impl(given, kind)
        return TensorHandle((given.data.astype(np.uint32) << 16).view(np.float32), kind.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", truncated)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_ext", extended)


def table_row(arrays, start, length, which, measures=()):
    return [a.data_ptr() + start * a.element_size() for a in arrays] + [*measures, start, length, which]


@pytest.fixture(scope="session")
def launch():
    """`launch(rule, coefficients, w, g, slots, scale=1.0, cuts=())`: move tensors through the kernel, in place."""

    def run(rule, coefficients, w, g, slots, scale=1.0, cuts=()):
        one = formula(rule)
        arrays = [w, g, *slots]
        kernel = cpu.kernel(one, tuple(str(a.dtype).removeprefix("torch.") for a in arrays))
        edges = [0, *cuts, w.numel()]
        count = len(one.passes.numbers) if one.passes else 0
        sums, found = np.zeros((len(edges), count)), np.zeros(count)
        for k, word in enumerate(one.passes.numbers if one.passes else ()):
            if word.word == "machine_epsilon":
                found[k] = torch.finfo(w.dtype).eps
        rows = [
            table_row(arrays, a, b - a, 0, (sums[k].ctypes.data, found.ctypes.data) if one.passes else ())
            for k, (a, b) in enumerate(itertools.pairwise(edges))
        ]
        table = np.array(rows, dtype=np.int64)
        matrix = np.array([[scale, *(coefficients[name] for name in one.coefficients)]], dtype=np.float64)
        every_pass = (0,) if one.passes else ()
        kernel(*every_pass, table.ctypes.data, matrix.ctypes.data, 0, len(table))

    return run


@pytest.fixture(scope="session")
def walk(launch):
    """`walk(rule, start, gradients)`: the path of float64 weights through the kernel."""

    def path(rule, start, gradients):
        w = torch.from_numpy(np.array(start, dtype=np.float64))
        first = rule.initial()
        slots = [torch.full_like(w, first.get(name, 0.0)) for name in rule.slots]
        scalars = {name: first.get(name, 0.0) for name in rule.scalars}
        found = np.empty((len(gradients), len(w)))
        for t, g in enumerate(gradients, 1):
            values = rule.coefficients(t, **scalars)
            scalars = {name: values[name] for name in rule.scalars}
            launch(rule, values, w, torch.from_numpy(np.array(g, dtype=np.float64)), slots)
            found[t - 1] = w.numpy()
        return found

    return path


def _power(low, high):
    return st.floats(low, high).map(lambda exponent: 10**exponent)


def _hyperparameter(domain):
    if domain.kind is bool:
        return st.booleans()
    if domain.choices:
        return st.sampled_from(domain.choices)
    if domain.below < np.inf:  # up to, not including: near both ends too
        ends = st.one_of(_power(-9, -0.01), _power(-9, -0.01).map(lambda x: 1 - x))
        return ends if domain.above > -np.inf else st.one_of(st.just(0.0), ends)
    if domain.high < np.inf:
        return st.one_of(st.sampled_from([domain.low, domain.high]), st.floats(domain.low, domain.high))
    if domain.above > -np.inf:
        return _power(-3, 1).map(lambda x: domain.above + x)
    if domain.low > -np.inf:
        return st.one_of(st.just(domain.low), _power(-9, 1).map(lambda x: domain.low + x))
    return st.floats(-2, 5)


@pytest.fixture(scope="session")
def anywhere():
    """`anywhere(rule)`: hyperparameters of a rule, from anywhere in their domains."""
    return lambda rule: st.fixed_dictionaries(
        {f.name: _hyperparameter(f.metadata["domain"]) for f in fields(rule)}
    )


def _beside(name):
    spec = importlib.util.spec_from_file_location(
        f"compile_test_{name}", Path(__file__).parent / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def updates():
    """The functions beside this file that write random updates."""
    return _beside("updates")


@pytest.fixture(scope="session")
def written_update(updates):
    """`written_update(lines)`: the rule with the state m whose `update` has these lines."""
    return updates.rule_of
