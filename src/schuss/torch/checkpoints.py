"""What goes into a checkpoint, in torch.optim's layout, and what comes out of one.

Beside torch.optim's `state` and `param_groups` a checkpoint has `state_entries`: how many weights have each entry of
state. torch.optim reads past it, and what it saves has none. A weight that never had a gradient has no state, so that
without the record a weight whose state was lost looks the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from schuss.compile.storage import BLOCK
from schuss.core.arguments import Kind
from schuss.core.checkpoint import (
    WAY_OUT,
    Check,
    Part,
    Problem,
    Weight,
    check_block,
    check_count,
    counted,
    is_count,
    lost_entries,
    settle,
    strange,
)
from schuss.core.hyperparameters import Group
from schuss.core.options import OPTIONS, SWITCHES
from schuss.core.schedules import is_schedule
from schuss.core.storage import dtype_name, widened
from schuss.errors import refusal
from schuss.rules import Row, Rule
from schuss.torch import storage
from schuss.torch.hyperparameters import Hyperparameters
from schuss.torch.kinds import READ, Kinds

Tensor = torch.Tensor
Entry = dict[str, Any]
RECORD = "state_entries"
SCHEDULE = "finished_steps"
"""Where a checkpoint has the step of the optimizer's `Scheduler`: not in a group, where torch.optim would keep it."""


def _exported(name: str, value: Any, row: Row) -> Any:
    """A state's entry as torch.optim has it: a count is a float32 tensor, as long as that can count on."""
    if name == "step":
        return torch.as_tensor(value).to(torch.float32 if value < 2**24 else torch.float64, copy=True)
    return torch.as_tensor(value).clone() if name in (row.names[one] for one in row.rule.scalars) else value


def _names(state: Mapping[Any, Any], keys: Sequence[Any]) -> dict[Any, set[str]]:
    """The entries of each weight's state that are not None."""
    entries = {key: state[key] for key in keys if isinstance(state.get(key), Mapping)}
    return {key: {name for name, value in entries.get(key, {}).items() if value is not None} for key in keys}


@dataclass
class Saved:
    """A checkpoint that has the form of one: its groups, and each weight's key and entries, in the groups' order."""

    groups: list[dict[str, Any]]
    keys: list[Any]
    entries: list[Entry]
    others: dict[Any, Any]
    block: int
    in_blocks: bool
    skipped: int
    schedule: int | None
    problems: list[Problem]

    def steps(self, members: range) -> int:
        """The finished steps of a group, going by its weights."""
        read = READ.number
        numbers = [read(self.entries[k]["step"]) for k in members if "step" in self.entries[k]]
        return max((int(n) for n in numbers if n is not None and is_count(n)), default=0)


def check_form(loaded: Any) -> None:
    """Refuse what is no checkpoint of an optimizer."""
    if not isinstance(loaded, Mapping) or not {"state", "param_groups"} <= loaded.keys():
        found = ", ".join(map(repr, list(cast(Any, loaded))[:5])) if isinstance(loaded, Mapping) else ""
        has = f"has {found or 'nothing'}" if isinstance(loaded, Mapping) else f"is a {type(loaded).__name__}"
        raise ValueError(
            f"A checkpoint of an optimizer is a dict with 'state' and 'param_groups'; this one {has}. Give what "
            "optimizer.state_dict() returned, not a model's."
        )


def _parsed(loaded: Any, ours: Sequence[Mapping[str, Any]], checks: Sequence[Check]) -> Saved:
    """The parts of a checkpoint for groups like `ours`, each with its `checks`; or words on why it is none."""
    check_form(loaded)
    groups, state = loaded["param_groups"], loaded["state"]
    sizes = [len(group["params"]) for group in ours]
    if not isinstance(state, Mapping):
        raise refusal("The checkpoint's 'state'", type(state).__name__, "a dict of each weight's state")
    _check_groups(groups)
    theirs = [len(group["params"]) for group in groups]
    if theirs != sizes:
        raise ValueError(
            f"The checkpoint has parameter groups of {theirs} weights, this optimizer of {sizes}. "
            "Build the optimizer with the same groups as the one that was saved."
        )
    for k, (mine, other) in enumerate(zip(ours, groups, strict=True)):
        if mine.get("rule") != other.get("rule"):
            own = "the optimizer's own rule"
            raise ValueError(
                f"The checkpoint's param_groups[{k}] is moved by {other.get('rule', own)}, this optimizer's by "
                f"{mine.get('rule', own)}. Build the optimizer with the same groups as the one that was saved."
            )
    keys = [key for group in groups for key in group["params"]]
    check_of_key = {key: one for group, one in zip(groups, checks, strict=True) for key in group["params"]}
    recorded = loaded.get(RECORD)
    problems = [] if recorded is None else list(lost_entries(RECORD, recorded, _names(state, keys)))
    found = {key: _entry(state[key], key, check_of_key[key]) for key in keys if key in state}
    others, homeless = _others(state, set(keys), {part for one in checks for part in one.parts})
    block, in_blocks = _block(groups)
    return Saved(
        groups=groups,
        keys=keys,
        entries=[found.get(key, {}) for key in keys],
        others=others,
        block=block,
        in_blocks=in_blocks,
        skipped=_number_of("skipped", loaded) if "skipped" in loaded else 0,
        schedule=_schedule_in(loaded, groups),
        problems=[*homeless, *problems],
    )


def _number_of(name: str, loaded: Mapping[Any, Any]) -> int:
    """A count in a checkpoint."""
    return check_count(f"The checkpoint's {name!r}", READ.number(loaded[name]), loaded[name])


def _schedule_in(loaded: Mapping[Any, Any], groups: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of a `Scheduler`. Earlier versions wrote it into the groups."""
    places = [one for one in (loaded, *groups) if one.get(SCHEDULE) is not None]
    return _number_of(SCHEDULE, places[0]) if places else None


def _check_groups(groups: Any) -> None:
    """Refuse what are no parameter groups, or name a weight twice."""
    if not isinstance(groups, list | tuple):
        raise refusal("The checkpoint's 'param_groups'", type(groups).__name__, "a list of groups")
    seen: set[Any] = set()
    for k, group in enumerate(cast(list[Any], groups)):
        params = cast(Any, group).get("params") if isinstance(group, Mapping) else None
        if not isinstance(params, list | tuple):
            raise ValueError(
                f"The checkpoint's param_groups[{k}] has no list of 'params'. Was it made by state_dict()?"
            )
        for key in cast(list[Any], params):
            if isinstance(key, bool) or not isinstance(key, int | str):
                raise refusal(
                    f"The checkpoint's param_groups[{k}]['params']",
                    params,
                    "a list of numbers or names of weights",
                )
            if key in seen:
                raise ValueError(f"The checkpoint's param_groups[{k}]['params'] has {key!r} a second time.")
            seen.add(key)


def _entry(entry: Any, key: Any, check: Check) -> Entry:
    """One weight's state by our names, without what is None, which torch.optim.SGD saves of what has not begun."""
    if not isinstance(entry, Mapping):
        raise refusal(f"The checkpoint's state of weight {key}", entry, "a dict")
    found: Entry = {}
    for name, value in cast(Mapping[Any, Any], entry).items():
        own = storage.own_name(name) if isinstance(name, str) else name
        if value is None and own in check.parts:
            continue
        if own in found:
            raise ValueError(
                f"The checkpoint's state of weight {key} has {own!r} twice, as numbers and as int8 codes. Take one out."
            )
        found[own] = value
    strange(check, key, found)
    return found


def _others(
    state: Mapping[Any, Any], keys: set[Any], parts: set[str]
) -> tuple[dict[Any, Any], list[Problem]]:
    """What stands under keys of no weight: a user's own, which stays; or state whose weight is not to be found."""
    own: dict[Any, Any] = {}
    homeless: list[Problem] = []
    for key, value in state.items():
        if key in keys:
            continue
        names = (
            {storage.own_name(name) for name in value if isinstance(name, str)}
            if isinstance(value, Mapping)
            else set()
        )
        if names & parts or isinstance(key, int | Tensor):
            shown = f"a tensor of shape {tuple(key.shape)}" if isinstance(key, Tensor) else repr(key)
            homeless.append(
                Problem(
                    f"The checkpoint has state under {shown}, but its groups have no such weight: they have "
                    f"{', '.join(map(repr, sorted(keys, key=str)[:5]))}{', ...' if len(keys) > 5 else ''}. "
                    f"Was a key renamed? {WAY_OUT}",
                    fatal=False,
                )
            )
        else:
            own[key] = copy.deepcopy(value)
    return own, homeless


def _block(groups: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
    """How many codes share a scale, and whether the checkpoint says so."""
    said = [group["block_size"] for group in groups if group.get("block_size") is not None]
    sizes = [check_block("The checkpoint's 'block_size'", READ.number(size), size) for size in said]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"The checkpoint's groups have blocks of {', '.join(map(str, sizes))}; it is one size for all. Was it put "
            "together from several?"
        )
    return (sizes[0], True) if sizes else (BLOCK, False)


def _fitted_group(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], kind: Kind, steps: int
) -> dict[str, Any]:
    """A group of this optimizer with the checkpoint's hyperparameters; numbers are stored as before."""
    missing = [name for name in kind.needed if name not in theirs]
    if missing:
        raise ValueError(
            f"The checkpoint's parameter groups have no {', '.join(map(repr, missing))}, which {kind.row.name} needs; "
            f"they have {', '.join(map(repr, theirs))}. Is it another optimizer's?"
        )
    for name, _ in kind.names:
        if name not in mine["schedules"] and is_schedule(theirs.get(name)):
            raise refusal(
                f"The checkpoint's {name!r}",
                theirs[name],
                "a number",
                "A schedule is given to the constructor.",
            )
    if not isinstance(theirs.get("maximize", False), bool):
        raise refusal("The checkpoint's 'maximize'", theirs["maximize"], "True or False")
    number = READ.number(theirs.get("step", 0))
    counted_steps = check_count("The checkpoint's 'step' of a parameter group", number, theirs.get("step"))
    constructors = {
        "params",
        "schedules",
        "rule",
        "block_size",
        SCHEDULE,
        *OPTIONS,
        *(SWITCHES.keys() & mine.keys()),
    }
    taken = {name: value for name, value in theirs.items() if name not in constructors}
    # Steps that another optimizer took with this checkpoint stand in the weights' counts alone.
    return {**mine, **copy.deepcopy(taken), "step": max(counted_steps, steps)}


def _check_real(key: Any, entry: Entry, weight: Tensor) -> None:
    """Refuse state that has a shape but no numbers, of a weight that has some."""
    for name, value in entry.items():
        if isinstance(value, Tensor) and value.is_meta and not weight.is_meta:
            raise ValueError(
                f"The checkpoint's {name!r} of weight {key} is on the meta device, where tensors have no numbers. Load "
                "its file without map_location='meta'."
            )


def _copied(entry: Entry, weight: Tensor, parts: Mapping[str, Part], block: int) -> Entry:
    """One weight's checked state, copied to the weight's device."""
    found: Entry = {}
    for name, value in entry.items():
        if parts[name].kind in ("count", "number"):
            found[name] = torch.tensor(float(value), dtype=torch.float64)
        else:
            found[name] = value.detach().to(weight.device, copy=True)
    for name in [name for name, part in parts.items() if part.kind == "slot" and name in found]:
        if found[name].dtype == torch.int8:
            found[name] = found[name].contiguous()
            storage.convert(found, name, "int8", block)
    return found


def packed(plain: dict[str, Any], kinds: Kinds, skipped: int) -> dict[str, Any]:
    """A state_dict, of what torch.optim makes of groups and state. Schedules and options are configuration."""
    groups: list[Group] = plain["param_groups"]
    row_of = {key: kinds.of(group).row for group in groups for key in group["params"]}
    state = {
        key: {
            storage.saved_name(name, value): _exported(name, value, row_of.get(key, kinds.own.row))
            for name, value in entry.items()
        }
        if isinstance(entry, dict)
        else entry
        for key, entry in plain["state"].items()
    }
    own = {"schedules", *OPTIONS}  # the constructor's
    dtypes = {getattr(value, "dtype", None) for entry in state.values() for value in entry.values()}
    block_size = {"block_size": BLOCK} if torch.int8 in dtypes else {}
    more: dict[str, Any] = {RECORD: counted(_names(state, list(row_of)).values())}
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
        self.saved = _parsed(given, groups, checks)
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
            group = _fitted_group(mine, theirs, kind, self.saved.steps(members))
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
            _check_real(key, entry, weight)
            about = Weight(key, tuple(weight.shape), dtype_name(weight.dtype))
            missing = settle(kind.check.problems(about, entry, rule, saved.block), strict)
            lost += missing
            if missing:
                continue
            state[weight] = _copied(entry, weight, kind.check.parts, saved.block)
            precise = {kind.row.names[slot] for slot in (*rule.precise, *rule.shapes)}
            for name in kind.slot_names & state[weight].keys():
                dtype = dtype_name(state[weight][name].dtype)
                if group["state_dtype"] is not None:
                    asked = storage.new_dtype(weight, group["state_dtype"], precise=name in precise)
                    # Where others are in blocks already, what is not had a reason: it has gradients of rows.
                    dtype = dtype if asked == "int8" and saved.in_blocks else asked
                storage.convert(state[weight], name, widened(dtype) if name in precise else dtype)
        return state, lost + settle(saved.problems, strict)


def strays(groups: Sequence[Group], state: Mapping[Any, Any]) -> list[Tensor]:
    """The tensors that have state but are in no group: weights that were replaced since."""
    weights = {id(weight) for group in groups for weight in group["params"]}
    return [key for key in state if isinstance(key, Tensor) and id(key) not in weights]
