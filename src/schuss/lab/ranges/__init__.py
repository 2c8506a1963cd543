"""A learning-rate range test of a task: which rates make progress in its first steps.

climb(task, entry)      a few sweeps up a ladder of rates, from the seed's own start
render(...)             one HTML page
"""

from schuss.lab.ranges.page import render
from schuss.lab.ranges.range_test import climb

__all__ = ["climb", "render"]
