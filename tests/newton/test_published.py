"""Published problems from their standard starts to their published optima."""

import pytest
import torch

from schuss.newton import LBFGS, GaussNewton, Newton, NewtonCG


def best(optimizer, closure, solved, limit):
    """The lowest loss within `limit` steps, or as soon as the problem is solved."""
    lowest = float("inf")
    for _ in range(limit):
        optimizer.step(closure)
        lowest = min(lowest, optimizer.report.loss_after)
        report = optimizer.report
        if solved(2 * lowest) or not report.accepted or report.first_predicted <= 1e-20 * report.loss_before:
            break
    return 2 * lowest  # the loss is half the sum of squares


def start(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_gauss_newton_solves_every_problem_of_more_garbow_hillstrom(published):
    w = start(published.start)
    optimizer = GaussNewton([w], full_batch=True)
    found = best(optimizer, lambda: published.residual(w), published.solved, 300)
    assert published.solved(found), optimizer.report


UNSOLVED = {
    Newton: {"Biggs EXP6"},  # ends in the minimum at infinity, 0.30636...
    LBFGS: {"Watson 12"},  # κ about 1e13: the last digits take more than the limit
}


@pytest.mark.parametrize("method", [Newton, LBFGS])
def test_methods_for_any_loss_solve_them_too(method, published):
    w = start(published.start)
    optimizer = method([w], full_batch=True)
    found = best(optimizer, lambda: 0.5 * published.loss(w), published.solved, 600)
    assert published.solved(found) == (published.name not in UNSOLVED[method]), optimizer.report


EASY = ("Rosenbrock", "Freudenstein-Roth", "Helical valley", "Wood", "Box three-dimensional", "Chebyquad 8")


@pytest.mark.parametrize("name", EASY)
def test_newton_cg_solves_them_by_products(name, problems):
    published = problems[name]
    w = start(published.start)
    optimizer = NewtonCG([w], full_batch=True)
    found = best(optimizer, lambda: 0.5 * published.loss(w), published.solved, 400)
    assert published.solved(found), optimizer.report


def test_data_reproduce_the_certified_residual_sums(dataset):
    certified = torch.tensor(dataset.certified, dtype=torch.float64)
    assert float(dataset.loss(certified)) == pytest.approx(dataset.rss, rel=1e-9, abs=1e-20)


@pytest.mark.parametrize("which", [0, 1])
def test_gauss_newton_fits_nist_to_the_certified_parameters(dataset, which):
    w = start(dataset.starts[which])
    optimizer = GaussNewton([w], full_batch=True)
    lowest = best(optimizer, lambda: dataset.residual(w), lambda value: False, 1200)
    assert lowest == pytest.approx(dataset.rss, rel=1e-8, abs=1e-20)
    digits = 1e-3 if dataset.name.startswith("Lanczos") else 1e-6  # three exponentials are nearly dependent
    order = sorted if dataset.name.startswith("Lanczos") else list
    assert order(w.tolist()) == pytest.approx(order(dataset.certified), rel=digits)
