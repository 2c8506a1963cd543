"""The noise scale against its closed form, its interval's coverage; sparsity, quadratic and range tests."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from schuss.curvature import gradient_noise_scale, gradient_sparsity, quadratic_model, range_test
from schuss.curvature.noise import _scale


def regression(d: int, batches: int, size: int, seed: int, noise: float = 0.0, sigma: float = 1.0):
    """Fresh Gaussian examples of a linear law with the error e = (1, 1, ...)/√d, so |e|² = 1."""
    generator = torch.Generator().manual_seed(seed)
    x = sigma * torch.randn(batches, size, d, dtype=torch.float64, generator=generator)
    y = noise * torch.randn(batches, size, dtype=torch.float64, generator=generator)
    return [(x[i], y[i]) for i in range(batches)]


def half_square(w, batch):
    x, y = batch
    return (x @ w - y).square().mean() / 2


def start(d: int) -> torch.Tensor:
    return torch.full((d,), 1 / math.sqrt(d), dtype=torch.float64)


@pytest.mark.parametrize(("noise", "sigma"), [(0.0, 1.0), (1.5, 1.0), (1.0, 2.0)])
def test_linear_regression_has_d_plus_1(noise, sigma):
    """tr Σ / ‖G‖² = d + 1, and ν² d / (σ² |e|²) more with label noise ν."""
    d = 20
    want = d + 1 + noise**2 * d / sigma**2
    got = gradient_noise_scale(start(d), half_square, regression(d, 400, 20, 1, noise, sigma))
    assert got.simple == pytest.approx(want, rel=0.12)
    assert got.interval[0] < want < got.interval[1]
    assert got.interval[1] / got.interval[0] < 1.6
    assert got.signal == pytest.approx(sigma**4, rel=0.1)
    assert (got.batches, got.examples) == (400, 8000)


def test_the_scale_is_the_same_at_every_point_and_for_every_batch_size():
    d = 10
    mixed = regression(d, 100, 8, 2) + regression(d, 100, 32, 3) + regression(d, 50, 3, 4)
    for scale in (1.0, 1e-3):
        got = gradient_noise_scale(scale * start(d), half_square, mixed)
        assert got.simple == pytest.approx(d + 1, rel=0.15)


def test_mean_of_ratios_would_be_far_off():
    """The negative control: single pairs of batches, each divided, against the same pairs averaged first."""
    d, half = 20, 6
    w = start(d)
    above, below = [], []
    for x, y in regression(d, 2000, 2 * half, 6):
        one, other = (x[i].T @ (x[i] @ w - y[i]) / half for i in (slice(0, half), slice(half, 2 * half)))
        above.append(float((one - other).square().sum()) / 2 * half)
        below.append(float(one @ other))
    assert np.mean(above) / np.mean(below) == pytest.approx(21, rel=0.1)
    ratios = np.array(above) / np.array(below)
    assert abs(np.median(ratios) - 21) > 3
    assert abs(np.mean(ratios) - 21) > 3


def test_the_interval_covers_as_often_as_it_says():
    """200 simulated experiments of 24 batches: 95 % intervals hold the known value in 90 to 99 % of them."""
    d, size, batches = 12, 16, 24
    w, hits, widths = start(d), 0, []
    for seed in range(200):
        rows = torch.stack([x.T @ (x @ w - y) / size for x, y in regression(d, batches, size, seed)]).numpy()
        groups = np.array_split(rows, 12)
        sums = np.stack([size * group.sum(axis=0) for group in groups])
        counts = np.array([float(len(group)) for group in groups])
        squares = np.array([size * (group**2).sum() for group in groups])
        _, _, (low, high) = _scale(sums @ sums.T, size * counts, squares, counts, 0.95)
        hits += low <= d + 1 <= high
        widths.append(high / low)
    assert 0.90 <= hits / 200 <= 0.99, hits
    assert np.median(widths) < 3


def test_groups_of_batches_change_the_interval_only():
    """With 20 sums in memory or all 50, the estimate is the same pairwise one."""
    batches = regression(6, 50, 8, 7)
    w = start(6)
    got = gradient_noise_scale(w, half_square, batches)
    g = torch.stack([x.T @ (x @ w - y) / 8 for x, y in batches])
    mean = g.mean(dim=0)
    trace = 8 * float((g - mean).square().sum()) / 49
    signal = float(mean @ mean) - trace / 400
    assert got.trace == pytest.approx(trace, rel=1e-10)
    assert got.signal == pytest.approx(signal, rel=1e-10)
    pairs = (g @ g.T).fill_diagonal_(0).sum() / (50 * 49)
    assert got.signal == pytest.approx(float(pairs), rel=1e-10)


def test_weighted_by_curvature():
    """H = diag(h), Σ = diag(s²): tr(HΣ) / (GᵀHG) in closed form, the gradient's noise additive."""
    h = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    s = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    x = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    noise = torch.randn(300, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * s

    def loss(x, batch):
        return (h * x**2).sum() / 2 + (batch @ x).mean()

    got = gradient_noise_scale(x, loss, noise, curvature=noise[0])
    g = h * x
    assert got.simple == pytest.approx(float((s**2).sum() / (g @ g)), rel=0.1)
    assert got.weighted == pytest.approx(float((h * s**2).sum() / (g @ (h * g))), rel=0.35)
    low, high = got.weighted_interval
    assert low < float((h * s**2).sum() / (g @ (h * g))) < high


def test_where_there_is_no_signal_the_interval_says_so():
    batches = regression(10, 12, 8, 0, noise=1.0)
    got = gradient_noise_scale(torch.zeros(10, dtype=torch.float64), half_square, batches)
    assert got.interval[1] == math.inf
    two = gradient_noise_scale(start(10), half_square, batches[:2])
    assert two.interval == (0.0, math.inf)


def test_batches_from_a_generator_with_progress_and_dict_and_given_sizes():
    batches = regression(5, 30, 8, 1)
    want = gradient_noise_scale(start(5), half_square, batches)
    seen = []
    got = gradient_noise_scale(
        start(5),
        lambda w, b: half_square(w, (b["x"], b["y"])),
        ({"x": x, "y": y} for x, y in batches),
        progress=lambda done, most: seen.append((done, most)),
    )
    assert got.simple == want.simple
    assert seen == [(i + 1, 0) for i in range(30)]
    doubled = gradient_noise_scale(start(5), half_square, batches, batch_size=16)
    assert doubled.simple == pytest.approx(want.simple * 2, rel=0.5)
    assert doubled.trace == pytest.approx(2 * want.trace)


def test_sgd_on_linear_regression_contracts_as_the_noise_scale_foretells():
    """Optimal rate B / (B + d + 1), contraction of the expected loss 1 − B / (B + d + 1) a step."""
    d, size = 8, 4
    best = size / (size + d + 1)

    def contractions(rate: float, steps: int) -> list[float]:
        w = start(d).repeat(30_000, 1)
        generator = torch.Generator().manual_seed(0)
        losses = [1.0]
        for _ in range(steps):
            x = torch.randn(len(w), size, d, dtype=torch.float64, generator=generator)
            g = torch.einsum("ebd,eb->ed", x, torch.einsum("ebd,ed->eb", x, w)) / size
            w = w - rate * g
            losses.append(float(w.square().sum(dim=1).mean()))
        return [b / a for a, b in pairwise(losses)]

    assert contractions(best, 3) == pytest.approx([1 - best] * 3, rel=0.02)
    for off in (0.6, 1.4):  # 1 − 2 r + r² / best at any other rate r
        r = off * best
        assert contractions(r, 1) == pytest.approx([1 - 2 * r + r * r / best], rel=0.02)


def test_sparsity_of_an_embedding():
    torch.manual_seed(0)
    for sparse in (False, True):
        model = nn.Sequential(nn.Embedding(100, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 2))
        tokens = torch.tensor([[1, 2], [2, 3]])
        got = gradient_sparsity(model, lambda m, b: m(b).square().mean(), tokens)
        table = got.tensors[0]
        assert (table.name, table.size) == ("0.weight", 400)
        assert table.empty_rows == pytest.approx(0.97)
        assert table.zeros == pytest.approx(0.97)
        assert got.tensors[1].zeros == 0
        assert got.zeros == pytest.approx(0.97 * 400 / 418)
        assert 0 < got.spread < 0.1


def test_a_tensor_without_numbers_has_no_rows():
    x = torch.ones(3, dtype=torch.float64)
    got = gradient_sparsity([x, torch.zeros(0)], lambda p, _: p[0].sum() + p[1].sum(), None)
    assert (got.zeros, got.empty_rows, got.tensors[1].size) == (0, 0, 0)


def test_a_quadratic_is_its_own_model_and_a_step_too_far_is_seen():
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    bowl = quadratic_model(x, lambda x, _: (x**2).sum(), None, -x, [0.1, 1.0, 3.0])
    np.testing.assert_allclose(bowl.ratio, 1, rtol=1e-12)
    assert bowl.best == pytest.approx(1)
    cliff = quadratic_model(
        x, lambda x, _: torch.log(3 - x[0]) * -1, None, torch.tensor([5.0, 0.0]), [0.001, 1.0]
    )
    assert cliff.actual[1] == -math.inf
    assert cliff.ratio[0] == pytest.approx(1, abs=0.02)


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 32, 10, generator=generator)
    return model, [(b, (b[:, :3] + 0.3 * b[:, 3:6]).argmax(dim=1)) for b in x]


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_range_test_finds_where_the_loss_falls(kind):
    model, batches = classifier()
    optimizer = kind(model.parameters(), lr=1e-3)
    got = range_test(model, cross_entropy, batches, optimizer, lowest=1e-5, highest=100, steps=80)
    assert got.interval is not None
    assert got.interval[0] < got.suggestion < got.interval[1]
    assert got.interval[0] > 1e-4
    assert max(got.suggestions) / min(got.suggestions) < 30
    assert "does not measure stability" in repr(got)


def test_every_learning_rate_gets_a_step_and_all_sweeps_start_alike():
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    got = range_test(
        x, lambda x, _: (x**2).sum() / 2, [None], torch.optim.SGD([x], lr=1.0), highest=1.0, steps=20
    )
    w, losses = 3.0, []
    for rate in np.geomspace(1e-6, 1.0, 20):
        losses.append(w * w / 2)
        w -= rate * w
    np.testing.assert_allclose(got.losses, [losses] * 3, rtol=1e-12)
    assert got.stopped_at == (math.inf,) * 3


def test_a_range_test_is_no_measurement_of_stability():
    """A quadratic with limit 2: the minimum of the curve lies far beyond it."""
    x = torch.full((3,), 5.0, dtype=torch.float64, requires_grad=True)
    got = range_test(
        x, lambda x, _: (x**2).sum() / 2, [None], torch.optim.SGD([x]), lowest=1e-4, highest=10, sweeps=1
    )
    assert got.rates[np.nanargmin(got.losses[0])] > 2.2


def test_it_stops_on_nan_and_not_on_a_negative_loss():
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    falling = range_test(
        x, lambda x, _: x.sum() - 5, [None], torch.optim.SGD([x]), lowest=1e-3, highest=1.0, steps=20
    )
    assert np.isfinite(falling.losses).all()

    def wall(x, _):
        return torch.log(3 - x).sum()  # falls towards 3, and is NaN beyond

    stopped = range_test(x, wall, [None], torch.optim.SGD([x]), lowest=1e-2, highest=100, steps=30)
    assert all(0.1 < rate < 100 for rate in stopped.stopped_at)
    assert np.isnan(stopped.losses[:, -1]).all()


def test_noise_of_a_flat_loss_is_not_taken_for_progress():
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = range_test(
        x, lambda x, b: b + 1e-9 * x.sum(), list(noise), torch.optim.SGD([x]), highest=1.0, steps=60
    )
    assert got.interval is None
    assert "never fell beyond its noise" in repr(got)


def test_noise_of_1e_4_does_not_move_the_suggestion():
    """By linear lr the steepest point would jump by decades; by log lr it stays."""
    x = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    noise = list(1e-4 * torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def run(scale):
        return range_test(
            x,
            lambda x, b: (x**2).sum() / 2 + scale * b,
            noise,
            torch.optim.SGD([x]),
            lowest=1e-7,
            highest=1.0,
        )

    assert run(1.0).suggestion == pytest.approx(run(0.0).suggestion, rel=0.3)
