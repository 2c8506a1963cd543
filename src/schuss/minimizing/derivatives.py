"""A plain function of an array or tensor as a closure that torch can differentiate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schuss.errors import refusal

Array = NDArray[np.float64]
EPS = float(np.finfo(float).eps)


class WantsTensors(ValueError):  # noqa: N818 (it names what was found)
    """A function was asked at an array, and wants a tensor's attributes of it."""


class Differentiable:
    """`fun` at `start`, a leaf that an optimizer moves; `closure()` evaluates it there with a graph behind it.

    `source` says where derivatives come from: "autograd", "given" or "finite differences". `values` counts calls
    of the function, `slopes` calls of a given derivative.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: tuple[Any, ...],
        jac: Callable[..., Any] | None,
        residual: bool,
    ) -> None:
        self.fun, self.args, self.jac, self.residual, self.x0 = fun, args, jac, residual, x0
        self.values = self.slopes = 0
        self.start = _leaf(x0)
        self._last_jacobian: tuple[bytes, Array] | None = None
        if jac is not None:
            self.source = "given"
        else:
            self.source = "autograd" if self._computes_with_tensors() else "finite differences"

    def closure(self) -> Tensor:
        """The loss, or the residuals, at the current point."""
        if self.source == "autograd":
            self.values += 1
            return self._checked(self.fun(self.start, *self.args))
        return cast(Tensor, _Value.apply(self.start, self))

    def like_start(self, x: Tensor) -> Any:
        """x as the caller's own kind: a tensor, or an array of x0's shape."""
        x = x.detach().clone().reshape(self.start.shape)
        if isinstance(self.x0, Tensor):
            return x
        given = np.asarray(self.x0).dtype
        return x.cpu().numpy().astype(given if given.kind == "f" else np.float64)

    def call(self, x: Array) -> Array:
        """`fun` at an array, as a float64 array without axes or with one."""
        self.values += 1
        out = self._ask("fun", self.fun, x)
        if out is None:  # which NumPy would read as nan
            raise ValueError("fun returned None. It must return the loss.")
        try:
            found = np.asarray(out, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"fun returned {type(out).__name__}, which is no number.") from None
        if not self.residual and found.size != 1:
            raise _not_one_number(found.shape)
        return found.reshape(-1) if self.residual else found.reshape(())

    def jacobian(self, x: Array) -> Array:
        """∂fun/∂x at an array as a matrix, outputs × x, given or by central differences; the last one is stored."""
        key = x.tobytes()
        if self._last_jacobian is None or self._last_jacobian[0] != key:
            self._last_jacobian = (key, self._given(x) if self.jac else self._differences(x))
        return self._last_jacobian[1]

    def bent(self, x: Array, v: Array, u: Array) -> Array:
        """∂(vᵀJᵀu)/∂x, by a central difference of the Jacobian along v."""
        size = float(np.linalg.norm(v))
        if size == 0:
            return np.zeros_like(v)
        # The best step balances the curve against the derivative's own error, ε or ε^(2/3).
        h = (EPS ** (1 / 3) if self.jac else 4e-4) * max(1.0, float(np.linalg.norm(x))) / size
        here = self._last_jacobian
        change = (self.jacobian(x + h * v) - self.jacobian(x - h * v)) / (2 * h)
        self._last_jacobian = here
        return change.T @ u

    def _given(self, x: Array) -> Array:
        assert self.jac is not None
        self.slopes += 1
        found = np.asarray(self._ask("jac", self.jac, x), dtype=np.float64)
        if found.size % x.size or (not self.residual and found.size != x.size):
            wanted = f"(residuals, {x.size})" if self.residual else f"x's, {tuple(self.start.shape)}"
            raise refusal("jac(x).shape", found.shape, wanted)
        return found.reshape(-1, x.size)

    def _differences(self, x: Array) -> Array:
        steps = EPS ** (1 / 3) * np.maximum(1.0, np.abs(x))
        columns: list[Array] = []
        for i, h in enumerate(steps):
            above, below = x.copy(), x.copy()
            above[i] += h
            below[i] -= h
            columns.append((self.call(above) - self.call(below)).reshape(-1) / (above[i] - below[i]))
        return np.stack(columns, axis=1)

    def _ask(self, name: str, function: Callable[..., Any], x: Array) -> Any:
        shaped = x.reshape(self.start.shape).copy()
        try:
            given = torch.as_tensor(shaped).to(self.start) if isinstance(self.x0, Tensor) else shaped
            out = function(given, *self.args)
        except AttributeError as error:
            if type(getattr(error, "obj", None)) is not np.ndarray:
                raise
            raise WantsTensors(
                f"{name} asks its x for .{error.name}, which tensors have and arrays do not, and x0 is no tensor. "
                "Give x0=torch.tensor(...)."
            ) from error
        return out.detach().cpu().numpy() if isinstance(out, Tensor) else out

    def _checked(self, out: Any) -> Tensor:
        if isinstance(out, Tensor) and (self.residual or out.numel() == 1):
            return out.reshape(-1) if self.residual else out.reshape(())
        raise _not_one_number(tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__)

    def _computes_with_tensors(self) -> bool:
        """Try `fun` on a tensor. For NumPy's x0 the value and one directional derivative must agree as well."""
        probe = self.start.detach().clone().requires_grad_()
        numpy = not isinstance(self.x0, Tensor)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.values += 1
                out = self.fun(probe, *self.args)
        except Exception:
            if not numpy:
                raise
            return False
        if not (isinstance(out, Tensor) and out.requires_grad):
            return False
        out = self._checked(out)
        if not numpy:
            return True
        try:
            return self._agrees(probe, out)
        except (TypeError, WantsTensors):  # torch's functions take no arrays
            return True

    def _agrees(self, probe: Tensor, out: Tensor) -> bool:
        random = np.random.default_rng(0)
        x = probe.detach().numpy().reshape(-1)
        v, u = random.standard_normal(x.size), random.standard_normal(out.numel())
        h = EPS ** (1 / 3) * max(1.0, float(np.abs(x).max(initial=0.0)))
        value, above, below = (float(u @ self.call(x + s * h * v).reshape(-1)) for s in (0, 1, -1))
        mine = float(u @ out.detach().numpy().reshape(-1))
        (slope,) = torch.autograd.grad(out.reshape(-1) @ torch.from_numpy(u), probe)
        along, difference = float(slope.numpy().reshape(-1) @ v), (above - below) / (2 * h)
        if not np.isfinite(difference):
            return bool(np.isclose(mine, value))
        noise = 1e2 * EPS * (abs(above) + abs(below)) / h
        return bool(
            np.isclose(mine, value, rtol=1e-9, atol=1e-12)
            and abs(along - difference) <= 1e-3 * max(abs(along), abs(difference)) + noise
        )


class _Value(torch.autograd.Function):
    """fun(x) by NumPy; its backward pass is `_Pull`, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, problem: Differentiable) -> Tensor:
        ctx.problem = problem
        ctx.save_for_backward(x)
        return torch.from_numpy(problem.call(_flat(x)).copy()).to(x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return cast(Tensor, _Pull.apply(x, grads[0], ctx.problem)), None


class _Pull(torch.autograd.Function):
    """Jᵀu at x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, problem: Differentiable) -> Tensor:
        ctx.problem = problem
        ctx.save_for_backward(x, u)
        return _like(problem.jacobian(_flat(x)).T @ _flat(u), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, u = ctx.saved_tensors
        problem, v = ctx.problem, _flat(grads[0])
        bent = _like(problem.bent(_flat(x), v, _flat(u)), x) if ctx.needs_input_grad[0] else None
        pushed = _like(problem.jacobian(_flat(x)) @ v, u) if ctx.needs_input_grad[1] else None
        return bent, pushed, None


def _not_one_number(found: object) -> ValueError:
    return refusal("fun(x)", found, "one number", 'Residuals want method="gauss-newton".')


def _flat(tensor: Tensor) -> Array:
    return tensor.detach().cpu().to(torch.float64).numpy().reshape(-1)


def _like(array: Array, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(tensor.shape).to(tensor)


def _leaf(x0: Any) -> Tensor:
    if isinstance(x0, Tensor):
        if x0.is_complex():
            raise TypeError("x0 is complex. Minimize over torch.view_as_real(x0).")
        x = x0.detach().clone()
        return (x if x.is_floating_point() else x.to(torch.float64)).requires_grad_()
    array = np.asarray(x0)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"x0 has dtype {array.dtype}; real numbers are wanted.")
    if array.size == 0:
        raise ValueError("x0 is empty: there is nothing to minimize over.")
    return torch.from_numpy(array.astype(np.float64)).requires_grad_()
