"""Steps that a GPU takes or skips by itself: it alone knows the norm of gradients that lie there."""

from __future__ import annotations

from typing import Any

import torch

from schuss.compile import device
from schuss.compile.launch import Terms
from schuss.core.hyperparameters import Group
from schuss.core.options import step_options
from schuss.rules import Rule
from schuss.torch.gate import Gate
from schuss.torch.hyperparameters import Hyperparameters
from schuss.torch.plan import Plan

# A group's options that its steps' coefficients follow from.
_OF_STEPS = ("ema_decay", "max_update", "maximize")


class DeviceSteps:
    """The steps that a device has taken since it was asked to decide; the host learns of them later."""

    def __init__(self, hyperparameters: Hyperparameters, gate: Gate) -> None:
        self.hyperparameters, self.gate = hyperparameters, gate
        self.control: device.Control | None = None
        self.begun: dict[int, int] = {}  # a group's steps before the device's first
        self.groups: list[Group] = []

    def forget(self) -> None:
        """Leave the device, whose steps are settled."""
        self.control, self.begun = None, {}

    @property
    def skipped(self) -> int:
        """How many steps the device has left out, as far as is known."""
        return self.control.skipped if self.control else 0

    def take(
        self,
        plan: Plan,
        counts: Any,
        groups: list[Group],
        alone: bool,
        capturable: bool,
        found: Any,
        given: Any,
    ) -> bool:
        """Take the step as a GPU decides, where it alone knows whether it is taken; False if the host does.

        `alone`: whether it is asked, and nobody else has a say: no other rank, no hand that has written over a
        schedule. `found` and `given` are GradScaler's, as `Gate.scale` has them.
        """
        launches = plan.on_one_device() if alone else None
        if launches is None:
            if self.control is not None:
                self._leave()
            return False
        self.groups = groups
        if self.control is None or self.control.capturable != capturable:
            self._leave()
            self.control = device.Control(launches[0].device, capturable)
        taken = self.control.taken
        for group in groups:
            self.begun.setdefault(id(group), group["step"] - taken)
        torch.autograd.graph.increment_version(plan.weights)
        self.control.step(
            launches,
            counts,
            device.Ahead(self._key(), self._ahead),
            max_norm=self.gate.defaults["max_norm"],
            skip_nonfinite=self.gate.defaults["skip_nonfinite"],
            grad_scale=given,
            found_inf=found,
        )
        self._count(self.control.taken)
        return True

    def settle(self) -> None:
        """Wait for the device, and learn which steps it has taken."""
        if self.control is None:
            return
        self.control.settle(wait=True)
        scheduled = [group for group in self.groups if group["schedules"]]
        written = [(group, self.hyperparameters.written(group)) for group in scheduled]
        self._count(self.control.taken)
        for group, values in written:  # after the last step, whenever its count is learnt
            group.update(values)

    def _leave(self) -> None:
        if self.control is not None:
            self.settle()
            self.gate.skipped += self.control.skipped
            self.forget()

    def _key(self) -> Any:
        """What rules and options of steps to come follow from: equal as long as nothing was changed."""
        return self.gate.defaults["seed"], [
            (self.hyperparameters.key(group), *(group[name] for name in _OF_STEPS), self.begun[id(group)])
            for group in self.groups
        ]

    def _ahead(self, taken: int) -> tuple[list[Rule], list[Terms]]:
        """Rules and options, by group, of the step after so many that the device has taken."""
        finished = [self.begun[id(group)] + taken for group in self.groups]
        pairs = list(zip(self.groups, finished, strict=True))
        rules = [self.hyperparameters.then(group, n) for group, n in pairs]
        return rules, [step_options(group, n, 1.0, self.gate.defaults["seed"]) for group, n in pairs]

    def _count(self, taken: int) -> None:
        """Count the groups' steps, of which the device has taken so many."""
        for group in self.groups:
            if id(group) in self.begun:
                group["step"] = self.begun[id(group)] + taken
        self.hyperparameters.show(self.groups)
