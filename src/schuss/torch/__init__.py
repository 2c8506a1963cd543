"""The PyTorch API: torch.optim's optimizers by their own names, each compiled from its formula to one fused launch.

Changing `from torch.optim import AdamW` to `from schuss.torch import AdamW` is all that there is to do. The constructor
takes torch.optim's arguments in its order with its defaults, then the rule's own options by keyword; any hyperparameter
may be a number, a tensor, or a schedule: a function of the finished steps.

A schedule writes its value into the group after each step. A value written there later (by hand, by a torch scheduler)
holds for the next step only; a warning says so once. `torch.distributed.checkpoint` takes a step with lr 0 and
gradients of 0: such a step makes the state that is missing and changes nothing else.

Every optimizer takes these too, by keyword; those above the line may differ by group:

| option           | default     | meaning                                                                             |
|------------------|-------------|-------------------------------------------------------------------------------------|
| `rounding`       | `"nearest"` | of 16-bit weights; `"stochastic"`: stochastic rounding (unbiased)                   |
| `compensated`    | `False`     | a Kahan compensation term (state `rest`): 16 bits more per 16-bit weight            |
| `state_dtype`    | `None`      | of new state: float32 for 16-bit weights, else the weight's own; or float64,        |
|                  |             | float32, bfloat16 (rounded stochastically) or `"int8"` (block-wise quantized)       |
| `ema_decay`      | `None`      | in [0, 1], or a schedule: average ← decay · average + (1 − decay) · weight          |
| `cautious`       | `False`     | leave out of each change what goes against the negative gradient; scale up the rest |
| `max_update`     | `None`      | update clipping: a tensor's change has a root mean square of at most this times lr  |
|------------------|-------------|-------------------------------------------------------------------------------------|
| `max_norm`       | `None`      | scale all gradients down to this norm together, as torch.nn.utils.clip_grad_norm_   |
| `skip_nonfinite` | `False`     | leave out a step whose gradients are not all finite, and count it in `skipped`      |
| `seed`           | `0`         | of the random bits, which follow from it, the step and the weight's position        |
| `process_group`  | `None`      | the ranks between which plain weights are divided: clip by the norm of all          |
| `capturable`     | `False`     | a step on a GPU can be captured in a CUDA graph, after an ordinary one              |

State in int8 stays in float32 for tensors of fewer than 4096 weights, and for those with sparse gradients; `groups(...,
state_dtype="int8")` leaves embeddings in float32 too. Schedule-Free's z, which holds weights, has 32 bits at least.
Complex weights have state of their own dtype. These options are the constructor's and not in a checkpoint; the numbers
that they lead to are.

`cautious` and `max_update` hold back the change Δ that a rule makes of a weight. Both are of a whole tensor, so its
memory is read once more. g is the gradient after clipping, without L2 decay:

    cautious      Δ ← Δ · mask / max(mean(mask), 0.001), with mask = 1 where Δ · g < 0, else 0
    max_update    Δ ← Δ / max(1, RMS(Δ) / (max_update · lr)), after `cautious`

Δ is without decoupled decay, which moves every weight: AdamW and Lion with `cautious=True` are C-AdamW and C-Lion, at
the scale of timm (the authors' Lion has n / (n · mean(mask) + 1)). Where decay is within the step, as of LAMB, LARS and
all L2 decay, it is part of Δ. `max_update` counts all of Δ, with momentum, bias correction and trust ratio; with Rprop,
lr is the first step size. Momenta go on as without these options. Schedule-Free methods refuse both: their weights lie
between two others. So do sparse gradients, which have only some rows.

`max_norm` and `skip_nonfinite` go by one norm for all ranks, which clip and skip together. DTensors (`fully_shard`,
tensor parallel) and `ZeroRedundancyOptimizer` need nothing for it; FSDP1 and pipeline stages need `process_group=`.
With `fused=True` GradScaler leaves its scale to the step, which saves a pass; otherwise it unscales the gradients.

State in int8 is quantized in blocks of 128 numbers with one scale each, and rounded stochastically: it is unbiased, and
each number is up to 12 % off. A step that divides by a root of such numbers, as Adam's does, is longer for it: 1.8 % at
β₂ = 0.999, 0.5 % at 0.95. ASGD's own average `ax` is then as coarse; that of `ema_decay` is not. An infinity or a NaN
spoils its whole block; `skip_nonfinite=True` prevents it. torch.optim cannot read int8 state (`exp_avg_codes` in a
checkpoint): load it with `state_dtype="float32"` and save again.
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
