"""The hyperparameters of an optimizer's groups as they stand, and the rules that they make."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from schuss.compile.front import at, check_schedule, is_schedule, plain_number
from schuss.rules import Rule
from schuss.torch.kinds import Group, Kinds


def rate(rule: Rule) -> float:
    """The learning rate of a rule; 1 of one that has none."""
    return getattr(rule, "lr", 1.0)


def _immutable(value: Any) -> bool:
    """Whether a hyperparameter that compares equal is what it was; a tensor can change in place."""
    if isinstance(value, tuple):
        return all(map(_immutable, cast(tuple[Any, ...], value)))
    return isinstance(value, float | int | str)


class Hyperparameters:
    """The rule of each group. A schedule shows its value in its group, once after each step that is counted.

    What is written over it, by hand or by a scheduler, is used for the next step; then the schedule goes on: whoever
    writes last has it, and that is said once.
    """

    def __init__(self, kinds: Kinds) -> None:
        self.kinds, self.told = kinds, False
        self.forget([])

    def forget(self, groups: Sequence[Group]) -> None:
        """Hold nothing that was derived from groups: `groups` are those that stand now."""
        self.rules: dict[int, tuple[tuple[Any, ...] | None, Rule]] = {}
        # By group: after how many steps its schedules were shown last, and what: and the lr that state starts from.
        self.shown: dict[int, tuple[int, Group]] = {}
        for group in groups:
            self.stand(group)

    def drop(self, group: Group) -> None:
        """Hold nothing of one group, whose id another may have after it."""
        self.rules.pop(id(group), None)
        self.shown.pop(id(group), None)

    def stand(self, group: Group) -> None:
        """Take a group as it stands for what was shown."""
        names = {"lr", *group.get("schedules", ())} & group.keys()
        self.shown.setdefault(id(group), (group.get("step", 0), {name: group[name] for name in names}))

    # The rule

    def rule(self, group: Group) -> Rule:
        """The rule with this group's hyperparameters as they stand now."""
        if group["schedules"]:
            self.ask(group)
        arguments = self.kinds.of(group).arguments
        values = arguments.values(group)
        last = self.rules.get(id(group))
        if last is not None and last[0] == values:
            return last[1]
        rule = None if last is None or last[0] is None else arguments.changed(last[1], last[0], values)
        if rule is not None:
            self.rules[id(group)] = (values, rule)
            return rule
        scheduled = {name: group[name] for name, _ in arguments.names if is_schedule(group[name])}
        if scheduled:
            for name, schedule in scheduled.items():
                check_schedule(name, schedule)
            group["schedules"].update(scheduled)
            self.shown.pop(id(group), None)
            return self.rule(group)
        rule = arguments.rule(plain_number(values))
        self.rules[id(group)] = (values if _immutable(values) else None, rule)
        return rule

    def then(self, group: Group, finished: int) -> Rule:
        """The rule after so many finished steps."""
        if not group["schedules"]:
            return self.rule(group)
        values = {name: at(schedule, finished) for name, schedule in group["schedules"].items()}
        arguments = self.kinds.of(group).arguments
        return arguments.rule(plain_number(arguments.values({**group, **values})))

    def start(self, group: Group, rule: Rule) -> Rule:
        """The rule that state starts from: an lr of 0 that was written for a dry step is none that state remembers."""
        lr = plain_number(self.shown.get(id(group), (0, {}))[1].get("lr", 0.0))
        return rule.changed(lr=lr) if lr and not rate(rule) else rule

    def key(self, group: Group) -> Any:
        """What the rules of all steps to come follow from: equal as long as nothing was changed."""
        return plain_number(self.kinds.of(group).arguments.values({**group, **group["schedules"]}))

    # Schedules

    def ask(self, group: Group) -> None:
        """Show each schedule's value in its place: that after the group's finished steps, once."""
        if self.shown.get(id(group), (-1,))[0] == group["step"]:
            return
        shown = {name: at(schedule, group["step"]) for name, schedule in group["schedules"].items()}
        group.update(shown)
        self.shown[id(group)] = (group["step"], {"lr": group.get("lr", 0.0), **shown})

    def show(self, groups: Sequence[Group]) -> None:
        """Show what the next step is taken with. A schedule that ends here says so at that step, before it begins."""
        for group in groups:
            if group["schedules"]:
                with suppress(Exception):
                    self.ask(group)

    def written(self, group: Group) -> Group:
        """What was written over the schedules' values since they were shown."""
        shown = self.shown.get(id(group), (0, {}))[1]
        return {n: group[n] for n in group["schedules"] if n in shown and group[n] is not shown[n]}

    def overruled(self, group: Group, driven: bool) -> bool:
        """Whether someone has written over a schedule's value, or is about to (`driven`); it is said once."""
        found = self.written(group)
        if not found and (self.told or not driven):
            return False
        shown = self.shown[id(group)][1]
        written = [name for name, value in found.items() if plain_number(value) != shown[name]]
        if not self.told and (written or "lr" in group["schedules"]):
            self.told = True
            warnings.warn(_two_hands((written or ["lr"])[0], group), stacklevel=5)
        return bool(written)

    def may_be_dry(self, groups: Sequence[Group], rules: Sequence[Rule]) -> bool:
        """Whether every lr is 0 and was written from outside: then a step without gradients is none."""
        return not any(map(rate, rules)) and not any(
            group.get("lr") is self.shown.get(id(group), (0, group))[1].get("lr") for group in groups
        )


def _two_hands(name: str, group: Group) -> str:
    return (
        f"{name}={group['schedules'][name]!r} is the schedule of a parameter group, and {name} is written from outside "
        f"too, by hand or by a scheduler (it stands at {plain_number(group[name])!r}). Whoever writes last wins, for "
        f"one step: the schedule writes after each step. To hand {name} over, give the optimizer a number instead of a "
        "schedule; schuss.torch.Scheduler drives an lr from outside."
    )
