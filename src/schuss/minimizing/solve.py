"""One door to every optimizer for a plain function of an array or tensor, in the manner of SciPy."""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from schuss import torch as api
from schuss.errors import real, refusal, unknown, whole
from schuss.minimizing.derivatives import Differentiable
from schuss.newton.base import CurvatureOptimizer, StepReport
from schuss.newton.gauss_newton import GaussNewton
from schuss.newton.lbfgs import LBFGS
from schuss.newton.newton import Newton
from schuss.newton.newton_cg import NewtonCG, lowest_curvature
from schuss.newton.objective import NotFinite, Objective, Weights, as_loss
from schuss.rules import Rule

CURVED = {"newton": Newton, "newton-cg": NewtonCG, "lbfgs": LBFGS, "gauss-newton": GaussNewton}
"""Second-order methods; every other name is looked up among the optimizers of `schuss.torch`."""

COSTLY, COSTLY_STEP = 100, 1000  # calls of fun for a gradient by differences, or a step: a warning says so
INVISIBLE = 1e-20  # a fraction of the loss ten thousand times less than float64 shows
PROBES = 20  # Hessian-vector products that look for a saddle at the end, at most
FLAT = 1e4  # see `_Progress.flat`
ENDLESS = 1e30  # a loss that has fallen so far, relative to 1 + |fun(x0)|, is not going to end;
DEEP = 1e8  # where steps fail, one that has fallen so far is not, it seems
AGREE = 1e-6  # relative: how near two losses at the same x must come, float32 included

ADVICE = {
    "given": "Is jac the gradient of fun?",
    "autograd": "Is fun smooth, and bounded below?",
    "finite differences": "Differences give about ten digits of a gradient at best: give jac, or a larger tol.",
}
"""What to check where the loss does not follow a gradient from this source."""


class Result(dict[str, Any]):
    """What `minimize` found: a dict whose keys are also attributes, with the fields of SciPy's `OptimizeResult`.

    | field        | meaning                                                                                |
    | `x`          | the best point, of the same kind, shape and dtype as `x0`                              |
    | `fun`        | the loss there; with "gauss-newton" ½ Σ residual²                                      |
    | `jac`        | the gradient there, of the kind of `x`                                                 |
    | `success`    | whether the gradient there is at most `tol`, or as small as rounding lets it be seen   |
    | `status`     | 0 gradient ≤ tol, 1 limit of steps, 2 rounding, 3 callback, 4 failed                   |
    | `message`    | the same in words, with the numbers there; also where that point is a saddle           |
    | `nit`        | steps taken                                                                            |
    | `nfev`, `njev`, `nhev` | losses, gradients, Hessian- or Jacobian-vector products                      |
    | `derivative` | where gradients came from: "autograd", "given" or "finite differences"                 |
    | `method`     | the method's name                                                                      |
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __dir__(self) -> list[str]:
        return sorted(self)

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{key:>{width}}: {value}" for key, value in self.items())


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    method: str | type[Rule] = "lbfgs",
    jac: Callable[..., Any] | None = None,
    tol: float = 1e-8,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Minimize `fun(x, *args)` from x0 by any optimizer of this library.

    Args:
        fun: Takes x, of x0's kind and shape, and returns one number; with "gauss-newton" the residuals, whose
            half sum of squares is minimized.
        x0: NumPy array, sequence of numbers, or tensor.
        args: Further arguments of `fun` and `jac`; one that is no tuple is taken as the only one.
        method: "newton", "newton-cg", "lbfgs", "gauss-newton", or the name of an optimizer of `schuss.torch`
            ("adam", "sgd", ...); capitals, - and _ do not matter. Or a rule of your own: the class.
        jac: Returns the gradient at x (with "gauss-newton" the Jacobian, residuals × x). Without it gradients
            come from autograd if `fun` computes with tensors, else from central differences; for x0 of NumPy
            `fun` is tried on a tensor, and its gradient is checked against a difference. Differences take 2 n
            losses per gradient for n variables; a warning says so where that is slow.
        tol: Stop once every component of the gradient is at most this.
        callback: Called after every step with `intermediate_result=` (a result so far) if it has a parameter of
            that name, else with a copy of x. StopIteration ends the run.
        options: `maxiter` (default 1000; 10000 for first-order methods), and keyword arguments of the
            optimizer: `dict(lr=0.1)`.

    Returns:
        `scipy.optimize.OptimizeResult` where SciPy is installed, else a `Result` with the same fields.

    Raises:
        ValueError: for a loss that is not a finite number at x0, an unknown method, or unfit options.

    >>> minimize(lambda x: (x[0] - 1) ** 2 + 10 * (x[1] + 2) ** 2, [0.0, 0.0], method="newton").x.round(6)
    array([ 1., -2.])
    """
    if not callable(fun):
        raise refusal("fun", fun, "a function of x that returns the loss")
    if not (callback is None or callable(callback)):
        raise refusal("callback", callback, "a function or None", "It is called after every step.")
    if not (options is None or isinstance(options, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise refusal("options", options, "a dict or None", "Try options=dict(maxiter=100).")
    make = _optimizer(method)
    settings = dict(options or {})
    curved = issubclass(make, CurvatureOptimizer)
    maxiter = whole("maxiter", settings.pop("maxiter", 1000 if curved else 10_000))
    advice = "0 goes on until rounding or maxiter stops it."
    tol = real("tol", tol, "a number ≥ 0", lambda x: x >= 0, advice)
    if not (jac is None or callable(jac)):
        raise refusal("jac", jac, "a function or None", "None asks autograd, then finite differences.")
    args = args if isinstance(args, tuple) else (args,)
    problem = Differentiable(fun, x0, args, jac, make is GaussNewton)
    if make is GaussNewton and settings.get("loss", "squares") != "squares":
        advice = "A function of residuals has no other: see schuss.torch."
        raise refusal("loss", settings["loss"], "'squares' here", advice)
    if curved:
        settings.setdefault("full_batch", True)
    try:
        optimizer = make([problem.start], **settings)
    except TypeError as error:
        raise ValueError(
            f"options={settings} do not fit {make.__name__}: {str(error).rstrip('.')}. Allowed besides maxiter: "
            f"{', '.join(list(inspect.signature(make).parameters)[1:])}."
        ) from error
    _say_price(problem, optimizer)
    if isinstance(optimizer, CurvatureOptimizer):  # differences have their own error, and own words
        optimizer.checks_symmetry = problem.source == "autograd"
    progress = _Progress(problem, method if isinstance(method, str) else make.__name__, callback)
    try:
        return _run(optimizer, progress, maxiter, tol)
    except NotFinite as error:
        if not progress.steps:
            raise
        advice = "" if curved else " Try a smaller lr."
        words = f"Failed after {progress.steps} steps: {error} x is the best point before that.{advice}"
        return progress.result(4, words)


def _say_price(problem: Differentiable, optimizer: torch.optim.Optimizer) -> None:
    """Warn of what differences cost, before they are taken."""
    if problem.source != "finite differences":
        return
    n = problem.start.numel()
    gradient, step, words = 2 * n, 0, ""
    if isinstance(optimizer, Newton):
        step = gradient + 4 * n * n
        words = f", and each step, for its Hessian, about {step:,}"
    elif isinstance(optimizer, NewtonCG):
        most = optimizer.max_products or min(2 * n, 200)
        step = gradient + 4 * n * most
        words = f", and each of up to {most} Hessian-vector products per step {4 * n:,}"
    if gradient >= COSTLY or step >= COSTLY_STEP:
        what = "Jacobian" if problem.residual else "gradient"
        warnings.warn(
            f"No {what} is given and fun does not compute with tensors, so each {what} by differences takes "
            f"2 n = {gradient:,} calls of fun (n = {n}){words}. Give jac=..., or a fun of torch operations, whose "
            f"{what} costs about two calls.",
            stacklevel=3,
        )


def _optimizer(method: str | type[Rule]) -> type[torch.optim.Optimizer]:
    if isinstance(method, type):
        return api.optimizer(method)
    known: dict[str, type[torch.optim.Optimizer]] = dict(CURVED)
    for name in api.__all__:
        value = getattr(api, name)
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
            known[name.lower()] = value
    found = next((name for name in known if _plain(name) == _plain(method)), None)
    if found is None:
        raise unknown("method", method, sorted(known))
    return known[found]


def _plain(method: Any) -> str:
    return str(method).lower().replace("-", "").replace("_", "")


class _Progress:
    """The best point so far, the callback, and the result they end in."""

    def __init__(self, problem: Differentiable, method: str, callback: Callable[..., Any] | None) -> None:
        self.problem, self.method, self.callback = problem, method, callback
        self.by_name = (
            callback is not None and "intermediate_result" in inspect.signature(callback).parameters
        )
        self.first, self.loss, self.x = math.nan, math.inf, problem.start.detach().clone()
        self.gradient = torch.full_like(self.x, math.nan)
        self.eps = torch.finfo(problem.start.dtype).eps
        self.steps = self.losses = self.gradients = self.products = 0

    @property
    def largest(self) -> float:
        """The largest gradient component at the best point."""
        return float(self.gradient.abs().max())

    @property
    def words(self) -> str:
        return f"the largest gradient component is {self.largest:.2g}"

    def endless(self, depth: float = ENDLESS) -> str:
        """That the loss has fallen out of all proportion, in words; nothing where it has not."""
        if self.loss > -depth * (1 + abs(self.first)):
            return ""
        return (
            f"Failed: fun has fallen from {self.first:.3g} to {self.loss:.3g} in {self.steps} steps, so it is not "
            f"bounded below, it seems; {self.words}."
        )

    @property
    def flat(self) -> bool:
        """Whether the gradient is so small that moving x by its own size, or by 1, would hardly change the loss."""
        reach = float((self.gradient.abs().flatten() * self.x.abs().clamp(min=1.0).flatten()).max())
        return reach <= min(FLAT * math.sqrt(self.eps), 1e-2) * abs(self.loss)

    def count(self, losses: int, gradients: int, products: int) -> None:
        self.losses += losses
        self.gradients += gradients
        self.products += products

    def saw(self, x: Tensor, loss: float, gradient: Tensor) -> bool:
        """Whether this is the best point so far: the lowest, or as low within rounding and flatter."""
        if math.isnan(self.first):
            self.first = loss
        level = loss <= self.loss + math.sqrt(self.eps) * abs(self.loss)
        flatter = float(gradient.abs().max()) < self.largest
        best = loss <= self.loss or (level and flatter)
        if best:
            self.loss, self.x, self.gradient = loss, x.detach().clone(), gradient
        return best

    def lowest_curvature(self) -> float | None:
        """The curvature along a direction that falls from the best point, if a few products find one.

        No more products than half of the gradients so far, unless there are few variables; none by differences of
        losses, and none for residuals, whose saddles are of no interest.
        """
        problem = self.problem
        if problem.residual or problem.source == "finite differences":
            return None
        n = problem.start.numel()
        most = n if n <= PROBES else min(PROBES, self.gradients // 2)
        with torch.no_grad():
            problem.start.copy_(self.x)
        weights = Weights([{"params": [problem.start], "lr": 1.0, "weight_decay": 0.0}])
        objective = Objective(weights, problem.closure, curved=True, reduce=as_loss)
        try:
            with torch.enable_grad():
                found = lowest_curvature(objective, objective.here(), most)
        except (RuntimeError, ValueError):  # no second derivative, or none that is finite: nothing is said
            return None
        finally:
            self.count(objective.closures, objective.gradients, objective.products)
        return None if found is None else found[0]

    def wants_to_stop(self, x: Tensor, loss: float) -> bool:
        if self.callback is None:
            return False
        try:
            here = self.problem.like_start(x)
            if self.by_name:
                self.callback(intermediate_result=_result(x=here, fun=loss, nit=self.steps))
            else:
                self.callback(here)
        except StopIteration:
            return True
        return False

    def result(self, status: int, message: str) -> Any:
        problem = self.problem
        return _result(
            x=problem.like_start(self.x),
            fun=self.loss,
            jac=problem.like_start(self.gradient),
            success=status in (0, 2),
            status=status,
            message=message,
            nit=self.steps,
            nfev=max(self.losses, problem.values),
            njev=max(self.gradients, problem.slopes),
            nhev=self.products,
            derivative=problem.source,
            method=self.method,
        )


def _result(**fields: Any) -> Any:
    try:
        return importlib.import_module("scipy.optimize").OptimizeResult(**fields)
    except ImportError:
        return Result(**fields)


def _run(optimizer: torch.optim.Optimizer, progress: _Progress, maxiter: int, tol: float) -> Any:
    """Evaluate and step until there is a result."""
    problem, report = progress.problem, None
    while True:
        if isinstance(optimizer, CurvatureOptimizer):
            loss, gradient, counts = optimizer.evaluate(problem.closure)
        else:
            loss, gradient, counts = _evaluate(optimizer, problem)
        progress.count(*counts)
        best, largest = progress.saw(problem.start, loss, gradient), float(gradient.abs().max())
        if report is not None and report.first_predicted <= INVISIBLE * abs(report.loss_before):
            return _invisible(progress, report, tol)
        if progress.steps and progress.wants_to_stop(problem.start, loss):
            return progress.result(3, f"Stopped by the callback after {progress.steps} steps.")
        if largest <= tol:
            if not best:  # the gradient vanishes above a point that was passed before
                failed = (
                    f"Failed: the gradient vanishes ({largest:.2g}) at a higher loss than x has, which was passed "
                    f"before; at x {progress.words}. Start again from x with a smaller step."
                )
                return progress.result(4, failed)
            down = False
            if isinstance(optimizer, CurvatureOptimizer):
                down, products = optimizer.curves_down(problem.closure)
                progress.count(0, 0, products)
            if not down:
                return _converged(progress, tol)
        if progress.endless():
            return progress.result(4, progress.endless())
        if progress.steps >= maxiter:
            words = f"Stopped after maxiter={maxiter} steps: {progress.words}, tol={tol:g}."
            return progress.result(1, words)
        if isinstance(optimizer, CurvatureOptimizer):
            optimizer.step(problem.closure)
            report = cast(StepReport, optimizer.report)
            progress.count(report.closures, report.gradients, report.products)
            if not report.accepted:
                return _rejected(progress, optimizer, report, tol)
        else:
            optimizer.step()
        progress.steps += 1


def _evaluate(
    optimizer: torch.optim.Optimizer, problem: Differentiable
) -> tuple[float, Tensor, tuple[int, int, int]]:
    """The loss, the gradient, which the optimizer finds in `.grad`, and the counts of both."""
    optimizer.zero_grad()
    loss = problem.closure()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NotFinite(f"The loss is {value}, so there is nothing to step from.")
    if not loss.requires_grad:
        raise ValueError("fun returned a tensor that does not depend on x.")
    loss.backward()
    gradient = cast(Tensor, problem.start.grad).detach()
    if not bool(torch.isfinite(gradient).all()):
        raise NotFinite(f"The loss is {value:.6g}, but its gradient is not finite there.")
    return value, gradient, (1, 1, 0)


def _invisible(progress: _Progress, report: StepReport, tol: float) -> Any:
    """The result after a step whose predicted decrease float64 cannot show: converged, or a collapsed region?"""
    words = f"{progress.words}, tol={tol:g}."
    if report.possible <= INVISIBLE * abs(report.loss_before) and progress.flat:
        return progress.result(2, f"Converged as far as rounding shows; {words}")
    failed = f"Failed: steps are too short for the loss to show, and the gradient is not small; {words}"
    return progress.result(4, progress.endless(DEEP) or f"{failed} {ADVICE[progress.problem.source]}")


def _converged(progress: _Progress, tol: float) -> Any:
    """The result at a gradient of at most tol; its message names a saddle."""
    words = f"Converged: {progress.words}, at most tol={tol:g}."
    lowest = progress.lowest_curvature()
    if lowest is not None:
        words += (
            f" But this is a saddle or a maximum, no minimum: along some direction the curvature is {lowest:.2g}. "
            'Try method="newton" or "newton-cg", which leave it, or another x0.'
        )
    return progress.result(0, words)


def _rejected(progress: _Progress, optimizer: CurvatureOptimizer, report: StepReport, tol: float) -> Any:
    """The result where a step was rejected: is it rounding, is fun no function, or is its gradient wrong?"""
    words, before = f"{progress.words}, tol={tol:g}.", report.loss_before
    progress.count(1, 0, 0)
    again = optimizer.value(progress.problem.closure)
    if not abs(again - before) <= AGREE * abs(before):
        failed = (
            f"Failed: fun returned {before:.6g} and then {again:.6g} at the same x. It must be the same "
            f"function at every call: no noise, no new batch; {words}"
        )
        return progress.result(4, failed)
    # Without a trial the first step of all was already too short to change the weights; that says something only of
    # a step that no region had cut.
    uncut = report.first_predicted >= (1 - 1e-6) * report.possible
    unseen = not report.trials and 0 < report.first_predicted < math.inf and uncut
    if unseen or (report.possible <= 1e-9 * abs(before) and progress.flat):
        converged = (
            f"Converged as far as rounding shows: a further step would decrease the loss by {report.possible:.2g} of "
            f"{before:.6g}; {words}"
        )
        return progress.result(2, converged)
    failed = f"Failed: {report.stopped}; {words} {ADVICE[progress.problem.source]}"
    return progress.result(4, progress.endless(DEEP) or failed)
