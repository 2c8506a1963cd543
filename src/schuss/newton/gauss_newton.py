"""Gauss-Newton in a trust region, which is Levenberg-Marquardt: curvature without second derivatives.

Sources: Levenberg (1944); Marquardt (1963); Moré, "The Levenberg-Marquardt algorithm", LNM 630 (1978), for the
region and its scaling; Schraudolph, Neural Computation 14 (2002), for softmax and the products; Eisenstat & Walker,
SIAM J. Sci. Comput. 17 (1996), for how exactly to solve.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.newton.base import (
    CurvatureOptimizer,
    Params,
    StepReport,
    check_finite,
    check_products,
    check_radius,
)
from schuss.newton.cost import free_bytes
from schuss.newton.objective import Objective, Point, Weights
from schuss.newton.products import FlatJacobian, rows
from schuss.newton.region import KrylovModel, Model, SpectralModel, descend, forcing

DENSE_LIMIT = 1000


class GaussNewton(CurvatureOptimizer):
    r"""Linearize the model's outputs, use the loss's own curvature, and step to the minimum of that model.

    With outputs z(w), J = ∂z/∂w and a convex loss ℓ(z) of gradient ∇ℓ and curvature C,

        G = Jᵀ C J            Gauss-Newton: H without the curvature of z; never negative
        s = argmin  gᵀs + ½ sᵀG s   over  ‖D s‖ ≤ Δ          D = the largest column norms of √C J so far
        w ← w + s                   if the loss falls by ≥ 10⁻⁴ of the predicted decrease

    which is (G + μD²) s = −g with Marquardt's damping μ set by the region, 0 inside it.

    | `loss`      | the closure returns                                    | ℓ                          | C         |
    | "squares"   | residuals r, or (outputs, targets)                     | ½ Σ r²                     | I         |
    | "softmax"   | (logits [N, K], targets [N] or [N, K] probabilities)   | mean cross-entropy in nats | diag p − ppᵀ |

    | here           | symbol | domain                  | meaning                                                |
    | `lr`           |        | [0, 1]                  | fraction of s that is taken                            |
    | `reduction`    |        | "sum", "mean", None     | None: sum of squares, mean of softmax                  |
    | `solver`       |        | "auto", "dense", "cg"   | J itself (singular values), or GGN-vector products     |
    | `radius`       | Δ      | > 0 or None             | None: ‖D w‖, without limit from w = 0 or with "cg"     |
    | `max_products` |        | ≥ 1 or None             | GGN-vector products per step with "cg", at most        |
    | `weight_decay` |        | ≥ 0                     | adds ½ weight_decay ‖w‖² to the loss                   |
    | `full_batch`   |        | bool                    | the closure is one function: reuse its last evaluation |

    "auto" is dense for d ≤ 1000 where J fits. GGN-vector products need no d² memory; conjugate gradients end where
    ‖G s + g‖ ≤ η ‖g‖, η by Eisenstat & Walker between ½, where it begins, and 10⁻²: far from the minimum of a network
    a tighter solution takes hundreds of these products, and its step leaves the region in which the model is accurate.

    >>> t = torch.arange(5, dtype=torch.float64)
    >>> w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = GaussNewton([w])
    >>> for _ in range(8):
    ...     _ = optimizer.step(lambda: w[0] * torch.exp(w[1] * t) - 2 * torch.exp(-0.5 * t))
    >>> w.detach().numpy().round(6)
    array([ 2. , -0.5])
    """

    curved = False

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        *,
        loss: str = "squares",
        reduction: str | None = None,
        solver: str = "auto",
        radius: float | None = None,
        max_products: int | None = None,
        weight_decay: float = 0.0,
        full_batch: bool = False,
    ) -> None:
        for name, value, allowed in (
            ("loss", loss, ("squares", "softmax")),
            ("reduction", reduction, ("sum", "mean", None)),
            ("solver", solver, ("auto", "dense", "cg")),
        ):
            if value not in allowed:
                raise refusal(name, value, "one of " + ", ".join(map(repr, allowed)))
        check_radius(radius, "None begins far out.")
        check_products(max_products)
        super().__init__(params, lr, weight_decay, full_batch)
        self.loss, self.solver, self.max_products = loss, solver, max_products
        self.reduction = reduction or ("sum" if loss == "squares" else "mean")
        self.memory = {"radius": radius, "scale": None, "gradient_norm": None, "eta": 0.5}

    def _reduce(self, returned: Any) -> Tensor:
        return self._outputs(returned).loss()

    def _outputs(self, returned: Any) -> Squares | Softmax:
        return (Squares if self.loss == "squares" else Softmax)(returned, self.reduction)

    def _advance(self, objective: Objective, start: Point, lr: float) -> StepReport:
        gradient = objective.gradient(start)
        check_finite(start, "gradient", gradient)
        outputs = self._outputs(start.outputs)
        dense = self._is_dense(objective.weights, outputs)
        build = self._spectral if dense else self._krylov
        model = build(objective, start, outputs)
        radius = self.memory["radius"]
        if radius is None:
            radius = (float((self.memory["scale"] * start.x).norm()) or math.inf) if dense else math.inf
        end, numbers = descend(objective, start, model, radius, lr=lr, exact=dense)
        self.memory["radius"], self._last = numbers["radius"], end
        numbers["negative_curvature"] = False  # G has none
        return self._write_report(objective, start, end, **numbers)

    def _is_dense(self, weights: Weights, outputs: Squares | Softmax) -> bool:
        if self.solver != "auto":
            return self.solver == "dense"
        d = weights.count
        return d <= DENSE_LIMIT and 32 * d * outputs.z.numel() <= 0.5 * free_bytes(weights.params[0].device)

    def _krylov(self, objective: Objective, start: Point, outputs: Squares | Softmax) -> Model:
        decay, jacobian = objective.weights.decay, FlatJacobian(outputs.z, objective.weights.params)
        objective.gradients += 1  # the backward pass that the first product records

        def product(v: Tensor) -> Tensor:
            objective.products += 1
            found = jacobian.ggnvp(outputs.curvature, v).detach()
            return found if decay is None else found + decay * v

        gradient = objective.gradient(start)
        size = float(gradient.norm())
        # Tighter than this is wasted: G is not H, so the steps contract by a fixed factor at best.
        eta = max(forcing(size, self.memory["gradient_norm"], self.memory["eta"]), 1e-2)
        self.memory |= {"gradient_norm": size, "eta": eta}
        limit = self.max_products or min(len(gradient), 200)
        radius = self.memory["radius"] or math.inf
        return KrylovModel(gradient, product, eta, limit, radius=radius)

    def _spectral(self, objective: Objective, start: Point, outputs: Squares | Softmax) -> SpectralModel:
        gradient, decay = objective.gradient(start), objective.weights.decay
        matrix = outputs.rooted(self._jacobian(objective, outputs, start.x))
        if decay is not None:
            matrix = torch.cat([matrix, torch.diag(decay.sqrt())])
        check_finite(start, "Jacobian", matrix)
        lengths = matrix.norm(dim=0)
        largest = self.memory["scale"]
        scale = (
            lengths if largest is None or len(largest) != len(lengths) else torch.maximum(lengths, largest)
        )
        self.memory["scale"] = scale
        scale = torch.where(scale > 0, scale, 1.0)
        matrix = matrix / scale
        residual = outputs.residual()
        if residual is not None and decay is not None:
            residual = torch.cat([residual, decay.sqrt() * start.x])
        if matrix.shape[0] > matrix.shape[1]:
            q, matrix = torch.linalg.qr(matrix)
            residual = None if residual is None else q.T @ residual
        # Fewer rows than columns leave directions of no curvature: full_matrices keeps them in the basis.
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=True)
        values = gradient.new_zeros(len(gradient))
        values[: len(sizes)] = sizes**2
        slope = right @ (gradient / scale)
        if residual is not None:  # σ Uᵀr has a smaller error than Vᵀ(Jᵀr) where σ is small
            slope = torch.zeros_like(slope)
            slope[: len(sizes)] = sizes * (left.T @ residual)[: len(sizes)]
        return SpectralModel(values.flip(0), right.flip(0).T, scale, slope.flip(0))

    def _jacobian(self, objective: Objective, outputs: Squares | Softmax, like: Tensor) -> Tensor:
        jacobian = FlatJacobian(outputs.z, objective.weights.params)
        d, m = objective.weights.count, outputs.z.numel()
        objective.products += min(d, m)
        if m <= d:
            return rows(lambda u: jacobian.vjp(u).detach(), m, like, d)
        return rows(lambda v: jacobian.jvp(v).detach(), d, like, m).T


class Squares:
    """ℓ = ½ Σ r², or ½ mean r²: residuals, their Jacobian's weight and its square root."""

    def __init__(self, returned: Any, reduction: str) -> None:
        if isinstance(returned, (tuple, list)) and len(cast(tuple[Any, ...], returned)) == 2:
            outputs, targets = cast(tuple[Any, Any], returned)
            _tensors(outputs, targets)
            if outputs.shape != targets.shape:
                allowed = f"the outputs' {tuple(outputs.shape)}"
                raise refusal("targets.shape", tuple(targets.shape), allowed, "Reshape one of them.")
            returned = outputs - targets
        _tensors(returned)
        self.z = cast(Tensor, returned)
        self.weight = 1.0 if reduction == "sum" else 1.0 / max(self.z.numel(), 1)

    def loss(self) -> Tensor:
        """ℓ in float64, with its graph."""
        return 0.5 * self.weight * self.z.to(torch.float64).square().sum()

    def residual(self) -> Tensor | None:
        """√weight r, whose half sum of squares is the loss."""
        return math.sqrt(self.weight) * self.z.detach().reshape(-1).to(torch.float64)

    def curvature(self, u: Tensor) -> Tensor:
        """C u."""
        return self.weight * u

    def rooted(self, jacobian: Tensor) -> Tensor:
        """√C J."""
        return math.sqrt(self.weight) * jacobian


class Softmax:
    """ℓ = −Σ targets · log softmax(logits), summed or averaged over rows."""

    def __init__(self, returned: Any, reduction: str) -> None:
        if not (isinstance(returned, (tuple, list)) and len(cast(tuple[Any, ...], returned)) == 2):
            raise ValueError('With loss="softmax" the closure must return (logits, targets).')
        logits, targets = cast(tuple[Any, Any], returned)
        _tensors(logits, targets)
        if logits.ndim != 2 or targets.shape not in (logits.shape, logits.shape[:1]):
            raise ValueError(
                f"logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not fit. "
                "Wanted: logits [N, K] with targets [N] (class numbers) or [N, K] (probabilities that sum to 1)."
            )
        self.z: Tensor = logits
        self.targets: Tensor = targets if targets.ndim == 1 else targets.to(torch.float64)
        self.weight = 1.0 if reduction == "sum" else 1.0 / max(len(logits), 1)
        self.p = logits.detach().to(torch.float64).softmax(dim=1)

    def loss(self) -> Tensor:
        """ℓ in float64, with its graph."""
        z = self.z.to(torch.float64)
        return self.weight * torch.nn.functional.cross_entropy(z, self.targets, reduction="sum")

    def residual(self) -> Tensor | None:
        """None: the loss is no sum of squares."""
        return None

    def curvature(self, u: Tensor) -> Tensor:
        """C u = weight (p ∘ u − p (pᵀu)), row by row."""
        p, v = self.p, u.reshape(self.p.shape)
        return (self.weight * (p * v - p * (p * v).sum(1, keepdim=True))).reshape(-1)

    def rooted(self, jacobian: Tensor) -> Tensor:
        """B J with BᵀB = C: row by row B = diag √p − √p pᵀ."""
        p = self.p[..., None]
        j = jacobian.reshape(*self.p.shape, -1)
        return (math.sqrt(self.weight) * p.sqrt() * (j - (p * j).sum(1, keepdim=True))).flatten(0, 1)


def _tensors(*values: Any) -> None:
    for value in values:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"The closure returned {type(value).__name__} where a tensor belongs. GaussNewton needs residuals, "
                "or (outputs, targets), as torch computed them; not a loss."
            )
        if value.is_complex():
            raise ValueError(
                "The closure returned complex numbers, whose squares are no loss. Try torch.view_as_real(residuals)."
            )
