"""What one step by curvature did, what its model predicted, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
