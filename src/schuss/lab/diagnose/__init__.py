"""Why training goes as it goes, and what to try: measurements of a task, and advice that carries them.

measure(task, entry, spec)    a short run, looked at from start to end, within a budget of seconds
advise(diagnosis)             optimizer, learning rate, batch size, schedule
render(diagnosis, advice)     one HTML page
"""

from schuss.lab.diagnose.advise import Advice, advise, costs
from schuss.lab.diagnose.effort import Effort
from schuss.lab.diagnose.measure import Diagnosis, Look, caveat, measure
from schuss.lab.diagnose.page import render

__all__ = ["Advice", "Diagnosis", "Effort", "Look", "advise", "caveat", "costs", "measure", "render"]
