"""Operations without a second derivative: products by differences of gradients, and words that say so."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from schuss.curvature import extreme_eigenvalues, ggnvp, hvp


class Once(torch.autograd.Function):
    """x² with a backward pass that torch may not differentiate."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Squares(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.first, self.drop, self.last, self.square = (
            nn.Linear(4, 5),
            nn.Dropout(0.5),
            nn.Linear(5, 2),
            square,
        )

    def forward(self, x):
        return self.last(self.drop(self.square(torch.tanh(self.first(x)))))


def build(square, dtype=torch.float64):
    torch.manual_seed(0)
    return Squares(square).to(dtype), torch.randn(6, 4, dtype=dtype)


def loss(model, x):
    return model(x).exp().mean()


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_a_function_that_is_differentiable_once(dtype, accuracy):
    model, x = build(Once.apply, dtype)
    exact, _ = build(torch.square, dtype)
    v = torch.randn(37, dtype=dtype)
    want = hvp(exact, loss, x, v)
    before = [weight.clone() for weight in model.parameters()]
    with pytest.warns(
        UserWarning, match=r"only once, so products.*central differences.*agree to \de-"
    ) as said:
        got = hvp(model, loss, x, v)
    assert float((got - want).norm() / want.norm()) < accuracy
    agreement = float(str(said[0].message).split("agree to ")[1].split(",")[0])
    assert float((got - want).norm() / want.norm()) < agreement < 100 * accuracy
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


def test_eigenvalues_by_differences_warn_once():
    model, x = build(Once.apply)
    exact, _ = build(torch.square)
    with pytest.warns(UserWarning, match="central differences") as said:
        got = extreme_eigenvalues(model, loss, x, k=2, tolerance=1e-7)
    want = extreme_eigenvalues(exact, loss, x, k=2)
    assert len(said) == 1
    assert got.converged
    np.testing.assert_allclose(got.largest, want.largest, rtol=1e-7)
    np.testing.assert_allclose(got.smallest, want.smallest, rtol=1e-7)


def test_a_gradient_cut_off_from_the_weights_is_not_taken_for_constant():
    """Where nothing beyond it bends, torch hands back the gradient as a constant and raises no error."""
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    v = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    with pytest.warns(UserWarning, match="hides how its gradient depends"):
        got = hvp(x, lambda x, _: Once.apply(x).sum(), None, v)
    torch.testing.assert_close(got, 2 * v, rtol=1e-9, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hvp(x, lambda x, _: (x * x.detach()).sum() * 0 + x.sum(), None, v).any()


def test_a_compiled_loss_and_kernels_without_a_second_derivative():
    model, x = build(torch.square)
    v = torch.randn(37, dtype=torch.float64)
    model.eval()
    with pytest.warns(UserWarning, match="double backward"):
        got = hvp(model, torch.compile(loss, backend="aot_eager"), x, v)
    want = hvp(model, loss, x, v)
    assert float((got - want).norm() / want.norm()) < 1e-8

    lengths = torch.tensor([5]), torch.tensor([2])
    log = torch.randn(5, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def ctc(z, _):
        return nn.functional.ctc_loss(z.log_softmax(-1), torch.tensor([[1, 2]]), *lengths)

    u, w = torch.randn(2, *log.shape, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"_ctc_loss_backward is not implemented"):
        hu, hw = hvp(log, ctc, None, u), hvp(log, ctc, None, w)
    assert float((w * hu).sum()) == pytest.approx(float((u * hw).sum()), rel=1e-7)


def test_what_cannot_be_had_by_differences_is_refused_in_words():
    model, x = build(Once.apply)
    with pytest.raises(
        ValueError, match=r"differentiated only once, and a .* Gauss-Newton matrix needs one. Use other"
    ):
        ggnvp(model, loss, x, torch.ones(37, dtype=torch.float64))

    def broken(model, x):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        hvp(model, broken, x, torch.ones(37, dtype=torch.float64))
