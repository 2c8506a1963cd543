"""Where optimizers walk: functions of two numbers, stories, and planes through a network's weights.

surface("rosenbrock")                     a function of two numbers
on_surface(surface, entries, steps)       optimizers on it, each at its best learning rate
story("jitter")                           a picture that explains, with its claim measured
on_network(task, entries, steps)          runs of a network on a plane through its weights
render(scenes, command), figure(scene)    one HTML page; a figure for a picture
"""

from schuss.lab.landscape.networks import on_network
from schuss.lab.landscape.page import figure, render
from schuss.lab.landscape.scene import Scene, on_surface
from schuss.lab.landscape.stories import STORIES, story
from schuss.lab.landscape.surfaces import SURFACES, Surface, surface
from schuss.lab.landscape.trails import Trail

__all__ = [
    "STORIES",
    "SURFACES",
    "Scene",
    "Surface",
    "Trail",
    "figure",
    "on_network",
    "on_surface",
    "render",
    "story",
    "surface",
]
