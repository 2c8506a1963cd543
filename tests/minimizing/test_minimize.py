"""`minimize`: kinds in and out, where gradients come from, counts and messages that are true."""

import math

import numpy as np
import pytest
import torch

import schuss.torch
from schuss import minimize
from schuss.minimizing import Result

scipy_optimize = pytest.importorskip("scipy.optimize")
rosen, rosen_der = scipy_optimize.rosen, scipy_optimize.rosen_der
X0 = [1.3, 0.7, 0.8, 1.9, 1.2]


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("method", ["newton", "Newton-CG", "lbfgs"])
@pytest.mark.parametrize(
    ("fun", "jac", "source"),
    [(rosenbrock, None, "autograd"), (rosen, rosen_der, "given"), (rosen, None, "finite differences")],
)
def test_rosenbrock_by_every_source_of_gradients(method, fun, jac, source):
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return fun(x)

    found = minimize(counted, X0, method=method, jac=jac, tol=1e-6)
    assert found.derivative == source
    assert found.success
    assert found.status == 0
    assert found.x == pytest.approx(np.ones(5), abs=1e-5)
    assert found.nfev == calls
    assert np.abs(found.jac).max() <= 1e-6
    assert f"{np.abs(found.jac).max():.2g}" in found.message
    assert isinstance(found, scipy_optimize.OptimizeResult)
    if source == "autograd":
        assert found.nit <= {"newton": 20, "Newton-CG": 30, "lbfgs": 30}[method]


def test_python_floats_inside_fun_do_not_fool_autograd():
    found = minimize(lambda x: math.exp(x[0]) - x[0] + (x[1] - x[0] - 1) ** 2, np.array([1.0, 5.0]))
    assert found.derivative == "finite differences"
    assert found.x == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize(
    "x0",
    [
        np.zeros((2, 3)),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((2, 3), dtype=int),
        torch.zeros(2, 3),
        torch.zeros(2, 3, dtype=torch.float64),
    ],
)
def test_x_comes_back_as_it_went_in(x0):
    found = minimize(lambda x: ((x - 3) ** 2).sum(), x0, method="newton")
    assert type(found.x) is type(x0)
    assert found.x.shape == x0.shape
    assert found.x.dtype == (x0.dtype if "float" in str(x0.dtype) else np.float64)
    assert np.asarray(found.x) == pytest.approx(np.full((2, 3), 3.0))
    assert np.asarray(x0).max() == 0


def test_gauss_newton_takes_residuals():
    t = np.arange(6.0)
    y = 2 * np.exp(-0.5 * t)

    def residual(b, scale):
        return scale * (b[0] * np.exp(b[1] * t) - y)

    def jacobian(b, scale):
        return scale * np.stack([np.exp(b[1] * t), b[0] * t * np.exp(b[1] * t)], axis=1)

    for jac, source in ((None, "finite differences"), (jacobian, "given")):
        found = minimize(residual, [1.0, 0.0], (2.0,), method="gauss-newton", jac=jac)
        assert found.x == pytest.approx([2, -0.5], abs=1e-7)
        assert (found.derivative, found.success) == (source, True)


def test_the_message_tells_a_limit_from_a_minimum():
    found = minimize(rosenbrock, X0, method="lbfgs", options={"maxiter": 3})
    assert (found.success, found.status, found.nit) == (False, 1, 3)
    assert "maxiter=3" in found.message
    assert found.fun < rosenbrock(np.array(X0))


def test_a_wrong_gradient_is_not_called_success():
    found = minimize(rosen, X0, method="lbfgs", jac=lambda x: -rosen_der(x))
    assert not found.success
    assert found.status == 4
    assert "Is jac the gradient of fun?" in found.message
    assert found.x == pytest.approx(X0)


def test_rounding_is_said_where_tol_cannot_be_met():
    found = minimize(
        lambda x: 1e6 + ((x - 1 / 3) ** 2).sum() ** 2 + (x * 1e8).cos().sum() * 0, torch.ones(2), tol=0.0
    )
    assert found.status in (0, 2)
    assert "tol=0" in found.message


def test_a_start_on_a_saddle_is_left():
    found = minimize(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, [0.0, 0.0], method="newton")
    assert abs(found.x[0]) == pytest.approx(1)
    found = minimize(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, [0.0, 0.0], method="newton-cg")
    assert abs(found.x[0]) == pytest.approx(1)


def test_callbacks_see_every_step_and_may_end_the_run():
    seen = []

    def plain(x):
        seen.append(x)
        if len(seen) == 4:
            raise StopIteration

    found = minimize(rosenbrock, X0, callback=plain)
    assert (found.status, found.nit, len(seen)) == (3, 4, 4)
    assert found.jac == pytest.approx(rosen_der(found.x))
    assert found.x == pytest.approx(seen[-1])
    losses = []
    minimize(rosenbrock, X0, callback=lambda intermediate_result: losses.append(intermediate_result.fun))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("method", "options"), [("adam", {"lr": 0.05}), ("SGD", {"lr": 0.02}), ("rmsprop", {})]
)
def test_first_order_methods_by_name(method, options):
    found = minimize(
        lambda x: ((x - 2) ** 2).sum(),
        np.zeros(3),
        method=method,
        tol=1e-4,
        options={**options, "maxiter": 3000},
    )
    assert found.x == pytest.approx(np.full(3, 2.0), abs=0.02)
    assert found.success == (np.abs(found.jac).max() <= 1e-4)


OPTIMIZERS = [
    name
    for name in schuss.torch.__all__
    if isinstance(getattr(schuss.torch, name), type)
    and issubclass(getattr(schuss.torch, name), torch.optim.Optimizer)
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_library_is_a_method(name):
    def fun(x):
        return x - 2 if name == "GaussNewton" else 0.5 * ((x - 2) ** 2).sum()

    method = {"NewtonCG": "newton-cg", "GaussNewton": "gauss-newton"}.get(name, name)
    found = minimize(fun, np.full((2, 2), 1.9), method=method, options={"maxiter": 30})
    assert found.fun < 0.5 * 4 * 0.01
    assert {"x", "fun", "jac", "success", "status", "message", "nit", "nfev", "njev", "nhev"} <= set(found)
    assert found.success == (np.abs(found.jac).max() <= 1e-8)


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs"])
def test_a_step_out_of_the_domain_is_taken_back(method):
    found = minimize(lambda x: x[0] - 3 * torch.log(x[0]), [40.0], method=method)  # nan below 0
    assert found.success
    assert found.x == pytest.approx([3.0], rel=1e-6)


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs", "gauss-newton"])
def test_a_function_that_changes_between_calls_is_not_called_converged(method):
    random = np.random.default_rng(0)

    def noisy(x):
        found = np.asarray(x) + 0.1 * random.standard_normal(2)
        return found if method == "gauss-newton" else float((found**2).sum())

    found = minimize(noisy, [1.0, 2.0], method=method)
    assert (found.success, found.status) == (False, 4)
    assert "at the same x. It must be the same function at every call" in found.message


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs", "gauss-newton", "adam"])
def test_a_gradient_that_ends_in_the_middle_returns_the_best_point(method):
    def fun(x):
        return 0.5 * float(((x - 2) ** 4).sum()) if method != "gauss-newton" else (x - 2) ** 2

    def jac(x):
        slope = np.diag(2 * (x - 2)) if method == "gauss-newton" else 2 * (x - 2) ** 3
        return slope if x[0] < 1.5 else np.full_like(slope, np.nan)

    found = minimize(
        fun, [1.0, 1.2], method=method, jac=jac, options={"lr": 0.2} if method == "adam" else None
    )
    assert (found.success, found.status) == (False, 4)
    assert found.nit > 0
    assert found.fun < 0.5 * (1 + 0.8**4)
    if method != "lbfgs":  # its search takes a slope that is not finite as a wall
        assert "not finite" in found.message
    with pytest.raises(ValueError, match="not finite there"):
        minimize(fun, [3.0, 3.0], method=method, jac=jac)


def test_a_step_below_the_rounding_of_float32_is_rounding():
    found = minimize(rosenbrock, torch.tensor([-1.2, 1.0]), method="newton-cg")
    assert (found.success, found.status) == (True, 2)
    assert "rounding" in found.message
    assert found.fun < 1e-11


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs", "gauss-newton", "adam"])
@pytest.mark.parametrize("x0", [3.0, np.array(3.0), torch.tensor(3.0)])
def test_one_number_without_axes(method, x0):
    options = {"lr": 0.1} if method == "adam" else None
    found = minimize(
        lambda x: x - 2 if method == "gauss-newton" else (x - 2) ** 2, x0, method=method, options=options
    )
    assert found.success
    assert found.x.shape == ()
    assert float(found.x) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("method", ["NewtonCG", "newton_cg", "L-BFGS", "GaussNewton", "ADAMW"])
def test_names_are_known_however_they_are_written(method):
    assert (
        minimize(lambda x: x - 1, np.ones(2), method=method)
        if method == "GaussNewton"
        else minimize(lambda x: ((x - 1) ** 2).sum(), np.ones(2), method=method).success
    )


@pytest.mark.parametrize("method", ["newton", "newton-cg", "lbfgs", "adam"])
def test_a_function_without_a_loss(method):
    with pytest.raises(ValueError, match="fun returned None"):
        minimize(lambda x: None, [1.0, 2.0], method=method)


def test_a_run_that_explodes_returns_its_best_point():
    found = minimize(lambda x: (x**4).sum(), np.ones(2), method="sgd", options={"lr": 10.0})
    assert (found.success, found.status) == (False, 4)
    assert found.x == pytest.approx([1, 1])
    assert "Try a smaller lr" in found.message


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: minimize(rosenbrock, X0, method="simplex"),
            "method='simplex' is not one of adabelief, adadelta, .*newton-cg, .*radam",
        ),
        (lambda: minimize(rosenbrock, X0, options={"rate": 1}), "Allowed besides maxiter: lr, history_size"),
        (lambda: minimize(rosenbrock, X0, tol=-1.0), "tol=-1.0 is not a number ≥ 0"),
        (
            lambda: minimize(rosenbrock, X0, options={"maxiter": 2.5}),
            r"maxiter=2\.5 is not an integer ≥ 0",
        ),
        (lambda: minimize(rosenbrock, X0, jac=True), "jac=True is not a function or None"),
        (lambda: minimize(None, X0), "fun=None is not a function of x that returns the loss"),
        (lambda: minimize(rosenbrock, X0, callback=3), "callback=3 is not a function or None"),
        (lambda: minimize(rosenbrock, X0, options=[1]), r"options=\[1\] is not a dict or None"),
        (lambda: minimize(lambda x: x * 2, X0), "is not .*one number"),
        (lambda: minimize(lambda x: float("nan"), X0), "nan"),
        (lambda: minimize(lambda x: "high", X0), "fun returned str"),
        (lambda: minimize(rosenbrock, []), "x0 is empty"),
        (lambda: minimize(rosen, X0, jac=lambda x: np.ones(3)), r"jac\(x\).shape"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_own_result_reads_like_scipys():
    result = Result(x=1.0, fun=2.0)
    assert result.fun == 2.0
    assert dir(result) == ["fun", "x"]
    assert "fun: 2.0" in repr(result)
    with pytest.raises(AttributeError):
        _ = result.missing


def test_residuals_have_one_loss():
    with pytest.raises(ValueError, match="loss='softmax' is not 'squares' here"):
        minimize(lambda x: x - 1, np.zeros(2), method="gauss-newton", options=dict(loss="softmax"))


METHODS = ["newton", "newton-cg", "lbfgs"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x0", [[1.0, 0.25], [-1.0, 1.0]])
def test_a_kink_is_not_called_success(method, x0):
    """max(x, −2x) + y² has a gradient of 1 or more everywhere but at its minimum."""
    found = minimize(lambda x: torch.maximum(x[0], -2 * x[0]) + x[1] ** 2, x0, method=method)
    assert (found.success, found.status) == (False, 4)
    assert "Is fun smooth" in found.message


@pytest.mark.parametrize("method", ["newton-cg", "lbfgs"])
def test_a_lasso_is_not_called_success(method):
    random = np.random.default_rng(0)
    a, b = torch.tensor(random.standard_normal((12, 4))), torch.tensor(random.standard_normal(12))
    found = minimize(
        lambda x: ((a @ x - b) ** 2).sum() / 2 + 3 * torch.abs(x).sum(),
        torch.ones(4, dtype=torch.float64),
        method=method,
    )
    assert float(found.jac.abs().max()) > 0.1
    assert not found.success


@pytest.mark.parametrize("method", METHODS)
def test_a_function_without_a_lowest_point_is_named(method):
    found = minimize(lambda x: -torch.exp(x).sum(), torch.zeros(3, dtype=torch.float64), method=method)
    assert (found.success, found.status) == (False, 4)
    assert "not bounded below" in found.message
    found = minimize(
        lambda x: -x.sum(), torch.zeros(3, dtype=torch.float64), method=method, options={"maxiter": 80}
    )
    assert not found.success
    assert found.status == 1 or "bounded below" in found.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("offset", [1.0, 1e6])
def test_a_minimum_that_rounding_hides_is_still_success(method, offset):
    scale = torch.tensor([1.0, 1e-4, 1e3], dtype=torch.float64)
    found = minimize(
        lambda x: offset + (scale * (x - 1 / 3) ** 2).sum(),
        torch.ones(3, dtype=torch.float64),
        method=method,
        tol=0.0,
    )
    assert found.success
    assert "rounding" in found.message or float(found.jac.abs().max()) == 0


def test_message_and_flag_speak_of_the_best_point():
    """The first step leaves a narrow, deep valley, and the gradient vanishes in a higher one; x is in the first."""

    def valleys(x):
        return (-20 * torch.exp(-50 * x**2) + 0.5 * (x - 3) ** 2).sum()

    found = minimize(valleys, torch.tensor([-0.05], dtype=torch.float64), method="sgd", options={"lr": 0.1})
    assert float(found.x) == -0.05
    assert (found.success, found.status) == (False, 4)
    assert "at a higher loss than x has" in found.message
    assert f"the largest gradient component is {float(found.jac.abs().max()):.2g}" in found.message


@pytest.mark.parametrize(("method", "options"), [("lbfgs", {}), ("sgd", {"lr": 0.1})])
def test_a_saddle_is_named(method, options):
    def fun(x):
        return (x[0] ** 2 - 1) ** 2 + x[1] ** 2

    found = minimize(fun, [0.0, 1.0], method=method, options=options)
    assert found.status == 0
    assert "saddle or a maximum" in found.message
    assert "curvature is -4" in found.message
    found = minimize(fun, [0.3, 1.0], method=method, options=options)
    assert "saddle" not in found.message


@pytest.mark.parametrize(("method", "n"), [("lbfgs", 60), ("newton", 22)])
def test_the_price_of_differences_is_said_before_it_is_paid(method, n):
    """The numbers said are those that are called."""
    calls = 0

    def fun(x):
        nonlocal calls
        calls += 1
        return float(((x - 1) ** 2).sum())

    with pytest.warns(UserWarning, match="by differences takes 2 n = ") as caught:
        found = minimize(fun, np.zeros(n), method=method, options={"maxiter": 1})
    text = str(caught[0].message)
    assert f"2 n = {2 * n:,} calls of fun (n = {n})" in text
    assert "Give jac=..." in text
    assert found.nfev == calls
    if method == "newton":
        step = 4 * n * n + 2 * n
        assert f"each step, for its Hessian, about {step:,}" in text
        assert step <= calls <= 1.2 * step
    minimize(fun, np.zeros(5), method=method, options={"maxiter": 1})  # cheap: not a word
    minimize(fun, np.zeros(n), method=method, jac=lambda x: 2 * (x - 1), options={"maxiter": 1})


def test_tensor_methods_on_an_array():
    """A tensor's methods mean autograd; where a given jac wants an array all the same, words say what to give."""
    found = minimize(lambda x: (x - 1).pow(2).sum(), np.zeros(3))
    assert found.derivative == "autograd"
    assert found.x == pytest.approx(np.ones(3))
    with pytest.raises(ValueError, match=r"fun asks its x for \.pow.*Give x0=torch\.tensor"):
        minimize(lambda x: x.pow(2).sum(), np.zeros(3), jac=lambda x: 2 * x)


class _Lopsided(torch.autograd.Function):
    """Σ xᵢ² xᵢ₊₁ with a backward pass whose own derivative is not symmetric."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**2 * x.roll(-1)).sum() + (x**4).sum()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (2 * x * x.roll(-1) + (x.detach() ** 2).roll(1) + 4 * x**3)


@pytest.mark.parametrize("method", ["newton", "newton-cg"])
def test_steps_by_a_hessian_that_is_not_symmetric_are_warned_of_once(method):
    x0 = torch.tensor([1.0, -0.5, 0.7, 0.2], dtype=torch.float64)
    with pytest.warns(UserWarning, match="autograd gives is not symmetric.*Try LBFGS") as caught:
        minimize(_Lopsided.apply, x0, method=method, options={"maxiter": 5})
    assert len(caught) == 1
