"""What the Newton family shares: a report of each step, groups, weights that come back when a step fails."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from schuss.errors import real, refusal, whole
from schuss.newton.objective import Closure, NotFinite, Objective, Point, Weights, as_loss

ASYMMETRIC = 5e-3
"""An asymmetry of a Hessian beyond this, relative, is no rounding, and no error of differences either."""

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did and cost; it is in `optimizer.report`.

    | field                | meaning                                                                     |
    | `loss_before`        | the loss (with weight decay) where the step began                           |
    | `loss_after`         | the loss where it ended; equal to `loss_before` if the step was rejected    |
    | `predicted`          | the decrease that the quadratic model predicted for the step taken          |
    | `first_predicted`    | the predicted decrease of the first, longest trial, accepted or not         |
    | `possible`           | the predicted decrease without a region; inf if there is no lowest point    |
    | `gradient_norm`      | ‖g‖₂ where the step began                                                   |
    | `step_norm`          | ‖change of the weights‖₂, 0 if rejected                                     |
    | `closures`           | calls of the closure (forward passes)                                       |
    | `gradients`          | backward passes                                                             |
    | `products`           | Hessian-, Gauss-Newton- or Jacobian-vector products; a dense matrix is many |
    | `trials`             | points tried before one was accepted                                        |
    | `radius`             | the trust region for the next step, in the method's own norm; inf if none   |
    | `negative_curvature` | whether the step used a direction along which the loss curves down          |
    | `accepted`           | whether the weights moved                                                   |
    | `stopped`            | why the step ended, in words                                                |

    `actual` is the decrease of the loss, `ratio` is `actual / predicted`: 1 where the model is accurate.
    """

    loss_before: float
    loss_after: float
    predicted: float
    first_predicted: float
    possible: float
    gradient_norm: float
    step_norm: float
    closures: int
    gradients: int
    products: int
    trials: int = 1
    radius: float = math.inf
    negative_curvature: bool = False
    accepted: bool
    stopped: str

    @property
    def actual(self) -> float:
        """The decrease of the loss."""
        return self.loss_before - self.loss_after

    @property
    def ratio(self) -> float:
        """Actual over predicted decrease; nan where no decrease was predicted."""
        return self.actual / self.predicted if self.predicted else math.nan

    @property
    def gradient_equivalents(self) -> float:
        """Cost in units of one forward and one backward pass.

        A forward pass counts 1/3, a backward pass 2/3, a Hessian-vector product 2 (a backward pass through a gradient's
        graph, which is twice as long as the loss's).
        """
        return self.closures / 3 + 2 * self.gradients / 3 + 2 * self.products


class CurvatureOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose `step(closure)` evaluates the loss where and as often as it must.

    The closure computes the loss at the weights as they stand and returns it; it need not call `backward()`.
    Before the first step, and before one that follows a rejected step, it is called twice, to see that it returns
    the same loss at the same weights (with `full_batch`, which asserts that, only after a rejected step).
    All vectors and scalars are float64, whatever the weights are. After every step `report` says what happened.
    If anything goes wrong in between (an exception, Ctrl-C, a loss that is not finite), the weights are
    those from before the step.

    Groups may differ in `weight_decay`, which adds ½ weight_decay ‖w‖² to the loss. They share one `lr`, the
    fraction of each step that is taken, because curvature couples all weights; `lr=0` holds a group still.
    """

    curved: ClassVar[bool] = True
    backward: ClassVar[bool] = False
    report: StepReport | None

    def __init__(self, params: Params, lr: float, weight_decay: float, full_batch: bool) -> None:
        _check(lr, weight_decay)
        if not isinstance(full_batch, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise refusal("full_batch", full_batch, "True or False")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.full_batch = full_batch
        self.report = None
        self.memory: dict[str, Any] = {}
        self._last: Point | None = None
        self._checked = full_batch
        self.checks_symmetry = True  # until a warning has said that the Hessian has none
        for group in self.param_groups:
            _check(group["lr"], group["weight_decay"])
        Weights(self.param_groups)

    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss from before it, as torch's optimizers do.

        Raises:
            ValueError: where the closure returns no loss or two losses at the same weights; as `NotFinite` where
                the loss or a derivative of it is not finite at the weights as they are.
        """
        if closure is None:
            raise ValueError(
                f"{type(self).__name__}.step() needs a closure that computes and returns the loss."
            )
        lr = self._shared_lr()
        weights = Weights(self.param_groups)
        if not weights.params:
            raise ValueError("No weight can move: every group has lr=0 or weights without requires_grad.")
        self._affordable(weights)
        objective = self._objective(closure, weights)
        before = weights.read()
        try:
            with torch.enable_grad():
                start = self._start(objective)
                report = self._advance(objective, start, lr)
        except BaseException:
            weights.write(before)
            self._last = None
            raise
        if not report.accepted:
            weights.write(before)
            self._checked = False
        self.report = report
        return start.graph.detach()

    def evaluate(self, closure: Closure) -> tuple[float, Tensor, tuple[int, int, int]]:
        """The loss, the flat gradient and the counts (closures, gradients, products) where the weights are.

        With `full_batch` the next step begins with what was computed here.
        """
        objective = self._objective(closure)
        with torch.enable_grad():
            start = self._start(objective)
            gradient = objective.gradient(start)
        self._last = start
        return start.loss, gradient, (objective.closures, objective.gradients, objective.products)

    def value(self, closure: Closure) -> float:
        """The loss where the weights are, evaluated anew."""
        with torch.enable_grad():
            return self._objective(closure).here().loss

    def curves_down(self, closure: Closure) -> tuple[bool, int]:
        """Whether the loss has clearly negative curvature where the weights are, and the products that took.

        Methods without second derivatives cannot tell and say no.
        """
        if not self.curved:
            return False, 0
        objective = self._objective(closure)
        with torch.enable_grad():
            point = self._start(objective)
            found = self._curves_down(objective, point)
        self._last = point
        return found, objective.products

    def _curves_down(self, objective: Objective, point: Point) -> bool:
        raise NotImplementedError

    def _objective(self, closure: Closure, weights: Weights | None = None) -> Objective:
        return Objective(
            weights or Weights(self.param_groups),
            closure,
            curved=self.curved,
            reduce=self._reduce,
            backward=self.backward,
        )

    def _advance(self, objective: Objective, start: Point, lr: float) -> StepReport:
        raise NotImplementedError

    def _reduce(self, returned: Any) -> Tensor:
        return as_loss(returned)

    def _affordable(self, weights: Weights) -> None:
        """Refuse what would not fit, before anything is computed."""

    def _start(self, objective: Objective) -> Point:
        """The point to step from: the last step's end where that is known to be the same function."""
        last, self._last = self._last, None
        if self.full_batch and last is not None and objective.is_fresh(last):
            return last
        start = objective.here()
        if not math.isfinite(start.loss):
            raise NotFinite(
                f"The loss is {start.loss} at the weights as they are, so there is nothing to step from. "
                "The weights are unchanged."
            )
        if self._checked:
            return start
        # A closure that draws its own batch or dropout mask gives two losses at the same weights.
        again = objective.here()
        tolerance = math.sqrt(objective.eps) * max(abs(start.loss), abs(again.loss))
        if not abs(again.loss - start.loss) <= tolerance:
            raise ValueError(
                f"The closure returned {start.loss:.6g} and then {again.loss:.6g} at the same weights. "
                "A step compares losses, so the closure must not change within it: draw the batch outside "
                "the closure, and switch dropout off or fix its seed. The weights are unchanged."
            )
        self._checked = True
        return again

    def _symmetric(self, asymmetry: float) -> None:
        """Say once that steps go by a wrong Hessian: the region keeps them downhill, but they are short and many."""
        if asymmetry > ASYMMETRIC and self.checks_symmetry:
            self.checks_symmetry = False
            warnings.warn(
                f"The Hessian that autograd gives is not symmetric: uᵀHv and vᵀHu differ by {asymmetry:.1%}. Some "
                "operation in the loss has a wrong second derivative (torch's weight_norm has one), so steps by this "
                "Hessian are poor. Try LBFGS, which needs none.",
                stacklevel=5,
            )

    def _shared_lr(self) -> float:
        rates = {float(g["lr"]) for g in self.param_groups} - {0.0}
        for group in self.param_groups:
            _check(group["lr"], group["weight_decay"])
        if len(rates) > 1:
            advice = "Curvature couples all weights, so groups share one lr; lr=0 holds a group still."
            raise refusal("lr", sorted(rates), "one number for all groups", advice)
        return rates.pop() if rates else 0.0

    def _write_report(
        self, objective: Objective, start: Point, end: Point, *, predicted: float, stopped: str, **more: Any
    ) -> StepReport:
        """`first_predicted` is `predicted`, and `possible` is `first_predicted`, where nothing else is said."""
        first = more.pop("first_predicted", predicted)
        moved = end is not start
        return StepReport(
            loss_before=start.loss,
            loss_after=end.loss,
            predicted=predicted,
            first_predicted=first,
            gradient_norm=float(objective.gradient(start).norm()),
            step_norm=float((end.x - start.x).norm()) if moved else 0.0,
            closures=objective.closures,
            gradients=objective.gradients,
            products=objective.products,
            accepted=moved,
            stopped=stopped,
            **{"possible": first, **more},
        )

    def state_dict(self) -> dict[str, Any]:
        """torch's layout, and under "memory" what this method carries from step to step, in float64."""
        return {**super().state_dict(), "memory": dict(self.memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict()` was taken."""
        if "memory" not in state_dict:
            raise ValueError(
                f"This state was not saved by {type(self).__name__}: it has no 'memory'. "
                f"It has {sorted(state_dict)}."
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "memory"})
        device = self.param_groups[0]["params"][0].device
        self.memory = {key: _moved(value, device) for key, value in state_dict["memory"].items()}
        self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """All but hooks and the last point, whose graph cannot be copied or pickled."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_optimizer_")} | {"_last": None}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_moved(v, device) for v in cast(list[Any], value)] if isinstance(value, list) else value


def check_finite(start: Point, what: str, *values: Tensor) -> None:
    """Refuse to step from derivatives that are not finite."""
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise NotFinite(
            f"The loss is {start.loss:.6g}, but its {what} is not finite there. The weights are unchanged."
        )


def _check(lr: Any, weight_decay: Any) -> None:
    advice = "It is the fraction of the model's step to take; 1 is Newton's own."
    real("lr", lr, "in [0, 1]", lambda x: 0 <= x <= 1, advice)
    real("weight_decay", weight_decay, "a finite number ≥ 0", lambda x: 0 <= x < math.inf)


def check_radius(radius: Any, advice: str) -> None:
    """Refuse what is no first trust region; `advice` says what None means."""
    if radius is not None:
        real("radius", radius, "> 0", lambda x: x > 0, advice)


def check_products(most: Any) -> None:
    """Refuse what is no limit of products, or None."""
    if most is not None:
        whole("max_products", most, 1)
