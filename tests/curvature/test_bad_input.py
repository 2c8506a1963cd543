"""What goes wrong is said: what was given, what is allowed, what to try."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import schuss.curvature.memory as memory
import schuss.numpy
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


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def square(model, x):
    return model(x).square().mean()


X = torch.ones(4, 3)
V = torch.ones(8)

CASES = {
    "nan": (lambda m, x: square(m, x) * float("nan"), "is not finite. Nothing can be measured"),
    "not scalar": (lambda m, x: m(x), r"shape=\(4, 2\) is not a scalar's. Reduce it"),
    "not a tensor": (lambda m, x: square(m, x).item(), "is not a scalar tensor. Return the tensor itself"),
    "detached": (lambda m, x: square(m, x).detach(), "has no gradient .* Likely causes"),
    "another model": (lambda m, x: square(nn.Linear(3, 2), x), "has no gradient .* another model"),
}


@pytest.mark.parametrize("trouble", CASES)
@pytest.mark.parametrize("measure", [hvp, gradient_sparsity, extreme_eigenvalues, gradient_noise_scale])
def test_losses_that_cannot_be_measured(model, trouble, measure):
    loss, said = CASES[trouble]
    arguments = (V,) if measure is hvp else ()
    batch = [X, X, X] if measure is gradient_noise_scale else X
    with pytest.raises(ValueError, match=said):
        measure(model, loss, batch, *arguments)


MEASURES = {
    "ggnvp": lambda m, f: ggnvp(m, f, X, V),
    "extreme_eigenvalues": lambda m, f: extreme_eigenvalues(m, f, X),
    "spectrum": lambda m, f: spectrum(m, f, X),
    "condition_number": lambda m, f: condition_number(m, f, X),
    "stationary_point": lambda m, f: stationary_point(m, f, X),
    "quadratic_model": lambda m, f: quadratic_model(m, f, X, V),
    "gradient_noise_scale": lambda m, f: gradient_noise_scale(m, f, [X, X, X]),
    "gradient_sparsity": lambda m, f: gradient_sparsity(m, f, X),
    "sharpness": lambda m, f: stability_limit(torch.optim.SGD(m.parameters(), lr=1)).sharpness(m, f, X),
    "range_test": lambda m, f: range_test(m, f, [X], torch.optim.SGD(m.parameters(), lr=1)),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_loss_that_changes_between_calls_is_named_with_its_likely_cause(model, measure):
    own = torch.Generator().manual_seed(0)

    def loss(model, x):
        return square(model, x * torch.rand(4, 1, generator=own))

    with pytest.raises(ValueError, match=r"changed from .* dropout or noise from a generator of its own"):
        MEASURES[measure](model, loss)


def test_a_loss_that_changes_later_is_noticed_while_pieces_are_summed(model):
    calls = 0

    def loss(model, x):
        nonlocal calls
        calls += 1
        return square(model, x) * (1 if calls <= 8 else 2)

    with pytest.raises(ValueError, match=r"changed from .* a counter in the model"):
        extreme_eigenvalues(model, loss, Pieces([X, 2 * X]), k=1)
    assert calls > 8


def test_a_loss_that_draws_from_the_global_state_does_not_change(model):
    result = extreme_eigenvalues(model, lambda m, x: square(m, x * torch.rand(4, 1)), X, k=1)
    assert result.converged


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (torch.ones(7), r"vector=\(7,\) is not of shape \(8,\)"),
        ([torch.ones(2, 3)], "vector='1 tensors' is not one for each of the 2 weights"),
        (
            [torch.ones(3, 2), torch.ones(2)],
            r"vector\[weight\]=\(3, 2\) is not of the weight's shape \(2, 3\)",
        ),
        ({"weight": torch.ones(2, 3)}, r"is not a dict with the keys \['bias', 'weight'\]"),
    ],
)
def test_vectors_that_do_not_fit(model, vector, said):
    with pytest.raises(ValueError, match=said):
        hvp(model, square, X, vector)


def test_models_without_weights():
    with pytest.raises(ValueError, match="is not a model with a weight that requires a gradient"):
        hvp(nn.ReLU(), square, X, V)
    with pytest.raises(ValueError, match=r"is not an nn\.Module, a tensor, or a list or dict"):
        hvp(3.0, square, X, V)
    with pytest.raises(ValueError, match="real floating type"):
        hvp(torch.ones(2, dtype=torch.cfloat, requires_grad=True), lambda x, _: x.abs().sum(), None, V)


def test_products_that_are_not_finite():
    with pytest.raises(ValueError, match=r"not finite: .* a square root or a norm at 0"):
        hvp(torch.zeros(2), lambda x, _: (x**2).sum().sqrt() + 1, None, torch.ones(2))


def test_gauss_newton_needs_outputs(model):
    with pytest.raises(ValueError, match="never called the model"):
        ggnvp(model, lambda m, x: m.weight.square().sum(), X, V)
    with pytest.raises(ValueError, match="is not a pair"):
        ggnvp(torch.ones(2), lambda x, _: x.square().sum(), None, torch.ones(2))

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return square(self.inner, x)

    with pytest.raises(ValueError, match="returns the loss itself"):
        ggnvp(Inside(), lambda m, x: m(x), X, V)


def test_options_out_of_range(model):
    with pytest.raises(ValueError, match="k=0 is not an integer ≥ 1"):
        extreme_eigenvalues(model, square, X, k=0)
    with pytest.raises(ValueError, match="matrix='fisher' is not one of"):
        extreme_eigenvalues(model, square, X, matrix="fisher")
    with pytest.raises(ValueError, match="vectors=5 is not at least 15"):
        extreme_eigenvalues(model, square, X, k=3, vectors=5)
    with pytest.raises(ValueError, match="probes=1 is not an integer ≥ 2"):
        spectrum(model, square, X, probes=1)
    with pytest.raises(ValueError, match="at least two"):
        gradient_noise_scale(model, square, [X])
    with pytest.raises(ValueError, match="Give batch_size="):
        gradient_noise_scale(model, lambda m, b: square(m, X), [1, 2, 3])
    with pytest.raises(ValueError, match="one finite number for each of 2 pieces"):
        Pieces([X, X], weights=[1.0])
    with pytest.raises(ValueError, match="at least one batch"):
        Pieces([])


@pytest.mark.parametrize("measure", ["hvp", *MEASURES])
def test_memory_is_named_before_it_is_taken(model, monkeypatch, measure):
    monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 8)
    with pytest.raises(MemoryError, match=r"needs \d+ vectors of 8 numbers, .* GB are free on cpu\. [AFM]"):
        hvp(model, square, X, V) if measure == "hvp" else MEASURES[measure](model, square)


def test_more_eigenvalues_than_there_is_memory_for(model, monkeypatch):
    """A single product fits; a basis, the steps of a density or the groups of a noise scale do not."""
    monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 300)
    for measure in ("extreme_eigenvalues", "spectrum"):
        with pytest.raises(
            MemoryError, match=r"needs \d+ vectors of 8 numbers, .* free on cpu\. Ask for fewer"
        ):
            MEASURES[measure](model, square)
    with pytest.raises(MemoryError, match="the noise scale needs 22 vectors of 8 numbers"):
        gradient_noise_scale(model, square, [X, X])
    with pytest.raises(MemoryError, match="the noise scale needs 25 vectors of 8 numbers"):
        gradient_noise_scale(model, square, [X, X], curvature=X)
    with pytest.raises(
        MemoryError, match=r"the whole matrix needs 8 vectors of 8 numbers, .* extreme_eigenvalues"
    ):
        condition_number(model, square, X)
    assert hvp(model, square, X, V).shape == (8,)


def test_range_tests_that_make_no_sense(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match=r"highest=0.1 is not a finite number > lowest=1"):
        range_test(model, square, [X], optimizer, lowest=1.0, highest=0.1)
    with pytest.raises(ValueError, match="at least one batch"):
        range_test(model, square, [], optimizer)
    with pytest.raises(ValueError, match="holds none of the model's weights"):
        range_test(nn.Linear(3, 2), square, [X], optimizer)


def test_optimizers_without_a_limit(model):
    weights = list(model.parameters())
    with pytest.raises(ValueError, match="only the sign of the gradient"):
        stability_limit(torch.optim.Rprop(weights))
    with pytest.raises(ValueError, match="LBFGS"):
        stability_limit(torch.optim.LBFGS(weights))
    with pytest.raises(ValueError, match="maximize=True is not False"):
        stability_limit(torch.optim.SGD(weights, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match=r"momentum=1.0 is not in \[0, 1\)"):
        stability_limit(torch.optim.SGD(weights, lr=0.1, momentum=1.0))
    with pytest.raises(ValueError, match="has no state yet"):
        stability_limit(torch.optim.Adam(weights)).sharpness(model, square, X)
    with pytest.raises(ValueError, match="holds none of the model's weights"):
        stability_limit(torch.optim.SGD(weights, lr=0.1)).sharpness(nn.Linear(3, 2), square, X)


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=1)


ARGUMENTS = {
    "k": (lambda m: extreme_eigenvalues(m, square, X, "x"), "k='x' is not an integer ≥ 1"),
    "k in halves": (lambda m: extreme_eigenvalues(m, square, X, 1.5), "k=1.5 is not an integer"),
    "tolerance": (
        lambda m: extreme_eigenvalues(m, square, X, tolerance="x"),
        "tolerance='x' is not a finite",
    ),
    "negative": (lambda m: extreme_eigenvalues(m, square, X, tolerance=-1), "tolerance=-1 is not a finite"),
    "products": (lambda m: extreme_eigenvalues(m, square, X, products=0), "products=0 is not an integer ≥ 1"),
    "probes": (lambda m: spectrum(m, square, X, probes="x"), "probes='x' is not an integer ≥ 2"),
    "steps": (lambda m: spectrum(m, square, X, steps=0), "steps=0 is not an integer ≥ 1"),
    "points": (lambda m: spectrum(m, square, X, points=0), "points=0 is not an integer ≥ 2"),
    "width": (lambda m: spectrum(m, square, X, width=0.0), "width=0.0 is not a finite number > 0"),
    "no loss": (lambda m: hvp(m, None, X, V), "loss=None is not a function"),
    "no batches": (lambda m: gradient_noise_scale(m, square, None), "batches=None is not an iterable"),
    "steps of a range test": (
        lambda m: range_test(m, square, [X], sgd(m), steps=10.5),
        "steps=10.5 is not an integer ≥ 10",
    ),
    "sweeps": (lambda m: range_test(m, square, [X], sgd(m), sweeps=1.5), "sweeps=1.5 is not an integer ≥ 1"),
    "range test of nothing": (lambda m: range_test(m, square, 3, sgd(m)), "batches=3 is not an iterable"),
    "range test from": (
        lambda m: range_test(m, square, [X], sgd(m), lowest="x"),
        "lowest='x' is not a finite",
    ),
}


@pytest.mark.parametrize("trouble", ARGUMENTS)
def test_arguments_of_the_wrong_kind(model, trouble):
    measure, said = ARGUMENTS[trouble]
    with pytest.raises(ValueError, match=said):
        measure(model)


def _range_test(optimizer):
    return range_test(nn.Linear(3, 2), square, [X], optimizer)


@pytest.mark.parametrize(
    ("measure", "given"),
    [
        *(
            (measure, given)
            for measure in (stability_limit, _range_test)
            for given in ("adam", None, torch.optim.SGD)
        ),
        (_range_test, schuss.numpy.Adam()),
    ],
)
def test_what_is_no_torch_optimizer(measure, given):
    with pytest.raises(
        ValueError, match=r"is not a torch optimizer over the model's weights. Try schuss.torch"
    ):
        measure(given)
