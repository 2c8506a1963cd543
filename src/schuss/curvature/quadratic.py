"""How well the quadratic model L + g·s + ½ s·H s predicts the loss along a step.

Where it does, curvature explains the step; where the actual decrease falls short, the step is beyond the
model's reach. The error of a right model falls as the third power of the step's length: a test of the
products themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schuss.curvature.lanczos import Array
from schuss.curvature.objective import Loss, Model, Vector, objective
from schuss.curvature.products import Curvature
from schuss.curvature.restore import restoring


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """Predicted and actual decrease of the loss along t × step, for each t of `scales`.

    `slope` = g·s and `curvature` = s·H s belong to the whole step. `predicted` = −(t g·s + ½ t² s·H s),
    `actual` = L(w) − L(w + t s); `ratio` = actual / predicted, 1 where the model is right. `best` = −g·s /
    s·H s is the t at which the model is lowest (infinite where it has no lowest point).
    """

    scales: Array
    predicted: Array
    actual: Array
    loss: float
    slope: float
    curvature: float

    @property
    def ratio(self) -> Array:
        """Actual over predicted decrease."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.actual / self.predicted

    @property
    def best(self) -> float:
        """The multiple of the step at which the model is lowest."""
        return -self.slope / self.curvature if self.curvature > 0 else math.inf

    def __repr__(self) -> str:
        """A line for each scale."""
        lines = [f"slope {self.slope:.4g}, curvature {self.curvature:.4g}, best at {self.best:.4g} × step"]
        for t, *row in zip(self.scales, self.predicted, self.actual, self.ratio, strict=True):
            lines.append("  {:8.4g} × step: predicted {:+.4g}, actual {:+.4g}, ratio {:.4g}".format(t, *row))
        return "\n".join(lines)


def quadratic_model(
    model: Model, loss: Loss, batch: Any, step: Vector, scales: Sequence[float] = (1.0, 0.5, 0.25)
) -> QuadraticModel:
    """Compare the decrease that gradient and Hessian predict along a step with the actual one.

    Args:
        model, loss, batch: as for `hvp`; the weights are moved and put back bit for bit.
        step: a change of the weights, in any form that `hvp` takes.
        scales: the multiples of the step at which to compare.

    A loss that is not finite after a step counts as an actual decrease of −∞. Other errors are those of
    `hvp`.

    >>> x = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> bowl = lambda x, _: x[0] ** 2 + 2 * x[1] ** 2
    >>> quadratic_model(x, bowl, None, -x, scales=[1.0])
    slope -22, curvature 22, best at 1 × step
             1 × step: predicted +11, actual +11, ratio 1
    """
    with objective(model, loss, batch) as f:
        value = f.steady()
        row, _ = f.row(step)
        _, gradient = f.gradient()
        product = Curvature(f)(row[None])[0]
        slope = float(gradient.double() @ row.double())
        curvature = float(product.double() @ row.double())
        t = np.asarray(scales, dtype=np.float64)
        directions = f.directions(row)
        actual: list[float] = []
        for scale in t:
            with restoring(f.weights), torch.no_grad():
                for weight, direction in zip(f.weights, directions, strict=True):
                    weight.data = weight.data + float(scale) * direction
                try:
                    actual.append(value - f.value())
                except ValueError:
                    actual.append(-math.inf)
        predicted = -(t * slope + t**2 * curvature / 2)
        return QuadraticModel(t, predicted, np.array(actual), value, slope, curvature)
