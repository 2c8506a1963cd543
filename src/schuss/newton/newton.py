"""Newton's method with the whole Hessian: exact, for d² memory and d³ time.

Sources: Moré & Sorensen, "Computing a trust region step", SIAM J. Sci. Stat. Comput. 4 (1983), §3;
Conn, Gould & Toint, "Trust-Region Methods" (2000), ch. 6-7; Higham, "Accuracy and Stability of Numerical Algorithms"
(2002), ch. 12, for refinement by accurate residuals.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from schuss.errors import real, refusal
from schuss.newton.base import CurvatureOptimizer, Params, StepReport, check_finite, check_radius
from schuss.newton.cost import dense_cost, free_bytes
from schuss.newton.objective import Objective, Point, Weights
from schuss.newton.refinement import residual
from schuss.newton.region import REFINEMENTS, SpectralModel, descend
from schuss.units import human_bytes

FIRST_FRACTION = 0.03
"""Where the first Hessian is not positive definite its model is a poor guide: begin with this fraction of ‖D w‖."""


class SingularHessian(ArithmeticError):  # noqa: N818 (it names what was found)
    """The full Newton step does not exist: the Hessian has no inverse."""


class Newton(CurvatureOptimizer):
    r"""Step to the minimum of the loss's quadratic model, within a trust region.

    At weights w with gradient g and Hessian H the loss is close to its second-order Taylor model, and

        s = argmin  gᵀs + ½ sᵀH s   over  ‖D s‖ ≤ Δ          D = √|diag H|
        w ← w + s                   if the loss falls by ≥ 1/10 of the predicted decrease

    with Δ widened where the model was accurate and narrowed where not. Inside the region with H positive definite
    that is Newton's θ − H⁻¹∇J. Where H curves down the step follows it down to the region's edge, even
    from a point where g is exactly zero along it; it never lands on the saddle.

    | here           | symbol | domain         | meaning                                                          |
    | `lr`           |        | [0, 1]         | fraction of s that is taken                                      |
    | `radius`       | Δ      | > 0 or None    | first trust region; None begins with the full Newton step        |
    | `damping`      |        | "region", None | None takes −H⁻¹g whatever the loss does: the full Newton step    |
    | `weight_decay` |        | ≥ 0            | adds ½ weight_decay ‖w‖² to the loss                             |
    | `memory_limit` |        | bytes or None  | refuse a larger d² than this; None: three quarters of what is free |
    | `full_batch`   |        | bool           | the closure is one function: reuse its last evaluation           |

    One step costs d Hessian-vector products, 24 d² bytes and about 9 d³ flops; `dense_cost(d)` says what that is here.

    >>> w = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = Newton([w])
    >>> def closure():
    ...     return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
    >>> for _ in range(30):
    ...     _ = optimizer.step(closure)
    >>> w.detach().numpy().round(6)
    array([1., 1.])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        *,
        radius: float | None = None,
        damping: str | None = "region",
        weight_decay: float = 0.0,
        memory_limit: int | None = None,
        full_batch: bool = False,
    ) -> None:
        if damping not in ("region", None):
            raise refusal("damping", damping, '"region" or None')
        check_radius(radius, "None begins with the full Newton step.")
        if memory_limit is not None:
            real("memory_limit", memory_limit, "a number of bytes ≥ 0, or None", lambda x: x >= 0)
        super().__init__(params, lr, weight_decay, full_batch)
        self.damping, self.memory_limit = damping, memory_limit
        self.memory = {"radius": math.inf if radius is None else float(radius)}
        self._warned = False
        weights = Weights(self.param_groups)
        if weights.params:
            self._affordable(weights)

    def _affordable(self, weights: Weights) -> None:
        device = weights.params[0].device
        needed = 24 * weights.count**2
        limit = self.memory_limit if self.memory_limit is not None else 0.75 * free_bytes(device)
        if needed <= limit:
            return
        cost, d = dense_cost(weights.count, device), weights.count
        raise MemoryError(
            f"Newton needs the whole Hessian. {cost}; {human_bytes(limit)} may be used. Try NewtonCG (the same model "
            f"by Hessian-vector products, about {human_bytes(8 * 30 * d)}), GaussNewton(solver='cg') for least squares "
            f"and softmax, or LBFGS ({human_bytes(8 * 24 * d)})."
        )

    def _curves_down(self, objective: Objective, point: Point) -> bool:
        values = spectral_model(objective.gradient(point), objective.hessian(point)).values
        return float(values[0]) < -1e-7 * float(values.abs().max())

    def _advance(self, objective: Objective, start: Point, lr: float) -> StepReport:
        gradient = objective.gradient(start)
        hessian = objective.hessian(start)
        self._symmetric(objective.asymmetry)
        check_finite(start, "gradient or Hessian", gradient, hessian)
        if self.damping is None:
            return self._pure(objective, start, hessian, lr)
        model = spectral_model(gradient, hessian)
        self._warn_if_blurred(model.condition, start.graph.dtype)
        radius = self.memory["radius"]
        if math.isinf(radius) and model.free is None:
            size = float((model.scale * start.x).norm())
            radius = min(model.natural(), FIRST_FRACTION * size) if size else model.natural()
        end, numbers = descend(objective, start, model, radius, lr=lr, fraction=0.1)
        self.memory["radius"], self._last = numbers["radius"], end
        return self._write_report(objective, start, end, **numbers)

    def _pure(self, objective: Objective, start: Point, hessian: Tensor, lr: float) -> StepReport:
        gradient = objective.gradient(start)
        scale = _scale(hessian)
        factor, pivots, info = torch.linalg.lu_factor_ex(hessian / torch.outer(scale, scale))
        diagonal = factor.diagonal().abs()
        tiny = len(gradient) * torch.finfo(torch.float64).eps * float(diagonal.max())
        if int(info) or float(diagonal.min()) <= tiny:
            raise SingularHessian(
                "The Hessian has no inverse here: the loss is flat along some direction, so −H⁻¹g does not exist. "
                "The weights are unchanged. Try damping='region', which takes the shortest such step, or a little "
                "weight_decay."
            )

        def solve(right: Tensor) -> Tensor:
            return torch.linalg.lu_solve(factor, pivots, (right / scale)[:, None])[:, 0] / scale

        step = solve(-gradient)
        for _ in range(REFINEMENTS):
            step = step + solve(residual(hessian, step, -gradient))
        step = lr * step
        end = objective.at(start.x + step)
        if not math.isfinite(end.loss):
            end, stopped = start, f"rejected: the loss is {end.loss} after the full Newton step"
        else:
            stopped = "the full Newton step"
            self._last = end
        bend = float(step @ (hessian @ step))
        predicted = -float(gradient @ step) - 0.5 * bend
        return self._write_report(
            objective, start, end, predicted=predicted, stopped=stopped, negative_curvature=bend < 0
        )

    def _warn_if_blurred(self, condition: float, dtype: torch.dtype) -> None:
        resolution = 1 / torch.finfo(dtype).eps
        if dtype != torch.float64 and condition > 0.1 * resolution and not self._warned:
            self._warned = True
            warnings.warn(
                f"The Hessian's condition number is {condition:.1e}, and {dtype} gradients resolve {resolution:.1e}: "
                "the step along the flattest directions is noise. Use float64 weights.",
                stacklevel=5,
            )


def spectral_model(gradient: Tensor, hessian: Tensor) -> SpectralModel:
    """The quadratic model in the eigenvectors of D⁻¹HD⁻¹, D = √|diag H|: units of the weights drop out."""
    scale = _scale(hessian)
    values, basis = torch.linalg.eigh(hessian / torch.outer(scale, scale))

    def missing(y: Tensor) -> Tensor:
        return basis.T @ (residual(hessian, (basis @ y) / scale, -gradient) / scale)

    return SpectralModel(values, basis, scale, basis.T @ (gradient / scale), missing)


def _scale(hessian: Tensor) -> Tensor:
    diagonal = hessian.diagonal().abs()
    largest = hessian.abs().amax(dim=1)
    scale = torch.maximum(diagonal, 1e-8 * largest).sqrt()
    return torch.where(scale > 0, scale, 1.0)
