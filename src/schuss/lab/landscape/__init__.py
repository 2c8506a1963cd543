"""Trajectories of optimizers: on functions of two numbers, in demonstrations, on planes through a network's weights.

surface("rosenbrock")                     a function of two numbers
on_surface(surface, entries, steps)       optimizers on it, each at its best learning rate
story("jitter")                           a demonstration, with its claim measured
on_network(task, entries, steps)          runs of a network on a plane through its weights
network_cost(task, entries, steps)        the memory and the seconds that this takes
render(scenes, command)                   one HTML page
taylor_model(surface, at)                 the quadratic model at a point, and its steps
growth()                                  what a step of each order costs as d grows
"""

from schuss.lab.landscape.growth import growth
from schuss.lab.landscape.networks import PlaneCost, network_cost, on_network
from schuss.lab.landscape.page import render, render_model
from schuss.lab.landscape.scene import Scene, on_surface
from schuss.lab.landscape.stories import STORIES, story
from schuss.lab.landscape.surfaces import SURFACES, Surface, surface
from schuss.lab.landscape.taylor import TaylorModel, taylor_model
from schuss.lab.landscape.trails import Trail

__all__ = [
    "STORIES",
    "SURFACES",
    "PlaneCost",
    "Scene",
    "Surface",
    "TaylorModel",
    "Trail",
    "growth",
    "network_cost",
    "on_network",
    "on_surface",
    "render",
    "render_model",
    "story",
    "surface",
    "taylor_model",
]
