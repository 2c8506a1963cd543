"""The lab: races optimizers fairly on a task and says how sure it is."""

from schuss.lab.entries import Entry
from schuss.lab.protocol.budget import Budget
from schuss.lab.protocol.race import race
from schuss.lab.protocol.report import Report
from schuss.lab.tasks.task import Task

__all__ = ["Budget", "Entry", "Report", "Task", "race"]
