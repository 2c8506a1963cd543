"""Every page against its paper, over twelve decades of gradients with exact zeros among them."""

import numpy as np
import pytest

from schuss.compile.matrices import POLYNOMIALS, orthogonal
from schuss.compile.reference import Reference
from schuss.rules import ASGD, TABLE, Muon

STEPS = 9


def path(rule, start, gradients):
    reference = Reference(rule, start)
    return np.array([reference.step(g) for g in gradients])


@pytest.mark.parametrize("seed", range(2))
def test_the_page_is_the_paper(case, paper, decades, starts, close, seed):
    gradients = decades(STEPS, len(starts), seed, -6, 6)
    close(path(case.rule, starts, gradients), paper(case.name, case.rule, starts, gradients), 1e-12)


def test_gradients_that_hardly_change(case, paper, starts, close):
    """Steady gradients with a little noise, as a training run's."""
    random = np.random.default_rng(7)
    gradients = random.standard_normal(len(starts)) + 0.3 * random.standard_normal((STEPS, len(starts)))
    close(
        path(case.rule, starts, gradients),
        paper(case.name, case.rule, starts, gradients),
        1e-12,
        condition=100,
    )


def test_asgd_averages_its_path():
    """From step t₀ + 2 on, the average of all weights since; before, the weight itself."""
    rule = ASGD(lr=0.1, t0=3)
    reference = Reference(rule, np.array([2.0]))
    seen = []
    for t in range(1, 12):
        seen.append(reference.step(np.array([np.sin(t)])).item())
        expected = seen[-1] if t <= 5 else np.mean(seen[4:])
        assert reference.state[0].item() == pytest.approx(expected, rel=1e-13)


def test_a_rate_inside_the_velocity_outlives_its_fall(paper):
    """Constant rates: the same path. A rate that rises tenfold at step 20: −140 outside, −202 inside, after 40."""
    from dataclasses import replace

    found = []
    for inside in (False, True):
        rule = TABLE["SGD"].rule(lr=1.0, momentum=0.9, lr_inside_velocity=inside)
        w, v = 0.0, 0.0
        for t in range(1, 41):
            now = replace(rule, lr=0.1 if t > 20 else 1.0)
            w, v = now.update_momentum(w, 1.0, v, **now.coefficients(t))
        found.append(w)
    # In closed form: Σ over gradients s of Σ over later steps t of rate · 0.9^(t − s), the rate taken at t or at s.
    rate = [1.0] * 20 + [0.1] * 20
    for w, at in zip(found, ((lambda t, s: rate[t]), (lambda t, s: rate[s])), strict=True):
        expected = -sum(at(t, s) * 0.9 ** (t - s) for t in range(40) for s in range(t + 1))
        assert w == pytest.approx(expected, rel=1e-12)
    assert [round(w) for w in found] == [-140, -202]


def test_mars_bounds_long_gradients_only():
    """Of gradients whose norm stays below 1, without a difference to the last, MARS is AdamW."""
    gradients = 0.05 * np.random.default_rng(4).standard_normal((STEPS, 12))
    start = np.linspace(-1, 1, 12)
    same = dict(lr=0.02, beta1=0.9, beta2=0.99, eps=1e-3, weight_decay=0.1)
    mars, adamw = TABLE["MARS"].rule(gamma=0.0, **same), TABLE["AdamW"].rule(**same)
    assert np.allclose(path(mars, start, gradients), path(adamw, start, gradients), rtol=1e-13, atol=0)
    assert not np.allclose(path(mars, start, 1e3 * gradients), path(adamw, start, 1e3 * gradients), rtol=1e-6)


def test_matrices_move_as_the_singular_values_say(matrix_case, matrices, paper, close):
    """Gradients of sizes from 1e-6 to 1e6, one of them of rank 1."""
    random = np.random.default_rng(8)
    for start in matrices:
        gradients = random.standard_normal((STEPS, *start.shape)) * 10.0 ** np.linspace(-6, 6, STEPS).reshape(
            -1, *[1] * start.ndim
        )
        gradients[3, 1:] = gradients[3, :1]
        expected = paper(matrix_case.name, matrix_case.rule, start, gradients)
        close(path(matrix_case.rule, start, gradients), expected, 1e-9)


def test_without_momentum_many_iterations_step_along_the_polar_factor():
    gradient = np.random.default_rng(3).standard_normal((5, 8))
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    rule = Muon(lr=0.5, momentum=0.0, weight_decay=0.0, ns_a=1.5, ns_b=-0.5, ns_c=0.0, ns_steps=40)
    assert np.allclose(
        path(rule, np.zeros((5, 8)), [gradient])[0], -0.5 * left @ right, rtol=1e-12, atol=1e-12
    )


def test_the_sum_of_gradients_steps_as_their_average_does():
    """The paper's B ← μ B + G is this one's B over 1 − μ, and O forgets the scale."""
    random = np.random.default_rng(5)
    gradients, w, b = random.standard_normal((6, 3, 4)), np.ones((3, 4)), 0.0
    found = path(Muon(lr=0.02, weight_decay=0.0, polynomials="quintic8"), w, gradients)
    for g, at in zip(gradients, found, strict=True):
        b = 0.95 * b + g
        w = w - 0.02 * orthogonal(g + 0.95 * b, POLYNOMIALS["quintic8"])
        assert np.allclose(at, w, rtol=1e-12)
