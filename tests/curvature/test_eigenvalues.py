"""Eigenvalues against dense eigh and against values that are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from schuss.curvature import (
    condition_number,
    extreme_eigenvalues,
    hvp,
    spectrum,
    stationary_point,
)
from schuss.curvature.lanczos import Krylov, lanczos


def rosenbrock(x, _):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def himmelblau(x, _):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def point(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def diagonal(values) -> tuple[torch.Tensor, object]:
    h = torch.as_tensor(values, dtype=torch.float64)
    return torch.zeros(len(h), dtype=torch.float64), lambda x, _: (h * x**2).sum() / 2


@pytest.mark.parametrize("kind", ["mlp", "attention", "convolution"])
@pytest.mark.parametrize("k", [1, 6])
def test_equal_to_dense_eigh(make, loss, dense_hessian, kind, k):
    model, batch = make(kind)
    want = torch.linalg.eigvalsh(dense_hessian(model, loss, batch)).numpy()
    got = extreme_eigenvalues(model, loss, batch, k=k)
    scale = abs(want).max()
    assert got.converged
    np.testing.assert_allclose(got.largest, want[::-1][:k], rtol=1e-8, atol=1e-13 * scale)
    np.testing.assert_allclose(got.smallest, want[:k], rtol=1e-8, atol=1e-13 * scale)


def test_a_larger_network_in_the_memory_of_24_vectors(make, loss, dense_hessian):
    """Restarts, and no more memory than promised: the basis itself is 19 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 10)).double()
    batch = torch.randn(60, 20, dtype=torch.float64), torch.randint(10, (60,))
    want = torch.linalg.eigvalsh(dense_hessian(model, loss, batch)).numpy()
    got = extreme_eigenvalues(model, loss, batch, k=4, vectors=24, products=2000)
    assert got.converged
    np.testing.assert_allclose(got.largest, want[::-1][:4], rtol=1e-8)
    np.testing.assert_allclose(got.smallest, want[:4], rtol=1e-8)


def test_residuals_are_those_of_the_vectors(make, loss):
    model, batch = make("mlp")
    got = extreme_eigenvalues(model, loss, batch, k=3, eigenvectors=True, products=24, tolerance=1e-14)
    values = np.concatenate([got.largest, got.smallest])
    vectors = torch.cat([got.largest_vectors, got.smallest_vectors])
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    for value, vector, residual in zip(values, vectors, got.residuals, strict=True):
        true = float((hvp(model, loss, batch, vector) - value * vector).norm())
        assert true == pytest.approx(residual, rel=1e-3, abs=1e-13)


def softmax_regression():
    x, y = load_digits(return_X_y=True)
    batch = torch.tensor(x / 16), torch.tensor(y)
    model = nn.Linear(64, 10, bias=False).double()
    nn.init.zeros_(model.weight)
    return model, batch


def test_softmax_regression_has_ninefold_eigenvalues_and_91_zeros(loss):
    """At W = 0 the Hessian is (I/10 − 11ᵀ/100) ⊗ XᵀX/n."""
    model, batch = softmax_regression()
    got = extreme_eigenvalues(model, loss, batch, k=10)
    np.testing.assert_allclose(got.largest[:9], 1.04552996869546, rtol=1e-13)
    gram = np.linalg.eigvalsh((batch[0].T @ batch[0]).numpy() / len(batch[0]))
    np.testing.assert_allclose(got.largest[9], gram[-2] / 10, rtol=1e-12)
    np.testing.assert_allclose(got.smallest, 0, atol=1e-14)
    kappa = condition_number(model, loss, batch)
    assert (kappa.zeros, kappa.negative) == (91, 0)
    positive = gram[gram > 1e-10]
    assert len(positive) * 9 + 91 == 640
    assert kappa.value == pytest.approx(positive[-1] / positive[0], rel=1e-6)


def softmax_hessian() -> torch.Tensor:
    x = softmax_regression()[1][0]
    classes = torch.eye(10, dtype=torch.float64) / 10 - torch.ones(10, 10, dtype=torch.float64) / 100
    return torch.kron(classes, x.T @ x / len(x))


def test_one_vector_alone_finds_copies_by_rounding_only():
    """Why blocks or probes: of nine copies one vector shows 1, 5 and 9 after 10, 40 and 80 steps."""
    h = softmax_hessian()
    draw = torch.Generator().manual_seed(0)

    def copies(steps: int) -> int:
        basis = torch.zeros(steps + 1, 640, dtype=torch.float64)
        space = Krylov(lambda rows: rows @ h, basis, 1, draw)
        while space.m < steps:
            space.grow()
        return int((abs(space.ritz().values - 1.04552996869546) < 1e-6).sum())

    assert [copies(steps) for steps in (10, 40, 80)] == [1, 5, 9]


def test_without_orthogonalisation_there_would_be_ghosts():
    """The negative control: the three-term recurrence alone returns a converged value again and again."""
    h = np.concatenate([[0.6476, 0.5392, 0.3993], np.linspace(-1e-2, 1e-2, 400)])
    q, before, beta = np.ones(403) / math.sqrt(403), np.zeros(403), 0.0
    alphas, betas = [], []
    for _ in range(60):
        w = h * q - beta * before
        alphas.append(float(q @ w))
        w -= alphas[-1] * q
        beta = float(np.linalg.norm(w))
        betas.append(beta)
        before, q = q, w / beta
    values = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
    assert (abs(values - 0.6476) < 1e-6).sum() >= 3


@pytest.mark.parametrize("copies", [1, 3, 5])
@pytest.mark.parametrize("memory", [None, 24])
def test_multiplicities_up_to_k_whatever_the_memory(copies, memory):
    inside = [4.0, 3.5, 3.25, 3.1, 3.05, *np.linspace(-1, 1, 200)]
    values = [5.0] * copies + inside + [-2.0] * copies
    x, f = diagonal(values)
    got = extreme_eigenvalues(x, f, None, k=copies, vectors=memory, products=3000)
    np.testing.assert_allclose(got.largest, 5, rtol=1e-10)
    np.testing.assert_allclose(got.smallest, -2, rtol=1e-10)
    assert got.converged
    assert got.confirmed


def test_residuals_hold_through_restarts_and_probes():
    """19 rows for 5 + 5 values of threefold eigenvalues: what probes left behind is counted."""
    values = [5.0] * 3 + [4.0, 3.8] + [*np.linspace(-1, 1, 200)] + [-1.7, -1.8] + [-2.0] * 3
    x, f = diagonal(values)
    got = extreme_eigenvalues(x, f, None, k=5, vectors=24, products=3000, eigenvectors=True, tolerance=1e-6)
    np.testing.assert_allclose(got.largest, [5, 5, 5, 4, 3.8], atol=1e-6)
    np.testing.assert_allclose(got.smallest, [-2, -2, -2, -1.8, -1.7], atol=1e-6)
    assert got.converged
    assert got.confirmed
    vectors = torch.cat([got.largest_vectors, got.smallest_vectors])
    theta = torch.tensor(np.concatenate([got.largest, got.smallest]))
    true = (vectors * torch.tensor(values) - theta[:, None] * vectors).norm(dim=1).numpy()
    assert (true <= got.residuals + 1e-13).all()
    assert true.max() > 1e-12  # it does test something


def test_copies_that_were_not_looked_for_are_said_to_be_unconfirmed():
    """Enough products for one vector to converge, and none left for a probe."""
    values = [5.0, 5.0, 4.0, 3.5, *np.linspace(-1, 1, 200), -2.0, -2.5, -3.0]
    x, f = diagonal(values)
    short = extreme_eigenvalues(x, f, None, k=3, vectors=24, tolerance=1e-4, products=16)
    assert short.converged
    assert not short.confirmed
    assert "copies not confirmed" in repr(short)
    np.testing.assert_allclose(short.largest, [5, 4, 3.5], rtol=1e-6)
    enough = extreme_eigenvalues(x, f, None, k=3, vectors=24, tolerance=1e-4, products=400)
    assert enough.confirmed
    np.testing.assert_allclose(enough.largest, [5, 5, 4], rtol=1e-6)


def test_no_ghosts_in_long_runs():
    """Without orthogonalisation in full, converged values would come again as ghosts."""
    values = np.concatenate([[0.6476, 0.5392, 0.3993], np.linspace(-1e-2, 1e-2, 400)])
    x, f = diagonal(values)
    got = extreme_eigenvalues(x, f, None, k=3, products=800)
    np.testing.assert_allclose(got.largest, [0.6476, 0.5392, 0.3993], rtol=1e-10)


def test_the_identity_zero_and_more_asked_than_there_is():
    for factor in (1.0, 0.0):
        x, f = diagonal([factor] * 30)
        got = extreme_eigenvalues(x, lambda x, b, f=f: f(x, b) + x.sum(), None, k=4)
        np.testing.assert_allclose(got.largest, factor, atol=1e-14)
        np.testing.assert_allclose(got.smallest, factor, atol=1e-14)
        assert got.converged
    x, f = diagonal([1.0, -3.0])
    got = extreme_eigenvalues(x, f, None, k=5)
    assert got.largest.tolist() == pytest.approx([1, -3])  # power iteration would answer −3
    assert got.smallest.tolist() == pytest.approx([-3, 1])


def test_float32_weights_agree_with_float64(make, loss):
    single, batch = make("mlp", torch.float32)
    double, _ = make("mlp")
    got = extreme_eigenvalues(single, loss, batch, k=3)
    double.load_state_dict(single.state_dict())
    want = extreme_eigenvalues(double, loss, (batch[0].double(), batch[1]), k=3)
    assert got.converged
    np.testing.assert_allclose(got.largest, want.largest, rtol=2e-5)
    np.testing.assert_allclose(got.smallest, want.smallest, rtol=2e-5, atol=2e-6)


def test_an_unfinished_run_says_so(make, loss):
    model, batch = make("mlp")
    got = extreme_eigenvalues(model, loss, batch, k=3, products=9)
    assert not got.converged
    assert "NOT converged" in repr(got)
    assert got.products <= 9


def test_gauss_newton_has_no_negative_eigenvalue(make, loss):
    model, batch = make("mlp")
    got = extreme_eigenvalues(model, loss, batch, k=3, matrix="ggn")
    assert got.smallest.min() > -1e-14
    assert got.largest[0] > 0.1
    assert extreme_eigenvalues(model, loss, batch, k=1).smallest[0] < -1e-3


def test_progress_is_told():
    x, f = diagonal(range(50))
    seen: list[tuple[int, int]] = []
    got = extreme_eigenvalues(x, f, None, k=2, progress=lambda done, most: seen.append((done, most)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == got.products <= seen[-1][1]


def test_many_weights_within_100_products_and_24_vectors():
    """The basis is the only memory that grows: 19 rows; gradient and product have the rest."""
    n = 300_000
    h = torch.linspace(-0.5, 1.0, n)
    h[:3], h[-3:] = torch.tensor([-3.0, -2.5, -2.0]), torch.tensor([5.0, 6.0, 8.0])
    seen: list[float] = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and function is torch.ops.aten.zeros.default:
                seen.append(out.numel() / n)
            return out

    with Largest():
        got = extreme_eigenvalues(torch.zeros(n), lambda x, _: (h * x**2).sum() / 2, None, k=3)
    assert got.converged
    assert got.confirmed
    assert got.products <= 100
    assert max(seen) <= 19
    np.testing.assert_allclose(got.largest, [8, 6, 5], rtol=1e-5)
    np.testing.assert_allclose(got.smallest, [-3, -2.5, -2], rtol=1e-5)


def test_many_weights_with_a_repeated_eigenvalue():
    h = torch.linspace(-0.5, 1.0, 200_000)
    h[:3], h[-3:] = torch.tensor([-3.0, -2.5, -2.0]), torch.tensor([6.0, 8.0, 8.0])
    got = extreme_eigenvalues(torch.zeros(200_000), lambda x, _: (h * x**2).sum() / 2, None, k=3)
    assert got.converged
    assert got.products <= 100
    np.testing.assert_allclose(got.largest, [8, 8, 6], rtol=1e-5)


def test_the_edge_of_a_bulk_counts_as_converged_within_a_hundredth():
    """Eigenvalues too close for 100 products: what is known is said, and it is true."""
    h = -torch.cos(torch.linspace(0, math.pi, 200_000))
    h[-2:] = torch.tensor([3.0, 4.0])
    x, f = torch.zeros(200_000), lambda x, _: (h * x**2).sum() / 2
    got = extreme_eigenvalues(x, f, None, k=2)
    assert (got.converged, got.confirmed, got.tolerance, got.products) == (True, False, 1e-2, 100)
    np.testing.assert_allclose(got.largest, [4, 3], rtol=1e-5)
    assert (got.residuals[:2] < 1e-4).all()
    assert 1e-4 < got.residuals[2:].max() < 0.04
    assert (abs(got.smallest + 1) < 0.02).all()
    strict = extreme_eigenvalues(x, f, None, k=2, tolerance=1e-6, products=40)
    assert not strict.converged


def test_the_condition_number_of_the_diabetes_data():
    x, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
    got = condition_number(
        torch.zeros(10, dtype=torch.float64), lambda w, _: (x @ w - y).square().sum() / 2, None
    )
    assert float(got) == pytest.approx(470.078, abs=1e-3)


def test_known_minima():
    got = extreme_eigenvalues(point(1, 1), rosenbrock, None, k=1)
    assert got.largest[0] == pytest.approx((1002 + math.sqrt(1002**2 - 1600)) / 2, rel=1e-12)
    assert got.largest[0] == pytest.approx(1001.6006, rel=1e-7)
    assert got.smallest[0] == pytest.approx(0.399361, rel=1e-6)
    assert float(condition_number(point(1, 1), rosenbrock, None)) == pytest.approx(2508.01, rel=1e-6)
    a, b = 2.0, 0.5
    valley = extreme_eigenvalues(point(a, b), lambda x, _: (x[0] * x[1] - 1) ** 2 / 2, None, k=1)
    assert valley.smallest[0] == pytest.approx(0, abs=1e-14)
    assert valley.largest[0] == pytest.approx(a * a + b * b)


def test_condition_number_where_only_the_ends_are_known():
    """Beyond 2000 weights: exact for a positive matrix, a stated lower bound where zeros hide the end."""
    values = np.geomspace(0.5, 50, 40).repeat(60)
    got = condition_number(*diagonal(values), None)
    assert got.converged
    assert got.value == pytest.approx(100, rel=1e-8)
    values[:600] = 0.0
    hidden = condition_number(*diagonal(values), None)
    assert not hidden.converged
    assert "at least" in repr(hidden)
    assert 1 < hidden.value <= 50 / values[values > 0].min() * (1 + 1e-9)
    with pytest.raises(ValueError, match="no positive part"):
        condition_number(*diagonal([-1.0, -2.0]), None)


def himmelblaus_derivatives(x: float, y: float):
    p, q = x * x + y - 11, x + y * y - 7
    gradient = np.array([4 * x * p + 2 * q, 2 * p + 4 * y * q])
    return gradient, np.array(
        [[12 * x * x + 4 * y - 42, 4 * (x + y)], [4 * (x + y), 12 * y * y + 4 * x - 26]]
    )


def himmelblaus_stationary_points() -> set[tuple[float, float]]:
    found: set[tuple[float, float]] = set()
    for x in np.random.default_rng(0).uniform(-5, 5, (200, 2)):
        for _ in range(40):
            gradient, hessian = himmelblaus_derivatives(*x)
            x = x - np.linalg.solve(hessian, gradient)
        if abs(gradient).max() < 1e-9:
            found.add((round(float(x[0]), 7) + 0.0, round(float(x[1]), 7) + 0.0))
    return found


def test_himmelblaus_nine_stationary_points():
    verdicts = []
    for x in himmelblaus_stationary_points():
        here = torch.tensor(x, dtype=torch.float64)
        got = stationary_point(here, himmelblau, None, tolerance=1e-5)
        assert got.stationary
        values = np.linalg.eigvalsh(himmelblaus_derivatives(*x)[1])
        assert [got.smallest, got.largest] == pytest.approx(list(values), rel=1e-10)
        verdicts.append(got.verdict)
        if got.verdict == "saddle":
            down = himmelblau(here + 1e-2 * got.escape, None)
            assert float(down) < float(himmelblau(here, None))
            assert float(got.escape.norm()) == pytest.approx(1)
        else:
            assert (got.escape is not None) == (got.verdict == "maximum")
    assert sorted(verdicts) == ["maximum"] + ["minimum"] * 4 + ["saddle"] * 4


def test_verdicts():
    assert stationary_point(point(0, 0), lambda x, _: x[0] ** 2 + x[1] ** 4, None).verdict == "flat"
    assert stationary_point(point(0, 0), lambda x, _: (x**4).sum(), None).verdict == "flat"
    away = stationary_point(point(1, 2), lambda x, _: (x[0] ** 2 - x[1] ** 2) / 2, None)
    assert away.verdict == "saddle"
    assert not away.stationary
    assert away.escape.tolist() == pytest.approx([0, 1])  # downhill: away from the saddle
    x, f = diagonal([*np.linspace(1e-3, 1, 300)])
    assert stationary_point(x, f, None, products=2).verdict == "undecided"
    assert stationary_point(x, f, None).verdict == "minimum"


def test_spectrum_within_its_error_bars(make, loss, dense_hessian):
    model, batch = make("convolution")
    values = torch.linalg.eigvalsh(dense_hessian(model, loss, batch)).numpy()
    got = spectrum(model, loss, batch, probes=12, steps=25)
    assert abs(got.trace - values.sum()) < 3.5 * got.trace_error
    assert got.trace_error < 0.5 * abs(values).sum()
    wide = (values.max() - values.min()) / 10
    density, error = got.on(values, wide)
    bells = np.exp(-(((values - values[:, None]) / wide) ** 2) / 2)
    want = bells.mean(axis=1) / (wide * math.sqrt(2 * math.pi))
    assert (abs(density - want) < 4 * error + 1e-9).mean() > 0.95
    assert float(np.trapezoid(got.density, got.grid)) == pytest.approx(1, abs=1e-3)
    share, error = got.below(-0.02)
    assert abs(share - (values < -0.02).mean()) < 4 * error + 0.02
    np.testing.assert_allclose(got.weights.sum(axis=1), 1, rtol=1e-12)
    again = [spectrum(model, loss, batch, probes=2, steps=4).nodes for _ in range(2)]
    assert np.array_equal(*again)


def test_the_error_bars_of_a_trace_are_honest():
    """Over many seeds, the known value is within two standard errors about as often as Student's t says."""
    x, f = diagonal(np.linspace(-1, 3, 60))
    off = [
        (s.trace - 60) / s.trace_error
        for s in (spectrum(x, f, None, probes=8, steps=1, points=2, seed=seed) for seed in range(100))
    ]
    assert 0.84 < np.mean(np.abs(off) < 2.0) < 0.98  # t with 7 degrees: 0.914


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("rows", [20, 60])
def test_a_matrix_that_is_not_symmetric_is_said_and_confirmed_as_nothing(block, rows):
    """With and without restarts; a symmetric one is symmetric to rounding, and what was found is no surer than that."""
    random = torch.Generator().manual_seed(0)
    part = torch.randn(60, 60, dtype=torch.float64, generator=random) / 60**0.5
    symmetric = (part + part.T) / 2 + torch.diag(torch.linspace(-3, 5, 60, dtype=torch.float64))
    skew = 0.02 * (part - part.T) / 2

    def measure(matrix):
        return lanczos(
            lambda rows: rows @ matrix.T,
            torch.zeros(rows, 60, dtype=torch.float64),
            block=block,
            low=3,
            high=3,
            tolerance=1e-8,
            budget=3000,
            generator=torch.Generator().manual_seed(0),
        )

    found = measure(symmetric)
    assert found.asymmetry < 1e-7  # directions that probes gave up are known to the tolerance
    assert found.converged
    with pytest.warns(UserWarning, match=r"not those of a symmetric matrix.*differ by 0\.\d%"):
        found = measure(symmetric + skew)
    assert not found.converged
    assert not found.confirmed
    true = float(2 * skew.abs().max() / np.abs(found.values).max())
    assert 0.1 * true < found.asymmetry < 2 * true
    assert found.residuals.min() >= 0.99 * found.asymmetry * np.abs(found.values).max()


def test_the_spectrum_of_a_linear_loss_is_zero():
    got = spectrum(torch.ones(9, dtype=torch.float64), lambda x, _: x.sum(), None, probes=2)
    assert not got.nodes.any()
    assert got.trace == 0
