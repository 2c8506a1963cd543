"""Everything a worker needs, imported once by the server that all workers are forked from.

torch imports much of itself with the first optimizer that it makes, so one is made and takes a step here.
No gradient is computed: nothing may start a thread before the fork.
"""

import importlib

import torch

from schuss.lab.entries import find
from schuss.lab.racing.version import code_version

for module in ("sklearn.datasets", "schuss.lab.racing.work", "schuss.lab.tasks.digits"):
    importlib.import_module(module)

torch.set_num_threads(1)
_weight = torch.zeros(1, requires_grad=True)
_weight.grad = torch.zeros(1)
code_version()  # of what was imported here, whatever is on the disk later
find("adam").build([_weight], {"lr": 1e-3}).step()
