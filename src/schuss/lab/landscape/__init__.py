"""Trajectories of optimizers on functions of two numbers, and the Taylor model there.

surface("rosenbrock")                     a function of two numbers
on_surface(surface, entries, steps)       optimizers on it, each at its best learning rate
demonstration("jitter")                   why optimizers differ, measured
render(pictures, command)                 one HTML report
TaylorModel(surface, at)                  the quadratic model at a point, and its steps
"""

from schuss.lab.landscape.demonstrations import DEMONSTRATIONS, demonstration
from schuss.lab.landscape.page import render, render_model
from schuss.lab.landscape.picture import Picture, on_surface
from schuss.lab.landscape.surfaces import SURFACES, Surface, surface
from schuss.lab.landscape.taylor import TaylorModel
from schuss.lab.landscape.trajectories import Trajectory

__all__ = [
    "DEMONSTRATIONS",
    "SURFACES",
    "Picture",
    "Surface",
    "TaylorModel",
    "Trajectory",
    "demonstration",
    "on_surface",
    "render",
    "render_model",
    "surface",
]
