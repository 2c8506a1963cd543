"""Limited-memory BFGS: curvature remembered from the last few steps.

Sources: Liu & Nocedal, "On the limited memory BFGS method", Math. Prog. 45 (1989); Nocedal & Wright, "Numerical
Optimization" (2006), algorithm 7.4 for B g, (7.20) for γ, (3.60) for the first length; Wei, Li & Qi, "New quasi-Newton
methods for unconstrained optimization problems", Appl. Math. Comput. 175 (2006), for θ, and Yuan, IMA J. Numer. Anal.
11 (1991), for its bounds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from schuss.errors import real, refusal, whole
from schuss.newton.base import CurvatureOptimizer, Params, StepReport, check_finite
from schuss.newton.linesearch import Probe, strong_wolfe
from schuss.newton.objective import Objective, Point
from schuss.newton.region import EPS


class LBFGS(CurvatureOptimizer):
    r"""Step along −B g, with B an inverse Hessian estimated from the last m steps, by a line search.

    Each of the last m steps gives a pair (s, y): the change of the weights, and the change of the gradient. y is
    corrected so that sᵀy is the curvature of the parabola through both losses and the second slope. B is γI, updated
    pair by pair so that B y = s (the two-loop recursion).

        s = w_{k+1} − w_k,  y = g_{k+1} − g_k + θ s / sᵀs,  θ = 2 (loss_k − loss_{k+1}) + (g_k + g_{k+1})ᵀs
        γ = 1 until there are m pairs, sᵀy / yᵀy of the last pair from then on
        w ← w − t B g        t from a search for the strong Wolfe conditions:
                             loss(t) ≤ loss(0) + c₁ t φ'(0)   and   |φ'(t)| ≤ c₂ |φ'(0)|

    The first t tried is the one that would lower the loss as much as the last step did, or 1 if that is less; in the
    first step of all it is the one of ‖change‖ ≤ 1. A search that fails restores the weights, forgets the
    pairs and tries −g once.

    Where implementations differ: torch and SciPy's L-BFGS-B have no θ (which is 0 on a quadratic) and take
    γ = sᵀy / yᵀy from the first pair on. Until pairs are forgotten this is BFGS itself from I; a γ that fits the
    steepest weight from the start would slow all others where they are few and scaled very differently.

    | here              | symbol | domain   | meaning                                                             |
    | `lr`              |        | [0, 1]   | the fraction of that first t that is tried                          |
    | `history_size`    | m      | ≥ 1      | pairs remembered                                                    |
    | `c1`, `c2`        |        | 0<c1<c2<1| how much decrease, how flat a slope                                 |
    | `max_evaluations` |        | ≥ 1      | losses with gradients per search                                    |
    | `weight_decay`    |        | ≥ 0      | adds ½ weight_decay ‖w‖² to the loss                                |
    | `full_batch`      |        | bool     | the closure is one function: reuse its last evaluation              |

    Here one `step` is one iteration; torch.optim.LBFGS takes up to 20 in one, and without a line search by default.
    The closure may call `backward()` as torch's does, or leave it. Both gradients of a pair come from one
    closure, so batches may change between steps. Memory: (2m + 5) d float64.

    >>> w = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = LBFGS([w], full_batch=True)
    >>> for _ in range(40):
    ...     _ = optimizer.step(lambda: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2)
    >>> w.detach().numpy().round(6)
    array([1., 1.])
    """

    curved = False
    backward = True

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        *,
        history_size: int = 20,
        c1: float = 1e-4,
        c2: float = 0.9,
        max_evaluations: int = 25,
        weight_decay: float = 0.0,
        full_batch: bool = False,
    ) -> None:
        whole("history_size", history_size, 1, advice="Each pair costs two vectors of d float64.")
        for name, value in (("c1", c1), ("c2", c2)):
            real(name, value, "in (0, 1)", lambda x: 0 < x < 1, "1e-4 and 0.9 are usual.")
        if not c1 < c2:
            raise refusal("(c1, c2)", (c1, c2), "such that 0 < c1 < c2 < 1", "1e-4 and 0.9 are usual.")
        whole("max_evaluations", max_evaluations, 1)
        super().__init__(params, lr, weight_decay, full_batch)
        self.history_size, self.c1, self.c2, self.max_evaluations = history_size, c1, c2, max_evaluations
        self._forget()

    def _advance(self, objective: Objective, start: Point, lr: float) -> StepReport:
        gradient = objective.gradient(start)
        check_finite(start, "gradient", gradient.norm())
        if not float(gradient.norm()):
            self._last = start
            words = "the gradient is zero: a minimum or a saddle"
            return self._write_report(objective, start, start, predicted=0.0, trials=0, stopped=words)
        if any(len(s) != len(gradient) for s in self.memory["s"][:1]):
            self._forget()  # other weights move now: a group was added, or a layer frozen
        found, slope, first_predicted, trials, words = None, 0.0, 0.0, 0, ""
        for attempt in range(2):
            direction = -self._smoothed(gradient)
            slope = float(torch.dot(gradient, direction))
            first_predicted = first_predicted or -0.5 * slope
            if slope < 0 and math.isfinite(slope):
                first = lr * self._first_length(slope)
                found, used, words = self._along(objective, start, direction, slope, first)
                trials += used
            if found is not None or attempt or not self.memory["s"]:
                break
            self._forget()
            words = "the pairs were forgotten"
            objective.return_to(start)
        numbers: dict[str, Any] = {"first_predicted": first_predicted, "trials": trials}
        if found is None:
            stopped = f"rejected: {words}"
            return self._write_report(objective, start, start, predicted=0.0, stopped=stopped, **numbers)
        end = found.point
        if not objective.is_fresh(end):
            objective.return_to(end)
        self._remember(objective, start, end)
        self._last = end
        self.memory["fall"] = start.loss - end.loss
        # Along the direction the model's curvature is that of B⁻¹, so it predicts (t − t²/2) |φ'(0)|.
        predicted = -slope * (found.t - 0.5 * found.t**2)
        return self._write_report(objective, start, end, predicted=predicted, stopped=words, **numbers)

    def _first_length(self, slope: float) -> float:
        """A parabola of this slope that falls by d is lowest at 2 d / |slope|; a little more lets 1 be reached."""
        if not self.memory["s"]:
            return min(1.0, 1.0 / math.sqrt(-slope))  # the direction is −g, of slope −‖g‖²
        fall = self.memory["fall"]
        return min(1.0, 1.01 * 2 * fall / -slope) if fall > 0 else 1.0

    def _along(
        self, objective: Objective, start: Point, direction: Tensor, slope: float, first: float
    ) -> tuple[Probe[Point] | None, int, str]:
        def evaluate(t: float) -> Probe[Point]:
            point = objective.at(start.x + t * direction)
            finite = math.isfinite(point.loss)
            falls = float(torch.dot(objective.gradient(point), direction)) if finite else math.nan
            return Probe(t, point.loss, falls, point)

        return strong_wolfe(
            evaluate,
            Probe(0.0, start.loss, slope, start),
            first,
            c1=self.c1,
            c2=self.c2,
            noise=objective.noise(start),
            limit=self.max_evaluations,
        )

    def _smoothed(self, gradient: Tensor) -> Tensor:
        """B g by the two-loop recursion."""
        pairs = list(zip(self.memory["s"], self.memory["y"], strict=True))
        q, amounts = gradient.clone(), list[float]()
        for s, y in reversed(pairs):
            amounts.append(float(torch.dot(s, q)) / float(torch.dot(s, y)))
            q -= amounts[-1] * y
        if len(pairs) >= self.history_size:
            s, y = pairs[-1]
            q *= float(torch.dot(s, y)) / float(torch.dot(y, y))
        for (s, y), amount in zip(pairs, reversed(amounts), strict=True):
            q += (amount - float(torch.dot(y, q)) / float(torch.dot(s, y))) * s
        return q

    def _remember(self, objective: Objective, before: Point, after: Point) -> None:
        """Store a pair if it says that the loss curves up along s, whatever the units of the loss and the weights."""
        s = after.x - before.x
        y = objective.gradient(after) - objective.gradient(before)
        curvature = float(torch.dot(s, y))
        if curvature > 0 and abs(before.loss - after.loss) > objective.faint(before):
            both = float(torch.dot(objective.gradient(after) + objective.gradient(before), s))
            bend = curvature + 2 * (before.loss - after.loss) + both
            wanted = min(max(bend, 0.01 * curvature), 100 * curvature)
            y = y + ((wanted - curvature) / float(torch.dot(s, s))) * s
        if float(torch.dot(s, y)) > EPS * float(s.norm() * y.norm()):
            self.memory |= {k: [*self.memory[k], v][-self.history_size :] for k, v in (("s", s), ("y", y))}

    def _forget(self) -> None:
        self.memory = {"s": [], "y": [], "fall": 0.0}
