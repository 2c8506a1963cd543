"""`schuss.minimize`: a function of an array or tensor, minimized by any optimizer of this library."""

from schuss.minimizing.solve import Result, minimize

__all__ = ["Result", "minimize"]
