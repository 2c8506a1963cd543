"""Schuss: every optimizer written once, as a page of maths that is the kernel that runs."""

__version__ = "0.1.0"
