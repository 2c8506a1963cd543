"""Second-order methods: Newton, Newton-CG, L-BFGS, Gauss-Newton, and what they cost."""

from schuss.newton.base import StepReport
from schuss.newton.cost import DenseCost, dense_cost
from schuss.newton.gauss_newton import GaussNewton
from schuss.newton.lbfgs import LBFGS
from schuss.newton.newton import Newton, SingularHessian
from schuss.newton.newton_cg import NewtonCG

__all__ = [
    "LBFGS",
    "DenseCost",
    "GaussNewton",
    "Newton",
    "NewtonCG",
    "SingularHessian",
    "StepReport",
    "dense_cost",
]
