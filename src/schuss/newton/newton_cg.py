"""Newton's method without a Hessian: conjugate gradients on products, inside a trust region.

Sources: Steihaug, SIAM J. Numer. Anal. 20 (1983); Martens, "Deep learning via Hessian-free optimization" (2010);
Eisenstat & Walker, SIAM J. Sci. Comput. 17 (1996), choice 2, for how exactly to solve.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from schuss.errors import whole
from schuss.newton.base import (
    CurvatureOptimizer,
    Params,
    StepReport,
    check_finite,
    check_products,
    check_radius,
)
from schuss.newton.objective import Objective, Point
from schuss.newton.region import EPS, KrylovModel, descend, forcing


class NewtonCG(CurvatureOptimizer):
    r"""Minimize the loss's quadratic model by conjugate gradients, and leave saddles along negative curvature.

    At weights w with gradient g, conjugate gradients on H s = −g build a path from s = 0 until

        ‖H s + g‖ ≤ η ‖g‖           η by Eisenstat & Walker: loose far away, tight near the end
        or ‖s‖ reaches Δ            the trust region
        or dᵀH d ≤ 0                then straight on along d to the region's edge

    and w ← w + s is accepted if the loss falls by ≥ 1/10 of the predicted decrease. Where a step ends with no gradient
    left, a few random HVPs look for negative curvature, and if there is any the step goes on along it:
    it does not stop on a saddle.

    | here           | symbol | domain      | meaning                                                             |
    | `lr`           |        | [0, 1]      | fraction of s that is taken                                         |
    | `radius`       | Δ      | > 0 or None | first trust region; None: as far as conjugate gradients go          |
    | `max_products` |        | ≥ 1 or None | Hessian-vector products per step, at most; None: min(2d, 200)       |
    | `probes`       |        | ≥ 0         | Hessian-vector products to look for it where g vanishes             |
    | `weight_decay` |        | ≥ 0         | adds ½ weight_decay ‖w‖² to the loss                                |
    | `full_batch`   |        | bool        | the closure is one function: reuse its last evaluation              |

    Memory is about 30 vectors of d float64; a Hessian-vector product costs about two gradients.

    >>> w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = NewtonCG([w])
    >>> _ = optimizer.step(lambda: 0.5 * (w[0] ** 2 - w[1] ** 2))
    >>> optimizer.report.negative_curvature
    True
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        *,
        radius: float | None = None,
        max_products: int | None = None,
        probes: int = 20,
        weight_decay: float = 0.0,
        full_batch: bool = False,
    ) -> None:
        check_radius(radius, "None lets conjugate gradients go as far as they do.")
        check_products(max_products)
        whole("probes", probes, 0, advice="0 accepts any point where the gradient vanishes.")
        super().__init__(params, lr, weight_decay, full_batch)
        self.max_products, self.probes = max_products, probes
        first = math.inf if radius is None else float(radius)
        self.memory = {"radius": first, "gradient_norm": None, "eta": 0.1}

    def _curves_down(self, objective: Objective, point: Point) -> bool:
        return lowest_curvature(objective, point, self.probes) is not None

    def _advance(self, objective: Objective, start: Point, lr: float) -> StepReport:
        gradient = objective.gradient(start)
        check_finite(start, "gradient", gradient.norm())
        size, radius = float(gradient.norm()), self.memory["radius"]
        end, memory = start, dict[str, Any]()
        numbers: dict[str, Any]
        if size == 0.0:
            stopped = "the gradient is zero and no Hessian-vector product found negative curvature"
            numbers = {"predicted": 0.0, "radius": radius, "stopped": stopped}
        else:
            eta = forcing(size, self.memory["gradient_norm"], self.memory["eta"])
            limit = self.max_products or min(2 * len(gradient), 200)
            model = KrylovModel(gradient, lambda v: objective.hvp(start, v), eta, limit, radius=radius)
            self._symmetric(model.asymmetry)
            end, numbers = descend(objective, start, model, radius, lr=lr, fraction=0.1, exact=False)
            numbers["stopped"] += f"; CG ended by {model.why}"
            memory = {"radius": numbers["radius"], "gradient_norm": size, "eta": eta}
        if (end is not start or not size) and float(objective.gradient(end).norm()) <= 1e-8 * size:
            further = self._leave_saddle(objective, end, lr)
            if further is not None:
                end, more = further
                numbers |= {"predicted": numbers["predicted"] + more, "negative_curvature": True}
                numbers["stopped"] = "a saddle left along its negative curvature"
        self.memory |= memory
        self._last = end
        return self._write_report(objective, start, end, **numbers)

    def _leave_saddle(self, objective: Objective, point: Point, lr: float) -> tuple[Point, float] | None:
        """A lower point along the most negative curvature that `probes` Lanczos products find, if any."""
        found = lowest_curvature(objective, point, self.probes)
        if found is None or found[0] >= 0:
            return None
        value, direction = found
        slope = float(torch.dot(objective.gradient(point), direction))
        direction = -direction if slope > 0 else direction
        radius = self.memory["radius"]
        length = lr * (radius if math.isfinite(radius) else max(1.0, float(point.x.norm())))
        for _ in range(40):
            end = objective.at(point.x + length * direction)
            predicted = abs(slope) * length - 0.5 * value * length**2
            if math.isfinite(end.loss) and point.loss - end.loss >= 1e-4 * predicted:
                return end, predicted
            length *= 0.25
        objective.at(point.x)
        return None


def lowest_curvature(objective: Objective, point: Point, products: int) -> tuple[float, Tensor] | None:
    """The smallest Ritz value and its vector after some Lanczos products from a random vector, orthogonalised.

    None where the value is not clearly below zero, or there was nothing to look at.
    """
    d = len(point.x)
    generator = torch.Generator().manual_seed(d)
    v = torch.randn(d, dtype=torch.float64, generator=generator).to(point.x.device)
    basis: list[Tensor] = []
    columns: list[Tensor] = []
    for _ in range(min(products, d)):
        for _ in range(2):
            for b in basis:
                v = v - torch.dot(b, v) * b
        size = float(v.norm())
        if not size > 1e-10:
            break
        v = v / size
        column = objective.hvp(point, v)
        basis.append(v)
        columns.append(column)
        v = column / max(float(column.norm()), 1e-300)
    if not basis:
        return None
    q, hq = torch.stack(basis), torch.stack(columns)
    small = q @ hq.T
    values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
    if not float(values[0]) < -math.sqrt(EPS) * float(values.abs().max()):
        return None
    return float(values[0]), q.T @ vectors[:, 0]
