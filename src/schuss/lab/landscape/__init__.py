"""Trajectories of optimizers: on functions of two numbers, in demonstrations, on the plane of a network's movement.

surface("rosenbrock")                     a function of two numbers
on_surface(surface, entries, steps)       optimizers on it, each at its best learning rate
demonstration("jitter")                   why optimizers differ, measured
on_network(task, entries, steps)          runs of a network on the plane of their movement
render(pictures, command)                 one HTML report
TaylorModel(surface, at)                  the quadratic model at a point, and its steps
growth()                                  what a step of each order costs as d grows
"""

from schuss.lab.landscape.demonstrations import DEMONSTRATIONS, demonstration
from schuss.lab.landscape.growth import growth
from schuss.lab.landscape.networks import on_network
from schuss.lab.landscape.page import render, render_model
from schuss.lab.landscape.picture import Picture, on_surface
from schuss.lab.landscape.surfaces import SURFACES, Surface, is_surface, surface
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
    "growth",
    "is_surface",
    "on_network",
    "on_surface",
    "render",
    "render_model",
    "surface",
]
