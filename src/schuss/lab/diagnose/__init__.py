"""What limits training on a task, and what to try: measurements, and advice that quotes them.

measure(task, entry, spec)    a short run, measured from start to end, within a budget of seconds
advise(diagnosis)             optimizer, learning rate, batch size, schedule
render(diagnosis, advice)     one HTML report
"""

from schuss.lab.diagnose.advise import Advice, advise, costs
from schuss.lab.diagnose.effort import Effort
from schuss.lab.diagnose.measure import Diagnosis, Measurement, caveat, measure
from schuss.lab.diagnose.page import render

__all__ = ["Advice", "Diagnosis", "Effort", "Measurement", "advise", "caveat", "costs", "measure", "render"]
