"""What a diagnosis spends: all where that is affordable, less and said so where it is not."""

from dataclasses import replace

import pytest

from schuss.lab.diagnose import Measurement, advise, caveat, effort, measure, render
from schuss.lab.entries import find
from schuss.lab.tasks import load


@pytest.fixture
def dear(monkeypatch):
    """A machine on which a product of 64 examples takes a second, and a gradient a tenth of one."""
    monkeypatch.setattr(effort, "_seconds", lambda *_: (1.0, 0.1))


def test_what_is_cheap_is_measured_whole():
    found = effort.affordable(load("digits"), 80, 60.0, 0)
    assert replace(found, seconds=0.0) == effort.Effort(512)
    assert 0 < found.seconds < 60


@pytest.mark.parametrize(
    ("budget", "examples", "products"),
    [(1e5, 512, 720), (3100.0, 256, 720), (1200.0, 128, 490), (1.0, 64, 126)],
)
def test_what_is_dear_is_cut_until_it_fits(dear, budget, examples, products):
    """720 products of 512 examples are 5760 s; 80 steps and 518 gradients of a batch of 64 some 60 more."""
    found = effort.affordable(load("digits"), 80, budget, 0)
    assert (found.examples, found.all_products) == (examples, products)
    at_all = 720 * 8 if examples == 512 else None
    if at_all:
        assert found.seconds == pytest.approx(at_all + 0.1 * (80 + 180 + 128 + effort.TIMED_BATCHES))
    assert (found.seconds <= budget) == (products != 126)  # less than that is not a diagnosis


def test_the_run_itself_counts(dear):
    task = load("digits")
    short, long = (effort.affordable(task, steps, 1e9, 0).seconds for steps in (50, 300))
    assert long - short == pytest.approx(250 * 0.1)


def test_too_few_products_leave_bounds_that_are_marked_and_not_called_measured(monkeypatch):
    """The ends of the digits network in 3 products: inside those of 60, marked, and said on the page."""
    task, entry = load("digits"), find("sgd")
    few = effort.Effort(128, measurements=3, products=3, lanczos=4, sweeps=1, batches=8)
    many = replace(few, products=60)
    chosen = []
    for spent in (few, many):
        monkeypatch.setattr(effort, "efforts", lambda _, spent=spent: [spent])
        chosen.append(measure(task, entry, "digits", steps=4))
    bounded, known = chosen
    for each, better in zip(bounded.measurements, known.measurements, strict=True):
        assert each.bounds == ("≥ ", "≤ ", "≥ ", "≤ ")
        assert better.bounds == ("", "", "", "")
        assert each.largest < better.largest
        assert each.smallest > better.smallest
        assert each.largest_lr > better.largest_lr
    assert bounded.examples == 128
    assert "had not converged in 3 Hessian-vector products" in caveat(bounded)
    assert caveat(known) == ""
    (rate,) = (each for each in advise(bounded) if each.topic == "learning rate")
    assert rate.sure == "an indication"
    assert "stable up to at most" in rate.because
    page = render(bounded, advise(bounded), "schuss diagnose digits")
    assert "had not converged in 3 Hessian-vector products" in page
    assert "≥ " in page
    assert "128 training examples" in page
    assert "had not converged" not in render(known, advise(known), "schuss diagnose digits")


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"budget=0 is not greater than 0"):
        measure(load("diabetes"), find("sgd"), "diabetes", budget=0)


def test_a_loss_without_second_derivatives_is_said_once():
    found = measure(load("sparse"), find("sgd"), "sparse", steps=2, budget=1e-9)
    assert found.measurements[0].largest is not None
    assert found.missing["exact Hessian-vector products"].startswith(
        "An operation in the loss has no second derivative"
    )


@pytest.mark.parametrize(
    ("residuals", "bounds"),
    [
        ((0.1, 0.0, None), ("≥ ", "", "", "")),
        ((0.0, 0.1, None), ("", "≤ ", "", "")),
        ((0.0, 0.0, 0.1), ("", "", "≥ ", "≤ ")),
        ((1e-4, None, 1e-4), ("", "", "", "")),
    ],
)
def test_each_bound_follows_its_own_residual(residuals, bounds):
    assert Measurement(0, 1.0, 2.0, -1.0, 2.0, 4.0, 1.0, residuals).bounds == bounds
