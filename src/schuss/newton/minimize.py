"""One door to every optimizer for a plain function of an array or tensor, in the manner of SciPy."""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.newton.base import CurvatureOptimizer
from schuss.newton.derivatives import Differentiable
from schuss.newton.gauss_newton import GaussNewton
from schuss.newton.landscape import NotFinite
from schuss.newton.lbfgs import LBFGS
from schuss.newton.newton import Newton
from schuss.newton.newton_cg import NewtonCG
from schuss.newton.report import StepReport
from schuss.rules import Rule

CURVED: dict[str, type[CurvatureOptimizer]] = {
    "newton": Newton,
    "newton-cg": NewtonCG,
    "lbfgs": LBFGS,
    "gauss-newton": GaussNewton,
}
"""The methods of this room; every other name is looked up among the optimizers of `schuss.torch`."""

AGREE = 1e-6  # relative: how near two losses at the same x must come, float32 included

DOUBT = {
    "given": "Is jac the gradient of fun?",
    "autograd": "Is fun smooth, and bounded below?",
    "finite differences": "Differences give about ten digits of a gradient at best: give jac, or a larger tol.",
}
"""What to look at where the loss does not follow a gradient from this source."""


class Result(dict[str, Any]):
    """What `minimize` found: a dict whose keys are also attributes, with the fields of SciPy's `OptimizeResult`.

    | field        | meaning                                                                                |
    | `x`          | the best point, of the same kind, shape and dtype as `x0`                              |
    | `fun`        | the loss there; with "gauss-newton" ½ Σ residual²                                      |
    | `jac`        | the gradient there, of the kind of `x`                                                 |
    | `success`    | whether the gradient is at most `tol`, or as small as rounding lets it be seen         |
    | `status`     | 0 gradient ≤ tol, 1 limit of steps, 2 rounding, 3 callback, 4 failed                   |
    | `message`    | the same in words, with the numbers                                                    |
    | `nit`        | steps taken                                                                            |
    | `nfev`, `njev`, `nhev` | losses, gradients, products with a Hessian or Jacobian                       |
    | `derivative` | where gradients came from: "autograd", "given" or "finite differences"                 |
    | `method`     | the method's name                                                                      |
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

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
            `fun` is tried on a tensor, and its gradient is checked against a difference.
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
    make = _optimizer(method)
    settings = dict(options or {})
    curved = issubclass(make, CurvatureOptimizer)
    maxiter = settings.pop("maxiter", 1000 if curved else 10_000)
    if not (isinstance(maxiter, numbers.Integral) and int(maxiter) >= 0):
        raise refusal("maxiter", maxiter, "a whole number ≥ 0")
    maxiter = int(maxiter)
    if not (isinstance(tol, numbers.Real) and tol >= 0):
        raise refusal("tol", tol, "a number ≥ 0", "0 goes on until rounding or maxiter stops it.")
    if not (jac is None or callable(jac)):
        raise refusal("jac", jac, "a function or None", "None asks autograd, then finite differences.")
    args = args if isinstance(args, tuple) else (args,)
    problem = Differentiable(fun, x0, args, jac, make is GaussNewton)
    if make is GaussNewton and settings.get("loss", "squares") != "squares":
        given = settings["loss"]
        raise refusal(
            "loss", given, "'squares' here", "A function of residuals has no other: see schuss.torch."
        )
    if curved:
        settings.setdefault("full_batch", True)
    w = problem.start
    try:
        optimizer = make([w], **settings)
    except TypeError as error:
        raise ValueError(
            f"options={settings} do not fit {make.__name__}: {str(error).rstrip('.')}. Allowed besides maxiter: "
            f"{', '.join(list(inspect.signature(make).parameters)[1:])}."
        ) from error
    name = method if isinstance(method, str) else make.__name__
    if isinstance(optimizer, CurvatureOptimizer):
        return _curved(optimizer, problem, name, maxiter, tol, callback)
    return _plain(optimizer, problem, name, maxiter, tol, callback)


def _optimizer(method: str | type[Rule]) -> type[torch.optim.Optimizer]:
    front = importlib.import_module("schuss.torch")
    if isinstance(method, type):
        return front.optimizer(method)
    named = {name.lower(): getattr(front, name) for name in front.__all__}
    found: dict[str, type[torch.optim.Optimizer]] = CURVED | {
        name: value
        for name, value in named.items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    names = {_plain_name(name): name for name in found}
    known = names.get(_plain_name(method))
    if known is None:
        raise refusal("method", method, "a method here", f"Try one of {', '.join(sorted(found))}.")
    return found[known]


def _plain_name(method: Any) -> str:
    return str(method).lower().replace("-", "").replace("_", "")


class _Progress:
    """The best point so far, the callback, and the result they end in."""

    def __init__(self, problem: Differentiable, method: str, callback: Callable[..., Any] | None) -> None:
        self.problem, self.method, self.callback = problem, method, callback
        self.named = callback is not None and "intermediate_result" in inspect.signature(callback).parameters
        self.loss, self.x, self.gradient = math.inf, problem.start.detach().clone(), None
        self.steps = self.losses = self.gradients = self.products = 0

    def count(self, losses: int, gradients: int, products: int) -> None:
        self.losses += losses
        self.gradients += gradients
        self.products += products

    def saw(self, x: Tensor, loss: float, gradient: Tensor | None) -> None:
        if loss <= self.loss:
            self.loss, self.x, self.gradient = loss, x.detach().clone(), gradient

    def wants_to_stop(self, x: Tensor, loss: float) -> bool:
        if self.callback is None:
            return False
        try:
            here = self.problem.like_start(x)
            if self.named:
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
            jac=None if self.gradient is None else problem.like_start(self.gradient),
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
        made = importlib.import_module("scipy.optimize").OptimizeResult
    except ImportError:
        made = Result
    return made(**fields)


def _curved(
    optimizer: CurvatureOptimizer,
    problem: Differentiable,
    method: str,
    maxiter: int,
    tol: float,
    callback: Callable[..., Any] | None,
) -> Any:
    progress = _Progress(problem, method, callback)

    def look() -> float:
        loss, gradient, counts = optimizer.look(problem.closure)
        progress.count(*counts)
        progress.saw(problem.start, loss, gradient)
        return float(gradient.abs().max())

    try:
        while True:
            largest = look()
            words = f"the largest gradient component is {largest:.2g}"
            if largest <= tol:
                down, products = optimizer.curves_down(problem.closure)
                progress.count(0, 0, products)
                if not down:
                    return progress.result(0, f"Converged: {words}, at most tol={tol:g}.")
            if progress.steps >= maxiter:
                return progress.result(1, f"Stopped after maxiter={maxiter} steps: {words}, tol={tol:g}.")
            optimizer.step(problem.closure)
            report = cast(StepReport, optimizer.report)
            progress.count(report.closures, report.gradients, report.products)
            if not report.accepted:
                return _taken_back(progress, optimizer, report, f"{words}, tol={tol:g}.")
            progress.steps += 1
            if report.promised <= 1e-20 * abs(
                report.loss_before
            ):  # ten thousand times less than float64 shows
                look()
                return progress.result(2, f"Converged as far as rounding shows; {words}, tol={tol:g}.")
            if progress.wants_to_stop(problem.start, report.loss_after):
                look()
                return progress.result(3, f"Stopped by the callback after {progress.steps} steps.")
    except NotFinite as error:
        if not progress.steps:
            raise
        return progress.result(4, f"Failed after {progress.steps} steps: {error}")


def _taken_back(progress: _Progress, optimizer: CurvatureOptimizer, report: StepReport, words: str) -> Any:
    """The result where a step was taken back: is it rounding, is fun no function, or is its gradient wrong?"""
    progress.count(1, 0, 0)
    again = optimizer.value(progress.problem.closure)
    if not abs(again - report.loss_before) <= AGREE * abs(report.loss_before):
        return progress.result(
            4,
            f"Failed: fun returned {report.loss_before:.6g} and then {again:.6g} at the same x. It must be the same "
            f"function at every call: no noise, no new batch; {words}",
        )
    # Without a trial the first step of all was already too short to change the weights.
    unseen = not report.trials and 0 < report.promised < math.inf
    if unseen or report.promised <= 1e-9 * abs(report.loss_before):
        return progress.result(
            2,
            f"Converged as far as rounding shows: a further step promises {report.promised:.2g} of "
            f"{report.loss_before:.6g}; {words}",
        )
    return progress.result(4, f"Failed: {report.stopped}; {words} {DOUBT[progress.problem.source]}")


def _plain(
    optimizer: torch.optim.Optimizer,
    problem: Differentiable,
    method: str,
    maxiter: int,
    tol: float,
    callback: Callable[..., Any] | None,
) -> Any:
    progress = _Progress(problem, method, callback)
    while True:
        optimizer.zero_grad()
        loss = problem.closure()
        value = float(loss.detach())
        progress.count(1, 0, 0)
        if not math.isfinite(value):
            if not progress.steps:
                raise NotFinite(f"fun(x0)={value} is not finite, so there is nothing to step from.")
            return progress.result(
                4,
                f"Failed: the loss is {value} after {progress.steps} steps; x is the best before. Try a smaller lr.",
            )
        if not loss.requires_grad:
            raise ValueError("fun returned a tensor that does not depend on x.")
        loss.backward()
        gradient = cast(Tensor, problem.start.grad).detach()
        if not bool(torch.isfinite(gradient).all()):
            words = f"The loss is {value:.6g}, but its gradient is not finite there."
            if not progress.steps:
                raise NotFinite(words)
            return progress.result(4, f"Failed after {progress.steps} steps: {words}")
        progress.count(0, 1, 0)
        progress.saw(problem.start, value, gradient)
        largest = float(gradient.abs().max())
        words = f"the largest gradient component is {largest:.2g}"
        if largest <= tol:
            return progress.result(0, f"Converged: {words}, at most tol={tol:g}.")
        if progress.steps >= maxiter:
            return progress.result(1, f"Stopped after maxiter={maxiter} steps: {words}, tol={tol:g}.")
        if progress.steps and progress.wants_to_stop(problem.start, value):
            return progress.result(3, f"Stopped by the callback after {progress.steps} steps.")
        optimizer.step()
        progress.steps += 1
