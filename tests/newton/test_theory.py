"""What theory says of one step: quadratics, saddles, the pure-Newton trace, models against brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schuss.newton import LBFGS, GaussNewton, Newton, NewtonCG, SingularHessian
from schuss.newton.linesearch import Probe, strong_wolfe
from schuss.newton.region import KrylovModel, SpectralModel


def leaf(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def rosenbrock(w):
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def test_pure_newton_on_rosenbrock_takes_the_known_path():
    w = leaf(-1.2, 1.0)
    optimizer = Newton([w], damping=None)
    losses = [float(optimizer.step(lambda: rosenbrock(w))) for _ in range(6)]
    assert losses[5] == pytest.approx(1.85e-11, rel=1e-2, abs=0)
    assert losses[:5] == pytest.approx([24.2, 4.731884, 1411.845, 0.055966, 0.313189], rel=1e-5)


@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e6, 1e10])
@pytest.mark.parametrize("damping", ["region", None])
def test_one_newton_step_solves_a_quadratic(kappa, damping):
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, -math.log10(kappa), 8, dtype=torch.float64)
    h, answer = (q * values) @ q.T, torch.randn(8, dtype=torch.float64, generator=generator)
    w = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = Newton([w], damping=damping)
    optimizer.step(lambda: 0.5 * (w - answer) @ h @ (w - answer))
    report = optimizer.report
    assert report.trials == 1
    assert report.ratio == pytest.approx(1.0, abs=1e-9)
    assert report.loss_after <= 1e-12 * report.loss_before
    assert (w - answer).norm() <= 1e-15 * 1e3 * kappa * answer.norm()


def test_longley_in_one_step_in_float64_and_a_warning_in_float32():
    rows = [
        (83.0, 234289, 2356, 1590, 107608, 1947, 60323),
        (88.5, 259426, 2325, 1456, 108632, 1948, 61122),
        (88.2, 258054, 3682, 1616, 109773, 1949, 60171),
        (89.5, 284599, 3351, 1650, 110929, 1950, 61187),
        (96.2, 328975, 2099, 3099, 112075, 1951, 63221),
        (98.1, 346999, 1932, 3594, 113270, 1952, 63639),
        (99.0, 365385, 1870, 3547, 115094, 1953, 64989),
        (100.0, 363112, 3578, 3350, 116219, 1954, 63761),
        (101.2, 397469, 2904, 3048, 117388, 1955, 66019),
        (104.6, 419180, 2822, 2857, 118734, 1956, 67857),
        (108.4, 442769, 2936, 2798, 120445, 1957, 68169),
        (110.8, 444546, 4681, 2637, 121950, 1958, 66513),
        (112.6, 482704, 3813, 2552, 123366, 1959, 68655),
        (114.2, 502601, 3931, 2514, 125368, 1960, 69564),
        (115.7, 518173, 4806, 2572, 127852, 1961, 69331),
        (116.9, 554894, 4007, 2827, 130081, 1962, 70551),
    ]
    certified = [
        -3482258.63459582,
        15.0618722713733,
        -0.358191792925910e-1,
        -2.02022980381683,
        -1.03322686717359,
        -0.511041056535807e-1,
        1829.15146461355,
    ]
    data = torch.tensor(rows, dtype=torch.float64)
    X, y = torch.cat([torch.ones(16, 1, dtype=torch.float64), data[:, :6]], dim=1), data[:, 6]
    for make, squares in (
        (lambda w: Newton([w]), False),
        (lambda w: Newton([w], damping=None), False),
        (lambda w: GaussNewton([w]), True),
    ):
        w = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        make(w).step(lambda w=w, s=squares: X @ w - y if s else 0.5 * (X @ w - y).square().sum())
        assert w.tolist() == pytest.approx(certified, rel=1e-8)
    w32 = torch.zeros(7, requires_grad=True)
    with pytest.warns(UserWarning, match="Use float64 weights"):
        Newton([w32]).step(lambda: 0.5 * (X.float() @ w32 - y.float()).square().sum())


def test_gauss_newton_at_the_origin_takes_the_whole_step():
    X = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None] ** torch.arange(3)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = GaussNewton([w])
    optimizer.step(lambda: X @ (w - 1e6))
    assert optimizer.report.trials == 1
    assert w.tolist() == pytest.approx([1e6] * 3)


@pytest.mark.parametrize("method", [Newton, NewtonCG])
@pytest.mark.parametrize("place", [(1.0, 0.0), (1.0, 1e-3), (0.3, -0.3), (0.0, 0.0), (0.0, 2.0)])
def test_a_saddle_is_left_along_its_fall(method, place):
    w = leaf(*place)
    optimizer = method([w])
    for _ in range(12):
        optimizer.step(lambda: 0.5 * (w[0] ** 2 - w[1] ** 2))
        assert optimizer.report.actual > 0
        assert float(w.detach().norm()) > 1e-4
    assert optimizer.report.loss_after < -1e-3


def test_the_pure_step_lands_on_the_saddle_as_the_textbook_says():
    w = leaf(1.0, 0.5)
    Newton([w], damping=None).step(lambda: 0.5 * (w[0] ** 2 - w[1] ** 2))
    assert w.tolist() == [0.0, 0.0]


def test_a_singular_hessian_is_said_and_the_weights_stay():
    w = leaf(1.0, 2.0)
    with pytest.raises(SingularHessian, match=r"has no inverse here.*weights are unchanged"):
        Newton([w], damping=None).step(lambda: (w[0] + w[1] - 1) ** 2)
    assert w.tolist() == [1.0, 2.0]
    optimizer = Newton([w])
    optimizer.step(lambda: (w[0] + w[1] - 1) ** 2)
    assert w.tolist() == pytest.approx([0.0, 1.0])  # the shortest way to the line
    assert "singular, rank 1 of 2" in optimizer.report.stopped


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.floats(1e-3, 1e2), shift=st.floats(-2, 2))
def test_the_spectral_step_beats_every_point_of_the_ball(seed, radius, shift):
    random = np.random.default_rng(seed)
    a = random.standard_normal((4, 4))
    h, g = (a + a.T) / 2 + shift * np.eye(4), random.standard_normal(4)
    if seed % 3 == 0:  # the hard case: nothing of g along the lowest curvature
        bottom = np.linalg.eigh(h)[1][:, 0]
        g -= bottom * (bottom @ g)
    values, basis = torch.linalg.eigh(torch.from_numpy(h))
    model = SpectralModel(values, basis, torch.ones(4, dtype=torch.float64), basis.T @ torch.from_numpy(g))
    trial = model.within(radius)
    s = trial.step.numpy()
    assert np.linalg.norm(s) <= radius * (1 + 1e-5)
    assert trial.predicted == pytest.approx(-(g @ s + s @ h @ s / 2), rel=1e-8, abs=1e-12)
    others = random.standard_normal((2000, 4))
    others *= radius * random.uniform(0, 1, (2000, 1)) ** 0.25 / np.linalg.norm(others, axis=1, keepdims=True)
    lowest = np.min(others @ g + np.einsum("ij,jk,ik->i", others, h, others) / 2)
    assert -trial.predicted <= lowest + 1e-8 * abs(lowest)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1.5), knots=st.sampled_from([2, 4, 20]))
def test_a_shorter_krylov_step_is_found_without_products_and_predicted_right(seed, share, knots):
    random = np.random.default_rng(seed)
    a = random.standard_normal((6, 6))
    h = torch.from_numpy(a @ a.T + 0.1 * np.eye(6) - (3 if seed % 2 else 0) * np.eye(6))
    g = torch.from_numpy(random.standard_normal(6))
    model = KrylovModel(g, lambda v: h @ v, 1e-10, 12, knots=knots)
    spent = model.products
    far = model.within(math.inf)
    trial = model.within(share * far.length)
    assert model.products == spent
    assert trial.step.norm() <= share * far.length * (1 + 1e-9)
    expected = -float(g @ trial.step + trial.step @ h @ trial.step / 2)
    assert trial.predicted == pytest.approx(expected, rel=1e-6, abs=1e-10)
    assert trial.predicted > 0


def test_conjugate_gradients_with_four_distinct_eigenvalues_take_four_products():
    h = torch.tensor([1.0, 1.0, 3.0, 3.0, 7.0, 7.0, 20.0, 20.0], dtype=torch.float64)
    model = KrylovModel(torch.ones(8, dtype=torch.float64), lambda v: h * v, 1e-10, 8)
    assert model.products == 4


FUNCTIONS = [  # (φ, φ', name): Moré & Thuente's (1994) first three, slopes from 1e-3 up
    (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2, 1e-3, 1e-1),
    (
        lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
        lambda t: 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3,
        0.1,
        0.1,
    ),
    (lambda t: math.cosh(t - 2), lambda t: math.sinh(t - 2), 1e-4, 0.1),
]


@pytest.mark.parametrize(("value", "slope", "c1", "c2"), FUNCTIONS)
@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
def test_a_line_search_ends_in_the_strong_wolfe_conditions(value, slope, c1, c2, first):
    def evaluate(t):
        try:
            return Probe(t, value(t), slope(t), None)
        except OverflowError:
            return Probe(t, math.inf, math.nan, None)

    start = evaluate(0.0)
    found, used, _ = strong_wolfe(evaluate, start, first, c1=c1, c2=c2, limit=40)
    assert found is not None
    assert found.loss <= start.loss + c1 * found.t * start.slope
    assert abs(found.slope) <= c2 * abs(start.slope)
    assert used <= 20


def test_lbfgs_with_exact_pairs_meets_the_secant_equation():
    torch.manual_seed(0)
    w = leaf(-1.2, 1.0)
    optimizer = LBFGS([w])
    for _ in range(6):
        optimizer.step(lambda: rosenbrock(w))
    s, y = optimizer.memory["s"][-1], optimizer.memory["y"][-1]
    assert optimizer._smoothed(y).tolist() == pytest.approx(s.tolist(), rel=1e-9)


def test_gauss_newton_by_products_takes_the_dense_step():
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)

    def run(solver):
        w = leaf(0.5, -0.2, 0.1)
        optimizer = GaussNewton([w], solver=solver, radius=1e6)
        for _ in range(8):
            optimizer.step(lambda: w[0] * torch.tanh(w[1] * x + w[2]) - torch.sin(x))
        return w.detach(), optimizer.report.loss_after

    dense, products = run("dense"), run("cg")
    assert products[1] == pytest.approx(dense[1], rel=1e-6)


def test_softmax_curvature_is_the_hessian_of_a_linear_model():
    torch.manual_seed(0)
    X, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
    W = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def loss():
        return torch.nn.functional.cross_entropy(X @ W, y)

    by_products = GaussNewton(
        [W], loss="softmax", weight_decay=1e-2, radius=1e6, solver="cg", max_products=60
    )
    by_products.memory["eta"] = 1e-2
    steps = []
    for optimizer, closure in (
        (Newton([W], radius=0.05, weight_decay=1e-2), loss),
        (GaussNewton([W], loss="softmax", weight_decay=1e-2, radius=1e6), lambda: (X @ W, y)),
        (by_products, lambda: (X @ W, y)),
        (Newton([W], weight_decay=1e-2), loss),
    ):
        before = W.detach().clone()
        optimizer.step(closure)
        steps.append((W.detach() - before, optimizer.report))
        with torch.no_grad():
            W.copy_(before)
    short, dense, products, newton = steps
    assert short[1].step_norm < newton[1].step_norm
    assert torch.allclose(dense[0], newton[0], rtol=1e-8)
    assert products[1].first_predicted == pytest.approx(
        newton[1].first_predicted, rel=1e-3
    )  # CG solves to 1e-2
    assert dense[1].predicted == pytest.approx(newton[1].predicted, rel=1e-8)
