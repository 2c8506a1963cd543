"""The hyperparameters of groups of weights as they stand, and the rules that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from schuss.core.arguments import Kind
from schuss.core.schedules import at, check_schedule, is_schedule, plain_number
from schuss.rules import Rule

Group = dict[str, Any]
_NEVER: tuple[int, Group] = (-1, {})


def _immutable(value: Any) -> bool:
    """Whether a hyperparameter that compares equal is what it was; a tensor can change in place."""
    if isinstance(value, tuple):
        return all(map(_immutable, cast(tuple[Any, ...], value)))
    return value is None or isinstance(value, float | int | str)


class Hyperparameters:
    """The rule of each group. A group has its finished steps under `step`, and its `schedules` by name.

    A schedule writes its value into the group, once for each finished step. A function that is written into a
    group becomes a schedule.
    """

    def __init__(self, own: Kind, kind_of: Callable[[Group], Kind] | None = None) -> None:
        """`own` is the rule of groups that name none; `kind_of` finds that of those that do."""
        self.own, self.kind_of = own, kind_of or (lambda _: own)
        # By group: the values that its rule was made of, where they cannot change in place, and the rule.
        self.rules: dict[int, tuple[tuple[Any, ...] | None, Rule]] = {}
        # By group: after how many steps its schedules were shown last, and what.
        self.shown: dict[int, tuple[int, Group]] = {}

    def drop(self, group: Group) -> None:
        """Hold nothing of one group, whose id another may have after it."""
        self.rules.pop(id(group), None)
        self.shown.pop(id(group), None)

    def rule(self, group: Group, like: Group | None = None) -> Rule:
        """The rule with this group's hyperparameters as they stand now; a new group may be much `like` an old one."""
        if like is not None and id(like) in self.rules:
            self.rules[id(group)] = self.rules[id(like)]
        if group["schedules"] and self.shown.get(id(group), _NEVER)[0] != group["step"]:
            self.ask(group)
        kind = self.kind_of(group) if "rule" in group else self.own
        values = kind.values(group)
        last = self.rules.get(id(group))
        rule = None
        if last is not None and last[0] is not None:
            if last[0] == values:
                return last[1]
            rule = kind.changed(last[1], last[0], values)
        if rule is None:
            scheduled = {name: group[name] for name, _ in kind.names if is_schedule(group[name])}
            if scheduled:
                for name, schedule in scheduled.items():
                    check_schedule(name, schedule)
                group["schedules"].update(scheduled)
                self.shown.pop(id(group), None)
                return self.rule(group)
            rule = kind.rule(plain_number(values))
            values = values if _immutable(values) else None
        self.rules[id(group)] = (values, rule)
        return rule

    def then(self, group: Group, finished: int) -> Rule:
        """The rule after so many finished steps."""
        if not group["schedules"]:
            return self.rule(group)
        values = {name: at(schedule, finished) for name, schedule in group["schedules"].items()}
        kind = self.kind_of(group)
        return kind.rule(plain_number(kind.values({**group, **values})))

    def ask(self, group: Group) -> None:
        """Write into the group what its schedules give after its finished steps."""
        finished = group["step"]
        shown: Group = {"lr": group.get("lr", 0.0)}
        for name, schedule in group["schedules"].items():
            shown[name] = at(schedule, finished)
        for name in group["schedules"]:  # after all of them have answered
            group[name] = shown[name]
        self.shown[id(group)] = (finished, shown)
