"""The CPU kernels against the float64 reference: anywhere in the domains, for every number that there is."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.rules import SGD, TABLE

STEPS, SIZE = 5, 40
SIZES = [0, 1, 63, 1000]


def reference_path(rule, start, gradients):
    """The reference's path, and how much a rounding may grow on it (centring subtracts nearly equal numbers)."""
    reference = Reference(rule, start)
    found, condition = [], np.ones_like(start)
    for g in gradients:
        found.append(reference.step(g))
        if getattr(rule, "centered", False):
            state = dict(zip(rule.slots, reference.state, strict=True))
            with np.errstate(all="ignore"):
                left = np.maximum(state["v"] - state["a"] ** 2, 0)
                condition = np.fmax(condition, np.where(state["v"] > 0, state["v"] / left, 1.0))
    return np.array(found), condition


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if not formula(row.rule).of_matrices])
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_anywhere_in_the_domains(name, data, anywhere, walk, decades, close):
    options = data.draw(anywhere(TABLE[name].rule))
    try:
        rule = TABLE[name].rule(**options)
    except ValueError:
        assume(False)
    gradients = decades(STEPS, SIZE, data.draw(st.integers(0, 2**32)))
    start = np.random.default_rng(1).choice([0.0, 1.0, -1e3, 1e-3], SIZE)
    expected, condition = reference_path(rule, start, gradients)
    well = condition < 1e3
    close(walk(rule, start, gradients)[:, well], expected[:, well], 1e-12, condition[well], start[well])


def test_every_case(case, walk, decades, close):
    start = np.random.default_rng(2).choice([0.0, 1.0, -1e3, 1e-3], SIZE)
    gradients = decades(12, SIZE, 9)
    expected, condition = reference_path(case.rule, start, gradients)
    well = condition < 1e3
    assert well.sum() > SIZE / 2
    close(walk(case.rule, start, gradients)[:, well], expected[:, well], 1e-12, condition[well], start[well])


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -1e-310, 1e-200, -1e200, 1.0, -2.0]


def test_nan_infinity_and_denormals(variant, walk):
    """Every pair of a special weight and a special gradient, then an ordinary step: as the reference has it."""
    start, g = (np.array(column) for column in zip(*itertools.product(SPECIAL, SPECIAL), strict=True))
    gradients = [g, np.full_like(g, 0.5)]
    expected, _ = reference_path(variant.rule, start, gradients)
    found = walk(variant.rule, start, gradients)
    if variant.rule.variant.startswith(
        "centered"
    ):  # ∞ − ∞ there depends on the products' rounding: look at the rest
        ordinary = (np.abs(np.nan_to_num(g)) < 1e100) & (np.abs(np.nan_to_num(start)) < 1e100)
        found, expected = found[:, ordinary], expected[:, ordinary]
    assert (np.isnan(found) == np.isnan(expected)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_nan_gradient_gives_a_nan_weight(variant, walk):
    start, g = np.ones(70), np.ones(70)
    g[33] = np.nan
    found = walk(variant.rule, start, [g, np.ones(70)])
    assert np.isnan(found[:, 33]).all()
    if formula(variant.rule).passes:  # what is of the whole tensor is then of a NaN
        assert np.isnan(found).all()
        return
    assert np.isfinite(np.delete(found, 33, axis=1)).all()
    assert (np.delete(found, 33, axis=1)[0] == found[0, 0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_denormals_are_kept(dtype, launch):
    """No flushing to zero: the least number that there is still moves a weight, and is moved."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    w, g = (
        torch.tensor([0.0, least, 3 * least], dtype=dtype),
        torch.tensor([least, least, -least], dtype=dtype),
    )
    rule = SGD(lr=1.0)
    launch(rule, rule.coefficients(1), w, g, [])
    assert w.tolist() == [-least, 0.0, 4 * least]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_neighbours_in_poisoned_memory(dtype, size, variant, launch):
    """Each tensor lies between NaN: none is read, none is written."""
    margin = 65
    rule = variant.rule
    values = {name: rule.initial().get(name, 0.0) for name in rule.slots}
    buffers = [torch.full((size + 2 * margin,), torch.nan, dtype=dtype) for _ in range(2 + len(rule.slots))]
    inner = [buffer[margin : margin + size] for buffer in buffers]
    for tensor, value in zip(inner, [1.0, 0.5, *values.values()], strict=True):
        tensor.fill_(value)
    coefficients = rule.coefficients(1, **{name: rule.initial().get(name, 0.0) for name in rule.scalars})
    launch(rule, coefficients, inner[0], inner[1], inner[2:])
    for buffer, tensor in zip(buffers, inner, strict=True):
        assert buffer[:margin].isnan().all()
        assert buffer[margin + size :].isnan().all()
        assert tensor.isfinite().all()
    assert (inner[1] == 0.5).all()
    assert (inner[0] == inner[0][:1]).all()


def test_splitting_and_fusing_changes_no_bit(variant, launch, decades):
    rule, size = variant.rule, 1000
    g = torch.from_numpy(decades(1, size, 3)[0]).float()
    coefficients = rule.coefficients(1, **{name: rule.initial().get(name, 0.0) for name in rule.scalars})
    found = []
    for cuts in ((), (1, 2, 2, 65, 500, 999), tuple(range(1, size))):
        w = torch.linspace(-1, 1, size)
        slots = [torch.full_like(w, rule.initial().get(name, 0.0)) for name in rule.slots]
        launch(rule, coefficients, w, g, slots, cuts=cuts)
        found.append((w, *slots))
    for one, *others in zip(*found, strict=True):
        for other in others:
            if formula(rule).passes:  # a sum of other parts is rounded otherwise, in float64
                torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
            else:
                assert torch.equal(one, other)


def test_the_scale_of_the_gradient(launch):
    rule = SGD(lr=0.5)
    w = torch.zeros(3, dtype=torch.float64)
    launch(
        rule, rule.coefficients(1), w, torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64), [], scale=-0.25
    )
    assert w.tolist() == [0.125, -0.25, 0.5]


# The narrow numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_number_is_read_and_written(dtype, launch):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    w = every.clone()
    rule = SGD(lr=0.0)
    launch(rule, rule.coefficients(1), w, torch.zeros_like(w), [])
    finite = every.isfinite()
    assert torch.equal(w[finite].view(torch.int16), every[finite].view(torch.int16))
    assert w[~finite].isnan().all()  # 0 · ∞ in the decay


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_to_nearest_ties_to_even(dtype, launch):
    """Float32 numbers of all bit patterns, and those halfway between two narrow ones."""
    random = np.random.default_rng(0)
    bits = random.integers(-(2**31), 2**31, 200_000).astype(np.int32)
    narrow = torch.from_numpy(random.integers(-(2**15), 2**15, 50_000).astype(np.int16)).view(dtype).float()
    above = torch.from_numpy(random.integers(-(2**15), 2**15, 50_000).astype(np.int16)).view(dtype)
    half = (above.float() + (above.view(torch.int16) + 1).view(dtype).float()) / 2
    g = torch.cat([torch.from_numpy(bits).view(torch.float32), narrow, half])
    w = torch.zeros(len(g), dtype=dtype)
    rule = SGD(lr=1.0)
    launch(rule, rule.coefficients(1), w, g, [])
    expected = (0.0 - g).to(dtype)
    assert torch.equal(w.isnan(), expected.isnan())
    assert torch.equal(w.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize(
    "dtypes",
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float32", "float16"),
        ("float64", "bfloat16", "float32"),
    ],
)
def test_any_mixture_of_dtypes(dtypes, launch):
    """Each tensor is read and written in its own dtype, and computed with in the widest there is."""
    rule = SGD(lr=0.1, momentum=0.9)
    random = np.random.default_rng(4)
    w, g, v = (torch.from_numpy(random.standard_normal(200)).to(getattr(torch, name)) for name in dtypes)
    before = [t.double().clone().numpy() for t in (w, g, v)]
    launch(rule, rule.coefficients(2), w, g, [v])
    for found, expected in zip((w, v), (lambda w, v: (w, v))(*_momentum(rule, *before)), strict=True):
        eps = torch.finfo(found.dtype).eps if found.dtype != torch.float64 else 1e-14
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=eps, atol=eps)


def _momentum(rule, w, g, v):
    v = 0.9 * v + g
    return w - rule.lr * v, v
