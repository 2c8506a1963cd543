"""What `state_dict` gives and `load_state_dict` takes, in torch.optim's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from schuss.compile.storage import BLOCK
from schuss.core import checkpoint
from schuss.core.hyperparameters import Group
from schuss.core.options import OPTIONS
from schuss.rules import Rule
from schuss.torch import checkpoints, storage
from schuss.torch.hyperparameters import Hyperparameters
from schuss.torch.kinds import Kinds

Tensor = torch.Tensor


def packed(plain: dict[str, Any], kinds: Kinds, skipped: int) -> dict[str, Any]:
    """A state_dict, of what torch.optim makes of groups and state. Schedules and options are configuration."""
    groups: list[Group] = plain["param_groups"]
    row_of = {key: kinds.of(group).row for group in groups for key in group["params"]}
    state = {
        key: {
            storage.saved_name(name, value): checkpoints.exported(name, value, row_of.get(key, kinds.own.row))
            for name, value in entry.items()
        }
        if isinstance(entry, dict)
        else entry
        for key, entry in plain["state"].items()
    }
    own = {"schedules", *OPTIONS}  # the constructor's
    dtypes = {getattr(value, "dtype", None) for entry in state.values() for value in entry.values()}
    block_size = {"block_size": BLOCK} if torch.int8 in dtypes else {}
    more: dict[str, Any] = {checkpoints.RECORD: checkpoints.record(state, groups)}
    if skipped:
        more["skipped"] = skipped
    saved = [{k: v for k, v in group.items() if k not in own} | block_size for group in groups]
    return {**plain, "state": state, "param_groups": saved, **more}


class Loaded:
    """A checkpoint's groups and state for these groups, checked, and words on what of it is missing."""

    def __init__(
        self, given: Any, groups: Sequence[Group], hyperparameters: Hyperparameters, strict: bool
    ) -> None:
        self.hyperparameters, self.kinds = hyperparameters, hyperparameters.kinds
        checks = [self.kinds.of(group).check for group in groups]
        self.saved = checkpoints.parsed(given, groups, checks)
        self.groups: list[Group] = []
        try:
            rules = list(self._fit(groups))
            self.state, self.lost = self._checked(rules, strict)
        finally:  # what is remembered by a group's id must not outlive it
            for group in self.groups:
                hyperparameters.drop(group)

    def _fit(self, groups: Sequence[Group]) -> Iterable[Rule]:
        """Make the groups with the checkpoint's hyperparameters; give the rule of each."""
        first = 0
        for k, (mine, theirs) in enumerate(zip(groups, self.saved.groups, strict=True)):
            kind = self.kinds.of(mine)
            members = range(first, first := first + len(mine["params"]))
            own, steps = [name for name, _ in kind.names], self.saved.steps(members)
            group = checkpoints.fitted_group(mine, theirs, kind.needed, own, kind.row, steps)
            self.groups.append(group)
            self.hyperparameters.drop(group)
            try:
                yield self.hyperparameters.rule(group)
            except ValueError as problem:
                raise ValueError(f"The checkpoint's param_groups[{k}]: {problem}") from None

    def _checked(self, rules: Sequence[Rule], strict: bool) -> tuple[dict[Any, Any], list[str]]:
        """A copy of the checkpoint's state by weight, and words on what of it is missing."""
        saved, lost = self.saved, list[str]()
        state: dict[Any, Any] = dict(saved.others)
        belonging = [(w, g, r) for g, r in zip(self.groups, rules, strict=True) for w in g["params"]]
        for key, entry, (weight, group, rule) in zip(saved.keys, saved.entries, belonging, strict=True):
            if not entry:
                continue
            kind = self.kinds.of(group)
            checkpoints.check_real(key, entry, weight)
            about = checkpoints.weight_of(key, weight)
            missing = checkpoint.settle(kind.check.problems(about, entry, rule, saved.block), strict)
            lost += missing
            if missing:
                continue
            state[weight] = checkpoints.copied(entry, weight, kind.check.parts, saved.block)
            if group["state_dtype"] is not None:
                asked = storage.new_dtype(weight, group["state_dtype"])
                if asked == "int8" and saved.in_blocks:
                    continue  # what is not in blocks, as others are, had a reason: it has gradients of rows
                for name in kind.slot_names & state[weight].keys():
                    storage.convert(state[weight], name, asked)
        return state, lost + checkpoint.settle(saved.problems, strict)


def strays(groups: Sequence[Group], state: Mapping[Any, Any]) -> list[Tensor]:
    """The tensors that have state but are in no group: weights that were replaced since."""
    weights = {id(weight) for group in groups for weight in group["params"]}
    return [key for key in state if isinstance(key, Tensor) and id(key) not in weights]
