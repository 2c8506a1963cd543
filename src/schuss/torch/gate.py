"""Whether a step is taken, and what its gradients are multiplied by: the loss scale undone, and clipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from schuss.core.norm import limited
from schuss.errors import real
from schuss.torch import sharded
from schuss.torch.norm import local_norm
from schuss.torch.plan import Plan

Tensor = torch.Tensor


class Gate:
    """The norm of all gradients, of all ranks where weights are divided; `skipped` counts the steps not taken.

    Every wrapper that has copied an optimizer's attributes shares this object with it, and so sees what becomes of
    steps.
    """

    def __init__(self, defaults: dict[str, Any], held: sharded.Held) -> None:
        self.defaults, self.held = defaults, held
        self.skipped = 0
        self.forget()

    def forget(self) -> None:
        """Hold nothing that was derived from the weights."""
        self.norm: float | None = None
        self.shards: sharded.Shards | None = None

    @property
    def measures(self) -> bool:
        """Whether the norm is asked for."""
        return self.defaults["max_norm"] is not None or self.defaults["skip_nonfinite"]

    def scale(
        self, plan: Plan, weights: Sequence[Tensor], gradients: list[Any], found: Any, given: Any
    ) -> float | None:
        """What all gradients are multiplied by. None if the step is not taken.

        `found` and `given` are GradScaler's: whether it has found an infinity, and what the loss was multiplied by.
        """
        stop = found is not None and bool(float(found))
        scale = 1.0 if given is None or stop else 1.0 / _loss_scale(given)
        if not self.measures:
            return None if stop else scale
        if not self.divided(weights, checked=True).several and stop:
            return None
        length, stop = self.norm_of(plan, weights, gradients, stop)
        if stop:
            return None
        self.norm = length * scale
        factor = limited(self.norm, self.defaults["max_norm"], self.defaults["skip_nonfinite"])
        return None if factor is None else scale * factor

    def norm_of(
        self, plan: Plan, weights: Sequence[Tensor], gradients: list[Any], stop: bool = False
    ) -> tuple[float, bool]:
        """The norm of all gradients, on all ranks where they are divided; and whether any rank says `stop`."""
        shards = self.divided(weights)
        if shards.meshes:
            return shards.norm(gradients, local_norm, stop)
        return shards.over_group(plan.norm(gradients, torch.get_num_threads()), stop)

    def divided(self, weights: Sequence[Tensor], checked: bool = False) -> sharded.Shards:
        """Between which ranks the weights are divided, found once per plan; `checked`: so that a norm can be taken."""
        if self.shards is None:
            self.shards = sharded.Shards(weights, self.held)
        if checked:
            self.shards.check()
        return self.shards


def _loss_scale(given: Any) -> float:
    """What the loss was multiplied by, as GradScaler or the user left it."""
    advice = "The gradients are divided by it. GradScaler sets it; None says that the loss was not scaled."
    return real("grad_scale", given, "a finite number > 0", lambda scale: 0 < scale < math.inf, advice)
