"""The PyTorch front: torch.optim's optimizers by their own names, each a page of maths in one fused launch.

Changing `from torch.optim import AdamW` to `from schuss.torch import AdamW` is all that there is to do. The constructor
takes torch.optim's arguments in its order with its defaults, then the page's own options by keyword; any hyperparameter
may be a number, a tensor, or a schedule: a function of the finished steps.

A schedule writes its value into the group after each step. Whoever writes there later (a hand, a torch scheduler) has
the next step, and that one only; a warning says so once. A step with an lr of 0 from outside and gradients that are 0
throughout, as `torch.distributed.checkpoint` takes one, makes the state that is missing and changes nothing else.

Every optimizer takes these too, by keyword; those above the line may differ by group:

| option           | default     | meaning                                                                             |
|------------------|-------------|-------------------------------------------------------------------------------------|
| `rounding`       | `"nearest"` | of 16-bit weights; `"stochastic"`: up or down by chance, right on average           |
| `compensated`    | `False`     | keep what rounding takes from a 16-bit weight, in 16 bits more (state `rest`)       |
| `state_dtype`    | `None`      | of new state: float32 for 16-bit weights, else the weight's own; or float64,        |
|                  |             | float32, bfloat16 (rounded by chance) or `"int8"` (in blocks of 128 with a scale)   |
| `ema_decay`      | `None`      | in [0, 1], or a schedule: average ← decay · average + (1 − decay) · weight          |
|------------------|-------------|-------------------------------------------------------------------------------------|
| `max_norm`       | `None`      | scale all gradients down to this norm together, as torch.nn.utils.clip_grad_norm_   |
| `skip_nonfinite` | `False`     | leave out a step whose gradients are not all finite, and count it in `skipped`      |
| `seed`           | `0`         | what chance starts from; with the step and a weight's place it says how it rounds   |
| `process_group`  | `None`      | whose ranks hold the plain weights that this rank does not: their norm is one       |
| `capturable`     | `False`     | a step on a GPU can be captured in a CUDA graph, after an ordinary one              |

State in int8 stays in float32 for tensors of fewer than 4096 weights, and for those with sparse gradients; `groups(...,
state_dtype="int8")` leaves embeddings in float32 too. Complex weights have state of their own dtype. These options are
the constructor's and not in a checkpoint; the numbers that they lead to are.

`max_norm` and `skip_nonfinite` go by one norm for all ranks, which clip and skip together. DTensors (`fully_shard`,
tensor parallel) and `ZeroRedundancyOptimizer` need nothing for it; FSDP1 and pipeline stages need `process_group=`.
With `fused=True` GradScaler leaves its scale to the step, which saves a pass; otherwise it unscales the gradients.

Numbers in int8 are right on average and each up to 12 % off. A step that divides by a root of them, as Adam's does, is
longer for it: 1.8 % at β₂ = 0.999, 0.5 % at 0.95. ASGD's own average `ax` is then as coarse; `ema_decay` keeps a fine
one. An infinity or a NaN spoils the 128 numbers of its block: `skip_nonfinite=True` keeps it out. torch.optim does not
read codes (`exp_avg_codes` in a checkpoint): load them with `state_dtype="float32"` and save again.
"""

from __future__ import annotations

import importlib
from typing import Any

from schuss.rules import TABLE
from schuss.torch.groups import groups
from schuss.torch.norm import global_norm
from schuss.torch.optimizer import Optimizer as Optimizer
from schuss.torch.optimizer import optimizer
from schuss.torch.scheduler import Plateau, Scheduler

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    *TABLE,
    "Plateau",
    "Scheduler",
    "global_norm",
    "groups",
    "optimizer",
]


# A class for each row of the table; `__init__.pyi`, which is generated, says what each takes.
globals().update({row.name: optimizer(row.rule) for row in TABLE.values()})


# Methods that step by curvature have a room of their own, further down the road; they are found here too.
_NEWTON = ("GaussNewton", "LBFGS", "Newton", "NewtonCG")


def __getattr__(name: str) -> Any:
    if name in _NEWTON:
        return getattr(importlib.import_module("schuss.newton"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
