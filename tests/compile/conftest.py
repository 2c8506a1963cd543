"""What the tests of the compilers share: one launch by hand, and hyperparameters from all of their domains."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from schuss.compile import cpu
from schuss.compile.formula import formula


def table_row(arrays, start, length, which):
    return [a.data_ptr() + start * a.element_size() for a in arrays] + [start, length, which]


@pytest.fixture(scope="session")
def launch():
    """`launch(rule, coefficients, w, g, slots, scale=1.0, cuts=())`: move tensors through the kernel, in place."""

    def run(rule, coefficients, w, g, slots, scale=1.0, cuts=()):
        one = formula(rule)
        arrays = [w, g, *slots]
        kernel = cpu.kernel(one, tuple(str(a.dtype).removeprefix("torch.") for a in arrays))
        edges = [0, *cuts, w.numel()]
        rows = [table_row(arrays, a, b - a, 0) for a, b in itertools.pairwise(edges)]
        table = np.array(rows, dtype=np.int64)
        matrix = np.array([[scale, *(coefficients[name] for name in one.coefficients)]], dtype=np.float64)
        kernel(table.ctypes.data, matrix.ctypes.data, 0, len(table))

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
