"""Gauss-Newton's matrix and step against torch.func's Jacobians, for each loss, dense and by products."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy

from schuss.newton import GaussNewton
from schuss.newton.gauss_newton import Softmax, Squares
from schuss.newton.products import FlatJacobian

DECAY = 0.3


def reference(network, X, criterion):
    """Outputs' J, the criterion's gradient and Hessian there, all dense, by torch.func alone."""
    params = {name: w.detach() for name, w in network.named_parameters()}

    def outputs(p):
        return functional_call(network, p, (X,))

    z = outputs(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.func's own use of torch.jit
        parts = jacrev(outputs)(params)
        slope = jacrev(criterion)(z).reshape(-1)
        C = hessian(criterion)(z).reshape(z.numel(), z.numel())
    J = torch.cat([parts[name].reshape(z.numel(), -1) for name in params], dim=1)
    return J, slope, C


def build(kind):
    """A network of 55 weights with its batch, GaussNewton's settings for the loss, and the plain criterion."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    X, targets = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    classes, shares = torch.randint(0, 3, (9,)), targets.softmax(1)
    return (
        network,
        X,
        *{
            "squares": (targets, {}, lambda z: 0.5 * (z - targets).square().sum()),
            "mean squares": (targets, {"reduction": "mean"}, lambda z: 0.5 * (z - targets).square().mean()),
            "softmax": (classes, {"loss": "softmax"}, lambda z: cross_entropy(z, classes)),
            "softmax of shares, summed": (
                shares,
                {"loss": "softmax", "reduction": "sum"},
                lambda z: cross_entropy(z, shares, reduction="sum"),
            ),
        }[kind],
    )


KINDS = ("squares", "mean squares", "softmax", "softmax of shares, summed")


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_is_torch_funcs(kind):
    network, X, targets, options, criterion = build(kind)
    J, _, C = reference(network, X, criterion)
    params = list(network.parameters())
    loss = Softmax if "softmax" in kind else Squares
    usual = "mean" if "softmax" in kind else "sum"
    outputs = loss((network(X), targets), options.get("reduction", usual))
    assert float(outputs.loss().detach()) == pytest.approx(float(criterion(network(X).detach())), rel=1e-14)
    jacobian = FlatJacobian(outputs.z, params)
    G = J.T @ C @ J
    for _ in range(3):
        v, u = torch.randn(J.shape[1], dtype=torch.float64), torch.randn(J.shape[0], dtype=torch.float64)
        assert torch.allclose(jacobian.ggnvp(outputs.curvature, v), G @ v, rtol=1e-12, atol=1e-13)
        assert torch.allclose(jacobian.jvp(v), J @ v, rtol=1e-12, atol=1e-13)
        assert torch.allclose(jacobian.vjp(u), J.T @ u, rtol=1e-12, atol=1e-13)
    rooted = outputs.rooted(J)
    assert torch.allclose(rooted.T @ rooted, G, rtol=1e-12, atol=1e-13)
    stack = torch.randn(5, J.shape[1], dtype=torch.float64)
    assert torch.allclose(jacobian.jvp(stack), stack @ J.T, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_step_is_the_solution_of_its_equation(kind, solver):
    network, X, targets, options, criterion = build(kind)
    J, slope, C = reference(network, X, criterion)
    before = torch.cat([w.detach().flatten() for w in network.parameters()])
    G = J.T @ C @ J + DECAY * torch.eye(len(before), dtype=torch.float64)
    wanted = -torch.linalg.solve(G, J.T @ slope + DECAY * before)
    optimizer = GaussNewton(
        network.parameters(), solver=solver, radius=1e6, weight_decay=DECAY, max_products=500, **options
    )
    optimizer.memory["eta"] = 1e-2
    # A tenth of the step, so that every trial is kept whatever the curvature of the network does.
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step(lambda: (network(X), targets))
    assert optimizer.report.trials == 1
    moved = torch.cat([w.detach().flatten() for w in network.parameters()]) - before
    exact = 1e-9 if solver == "dense" else 2e-2  # conjugate gradients end at η = 1e-2
    assert float((moved - 0.1 * wanted).norm()) <= exact * float(wanted.norm())


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("loss", ["squares", "softmax"])
def test_a_trial_that_is_not_a_number_is_taken_back(loss, solver):
    torch.manual_seed(0)
    X, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 3, (12,))
    targets = torch.nn.functional.one_hot(y, 3).double() if loss == "squares" else y
    W = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    reached = []

    def closure():
        length = float(W.detach().norm())
        reached.append(length)
        return X @ W * (float("nan") if length > wall else 1.0), targets

    wall, before = 1e-2, W.detach().clone()
    optimizer = GaussNewton([W], loss=loss, solver=solver, radius=10.0)
    optimizer.step(closure)
    report = optimizer.report
    assert max(reached) > wall
    assert report.accepted
    assert 0 < float(W.detach().norm()) <= wall
    assert report.loss_after < report.loss_before

    wall = -1.0
    with torch.no_grad():
        W.copy_(before)
    with pytest.raises(ValueError, match="nothing to step from"):
        optimizer.step(closure)
    assert torch.equal(W, before)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_where_every_trial_is_not_a_number_nothing_is_learned(solver):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    before = w.detach().clone()
    optimizer = GaussNewton([w], solver=solver, radius=5.0)
    optimizer.step(lambda: w * (1.0 if torch.equal(w.detach(), before) else float("nan")))
    assert torch.equal(w, before)
    assert not optimizer.report.accepted
    assert "losses were not finite" in optimizer.report.stopped
    optimizer.step(lambda: w - 3.0)  # the region is as large as it was
    assert w.tolist() == pytest.approx([3.0, 3.0])
