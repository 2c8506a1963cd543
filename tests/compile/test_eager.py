"""The eager path: the page on whole tensors, right for any dtype and any layout."""

import numpy as np
import pytest
import torch

from schuss.compile import eager
from schuss.compile.formula import formula
from schuss.compile.launch import Terms, numbers
from schuss.compile.reference import Reference


def stepped(rule, w, gradients, dtype=None):
    """Step a tensor eagerly; its state is kept in `dtype`, or the weight's own."""
    first = rule.initial()
    slots = [torch.full_like(w, first.get(name, 0.0), dtype=dtype or w.dtype) for name in rule.slots]
    remembered = [0.0, *(first.get(name, 0.0) for name in rule.scalars)]
    for g in gradients:
        row, remembered = numbers(formula(rule), False, rule, remembered, Terms())
        kept = tuple(str(_part(t).dtype).removeprefix("torch.") for t in (w, g, *slots))
        eager.step(formula(rule), kept, [w, g, *slots], row)
    return w


def _part(tensor):
    return tensor.real if tensor.is_complex() else tensor


def test_float64_is_the_reference(case, decades, close):
    start = np.random.default_rng(1).standard_normal(30)
    gradients = decades(6, 30, 2)
    reference = Reference(case.rule, start)
    for g in gradients:
        reference.step(g)
    found = stepped(case.rule, torch.from_numpy(start.copy()), list(map(torch.from_numpy, gradients)))
    close(found.numpy()[None], reference.w[None], 1e-12, start=start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrower_dtypes(dtype, case):
    random = np.random.default_rng(3)
    w = torch.from_numpy(random.standard_normal(200)).to(dtype)
    g = torch.from_numpy(random.standard_normal(200)).to(dtype)
    expected = Reference(case.rule, w.double().numpy()).step(g.double().numpy())
    found = stepped(case.rule, w, [g], torch.float32)
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        found.double().numpy(), expected, rtol=2 * eps, atol=64 * torch.finfo(torch.float32).eps
    )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers_are_pairs(dtype, plain):
    if plain.rule.shapes:
        pytest.skip("no complex number has rows and columns of pairs")
    random = np.random.default_rng(5)
    pairs = torch.from_numpy(random.standard_normal((2, 20, 2)))
    w, g = (torch.view_as_complex(x).to(dtype) for x in pairs)
    expected = Reference(plain.rule, pairs[0].numpy()).step(pairs[1].numpy())
    start = torch.zeros_like(w)
    start.copy_(w)
    slots = [
        torch.view_as_complex(torch.full((20, 2), float(plain.rule.initial().get(n, 0.0))).double()).to(dtype)
        for n in plain.rule.slots
    ]
    first = [0.0, *(plain.rule.initial().get(name, 0.0) for name in plain.rule.scalars)]
    row, _ = numbers(formula(plain.rule), False, plain.rule, first, Terms())
    kept = (str(start.real.dtype).removeprefix("torch."),) * (2 + len(slots))
    eager.step(formula(plain.rule), kept, [start, g, *slots], row)
    np.testing.assert_allclose(torch.view_as_real(start).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_layouts_and_scale(plain):
    random = np.random.default_rng(6)
    start, g = torch.from_numpy(random.standard_normal((2, 6, 8)))
    contiguous = stepped(plain.rule, start.clone(), [g])
    strided = torch.full((8, 12), torch.nan, dtype=torch.float64).mT[::2].copy_(start)
    assert torch.equal(stepped(plain.rule, strided, [g.mT.contiguous().mT]), contiguous)


def test_a_gradient_is_not_written_to(plain):
    w, g = torch.ones(4, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    stepped(plain.rule, w, [g] * 8)
    assert (g == 0.5).all()
    assert (w != 1).all()
