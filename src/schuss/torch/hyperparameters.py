"""The hyperparameters of torch's groups, which anyone may write to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from schuss.core import hyperparameters
from schuss.core.hyperparameters import Group
from schuss.core.schedules import plain_number
from schuss.rules import Rule
from schuss.torch.kinds import Kinds


def rate(rule: Rule) -> float:
    """The learning rate of a rule; 1 of one that has none."""
    return getattr(rule, "lr", 1.0)


class Hyperparameters(hyperparameters.Hyperparameters):
    """The rule of each group. A schedule shows its value in its group, once after each step that is counted.

    What is written over it, by hand or by a scheduler, is used for the next step; then the schedule goes on: whoever
    writes last has it, and that is said once.
    """

    def __init__(self, kinds: Kinds) -> None:
        super().__init__(kinds.own, kinds.of)
        self.kinds, self.warned = kinds, False

    def forget(self, groups: Sequence[Group]) -> None:
        """Hold nothing that was derived from groups: `groups` are those that stand now."""
        self.rules.clear()
        self.shown.clear()
        for group in groups:
            self.stand(group)

    def stand(self, group: Group) -> None:
        """Take a group as it stands for what was shown, and its lr for that from which state starts."""
        names = {"lr", *group.get("schedules", ())} & group.keys()
        self.shown.setdefault(id(group), (group.get("step", 0), {name: group[name] for name in names}))

    def start(self, group: Group, rule: Rule) -> Rule:
        """The rule that state starts from: an lr of 0 that was written for a dry step is none that state remembers."""
        lr = plain_number(self.shown.get(id(group), (0, {}))[1].get("lr", 0.0))
        return rule.changed(lr=lr) if lr and not rate(rule) else rule

    def key(self, group: Group) -> object:
        """What the rules of all steps to come follow from: equal as long as nothing was changed."""
        return plain_number(self.kinds.of(group).values({**group, **group["schedules"]}))

    def show(self, groups: Sequence[Group]) -> None:
        """Show what the next step is taken with. A schedule that ends here says so at that step, before it begins."""
        for group in groups:
            if group["schedules"] and self.shown.get(id(group), (-1,))[0] != group["step"]:
                try:
                    self.ask(group)
                except Exception:
                    continue

    def written(self, group: Group) -> Group:
        """What was written over the schedules' values since they were shown."""
        shown = self.shown.get(id(group), (0, {}))[1]
        return {n: group[n] for n in group["schedules"] if n in shown and group[n] is not shown[n]}

    def overruled(self, groups: Sequence[Group], driven: bool) -> bool:
        """Whether someone has written over a schedule's value, or is about to (`driven`); it is said once."""
        overruled = False
        for group in groups:
            shown, found = self.shown[id(group)][1], driven
            for name in group["schedules"]:
                value = group[name]
                if name in shown and value is not shown[name]:
                    found = True
                    if plain_number(value) != shown[name]:
                        overruled = True
                        self._warn(name, group)
            if found and "lr" in group["schedules"]:
                self._warn("lr", group)
        return overruled

    def _warn(self, name: str, group: Group) -> None:
        """Say once that two write one hyperparameter."""
        if not self.warned:
            self.warned = True
            warnings.warn(
                f"{name}={group['schedules'][name]!r} is the schedule of a parameter group, and {name} is written from "
                f"outside too, by hand or by a scheduler (it stands at {plain_number(group[name])!r}). Whoever writes "
                f"last wins, for one step: the schedule writes after each step. To hand {name} over, give the "
                "optimizer a number instead of a schedule; schuss.torch.Scheduler drives an lr from outside.",
                stacklevel=5,
            )

    def dry(self, groups: Sequence[Group]) -> bool:
        """Whether the lr of every group was written from outside, so that one of 0 can mean that no step is meant."""
        shown = [self.shown.get(id(group), (0, group))[1].get("lr") for group in groups]
        return not any(group.get("lr") is one for group, one in zip(groups, shown, strict=True))
