"""Curvature, gradient noise and stability, measured on the model itself.

Every function takes `model, loss, batch` first, `loss(model, batch)` being a scalar tensor, and leaves the
model, its buffers, gradients and flags, the optimizer and all random states bit for bit as they were, also
after an exception or Ctrl-C. For plain functions the model is the point: `hvp(x, loss, None, vector)` with
`loss(x, batch)`.

    hvp, ggnvp              Hessian-vector and Gauss-Newton-vector products
    extreme_eigenvalues     both ends of the spectrum, with multiplicity
    spectrum                all of it, as a density with error bars
    condition_number        κ of the positive part
    stationary_point        minimum, saddle or flat, and the direction that leads down
    quadratic_model         predicted against actual decrease along a step
    gradient_noise_scale    the batch size at which noise and signal are equal
    gradient_sparsity       what a batch does not touch
    stability_limit         the largest curvature at which an optimizer is stable
    range_test              the learning-rate range test
"""

from schuss.curvature.density import Spectrum, spectrum
from schuss.curvature.eigenvalues import ConditionNumber, Extremes, condition_number, extreme_eigenvalues
from schuss.curvature.noise import NoiseScale, gradient_noise_scale
from schuss.curvature.objective import Pieces
from schuss.curvature.products import ggnvp, hvp
from schuss.curvature.quadratic import QuadraticModel, quadratic_model
from schuss.curvature.range_test import RangeTest, range_test
from schuss.curvature.sparsity import GradientSparsity, TensorSparsity, gradient_sparsity
from schuss.curvature.stability import Sharpness, StabilityLimit, stability_limit
from schuss.curvature.stationary import StationaryPoint, stationary_point

__all__ = [
    "ConditionNumber",
    "Extremes",
    "GradientSparsity",
    "NoiseScale",
    "Pieces",
    "QuadraticModel",
    "RangeTest",
    "Sharpness",
    "Spectrum",
    "StabilityLimit",
    "StationaryPoint",
    "TensorSparsity",
    "condition_number",
    "extreme_eigenvalues",
    "ggnvp",
    "gradient_noise_scale",
    "gradient_sparsity",
    "hvp",
    "quadratic_model",
    "range_test",
    "spectrum",
    "stability_limit",
    "stationary_point",
]
