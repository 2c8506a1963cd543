"""Limited-memory BFGS: curvature remembered from the last few steps.

Sources: Liu & Nocedal, "On the limited memory BFGS method", Math. Prog. 45 (1989); Nocedal & Wright (2006), §7.2;
Berahas, Nocedal & Takáč, "A multi-batch L-BFGS method", NeurIPS 2016, for the overlap.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from schuss.errors import refusal
from schuss.newton.base import CurvatureOptimizer, Params
from schuss.newton.diagonal import refined
from schuss.newton.landscape import Closure, Landscape, Point
from schuss.newton.linesearch import Probe, strong_wolfe
from schuss.newton.region import EPS
from schuss.newton.report import StepReport


class LBFGS(CurvatureOptimizer):
    r"""Step along −B g, with B an inverse Hessian rebuilt from the last m steps, as long as the loss likes.

    With s = w_{k+1} − w_k and y = g_{k+1} − g_k of the last m steps, B is a diagonal learned from those pairs
    (Gilbert & Lemaréchal), corrected pair by pair so that B y = s (the two-loop recursion); then

        w ← w − t B g        t from a search for the strong Wolfe conditions:
                             loss(t) ≤ loss(0) + c₁ t φ'(0)   and   |φ'(t)| ≤ c₂ |φ'(0)|

    A search that fails takes the weights back, forgets the pairs and tries −g once.

    | here              | symbol | domain   | meaning                                                             |
    | `lr`              |        | [0, 1]   | the first t tried                                                   |
    | `history_size`    | m      | ≥ 1      | pairs remembered                                                    |
    | `c1`, `c2`        |        | 0<c1<c2<1| how much decrease, how flat a slope                                 |
    | `max_evaluations` |        | ≥ 1      | losses with gradients a search may take                             |
    | `weight_decay`    |        | ≥ 0      | adds ½ weight_decay ‖w‖² to the loss                                |
    | `full_batch`      |        | bool     | the closure is one function: reuse its last evaluation              |

    Here one `step` is one iteration; torch.optim.LBFGS takes up to 20 in one, and without a line search by default.
    The closure may call `backward()` as torch's does, or leave it. Both gradients of a pair come from one
    closure, so batches may change between steps; with `step(closure, overlap=...)` the pair comes from
    the overlap of this batch with the next. Memory: (2m + 5) d float64.

    >>> w = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = LBFGS([w], full_batch=True)
    >>> for _ in range(40):
    ...     _ = optimizer.step(lambda: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2)
    >>> w.detach().numpy().round(6)
    array([1., 1.])
    """

    curved = False

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
        if history_size < 1:
            raise refusal("history_size", history_size, "≥ 1", "Each pair costs two vectors of d float64.")
        if not 0 < c1 < c2 < 1:
            raise refusal("(c1, c2)", (c1, c2), "such that 0 < c1 < c2 < 1", "1e-4 and 0.9 are usual.")
        if max_evaluations < 1:
            raise refusal("max_evaluations", max_evaluations, "≥ 1")
        super().__init__(params, lr, weight_decay, full_batch)
        self.history_size, self.c1, self.c2, self.max_evaluations = history_size, c1, c2, max_evaluations
        self._forget()

    def step(self, closure: Closure | None = None, *, overlap: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss from before it.

        `overlap` is a closure for the samples that this batch shares with the next; the curvature pair is
        measured on them alone, at two more gradients of that smaller batch.
        """

        def advance(land: Landscape, start: Point, lr: float) -> StepReport:
            return self._search(land, start, lr, overlap)

        return self._guarded(closure, advance)

    def _search(self, land: Landscape, start: Point, lr: float, overlap: Closure | None) -> StepReport:
        gradient = land.gradient(start)
        size = float(gradient.norm())
        if not math.isfinite(size):
            raise ValueError(
                f"The loss is {start.loss:.6g}, but its gradient is not finite there. The weights are unchanged."
            )
        shared, shared_slope = None, gradient
        if overlap is not None:
            shared = Landscape(land.weights, overlap, curved=False, reduce=self._reduce)
            shared_slope = shared.gradient(shared.here())
        if size == 0.0:
            self._last = start
            return self._told(land, start, start, 0.0, 0.0, 0, "the gradient is zero: a minimum or a saddle")
        found, direction, slope, promised, trials, words = None, gradient, 0.0, 0.0, 0, ""
        for attempt in range(2):
            direction = -self._smoothed(gradient)
            slope = float(torch.dot(gradient, direction))
            promised = promised or -0.5 * slope
            if slope < 0 and math.isfinite(slope):
                first = lr if self.memory["s"] else lr * self._first_length(start, gradient)
                found, used, words = self._along(land, start, direction, slope, first)
                trials += used
            if found is not None or attempt or not self.memory["s"]:
                break
            self._forget()
            words = "the pairs were forgotten"
            land.return_to(start)
        if found is None:
            return self._told(land, start, start, 0.0, promised, trials, f"taken back: {words}")
        end = found.place
        if not land.is_fresh(end):
            land.return_to(end)
        change = end.x - start.x
        if shared is None:
            self._remember(change, land.gradient(end) - gradient)
        else:
            self._remember(change, shared.gradient(shared.here()) - shared_slope)
            land.closures += shared.closures
            land.gradients += shared.gradients
        self._last = end
        # Along the direction the model's curvature is that of B⁻¹, so it promises (t − t²/2) |φ'(0)|.
        predicted = -slope * (found.t - 0.5 * found.t**2)
        return self._told(land, start, end, predicted, promised, trials, words)

    def _first_length(self, start: Point, gradient: Tensor) -> float:
        return min(1.0, 1.0 / float(gradient.norm()))

    def _along(
        self, land: Landscape, start: Point, direction: Tensor, slope: float, first: float
    ) -> tuple[Probe[Point] | None, int, str]:
        def evaluate(t: float) -> Probe[Point]:
            point = land.at(start.x + t * direction)
            falls = float(torch.dot(land.gradient(point), direction)) if point.finite else math.nan
            return Probe(t, point.loss, falls, point)

        return strong_wolfe(
            evaluate,
            Probe(0.0, start.loss, slope, start),
            first,
            c1=self.c1,
            c2=self.c2,
            noise=land.noise(start),
            limit=self.max_evaluations,
        )

    def _smoothed(self, gradient: Tensor) -> Tensor:
        """B g by the two-loop recursion."""
        pairs = list(zip(self.memory["s"], self.memory["y"], strict=True))
        if not pairs:
            return gradient.clone()
        q, amounts = gradient.clone(), list[float]()
        for s, y in reversed(pairs):
            amounts.append(float(torch.dot(s, q)) / float(torch.dot(s, y)))
            q -= amounts[-1] * y
        diagonal = torch.ones_like(q)
        for s, y in pairs:
            diagonal = refined(diagonal, s, y)
        q /= diagonal
        for (s, y), amount in zip(pairs, reversed(amounts), strict=True):
            q += (amount - float(torch.dot(y, q)) / float(torch.dot(s, y))) * s
        return q

    def _remember(self, s: Tensor, y: Tensor) -> None:
        """Keep a pair if it says that the loss curves up along s."""
        if float(torch.dot(s, y)) > EPS * float(torch.dot(y, y)):
            self.memory = {k: [*self.memory[k], v][-self.history_size :] for k, v in (("s", s), ("y", y))}

    def _forget(self) -> None:
        self.memory = {"s": [], "y": []}

    def _told(
        self,
        land: Landscape,
        start: Point,
        end: Point,
        predicted: float,
        promised: float,
        trials: int,
        stopped: str,
    ) -> StepReport:
        return self._write_report(
            land,
            start,
            end,
            predicted=predicted,
            promised=promised,
            trials=trials,
            radius=math.inf,
            negative_curvature=False,
            stopped=stopped,
        )
