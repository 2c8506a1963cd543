"""Rates that theory promises on quadratics, ½ Σ h w²."""

import math

import numpy as np
import pytest

from schuss.rules import SGD, Adam, Lion, Rprop

LOW, HIGH = 1.0, 100.0
KAPPA = HIGH / LOW
ROOT = math.sqrt(KAPPA)


def step_by_step(rule, h, w, steps):
    """Yield the weights of a descent on ½ Σ h w², from `w`."""
    from schuss.compile.reference import Reference

    reference = Reference(rule, np.array(w))
    for _ in range(steps):
        yield reference.step(h * reference.w).copy()


def test_gradient_descent_contracts_by_kappa_minus_one_over_kappa_plus_one():
    h = np.array([LOW, 30.0, HIGH])
    norms = [np.linalg.norm(w) for w in step_by_step(SGD(lr=2 / (HIGH + LOW)), h, [1.0, 1.0, 1.0], 400)]
    assert norms[-1] / norms[-2] == pytest.approx((KAPPA - 1) / (KAPPA + 1), rel=1e-8)


def test_gradient_descent_is_stable_up_to_two_over_the_curvature():
    for factor, grows in ((0.999, False), (1.001, True)):
        *_, w = step_by_step(SGD(lr=factor * 2 / HIGH), np.array([HIGH]), [1.0], 2000)
        assert (abs(w.item()) > 1) is grows


def iteration(rule, h):
    """The 2 × 2 matrix that takes (w, v) to the next, read off one step of the page itself."""
    scalars = rule.coefficients(2)
    columns = [rule.update_momentum(w, h * w, v, **scalars) for w, v in ((1.0, 0.0), (0.0, 1.0))]
    return np.array(columns).T


def radius(rule, h):
    return np.abs(np.linalg.eigvals(iteration(rule, h))).max()


BETA = ((ROOT - 1) / (ROOT + 1)) ** 2
HEAVY_BALL = SGD(lr=4 / (math.sqrt(HIGH) + math.sqrt(LOW)) ** 2, momentum=BETA)
NESTEROV = SGD(lr=1 / HIGH, momentum=(ROOT - 1) / (ROOT + 1), nesterov=True)
TUNED = SGD(
    lr=4 / (3 * HIGH + LOW),
    momentum=(math.sqrt(3 * KAPPA + 1) - 2) / (math.sqrt(3 * KAPPA + 1) + 2),
    nesterov=True,
)


@pytest.mark.parametrize(
    ("rule", "rate"),
    [
        (HEAVY_BALL, math.sqrt(BETA)),
        (NESTEROV, 1 - 1 / ROOT),
        (TUNED, 1 - 2 / math.sqrt(3 * KAPPA + 1)),
    ],
    ids=["heavy ball", "Nesterov", "Nesterov tuned"],
)
def test_the_spectral_radius_of_momentum(rule, rate):
    """The worst curvature contracts at the known rate. (Double roots: half of the digits are the eigenvalues' own.)"""
    worst = max(radius(rule, h) for h in np.geomspace(LOW, HIGH, 201))
    assert worst == pytest.approx(rate, rel=1e-6)


def test_the_heavy_balls_exact_path():
    """At the worst curvature the root is double: w_t = (a + b t) rᵗ, with r = −√β at L and √β at μ."""
    for h, r in ((LOW, math.sqrt(BETA)), (HIGH, -math.sqrt(BETA))):
        path = [1.0, *(w.item() for w in step_by_step(HEAVY_BALL, np.array([h]), [1.0], 60))]
        b = path[1] / r - 1
        for t, w in enumerate(path):
            assert w == pytest.approx((1 + b * t) * r**t, rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (SGD(momentum=0.9), 2 * 1.9 / HIGH),
        (SGD(momentum=0.9, nesterov=True), 2 * 1.9 / ((1 + 2 * 0.9) * HIGH)),
        (SGD(momentum=0.9, dampening=0.9), 2 * 1.9 / (0.1 * HIGH)),
    ],
    ids=["heavy ball", "Nesterov", "averaged"],
)
def test_limits_of_stability(rule, limit):
    from dataclasses import replace

    assert radius(replace(rule, lr=0.999 * limit), HIGH) < 1
    assert radius(replace(rule, lr=1.001 * limit), HIGH) > 1


def test_adams_first_step_is_the_rate_whatever_the_gradient():
    rule = Adam(lr=0.125, eps=0.0)
    for g in (1e-12, -1e-3, 1.0, 1e6):
        w, *_ = rule.update(0.0, g, 0.0, 0.0, **rule.coefficients(1))
        assert w == pytest.approx(-math.copysign(0.125, g), rel=1e-14)


def test_lion_moves_every_weight_by_the_rate():
    *_, before, after = step_by_step(Lion(lr=0.01), np.array([1.0, 100.0, 1e-3]), [3.0, -2.0, 1.0], 20)
    assert np.abs(after - before) == pytest.approx(np.full(3, 0.01), rel=1e-10)


def test_rprop_finds_the_bottom_of_any_separable_bowl():
    """It sees signs alone: any curvature takes the same path, to within its least length."""
    h = np.array([1e-8, 1.0, 1e8])
    *_, w = step_by_step(Rprop(lr=0.1), h, [3.0, 3.0, 3.0], 120)
    assert (w == w[0]).all()
    assert np.abs(w).max() < 1e-4
