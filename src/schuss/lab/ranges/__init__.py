"""A learning-rate range test of a task: which rates make progress in its first steps.

range_test_of(task, entry)      a few sweeps over growing rates, from the seed's own start
render(...)                     one HTML report
"""

from schuss.lab.ranges.page import render
from schuss.lab.ranges.range_test import range_test_of

__all__ = ["range_test_of", "render"]
