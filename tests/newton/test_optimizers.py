"""The contract with torch: groups, states, dtypes, closures that misbehave, reports that are true."""

import copy
import math

import pytest
import torch

from schuss.newton import LBFGS, GaussNewton, Newton, NewtonCG, dense_cost

METHODS = [Newton, NewtonCG, LBFGS, GaussNewton]


def network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(dtype)
    x = torch.randn(24, 3, dtype=dtype)
    return model, x, torch.sin(x.sum(1, keepdim=True))


def closure_for(method, model, x, y):
    if method is GaussNewton:
        return lambda: (model(x), y)
    return lambda: 0.5 * (model(x) - y).square().sum()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_step_lowers_the_loss_and_its_report_adds_up(method, dtype):
    model, x, y = network(dtype)
    optimizer = method(model.parameters())
    calls = 0
    plain = closure_for(method, model, x, y)

    def closure():
        nonlocal calls
        calls += 1
        return plain()

    for _ in range(8):
        before, counted = weights(model), calls
        returned = float(optimizer.step(closure))
        report = optimizer.report
        assert returned == report.loss_before
        assert report.closures == calls - counted
        assert report.accepted
        assert report.actual > 0
        moved = math.sqrt(
            sum(float((p - q).double().square().sum()) for p, q in zip(weights(model), before, strict=True))
        )
        assert moved == pytest.approx(report.step_norm, rel=1e-6)
        assert 0.5 * float((model(x) - y).detach().double().square().sum()) == pytest.approx(
            report.loss_after, rel=1e-5
        )
        assert report.stopped
        assert report.gradient_equivalents > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_optimizer_continues_the_same_path(method):
    model, x, y = network()
    optimizer = method(model.parameters())
    for _ in range(4):
        optimizer.step(closure_for(method, model, x, y))
    saved, twin = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
    other = method(twin.parameters())
    other.load_state_dict(saved)
    other._checked = True
    for _ in range(4):
        optimizer.step(closure_for(method, model, x, y))
        other.step(closure_for(method, twin, x, y))
    assert same(weights(model), weights(twin))


@pytest.mark.parametrize("method", METHODS)
def test_a_copied_optimizer_continues_the_same_path(method):
    model, x, y = network()
    optimizer = method(model.parameters(), full_batch=True)
    for _ in range(3):
        optimizer.step(closure_for(method, model, x, y))
    twin, other = copy.deepcopy((model, optimizer))
    for _ in range(3):
        optimizer.step(closure_for(method, model, x, y))
        other.step(closure_for(method, twin, x, y))
    assert same(weights(model), weights(twin))


def test_a_state_of_another_kind_is_refused():
    w = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="not saved by Newton"):
        Newton([w]).load_state_dict(torch.optim.SGD([w], lr=0.1).state_dict())


@pytest.mark.parametrize("method", [Newton, NewtonCG, LBFGS])
def test_groups_hold_and_decay(method):
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)
    groups = [{"params": [a]}, {"params": [b], "weight_decay": 1.0}, {"params": [c], "lr": 0.0}]
    optimizer = method(groups)
    for _ in range(12):
        optimizer.step(lambda: 0.5 * (a.square().sum() + (b - 2).square().sum() + (c - 9).square().sum()))
    assert a.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert b.tolist() == pytest.approx([1.0], abs=1e-6)  # ½(b − 2)² + ½b²
    assert c.tolist() == [4.0]


def test_weight_decay_in_gauss_newton_is_ridge_regression():
    torch.manual_seed(0)
    X, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    ridge = torch.linalg.solve(X.T @ X + 0.3 * torch.eye(4, dtype=torch.float64), X.T @ y)
    for solver in ("dense", "cg"):
        w = torch.ones(4, dtype=torch.float64, requires_grad=True)
        optimizer = GaussNewton([w], weight_decay=0.3, solver=solver)
        for _ in range(15):
            optimizer.step(lambda w=w: X @ w - y)
        assert torch.allclose(w, ridge, atol=1e-8)


def test_lr_takes_a_share_of_the_step():
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = Newton([w], lr=0.25)
    optimizer.step(lambda: 2 * w.square().sum())
    assert w.item() == pytest.approx(0.75)
    assert optimizer.report.ratio == pytest.approx(1.0)


def test_different_rates_are_refused():
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = Newton([{"params": [a], "lr": 0.5}, {"params": [b]}])
    with pytest.raises(ValueError, match="one number for all groups"):
        optimizer.step(lambda: (a + b).square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda w: None, "returned None|where a tensor belongs"),
        (lambda w: 1.0, "not a tensor|where a tensor belongs"),
        (lambda w: w.detach().sum(), "does not depend on the weights"),
        (lambda w: w.sum() * float("nan"), "The loss is nan at the weights as they are"),
    ],
)
def test_closures_without_a_loss(method, returned, words):
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=words):
        method([w]).step(lambda: returned(w))
    assert w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", [Newton, NewtonCG, LBFGS])
def test_a_vector_is_no_loss(method):
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match="is not the shape of a loss"):
        method([w]).step(lambda: w * w)


@pytest.mark.parametrize("method", METHODS)
def test_a_closure_that_changes_between_calls(method):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    shift = iter(range(100))
    with pytest.raises(ValueError, match=r"returned 2\.5 and then .* at the same weights"):
        method([w]).step(
            lambda: w - next(shift) if method is GaussNewton else 0.5 * (w - next(shift)).square().sum()
        )
    assert w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full_batch", [False, True])
def test_a_closure_that_changes_later_is_told_after_a_step_taken_back(method, full_batch):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    factor = 1.0

    def closure():
        nonlocal factor
        if noisy:
            factor *= 1000
        found = w * torch.tensor([1.0, 3.0], dtype=torch.float64) + w.square()
        return factor * found if method is GaussNewton else factor * found.square().sum()

    noisy, optimizer = False, method([w], full_batch=full_batch)
    optimizer.step(closure)
    noisy, before = True, w.detach().clone()
    optimizer.step(closure)
    assert not optimizer.report.accepted
    with pytest.raises(ValueError, match=r"at the same weights.*dropout"):
        optimizer.step(closure)
    assert torch.equal(w.detach(), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_nan_when_asked_again(method):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    factor = iter([1.0, float("nan")])
    with pytest.raises(ValueError, match=r"returned .* and then nan at the same weights"):
        method([w]).step(lambda: w * next(factor) if method is GaussNewton else (w * next(factor)).sum())


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_every_shape_and_dtype_and_new_groups(method):
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor(3.0, dtype=torch.bfloat16, requires_grad=True)
    empty = torch.zeros(0, 3, requires_grad=True)
    c = torch.tensor([[4.0]], requires_grad=True)

    def closure():
        found = torch.cat([a - 1.5, 3 * (b.double() - 2).reshape(1), (c.double() - 8 + b.double()).flatten()])
        return found if method is GaussNewton else 0.5 * found.square().sum()

    optimizer = method([a, empty, b])
    for _ in range(3):
        optimizer.step(closure)
    optimizer.add_param_group({"params": [c]})
    for _ in range(12):
        optimizer.step(closure)
    assert a.tolist() == pytest.approx([1.5, 1.5], abs=1e-6)
    assert (b.item(), c.item()) == pytest.approx((2.0, 6.0), abs=0.02)
    assert b.dtype == torch.bfloat16


def test_complex_residuals_are_refused():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match="view_as_real"):
        GaussNewton([w]).step(lambda: w + 1j)


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_the_middle_takes_the_step_back(method):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    start = w.detach().clone()

    def closure():
        bad = float("nan") if not torch.equal(w.detach(), start) else 1.0
        return w * bad if method is GaussNewton else 0.5 * (w * bad).square().sum()

    optimizer = method([w])
    optimizer.step(closure)
    assert w.tolist() == [1.0, 2.0]
    assert not optimizer.report.accepted
    assert optimizer.report.loss_after == optimizer.report.loss_before
    assert optimizer.report.actual == 0


def test_nan_after_a_pure_step_is_taken_back():
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = Newton([w], damping=None)
    optimizer.step(lambda: (w - 3 * torch.log(w)).sum())  # H = 3/w², so the pure step goes to 2 + 2/3
    assert w.item() == pytest.approx(8 / 3)
    with torch.no_grad():
        w.fill_(7.0)
    optimizer.step(lambda: (w - 3 * torch.log(w)).sum())  # and from 7 to −7/3, where log is nan
    assert w.item() == 7.0
    assert "rejected: the loss is nan" in optimizer.report.stopped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_step_leaves_the_weights(method, error):
    model, x, y = network()
    optimizer = method(model.parameters(), full_batch=True)
    plain, calls = closure_for(method, model, x, y), iter(range(9))
    before = weights(model)

    def closure():
        if next(calls) == 1:
            raise error
        return plain()

    with pytest.raises(error):
        optimizer.step(closure)
    assert same(weights(model), before)
    optimizer.step(plain)
    assert optimizer.report.accepted


def test_backward_in_the_closure_suits_lbfgs_alone():
    w = torch.tensor([1.0, 2.0], requires_grad=True)

    def closure():
        loss = w.square().sum()
        loss.backward()
        return loss

    optimizer = LBFGS([w])
    optimizer.step(closure)
    assert optimizer.report.accepted
    with pytest.raises(ValueError, match="Leave the derivatives to step"):
        Newton([w]).step(closure)

    def residuals():
        found = w - 3
        found.square().mean().backward()  # a gradient, but not that of ½ Σ r²
        return found

    with pytest.raises(ValueError, match="Leave the derivatives to step"):
        GaussNewton([w]).step(residuals)


def test_full_batch_saves_the_first_evaluation():
    counts = []
    for full_batch in (False, True):
        model, x, y = network()
        optimizer = NewtonCG(model.parameters(), full_batch=full_batch)
        total = 0
        for _ in range(5):
            optimizer.step(closure_for(NewtonCG, model, x, y))
            total += optimizer.report.closures
        counts.append(total)
    assert counts[1] <= counts[0] - 5


def test_full_batch_notices_weights_that_others_changed():
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = LBFGS([w], full_batch=True)
    optimizer.step(lambda: (w**4).sum())
    with torch.no_grad():
        w.fill_(5.0)
    assert float(optimizer.step(lambda: (w**4).sum())) == 625.0


def test_too_many_weights_are_refused_with_the_cost_and_the_alternatives():
    w = torch.zeros(2_000_000, requires_grad=True)
    with pytest.raises(MemoryError) as caught:
        Newton([w])
    words = str(caught.value)
    for part in (
        "2,000,000 weights",
        "96.0 TB",
        "7.2e+19 flops",
        "per step here",
        "NewtonCG",
        "GaussNewton",
        "LBFGS",
    ):
        assert part in words
    v = torch.zeros(100, requires_grad=True)
    with pytest.raises(MemoryError, match=r"240\.0 kB"):
        Newton([v], memory_limit=1000)
    assert dense_cost(2000).flops == pytest.approx(8 * dense_cost(1000).flops)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (Newton, {"lr": 2.0}, r"lr=2\.0 is not in \[0, 1\]"),
        (Newton, {"damping": "lm"}, "damping='lm' is not \"region\" or None"),
        (Newton, {"radius": 0.0}, r"radius=0\.0 is not > 0"),
        (Newton, {"radius": "x"}, "radius='x' is not > 0"),
        (Newton, {"lr": "x"}, r"lr='x' is not in \[0, 1\]"),
        (Newton, {"weight_decay": None}, "weight_decay=None is not a finite number ≥ 0"),
        (Newton, {"memory_limit": "x"}, "memory_limit='x' is not a number of bytes"),
        (Newton, {"full_batch": "x"}, "full_batch='x' is not True or False"),
        (NewtonCG, {"max_products": 0}, "max_products=0 is not an integer ≥ 1"),
        (NewtonCG, {"max_products": float("nan")}, "max_products=nan is not an integer ≥ 1"),
        (NewtonCG, {"probes": -1}, "probes=-1 is not an integer ≥ 0"),
        (NewtonCG, {"probes": None}, "probes=None is not an integer ≥ 0"),
        (LBFGS, {"history_size": 0}, "history_size=0 is not an integer ≥ 1"),
        (LBFGS, {"max_evaluations": "x"}, "max_evaluations='x' is not an integer ≥ 1"),
        (LBFGS, {"c1": "x"}, r"c1='x' is not in \(0, 1\)"),
        (GaussNewton, {"radius": [1]}, r"radius=\[1\] is not > 0"),
        (LBFGS, {"c2": 1e-5}, "0 < c1 < c2 < 1"),
        (LBFGS, {"weight_decay": -1.0}, r"weight_decay=-1\.0 is not a finite number ≥ 0"),
        (GaussNewton, {"loss": "hinge"}, "loss='hinge' is not one of 'squares', 'softmax'"),
        (GaussNewton, {"solver": "qr"}, "solver='qr' is not one of"),
    ],
)
def test_settings_out_of_their_domain(method, options, words):
    with pytest.raises(ValueError, match=words):
        method([torch.zeros(2, requires_grad=True)], **options)


@pytest.mark.parametrize("d", ["x", -1, 1.5])
def test_no_number_of_weights(d):
    with pytest.raises(ValueError, match=f"d={d!r} is not an integer ≥ 0"):
        dense_cost(d)


def test_complex_weights_and_missing_closures_are_refused():
    with pytest.raises(TypeError, match="view_as_real"):
        LBFGS([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ValueError, match="needs a closure"):
        LBFGS([torch.zeros(2, requires_grad=True)]).step()
