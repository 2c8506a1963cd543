"""torch.optim, to 1e-10 in float64 over its whole range of options: defaults, arguments, paths and state."""

import inspect

import numpy as np
import pytest
import torch

import schuss.torch
from schuss.compile.formula import formula
from schuss.rules import TABLE

STEPS = 9
SHAPES = [(3, 4), (17,), (), (2, 1, 5)]
IN_TORCH = [name for name in TABLE if hasattr(torch.optim, name)]


@pytest.fixture(autouse=True)
def _float64_scalars():
    """Torch keeps its own scalars (μ products, rates) in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def weights(seed=0, dtype=torch.float64):
    random = np.random.default_rng(seed)
    sizes = [torch.from_numpy(np.asarray(random.standard_normal(shape))).to(dtype) for shape in SHAPES]
    return [w.clone().requires_grad_() for w in sizes]


def give(params, gradients, start=0):
    """Give each weight its part of a flat gradient."""
    flat = torch.from_numpy(gradients)
    for p in params:
        p.grad = flat[start : start + p.numel()].reshape(p.shape).to(p.dtype).clone()
        start += p.numel()


def compare(ours, theirs, mine, other, decades, close, steps=STEPS, seed=1):
    """Step both with the same gradients; compare weights at every step, and all state at the end."""
    paths = [], []
    for g in decades(steps, sum(p.numel() for p in mine), seed, -8, 3):
        for params, optimizer, path in ((mine, ours, paths[0]), (other, theirs, paths[1])):
            give(params, g)
            optimizer.step()
            path.append(np.concatenate([p.detach().reshape(-1).numpy() for p in params]))
    close(*paths, 1e-10)
    for p, q in zip(mine, other, strict=True):
        for key, value in theirs.state[q].items():
            if value is not None:
                torch.testing.assert_close(
                    ours.state[p][key].double(),
                    value.double(),
                    rtol=1e-10,
                    atol=1e-16,
                    msg=lambda m, k=key: f"{k}: {m}",
                )


@pytest.mark.parametrize("name", IN_TORCH)
def test_arguments_and_defaults_are_torchs(name):
    ours = list(inspect.signature(getattr(schuss.torch, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch.optim, name)).parameters.values())
    for mine, other in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
    for extra in ours[len(theirs) :]:
        assert extra.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", IN_TORCH)
def test_groups_hold_torchs_defaults(name):
    params = weights()[:1]
    ours, theirs = getattr(schuss.torch, name)(params), getattr(torch.optim, name)(params)
    for key, value in theirs.defaults.items():
        assert ours.defaults[key] == value
        if key != "params":
            assert ours.param_groups[0][key] == value


def test_the_same_path_and_state(torch_case, decades, close):
    mine, other = weights(), weights()
    compare(torch_case.ours(mine), torch_case.theirs(other), mine, other, decades, close)


def test_maximize(torch_case, decades, close):
    mine, other = weights(), weights()
    compare(
        torch_case.ours(mine, maximize=True),
        torch_case.theirs(other, maximize=True),
        mine,
        other,
        decades,
        close,
    )


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_complex_weights(torch_case, decades, dtype):
    if torch_case.rule.shapes:
        pytest.skip("neither takes complex weights")

    def make():
        random = np.random.default_rng(3)
        z = random.standard_normal((4, 3)) + 1j * random.standard_normal((4, 3))
        return torch.from_numpy(z).to(dtype).requires_grad_()

    mine, other = make(), make()
    ours, theirs = torch_case.ours([mine]), torch_case.theirs([other])
    for g in decades(5, 24, 2, -3, 1):
        for p, optimizer in ((mine, ours), (other, theirs)):
            p.grad = torch.view_as_complex(torch.from_numpy(g).reshape(4, 3, 2)).to(dtype).clone()
            optimizer.step()
    tolerance = 1e-10 if dtype == torch.complex128 else 1e-5
    torch.testing.assert_close(mine.detach(), other.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [dict(foreach=True), dict(foreach=False), dict(capturable=False)])
def test_switches_of_implementation_change_nothing(options, plain, decades, close):
    if not set(options) <= set(inspect.signature(plain.ours).parameters) | set(plain.row.arguments.split()):
        pytest.skip("torch's own has no such switch")
    mine, other = weights(), weights()
    ours, theirs = plain.ours(mine, **options), plain.ours(other)
    compare(ours, theirs, mine, other, decades, close, steps=3)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam", "AdamW"])
def test_torchs_own_fused_kernel_agrees(name, decades, close):
    mine, other = weights(), weights()
    ours = getattr(schuss.torch, name)(mine, lr=0.01, fused=True)
    compare(ours, getattr(torch.optim, name)(other, lr=0.01, fused=True), mine, other, decades, close)


def test_a_real_network_trains_alike(torch_case):
    """Gradients that depend on the path: through a small network and its loss."""

    def train(make):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        x, y = torch.randn(16, 5), torch.randn(16, 1)
        optimizer = make(model.parameters())
        for _ in range(6):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    torch.testing.assert_close(train(torch_case.ours), train(torch_case.theirs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(n for n in IN_TORCH if not formula(TABLE[n].rule).of_matrices))
def test_a_gradient_whose_square_overflows_is_borne_as_torch_bears_it(name):
    """g² is ∞ in float32 for g = 1e38: it stays in the denominator, where it does no harm."""
    ends = []
    for home in (schuss.torch, torch.optim):
        weight = torch.ones(2, requires_grad=True)
        optimizer = getattr(home, name)([weight], lr=0.1)
        for _ in range(8):  # RAdam's sixth step is the first that divides
            weight.grad = torch.tensor([1e38, 1e-3])
            optimizer.step()
        ends.append(weight.detach())
    assert torch.isfinite(ends[0]).all()
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
