"""Softmax regression with a ridge on the digits, to the optimum that independent solvers agree on.

Over all 1797 images, pixels divided by 16, minimize the mean cross-entropy in nats plus ½·10⁻²·‖W‖²:

| reading                                          | optimum        | scikit-learn's LogisticRegression |
| with an intercept, on which there is no penalty  | 0.738514081875 | fit_intercept=True                |
| without an intercept                             | 0.741462087449 | fit_intercept=False               |

The intercept leaves one direction flat (the same number added to all ten), so H is singular at every point.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy

from schuss.newton import LBFGS, GaussNewton, NewtonCG

RIDGE = 1e-2
OPTIMUM = {"intercept": 0.738514081875, "none": 0.741462087449}


@pytest.fixture(scope="module")
def digits():
    """All images as rows in [0, 1], and their labels."""
    data, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    return torch.from_numpy(data / 16), torch.from_numpy(labels)


def solve(method, X, y, *, intercept, **options):
    """The method at its end, the weights and the intercept."""
    W = torch.zeros(64, 10, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(10, dtype=torch.float64, requires_grad=intercept)
    groups = [{"params": [W], "weight_decay": RIDGE}, {"params": [b]}]
    straight = method is GaussNewton
    optimizer = method(groups, full_batch=True, **options)
    for _ in range(200):
        optimizer.step(lambda: (X @ W + b, y) if straight else cross_entropy(X @ W + b, y))
        if optimizer.report.gradient_norm <= 1e-7:
            break
    return optimizer, W.detach(), b.detach()


@pytest.mark.parametrize("reading", ["intercept", "none"])
@pytest.mark.parametrize(
    ("method", "options"),
    [(NewtonCG, {}), (LBFGS, {}), (GaussNewton, {"loss": "softmax", "solver": "cg"})],
    ids=["newton-cg", "lbfgs", "gauss-newton"],
)
def test_softmax_regression_on_digits_to_the_known_optimum(method, options, reading, digits):
    X, y = digits
    optimizer, W, b = solve(method, X, y, intercept=reading == "intercept", **options)
    assert optimizer.report.loss_after == pytest.approx(OPTIMUM[reading], abs=1e-10)
    objective = float(cross_entropy(X @ W + b, y) + 0.5 * RIDGE * W.square().sum())
    assert objective == pytest.approx(optimizer.report.loss_after, abs=1e-14)


@pytest.mark.parametrize("reading", ["intercept", "none"])
def test_scikit_learn_finds_the_same_optimum(reading, digits):
    linear = pytest.importorskip("sklearn.linear_model")
    X, y = digits
    C = 1 / (len(y) * RIDGE)
    model = linear.LogisticRegression(C=C, fit_intercept=reading == "intercept", tol=1e-10, max_iter=2000)
    model.fit(X.numpy(), y.numpy())
    W, b = torch.from_numpy(model.coef_.T.copy()), torch.from_numpy(model.intercept_)
    objective = float(cross_entropy(X @ W + b, y) + 0.5 * RIDGE * W.square().sum())
    assert objective == pytest.approx(OPTIMUM[reading], abs=1e-10)
