"""What scales or stops a whole step: clipping by norm, steps left out, GradScaler."""

import copy
import math

import pytest
import torch
from torch.amp import GradScaler

from schuss.torch import SGD, AdamW, global_norm


def parameters(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, dtype=dtype))
        for shape in shapes or ((40, 30), (7,), (), (0, 3))
    ]


def give(weights, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


# Clipping


def test_clipping_is_torchs_to_the_last_digit(plain):
    """Large and small norms, several groups, one of them climbing; gradients stay as they are."""
    results = []
    for ours in (True, False):
        weights = parameters()
        groups = [
            {"params": weights[:2]},
            {"params": weights[2:], "lr": 0.02, "maximize": plain.name != "Rprop"},
        ]
        optimizer = plain.ours(groups, **({"max_norm": 3.0} if ours else {}))
        for step, scale in enumerate((1.0, 1e-3, 100.0, 0.5)):
            give(weights, step, scale)
            before = [weight.grad.clone() for weight in weights]
            if not ours:
                torch.nn.utils.clip_grad_norm_(weights, 3.0)
            optimizer.step()
            if ours:
                assert all(torch.equal(weight.grad, g) for weight, g in zip(weights, before, strict=True))
                expected = math.sqrt(sum(float(g.square().sum()) for g in before))
                assert optimizer.gradient_norm == pytest.approx(expected, rel=1e-13)
        results.append(torch.cat([weight.detach().flatten() for weight in weights]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


LAYOUTS = {
    "float32": lambda g: g.float(),
    "bfloat16": lambda g: g.bfloat16(),
    "float16": lambda g: g.half(),
    "complex": lambda g: torch.complex(g, 2 * g),
    "transposed": lambda g: g.T.contiguous().T,
    "strided": lambda g: torch.stack([g, g], -1)[..., 0],
    "negated": lambda g: torch._neg_view(g),
    "sparse": lambda g: g.to_sparse(1),
    "repeated rows": lambda g: torch.sparse_coo_tensor(
        [[1, 1]], torch.stack([g[0], g[1]]), g.shape, check_invariants=True
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_norm_of_any_gradient(layout):
    """As a step and `global_norm` take it, beside plain ones."""
    g = LAYOUTS[layout](torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    other = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    weights = [torch.nn.Parameter(torch.zeros(30, 20, dtype=g.dtype)), torch.nn.Parameter(torch.zeros(5000))]
    weights[0].grad, weights[1].grad = g, other
    dense = g.coalesce().to_dense() if g.is_sparse else g
    wide = torch.complex128 if g.is_complex() else torch.float64
    expected = math.hypot(dense.to(wide).norm().item(), other.double().norm().item())
    assert global_norm(weights).item() == pytest.approx(expected, rel=1e-12)
    optimizer = SGD(weights, max_norm=1.0, lr=0.5)
    optimizer.step()
    assert optimizer.gradient_norm == pytest.approx(expected, rel=1e-12)
    found = [weight.detach().to(wide) for weight in weights]
    eps = torch.finfo(g.dtype).eps
    torch.testing.assert_close(found[0], -0.5 * dense.to(wide) / expected, rtol=4 * eps + 1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_norms_whose_squares_are_not_numbers(size):
    weight = torch.nn.Parameter(torch.zeros(1000, dtype=torch.float64))
    weight.grad = torch.full_like(weight, size)
    assert global_norm(weight).item() == pytest.approx(size * 1000**0.5, rel=1e-12)
    optimizer = SGD([weight], lr=1.0, max_norm=1.0, skip_nonfinite=True)
    optimizer.step()
    assert optimizer.skipped == 0
    expected = size if size < 1 else 1000**-0.5
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, -expected), rtol=1e-6, atol=0)


def test_no_gradients_have_norm_zero():
    assert global_norm([torch.nn.Parameter(torch.zeros(3))]).item() == 0
    assert global_norm([]).item() == 0


@pytest.mark.parametrize("params", [None, "x", [1], torch.nn.Linear(2, 1)], ids=str)
def test_what_has_no_gradients_has_no_norm(params):
    with pytest.raises(ValueError, match=r"is not weights: tensors. Try global_norm\(model.parameters\(\)\)"):
        global_norm(params)


def test_threads_do_not_change_the_norm():
    weight = torch.nn.Parameter(torch.zeros(1_500_000))
    give([weight], 3)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(global_norm(weight).item())
        finally:
            torch.set_num_threads(before)
    assert len(set(found)) == 1


# Steps left out


def test_sparse_and_strange_bad_gradients_are_seen():
    for make in LAYOUTS.values():
        g = torch.ones(30, 20, dtype=torch.float64)
        g[1, 2] = torch.inf
        g = make(g)
        weight = torch.nn.Parameter(torch.zeros(30, 20, dtype=g.dtype))
        weight.grad = g
        optimizer = SGD([weight], skip_nonfinite=True)
        optimizer.step()
        assert optimizer.skipped == 1
        assert not weight.any()


def test_what_was_left_out_is_still_counted_after_loading():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], skip_nonfinite=True)
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()
    other = SGD([weight], skip_nonfinite=True)
    other.load_state_dict(optimizer.state_dict())
    assert other.skipped == 1
    torch.optim.SGD([weight]).load_state_dict(optimizer.state_dict())


# GradScaler


def trained_with_scaler(make, steps=6, unscale=False, bad_at=3):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = make(model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean() * (torch.inf if step == bad_at else 1.0)
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        before = [p.grad.clone() for p in model.parameters()]
        scaler.step(optimizer)
        seen.append(
            all(
                torch.equal(p.grad, g)
                for p, g in zip(model.parameters(), before, strict=True)
                if step != bad_at
            )
        )
        scaler.update()
    return optimizer, torch.cat([p.detach().flatten() for p in model.parameters()]), scaler, seen


@pytest.mark.parametrize("unscale", [False, True])
def test_gradscaler_as_with_torchs_fused_optimizers(unscale):
    ours, found, scaler, unchanged = trained_with_scaler(
        lambda p: AdamW(p, lr=0.01, fused=True), unscale=unscale
    )
    _, expected, theirs, _ = trained_with_scaler(
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), unscale=unscale
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert scaler.get_scale() == theirs.get_scale()
    assert ours.skipped == 1
    assert all(unchanged)
    assert next(iter(ours.state.values()))["step"] == 5
    assert not hasattr(ours, "grad_scale")


def test_gradscaler_and_clipping():
    """The norm is that of the unscaled gradients."""

    def make(params):
        return AdamW(params, lr=0.01, max_norm=0.05, fused=True)

    first, found, _, unchanged = trained_with_scaler(make)
    second, expected, _, _ = trained_with_scaler(make, unscale=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert first.gradient_norm == pytest.approx(second.gradient_norm, rel=1e-5)
    assert first.gradient_norm > 0.05
    assert all(unchanged)


def test_gradscaler_as_with_torchs_optimizers_where_nothing_is_asked():
    """It unscales gradients, and calls no step after an infinity: so frameworks see it, and may clip between."""
    for options in (dict(), dict(max_norm=0.05), dict(skip_nonfinite=True)):
        ours, found, scaler, _ = trained_with_scaler(lambda p, more=options: AdamW(p, lr=0.01, **more))
        asked, expected, theirs, _ = trained_with_scaler(
            lambda p, more=options: AdamW(p, lr=0.01, fused=True, **more)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert scaler.get_scale() == theirs.get_scale()
        assert (ours.skipped, asked.skipped) == (0, 1)
        assert ours._step_supports_amp_scaling is False
        assert asked._step_supports_amp_scaling is True


def test_a_wrapper_that_has_copied_the_attributes_sees_what_becomes_of_steps():
    """As Lightning wraps: the class of both, the optimizer's `__dict__`, no `__init__`."""

    class Wrapper:
        pass

    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = SGD([weight], lr=0.1, skip_nonfinite=True, ema_decay=0.9)
    wrapper = Wrapper()
    wrapper.__class__ = type("WrappedSGD", (Wrapper, SGD), {})
    wrapper.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k != "step"})
    for gradient in (torch.tensor([3.0, 4.0]), torch.tensor([torch.nan, 0.0])):
        weight.grad = gradient
        optimizer.step()
    assert wrapper.skipped == optimizer.skipped == 1
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert wrapper.gradient_norm == optimizer.gradient_norm == 5.0
    with wrapper.averaged(), pytest.raises(RuntimeError, match="would be taken from the averaged weights"):
        optimizer.step()
    other = copy.deepcopy(optimizer)
    assert other.skipped == 1
    other.param_groups[0]["params"][0].grad = weight.grad * torch.inf
    other.step()
    assert (other.skipped, optimizer.skipped) == (2, 1)
