"""The gradient equivalents that a step reports against the floating-point operations that torch counts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from schuss.newton import LBFGS, GaussNewton, NewtonCG


def flops(do):
    """Floating-point operations of the matrix products and convolutions in it."""
    counter = FlopCounterMode(display=False)
    with counter:
        do()
    return counter.get_total_flops()


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 10),
    )


def one_hidden_layer():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("network", "low", "high"),
    [
        (convolutions, 0.9, 1.01),
        (one_hidden_layer, 0.55, 1.01),  # no gradient by the pixels, so a product is less than two gradients
    ],
)
@pytest.mark.parametrize(
    ("method", "options"),
    [(LBFGS, {}), (NewtonCG, {}), (GaussNewton, {"loss": "softmax", "solver": "cg"})],
    ids=["lbfgs", "newton-cg", "gauss-newton"],
)
def test_a_step_costs_what_it_reports(method, options, network, low, high):
    torch.manual_seed(0)
    model, images, labels = network(), torch.rand(50, 1, 8, 8), torch.randint(0, 10, (50,))
    gradient = flops(
        lambda: torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    )
    optimizer = method(model.parameters(), full_batch=True, **options)

    def closure():
        logits = model(images)
        return (logits, labels) if method is GaussNewton else cross_entropy(logits, labels)

    for _ in range(4):
        spent = flops(lambda: optimizer.step(closure)) / gradient
        assert low <= spent / optimizer.report.gradient_equivalents <= high, optimizer.report
