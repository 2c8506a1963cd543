"""The PyTorch front: `torch.optim.Optimizer` in every habit, with one launch where torch has a loop."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.optim.optimizer as base

from schuss.compile.formula import formula
from schuss.compile.front import SWITCHES, at, for_sparse, is_schedule, parameters, plain_number
from schuss.rules import PAIRS, Row, Rule
from schuss.torch.plan import Item, Plan
from schuss.torch.state import State, changes

Tensor = torch.Tensor

_gradient = attrgetter("grad")


def _immutable(value: Any) -> bool:
    """Whether a hyperparameter that compares equal is what it was; a tensor can change in place."""
    if isinstance(value, tuple):
        return all(map(_immutable, cast(tuple[Any, ...], value)))
    return isinstance(value, float | int | str)


def _state_like(weight: Tensor, value: float) -> Tensor:
    """A slot before the first step, laid out as its weight.

    For 16-bit weights it is float32: a small change could not move a bfloat16 average.
    """
    wide = torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype
    slot = torch.zeros_like(weight, dtype=wide, memory_format=torch.preserve_format, requires_grad=False)
    if value:
        (torch.view_as_real(slot) if slot.is_complex() else slot).fill_(value)
    return slot


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` with torch's hooks and profiler label, which cost as much as a small step, only where there are any."""
    with_hooks = torch.optim.Optimizer.profile_hook_step(step)
    untraced: Any = cast(Any, torch.compiler.disable)(with_hooks)

    @functools.wraps(step)
    def hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # A step is compiled code already: a traced program calls it as it is.
            return untraced(self, *args, **kwargs)
        if self._step_hooks() or torch.autograd._profiler_enabled():  # pyright: ignore
            return with_hooks(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    hooked.hooked = True  # type: ignore[attr-defined]  # torch then leaves it as it is
    return hooked


class Optimizer(torch.optim.Optimizer):
    """What all optimizers here share. A subclass is its row of the table of rules, and nothing else."""

    row: ClassVar[Row]
    _parameters: ClassVar[dict[str, inspect.Parameter]]
    _binding: ClassVar[inspect.Signature]
    _names: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]]
    _values: ClassVar[Callable[[dict[str, Any]], tuple[Any, ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "row" not in cls.__dict__:
            return
        cls._parameters = parameters(cls.row, SWITCHES)
        first, params = (
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", "params")
        )
        cls.__signature__ = inspect.Signature([params, *cls._parameters.values()])  # type: ignore[attr-defined]
        cls._binding = inspect.Signature([first, params, *cls._parameters.values()])
        own = {field.name for field in fields(cls.row.rule)}
        page = (cls.row.rule.__doc__ or "").split(">>>")[0].rstrip()  # its example is for the page itself
        cls.__doc__ = f"{page}\n\n    {cls.__doc__}"
        cls.step = _hooked(cls.step)
        cls._names = tuple((n, PAIRS.get(n, (n,))) for n in cls._parameters if n in own or n in PAIRS)
        cls._values = staticmethod(itemgetter(*(n for n, _ in cls._names)))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            bound = self._binding.bind(self, *args, **kwargs)
        except TypeError as problem:
            known = ", ".join(self._parameters)
            raise TypeError(f"{type(self).__name__}: {problem}. It takes params, then {known}.") from None
        bound.apply_defaults()
        defaults = dict(bound.arguments)
        defaults.pop("self")
        params = defaults.pop("params")
        self._forget()
        super().__init__(params, defaults)
        if self.row.state_at_construction:
            weights = list(chain.from_iterable(group["params"] for group in self.param_groups))
            self._adopt(weights, range(len(weights)))

    def _forget(self) -> None:
        """Hold nothing that was derived from groups and state: the next step finds it anew."""
        self._plan: Plan | None = None
        self._seen: Any = None
        self._rules: dict[int, tuple[tuple[Any, ...] | None, Rule]] = {}
        self._in_force: dict[int, tuple[int, dict[str, Any]]] = {}
        self._ledger = np.zeros((0, 1 + len(self.row.rule.scalars)))
        self._members: list[Tensor] = []
        self._views: list[tuple[Tensor, ...]] = []

    # Groups and their hyperparameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights, with hyperparameters of their own where given: numbers, tensors or schedules."""
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"A parameter group has {', '.join(param_group) or 'nothing'} but no 'params'.")
        group: dict[str, Any] = {**self.defaults, "step": 0, "schedules": {}, **param_group}
        if isinstance(group["params"], Iterable) and not isinstance(group["params"], Tensor | set):
            group["params"] = list(cast(Iterable[Any], group["params"]))
            _check_weights(group["params"])
        if group.get("differentiable"):
            raise ValueError(
                "differentiable=True is not possible: a step here is a compiled kernel, which autograd cannot see "
                f"through. Use torch.optim.{self.row.name} for that."
            )
        group["schedules"] = dict(cast(dict[str, Any], group["schedules"]))
        self._rules.clear()
        self._rule_of(group)
        super().add_param_group(group)

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """The page with this group's hyperparameters as they stand now."""
        if group["schedules"]:
            self._ask_schedules(group)
        values: tuple[Any, ...] = type(self)._values(group)
        last = self._rules.get(id(group))
        if last is not None and last[0] == values:
            return last[1]
        rule = self._with_new_numbers(last, values)
        if rule is not None:
            self._rules[id(group)] = (values, rule)
        else:
            scheduled = {name: group[name] for name, _ in self._names if is_schedule(group[name])}
            if scheduled:
                group["schedules"].update(scheduled)
                self._in_force.pop(id(group), None)
                return self._rule_of(group)
            rule = self._page(plain_number(values))
            self._rules[id(group)] = (values if _immutable(values) else None, rule)
        return rule

    def _ask_schedules(self, group: dict[str, Any]) -> None:
        """Show each schedule's value in its place: that after the group's finished steps, whatever stands there."""
        step, shown = self._in_force.get(id(group), (-1, {}))
        if step == group["step"] and all(group[name] is value for name, value in shown.items()):
            return
        shown = {name: at(schedule, group["step"]) for name, schedule in group["schedules"].items()}
        group.update(shown)
        self._in_force[id(group)] = (group["step"], shown)

    def _with_new_numbers(self, last: Any, values: tuple[Any, ...]) -> Rule | None:
        """The last rule with other numbers, if that is all that changed: a new rate at every step costs little."""
        if last is None or last[0] is None:
            return None
        numbers: dict[str, float] = {}
        for (name, parts), value, old in zip(self._names, values, last[0], strict=True):
            if value != old:
                if type(value) is not float or len(parts) != 1:
                    return None
                numbers[name] = value
        return last[1].changed(**numbers)

    def _page(self, values: tuple[Any, ...]) -> Rule:
        chosen: dict[str, Any] = {}
        for (name, parts), value in zip(self._names, values, strict=True):
            if len(parts) == 1:
                chosen[name] = value
            elif isinstance(value, tuple) and len(cast(tuple[Any, ...], value)) == len(parts):
                chosen |= zip(parts, cast(tuple[Any, ...], value), strict=True)
            else:
                default = self._parameters[name].default
                raise ValueError(f"{name}={value!r} is not a pair of numbers. Try {name}={default}.")
        return self.row.rule(**chosen)

    # One step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients in `.grad`; with a closure, call it first and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        weights = list(chain.from_iterable([group["params"] for group in groups]))
        gradients = list(map(_gradient, weights))
        rules = list(map(self._rule_of, groups))
        plan = self._plan
        if plan is None or not (
            self._seen
            == (changes(), id(self.state), list(map(id, weights)), [rule.variant for rule in rules])
            and plan.fits(gradients)
        ):
            plan = self._plan = self._make_plan(weights, gradients, rules)
        sparse_rules = {item.group: for_sparse(rules[item.group], self._sparse) for item in plan.sparse}
        scales = [-1.0 if group["maximize"] else 1.0 for group in groups]
        plan.step(gradients, self._ledger, rules, sparse_rules, scales, torch.get_num_threads())
        for group in groups:
            group["step"] += 1
            if group["schedules"]:
                self._ask_schedules(group)
        return loss

    def _step_hooks(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks  # pyright: ignore[reportPrivateUsage]
            or base._global_optimizer_post_hooks  # pyright: ignore[reportPrivateUsage]
        )

    @functools.cached_property
    def _sparse(self) -> tuple[tuple[str, Any], ...]:
        return tuple(self.row.sparse.items())

    def _make_plan(self, weights: list[Tensor], gradients: list[Any], rules: list[Rule]) -> Plan:
        group_of = [k for k, group in enumerate(self.param_groups) for _ in group["params"]]
        present = [k for k, gradient in enumerate(gradients) if gradient is not None]
        slots = self._adopt(weights, present)
        items = [
            Item(weights[k], mine, formula(rules[group_of[k]]), group_of[k], k)
            for k, mine in zip(present, slots, strict=True)
        ]
        plan = Plan(items, gradients)
        self._seen = (changes(), id(self.state), list(map(id, weights)), [rule.variant for rule in rules])
        return plan

    # State

    def _adopt(self, weights: list[Tensor], present: Iterable[int]) -> list[list[Tensor]]:
        """Give the weights that are `present` what their rule remembers, where they have none; return their slots."""
        if not isinstance(self.state, State):
            self.state = State(self.state)
        if list(map(id, weights)) != list(map(id, self._members)):
            self._renew_ledger(weights)
        group_of = [group for group in self.param_groups for _ in group["params"]]
        found: list[list[Tensor]] = []
        for k in present:
            rule = self._rule_of(group_of[k])
            first, names = rule.initial(), self.row.names
            if rule.slots or self.row.counts_steps:
                entry = self.state[weights[k]]
                new = all(entry.get(names[slot]) is None for slot in rule.slots)
                for slot in rule.slots:
                    if entry.get(names[slot]) is None:
                        entry[names[slot]] = _state_like(weights[k], first.get(slot, 0.0))
                self._remember(k, entry, first, new, group_of[k]["step"])
            found.append([self.state[weights[k]][names[slot]] for slot in rule.slots])
        return found

    def _remember(
        self, k: int, entry: dict[str, Any], first: dict[str, float], new: bool, steps: int
    ) -> None:
        """Bring the ledger's row of weight `k` and its state in agreement: what stands in the state is right."""
        row, views = self._ledger[k], self._views[k]
        if not self.row.counts_steps:
            row[0] = 0 if new else max(row[0], steps, 1)
        elif entry.get("step") is not views[0]:
            row[0] = float(entry.get("step", 0))
            entry["step"] = views[0]
        for column, scalar in enumerate(self.row.rule.scalars, 1):
            name = self.row.names[scalar]
            if entry.get(name) is not views[column]:
                row[column] = float(entry.get(name, first.get(scalar, 0.0)))
                entry[name] = views[column]

    def _renew_ledger(self, weights: list[Tensor]) -> None:
        """A ledger with a row for each weight. The state's counts and scalars are views of it: one `+ 1` moves all."""
        old = {id(weight): row for weight, row in zip(self._members, self._ledger, strict=True)}
        self._ledger = np.zeros((len(weights), self._ledger.shape[1]))
        self._views = [row.unbind() for row in torch.from_numpy(self._ledger).unbind()]
        self._members = list(weights)
        for k, weight in enumerate(weights):
            if id(weight) in old:
                self._ledger[k] = old[id(weight)]
            if weight in self.state and self.row.counts_steps and "step" in self.state[weight]:
                self._remember(k, self.state[weight], {}, False, 0)

    # Checkpoints, in torch.optim's layout

    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's layout: its optimizers read it. Schedules are configuration, and not in it."""
        packed = super().state_dict()
        state = {
            key: {name: _exported(name, value, self.row) for name, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for key, entry in packed["state"].items()
        }
        groups = [{k: v for k, v in group.items() if k != "schedules"} for group in packed["param_groups"]]
        return {**packed, "state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint, torch.optim's or ours, as it is: nothing is cast.

        A schedule is configuration: the one given at construction goes on from the checkpoint's step.

        Raises `ValueError` naming the key if the checkpoint does not fit, before anything is changed.
        """
        loaded = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, loaded)
            loaded = loaded if result is None else result
        weights = list(chain.from_iterable(group["params"] for group in self.param_groups))
        saved = loaded["param_groups"]
        theirs = [len(group["params"]) for group in saved]
        ours = [len(group["params"]) for group in self.param_groups]
        if theirs != ours:
            raise ValueError(
                f"The checkpoint has parameter groups of {theirs} weights, this optimizer of {ours}. "
                "Build the optimizer with the same groups as the one that was saved."
            )
        weight_of = dict(zip(chain.from_iterable(group["params"] for group in saved), weights, strict=True))
        state: dict[Any, Any] = {}
        for key, entry in loaded["state"].items():
            if key in weight_of:
                state[weight_of[key]] = _loaded(entry, weight_of[key], key, self.row)
            else:
                state[key] = copy.deepcopy(entry)
        groups: list[dict[str, Any]] = []
        for mine, other in zip(self.param_groups, saved, strict=True):
            missing = [name for name in self._needed() if name not in other]
            if missing:
                raise ValueError(
                    f"The checkpoint's parameter groups have no {', '.join(map(repr, missing))}, which {self.row.name} "
                    f"needs; they have {', '.join(map(repr, other))}. Is it another optimizer's?"
                )
            fitted = {**mine, **copy.deepcopy({k: v for k, v in other.items() if k != "params"})}
            fitted["step"] = other.get("step", _steps_in(state, mine["params"]))
            fitted |= {"params": mine["params"], "schedules": mine["schedules"]}
            self._rules.pop(id(fitted), None)
            self._rule_of(fitted)
            groups.append(fitted)
        self.__setstate__({"state": State(state), "param_groups": groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _needed(self) -> list[str]:
        """The hyperparameters that every checkpoint of this optimizer has: torch's numbers, not its switches."""
        theirs = set(self.row.arguments.split())
        return [
            name for name, _ in self._names if name in theirs and self._parameters[name].default is not False
        ]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def _check_weights(given: list[Any]) -> None:
    """Refuse what has no gradients, and what would be moved twice."""
    seen: set[int] = set()
    for place, one in enumerate(given):
        weight = one[1] if isinstance(one, tuple) else one
        if not isinstance(weight, Tensor):
            continue  # torch's own check says what it is
        if not (weight.is_floating_point() or weight.is_complex()):
            raise ValueError(
                f"params[{place}] is of {weight.dtype}, which has no gradients. Give floating-point or complex weights."
            )
        if id(weight) in seen:
            raise ValueError(
                f"params[{place}], of shape {tuple(weight.shape)}, is given twice and would be moved twice. "
                "Give each weight once."
            )
        seen.add(id(weight))


def _exported(name: str, value: Any, row: Row) -> Any:
    """A state's entry as torch.optim has it: a count is a float32 tensor, as long as that can count on."""
    if name == "step":
        return value.to(torch.float32 if value < 2**24 else torch.float64, copy=True)
    return value.clone() if name in (row.names[scalar] for scalar in row.rule.scalars) else value


def _loaded(entry: dict[str, Any], weight: Tensor, key: Any, row: Row) -> dict[str, Any]:
    """One weight's state from a checkpoint, copied to the weight's device, or words on why it does not fit."""
    scalars = {row.names[scalar] for scalar in row.rule.scalars} | {"step"}
    slots = set(row.names.values()) - scalars
    unknown = set(entry) - slots - scalars
    if unknown:
        raise ValueError(
            f"The checkpoint's state of weight {key} has {', '.join(map(repr, sorted(unknown)))}; "
            f"{row.name} keeps {', '.join(map(repr, sorted(slots)))}. Is it another optimizer's?"
        )
    copied: dict[str, Any] = {}
    for name, value in entry.items():
        if name in slots and value is not None and tuple(value.shape) != tuple(weight.shape):
            raise ValueError(
                f"The checkpoint's {name!r} of weight {key} has shape {tuple(value.shape)}, the weight "
                f"{tuple(weight.shape)}. Is the model the one that was saved?"
            )
        if isinstance(value, Tensor):
            place = "cpu" if name in scalars else weight.device
            copied[name] = value.detach().to(place, copy=True)
        elif value is not None:
            copied[name] = value
    return copied


def _steps_in(state: dict[Any, Any], weights: list[Tensor]) -> int:
    """The finished steps of a group whose checkpoint does not say: those of its oldest weight."""
    return max((int(state[w]["step"]) for w in weights if "step" in state.get(w, ())), default=0)
