"""Whatever is measured, and however it ends, nothing of the user's has changed by a bit."""

from __future__ import annotations

import copy
import gc
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from schuss.curvature import (
    Pieces,
    condition_number,
    extreme_eigenvalues,
    ggnvp,
    gradient_noise_scale,
    gradient_sparsity,
    hvp,
    quadratic_model,
    range_test,
    spectrum,
    stability_limit,
    stationary_point,
)


class Everything(nn.Module):
    """A model with all that a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.seen = self.seen + 1
        self.last = self.inner(x)
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))  # noqa: NPY002
        return self.last * (1 + 0.01 * noise)


def world():
    torch.manual_seed(1)
    model = Everything()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    model.inner[0].bias.requires_grad_(False)
    model.inner[2].eval()
    model.inner[2].train()
    return model, optimizer, batch


def picture(model, optimizer):
    """All bits, flags, addresses and attributes, copied."""
    return copy.deepcopy(
        dict(
            weights={name: w.detach().clone() for name, w in model.named_parameters()},
            addresses=[t.data_ptr() for t in (*model.parameters(), *model.buffers())],
            identities=[id(t) for t in (*model.parameters(), *model.buffers())],
            versions=[t._version for t in (*model.parameters(), *model.buffers())],
            grads=[None if w.grad is None else (id(w.grad), w.grad.clone()) for w in model.parameters()],
            flags=[w.requires_grad for w in model.parameters()],
            modes=[m.training for m in model.modules()],
            buffers={name: b.clone() for name, b in model.named_buffers()},
            plain=(model.calls, id(model.last)),
            hooks=[len(m._forward_hooks) for m in model.modules()],
            optimizer=optimizer.state_dict(),
            torch=torch.get_rng_state(),
            numpy=np.random.get_state(legacy=False),  # noqa: NPY002
            python=random.getstate(),
            grad_mode=torch.is_grad_enabled(),
            kernels=(torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()),
        )
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool((a == b).all()) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Once(torch.autograd.Function):
    """An exponential without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        result = x.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def of_pieces(model, batch, f):
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of BatchNorm in pieces
        hvp(model, f, Pieces([batch, batch]), torch.ones(count(model)))


def by_differences(model, batch, f):
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of their accuracy
        hvp(model, lambda m, b: Once.apply(f(m, b)).square(), batch, torch.ones(count(model)))


MEASUREMENTS = {
    "hvp": lambda m, o, b, f: hvp(m, f, b, torch.ones(count(m))),
    "hvp by differences": lambda m, o, b, f: by_differences(m, b, f),
    "hvp of pieces": lambda m, o, b, f: of_pieces(m, b, f),
    "ggnvp": lambda m, o, b, f: ggnvp(m, f, b, torch.ones(count(m))),
    "extreme_eigenvalues": lambda m, o, b, f: extreme_eigenvalues(m, f, b, k=2),
    "condition_number": lambda m, o, b, f: condition_number(m, f, b),
    "spectrum": lambda m, o, b, f: spectrum(m, f, b, probes=2, steps=4),
    "stationary_point": lambda m, o, b, f: stationary_point(m, f, b),
    "quadratic_model": lambda m, o, b, f: quadratic_model(m, f, b, torch.ones(count(m))),
    "gradient_noise_scale": lambda m, o, b, f: gradient_noise_scale(m, f, [b, b, b], curvature=b),
    "gradient_sparsity": lambda m, o, b, f: gradient_sparsity(m, f, b),
    "stability": lambda m, o, b, f: stability_limit(o).sharpness(m, f, b),
    "range_test": lambda m, o, b, f: range_test(m, f, [b, b], o, steps=12, sweeps=2),
}


def count(model) -> int:
    return sum(w.numel() for w in model.parameters() if w.requires_grad)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_nothing_has_changed_afterwards(name):
    model, optimizer, batch = world()
    before = picture(model, optimizer)
    MEASUREMENTS[name](model, optimizer, batch, loss)
    after = picture(model, optimizer)
    if (
        name == "range_test"
    ):  # steps in place, on a copy of the memory: the one trace is torch's count of writes
        before["versions"] = after["versions"]
    assert [key for key in before if not same(before[key], after[key])] == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_nothing_has_changed_after_an_interruption(name, error):
    """The loss is interrupted in its last call: after the forward pass, with everything in motion."""
    calls = 0

    def counting(model, batch):
        nonlocal calls
        calls += 1
        return loss(model, batch)

    model, optimizer, batch = world()
    MEASUREMENTS[name](model, optimizer, batch, counting)
    last, calls = calls, 0

    def interrupted(model, batch):
        value = counting(model, batch)
        if calls == last:
            raise error
        return value

    before = picture(model, optimizer)
    with pytest.raises(error):
        MEASUREMENTS[name](model, optimizer, batch, interrupted)
    after = picture(model, optimizer)
    if name == "range_test":
        before["versions"] = after["versions"]
    assert [key for key in before if not same(before[key], after[key])] == []


def test_an_interruption_during_the_backward_pass_leaves_no_trace():
    model, optimizer, batch = world()

    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise KeyboardInterrupt

    before = picture(model, optimizer)
    with pytest.raises(KeyboardInterrupt):
        extreme_eigenvalues(model, lambda m, b: Stop.apply(loss(m, b)), batch)
    after = picture(model, optimizer)
    assert [key for key in before if not same(before[key], after[key])] == []


def test_the_picture_would_notice():
    """The negative control: an ordinary training-mode forward changes six of the things compared."""
    model, optimizer, batch = world()
    before = picture(model, optimizer)
    loss(model, batch)
    after = picture(model, optimizer)
    changed = {key for key in before if not same(before[key], after[key])}
    assert {"buffers", "plain", "torch", "numpy", "python", "identities"} <= changed


def test_no_graph_is_left():
    """Every tensor with a history that is alive afterwards was alive before."""

    def alive():
        gc.collect()
        return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]

    model, optimizer, batch = world()
    before = alive()
    for measure in MEASUREMENTS.values():
        measure(model, optimizer, batch, loss)
    known = {id(thing) for thing in before}
    assert [t.shape for t in alive() if id(t) not in known and t.grad_fn is not None] == []


def test_a_backward_pass_begun_before_still_ends():
    """A measurement between forward and backward bumps no version that the graph has saved."""
    model, _, batch = world()
    value = loss(model, batch)
    hvp(model, loss, batch, torch.ones(count(model)))
    value.backward()
    assert model.inner[0].weight.grad is not None


def test_a_plain_tensor_keeps_its_flags():
    x = torch.ones(3, dtype=torch.float64)
    leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
    leaf.grad = torch.full((3,), 7.0, dtype=torch.float64)
    for point in (x, leaf):
        extreme_eigenvalues(point, lambda x, _: (x**4).sum(), None, k=1)
        quadratic_model(point, lambda x, _: (x**4).sum(), None, torch.ones(3, dtype=torch.float64))
    assert x.grad is None
    assert not x.requires_grad
    assert leaf.grad.tolist() == [7, 7, 7]
    assert leaf.tolist() == x.tolist() == [1, 1, 1]


def test_a_tensor_that_the_optimizer_does_not_hold_keeps_its_gradient():
    x, y = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    range_test([x, y], lambda p, _: (p[0] * p[1]).square().sum(), [None], torch.optim.SGD([x]), steps=10)
    assert x.grad is None
    assert y.grad is None
