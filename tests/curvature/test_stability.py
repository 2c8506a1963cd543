"""Limits against the spectral radius of the optimizers' own iteration; rates; the edge of stability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import schuss.numpy
import schuss.torch
from schuss.curvature import hvp, stability_limit

SGD = torch.optim.SGD
LR = 0.05

LINEAR = {
    "gd": dict(),
    "heavy ball": {"momentum": 0.9},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "averaged": {"momentum": 0.9, "dampening": 0.9},
    "half dampened": {"momentum": 0.7, "dampening": 0.35},
    "L2": {"momentum": 0.5, "weight_decay": 3.0},
}
FORMULAS = {
    "gd": 2 / LR,
    "heavy ball": 2 * 1.9 / LR,
    "nesterov": 2 * 1.8 / (2.6 * LR),
    "averaged": 2 * 1.9 / (0.1 * LR),
    "half dampened": 2 * 1.7 / (0.65 * LR),
    "L2": 2 * 1.5 / LR,
}


def weight(value: float = 1.0) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def run(optimizer, w: torch.Tensor, h: float, steps: int) -> float:
    """The size of w after steps of the real optimizer on ½ h w²."""
    for _ in range(steps):
        w.grad = h * w.detach()
        optimizer.step()
    return abs(float(w.detach()))


@pytest.mark.parametrize("name", LINEAR)
def test_limits_of_linear_methods(name):
    """The formula; and torch's own optimizer shrinks w just below the limit and blows it up just above."""
    limit = stability_limit(SGD([weight()], lr=LR, **LINEAR[name]))
    assert float(limit) == pytest.approx(FORMULAS[name], rel=1e-13)
    assert not limit.preconditioned
    decay = LINEAR[name].get("weight_decay", 0.0)
    for factor, grows in ((0.98, False), (1.02, True)):
        w = weight()
        size = run(SGD([w], lr=LR, **LINEAR[name]), w, factor * float(limit) - decay, 3000)
        assert (size < 1e-3) == (not grows), (factor, size)
        assert (not size < 1e3) == grows, (factor, size)  # NaN has grown too


@pytest.mark.parametrize("name", LINEAR)
def test_the_largest_lr_turns_the_limit_round(name):
    limit = stability_limit(SGD([weight()], lr=LR, **LINEAR[name]))
    best = limit.largest_lr(7.0)
    assert stability_limit(SGD([weight()], lr=best, **LINEAR[name])).limit == pytest.approx(7.0, rel=1e-12)
    assert limit.largest_lr(-1.0) == math.inf


ADAPTIVE = {
    "Adam": {},
    "Adam amsgrad": {"amsgrad": True, "betas": (0.8, 0.999)},
    "Adam L2": {"weight_decay": 0.3},
    "AdamW": {"weight_decay": 2.0},
    "RMSprop": {"alpha": 0.999},
    "RMSprop momentum": {"alpha": 0.999, "momentum": 0.6},
    "RMSprop centered": {"alpha": 0.999, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {"rho": 0.999},
    "NAdam": {},
    "NAdam decoupled": {"weight_decay": 2.0, "decoupled_weight_decay": True},
    "RAdam": {},
    "Adamax": {},
    "ASGD": {"lambd": 0.5},
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_limits_are_where_the_real_step_turns_unstable(name):
    """A past of random gradients makes the denominators; tiny gradients then move nothing but w and m.

    So two runs of the optimizer's own next step are the two columns of the iteration's matrix, and the h at
    which its spectral radius passes 1 is found by bisection, without a formula.
    """
    kind = getattr(torch.optim, name.split()[0])
    w = weight(0.0)
    optimizer = kind([w], lr=0.01, **ADAPTIVE[name])
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        w.grad = torch.randn(1, dtype=torch.float64, generator=generator)
        optimizer.step()
    limit = stability_limit(optimizer)
    l2 = limit.methods[0].l2
    h = float(limit) * float(limit.preconditioner[0]) - l2
    assert h == pytest.approx(critical(optimizer, w, h), rel=1e-2)


@pytest.mark.parametrize(
    "name", ["Adagrad", "Adadelta", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax"]
)
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float64"])
def test_state_in_low_precision_gives_the_limit_of_float32_state(name, dtype):
    """int8 codes are levels, 6 to 12 % apart, not numbers; NumPy's bfloat16 are bits. The two APIs agree exactly."""
    count, found = 4096, {}
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(count, generator=generator) * (1 + k % 3) for k in range(12)]
    for stored in ("float32", dtype):
        w, arrays = torch.zeros(count, requires_grad=True), {"w": np.zeros(count, np.float32)}
        ours = getattr(schuss.torch, name)([w], state_dtype=getattr(torch, stored))
        theirs = getattr(schuss.numpy, name)(state_dtype=stored)
        for gradient in gradients:
            w.grad = gradient.clone()
            ours.step()
            theirs.update(arrays, {"w": gradient.numpy()})
        before = {
            key: value.clone() for key, value in ours.state[w].items() if isinstance(value, torch.Tensor)
        }
        limit, other = stability_limit(ours), stability_limit(theirs)
        assert all(torch.equal(ours.state[w][key], value) for key, value in before.items())
        assert other.limit == pytest.approx(limit.limit, rel=1e-12)
        torch.testing.assert_close(other.preconditioner[0], limit.preconditioner[0], rtol=1e-12, atol=0)
        found[stored] = limit
    assert found[dtype].limit == pytest.approx(found["float32"].limit, rel=1e-12)
    ratio = found[dtype].preconditioner[0] / found["float32"].preconditioner[0]
    assert float(ratio.median()) == pytest.approx(1, abs=0.03)
    assert float((ratio - 1).abs().max()) < {"int8": 0.4, "bfloat16": 0.05, "float64": 1e-4}[dtype]


def test_codes_without_scales_are_refused():
    w = torch.zeros(4096, requires_grad=True)
    optimizer = schuss.torch.Adam([w], state_dtype=torch.int8)
    w.grad = torch.ones(4096)
    optimizer.step()
    del optimizer.state[w]["exp_avg_sq_scale"]
    with pytest.raises(ValueError, match="int8 is not numbers, or int8 codes of schuss with their scales"):
        stability_limit(optimizer)


def test_an_optimizer_of_numpy_before_its_first_update():
    limit = stability_limit(schuss.numpy.SGD(lr=0.1, momentum=0.9))
    assert float(limit) == pytest.approx(2 * 1.9 / 0.1)
    assert stability_limit(schuss.numpy.Adam(lr=0.1)).preconditioner is None


def test_settings_at_the_edge_of_sense():
    """Dampening 1: gradients do not count, so no curvature makes them grow. lr × decay ≥ 2: decay alone does."""
    limit = stability_limit(SGD([weight()], lr=0.1, momentum=0.9, dampening=1.0))
    assert float(limit) == math.inf
    assert limit.largest_lr(3.0) == math.inf
    assert "is stable at every sharpness" in repr(limit)
    for lr, decay in ((1.0, 3.0), (0.5, 4.0)):
        with pytest.raises(ValueError, match=r"lr × weight_decay=\d\.0 is not below 2\. Decay alone"):
            stability_limit(torch.optim.AdamW([weight()], lr=lr, weight_decay=decay))
    assert float(stability_limit(torch.optim.AdamW([weight()], lr=1.0, weight_decay=1.9))) > 0


def test_radam_before_its_rectification_is_averaged_momentum():
    w = weight(0.0)
    optimizer = torch.optim.RAdam([w], lr=0.01)
    for _ in range(3):
        w.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    limit = stability_limit(optimizer)
    assert float(limit) == pytest.approx(3800)
    assert float(limit.preconditioner[0]) == pytest.approx(1 - 0.9**3)


def one_step(optimizer, w: torch.Tensor, h: float, now: float, memory: float) -> tuple[float, float]:
    """Where (w, momentum) go in the optimizer's next step, from its present denominators; all is put back."""
    state = optimizer.state[w]
    saved = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    before = w.detach().clone()
    slot = next((key for key in ("exp_avg", "momentum_buffer") if key in saved), None)
    if slot:
        optimizer.state[w][slot].fill_(memory)
    with torch.no_grad():
        w.fill_(now)
    w.grad = torch.tensor([h * now], dtype=torch.float64)
    optimizer.step()
    result = float(w.detach()), float(optimizer.state[w][slot]) if slot else 0.0
    optimizer.state[w].update(saved)
    with torch.no_grad():
        w.copy_(before)
    return result


def spectral_radius(optimizer, w: torch.Tensor, h: float) -> float:
    tiny = 1e-7 / max(h, 1)
    columns = [one_step(optimizer, w, h, tiny, 0.0), one_step(optimizer, w, h, 0.0, tiny)]
    matrix = np.array(columns).T / tiny
    return float(abs(np.linalg.eigvals(matrix)).max())


def critical(optimizer, w: torch.Tensor, guess: float) -> float:
    """The h at which the real iteration's spectral radius crosses 1, by bisection."""
    low, high = guess / 4, guess * 4
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spectral_radius(optimizer, w, middle) < 1 else (low, middle)
    return low


def test_adams_limit_and_preconditioner_are_the_known_ones():
    """38 / lr at β₁ = 0.9, and P = (1 − β₁ᵗ)(√v̂ + ε)."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=1e-3)
    assert float(stability_limit(optimizer)) == pytest.approx(38 / 1e-3)
    assert stability_limit(optimizer).preconditioner is None
    v = np.zeros(2)
    for t in range(1, 6):
        g = np.array([0.3 * t, -1.0])
        w.grad = torch.tensor(g)
        optimizer.step()
        v = 0.999 * v + 0.001 * g**2
        want = (1 - 0.9**t) * (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(stability_limit(optimizer).preconditioner[0], want, rtol=1e-12)


def test_the_preconditioned_sharpness_is_the_dense_one(make, loss, dense_hessian):
    model, batch = make("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    limit = stability_limit(optimizer)
    p = torch.cat([part.reshape(-1) for part in limit.preconditioner])
    h = dense_hessian(model, loss, batch) + 0.1 * torch.eye(len(p), dtype=torch.float64)
    want = float(torch.linalg.eigvalsh(h / torch.sqrt(p[:, None] * p)).max())
    got = limit.sharpness(model, loss, batch)
    assert got.converged
    assert float(got) == pytest.approx(want, rel=1e-9)
    assert got.ratio == pytest.approx(want * 1e-2 / 38)
    assert got.largest_lr == pytest.approx(38 / want)


def test_groups_with_their_own_rates_share_one_limit():
    """½ (8 x² + 2 y²) at lr 0.1 and 0.4: D^½ H D^½ has the eigenvalues 0.8 and 0.8."""
    x, y = weight(), weight()
    optimizer = SGD([{"params": [x], "lr": 0.1}, {"params": [y], "lr": 0.4}], lr=1.0)
    limit = stability_limit(optimizer)
    assert float(limit) == pytest.approx(2 / 0.4)
    assert limit.preconditioned
    got = limit.sharpness([x, y], lambda p, _: (4 * p[0] ** 2 + p[1] ** 2).sum(), None)
    assert got.ratio == pytest.approx(0.4)
    alone = stability_limit(SGD([x], lr=0.1))
    frozen = alone.sharpness([x, y], lambda p, _: (4 * p[0] ** 2 + 50 * p[1] ** 2).sum(), None)
    assert float(frozen) == pytest.approx(8)  # y is not the optimizer's: it does not move


def test_subclasses_and_schedules_of_the_same_names_are_read():
    class Adam(torch.optim.Adam):
        pass

    assert float(stability_limit(Adam([weight()], lr=1.0))) == pytest.approx(38)
    optimizer = SGD([weight()], lr=1.0)
    optimizer.param_groups[0]["lr"] = lambda finished: 0.5
    assert float(stability_limit(optimizer)) == pytest.approx(4)
    optimizer.param_groups[0].update(lr=0.1, decoupled_weight_decay=True, weight_decay=4.0)
    assert float(stability_limit(optimizer)) == pytest.approx((2 - 0.4) / 0.1)


def test_torchs_first_dampened_step_is_undampened():
    """A run that is stable by the limit still starts with a kick 1 / (1 − β) too large."""
    w = weight()
    run(SGD([w], lr=0.1, momentum=0.9, dampening=0.9), w, 20.0, 1)
    assert float(w.detach()) == pytest.approx(1 - 0.1 * 20)


@pytest.mark.parametrize("kappa", [4.0, 100.0, 2500.0])
def test_rates_on_quadratics_are_spectral_radii(kappa):
    """Optimal settings on [μ, L] = [1, κ], by the radius of the real optimizer's iteration."""
    root, big = math.sqrt(kappa), math.sqrt(3 * kappa + 1)
    settings = [
        ({"lr": 2 / (kappa + 1)}, (kappa - 1) / (kappa + 1)),
        ({"lr": 4 / (root + 1) ** 2, "momentum": ((root - 1) / (root + 1)) ** 2}, (root - 1) / (root + 1)),
        ({"lr": 1 / kappa, "momentum": (root - 1) / (root + 1), "nesterov": True}, 1 - 1 / root),
        ({"lr": 4 / (3 * kappa + 1), "momentum": (big - 2) / (big + 2), "nesterov": True}, 1 - 2 / big),
    ]
    for options, rate in settings:
        radii = []
        for h in (1.0, kappa):
            w = weight()
            optimizer = SGD([w], **options)
            w.grad = torch.zeros(1, dtype=torch.float64)
            optimizer.step()
            radii.append(spectral_radius(optimizer, w, h))
        # Double roots: a radius is known only to the square root of rounding.
        assert max(radii) == pytest.approx(rate, abs=2e-7 if "momentum" in options else 1e-12)


def test_rosenbrocks_limit_at_its_minimum():
    x = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)

    def rosenbrock(x, _):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    limit = stability_limit(SGD([x], lr=1e-3))
    assert limit.sharpness(x, rosenbrock, None).largest_lr == pytest.approx(0.0019968, rel=1e-4)


def test_newton_lands_on_a_saddle_and_conjugate_gradients_need_four_steps():
    x = torch.tensor([3.0, -2.0], dtype=torch.float64)
    saddle = lambda x, _: (x[0] ** 2 - x[1] ** 2) / 2  # noqa: E731
    columns = torch.stack([hvp(x, saddle, None, e) for e in torch.eye(2, dtype=torch.float64)])
    assert (x - torch.linalg.solve(columns, torch.stack([x[0], -x[1]]))).tolist() == [0, 0]
    h = torch.tensor([1.0, 2.0, 5.0, 9.0] * 10, dtype=torch.float64)
    bowl = lambda x, _: (h * x**2).sum() / 2  # noqa: E731
    x = torch.zeros(40, dtype=torch.float64)
    r = b = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = r
    for _ in range(4):
        hd = hvp(x, bowl, None, d)
        step = (r @ r) / (d @ hd)
        x, new = x + step * d, r - step * hd
        d, r = new + (new @ new) / (r @ r) * d, new
    assert float(r.norm() / b.norm()) < 1e-12


def edge_of_stability():
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x[:500] / 16, dtype=torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))
    batch = x - x.mean(dim=0), nn.functional.one_hot(torch.tensor(y[:500])).float()
    return model, batch


def half_square(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(dim=1).mean() / 2


def sharpnesses(lr: float, steps: int, every: int) -> tuple[list[float], float]:
    """The sharpness after each `every` steps of full-batch descent, and the loss at their end."""
    model, batch = edge_of_stability()
    weights = list(model.parameters())
    limit = stability_limit(SGD(weights, lr=lr))
    looks = []
    for step in range(1, steps + 1):
        gradients = torch.autograd.grad(half_square(model, batch), weights)
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=-lr)
        if step % every == 0:
            looks.append(float(limit.sharpness(model, half_square, batch)))
    return looks, float(half_square(model, batch).detach())


def test_the_edge_of_stability():
    """Digits, tanh 64-50-50-10: gradient descent sharpens until 2 / lr, and stays there while it learns."""
    looks, loss = sharpnesses(0.2, 3600, 200)
    assert max(looks[:5]) < 8
    assert looks[-6:] == pytest.approx([10.0] * 6, abs=0.1)
    assert loss < 0.03


def test_below_the_edge_sharpening_ends_by_itself():
    """The control: at half the rate it levels off at 13.8, far from the stability limit 20 of this rate."""
    looks, _ = sharpnesses(0.1, 12000, 2000)
    assert looks[-1] == pytest.approx(13.8, abs=0.05)
    assert 0 < looks[-1] - looks[-2] < 0.3 * (looks[2] - looks[1])
