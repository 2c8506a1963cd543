"""The PyTorch API: behaves as `torch.optim.Optimizer` does, with one launch where torch has a loop."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Container, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.optim.optimizer as base

from schuss.compile import checkpoint, device, norm
from schuss.compile.formula import AVERAGE, formula
from schuss.compile.front import (
    OPTIONS,
    SWITCHES,
    WHOLE,
    at,
    check_options,
    check_schedule,
    class_doc,
    constructor,
    dtype_name,
    for_sparse,
    is_schedule,
    own_names,
    own_signature,
    parameters,
    plain_number,
    renewed,
    weight_storage,
)
from schuss.compile.grammar import check
from schuss.compile.launch import Terms
from schuss.compile.storage import BLOCK
from schuss.errors import closest, real, refusal
from schuss.rules import TABLE, Row, Rule, row_of
from schuss.torch import checkpoints, kept, sharded
from schuss.torch.norm import local_norm
from schuss.torch.plan import Item, Plan
from schuss.torch.state import State, changes

Tensor = torch.Tensor

_gradient = attrgetter("grad")
# How alike a group's key and one of ours must be to be taken for a slip: `max_momentum` and `momentum` are not (0.8).
MISSPELLED = 0.85


def _lr(rule: Any) -> float:
    return getattr(rule, "lr", 1.0)


def _immutable(value: Any) -> bool:
    """Whether a hyperparameter that compares equal is what it was; a tensor can change in place."""
    if isinstance(value, tuple):
        return all(map(_immutable, cast(tuple[Any, ...], value)))
    return isinstance(value, float | int | str)


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


@dataclass
class _Live:
    """What changes with the steps, for an optimizer and for all who share its attributes.

    Lightning's wrapper copies an optimizer's `__dict__` once: what is bound anew later would never be seen there.
    """

    skipped: int = 0
    swapped: bool = False
    told: bool = False
    norm: float | None = None
    control: device.Control | None = None


def _live(name: str) -> Any:
    def put(optimizer: Any, value: Any) -> None:
        setattr(optimizer._live, name, value)

    return property(attrgetter(f"_live.{name}"), put)


class Optimizer(torch.optim.Optimizer):
    """What all optimizers here have in common. A subclass is its row of the table of rules, and nothing else."""

    row: ClassVar[Row]
    grad_scale: Tensor | None
    found_inf: Tensor | None
    _skipped, _swapped, _told, _norm, _control = map(_live, _Live.__dataclass_fields__)
    _check: ClassVar[checkpoint.Check]
    _parameters: ClassVar[dict[str, inspect.Parameter]]
    _binding: ClassVar[inspect.Signature]
    _names: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]]
    _values: ClassVar[Callable[[dict[str, Any]], tuple[Any, ...]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        shown = own_signature(cls)
        if shown is not None:
            cls.__signature__ = shown  # type: ignore[attr-defined]
        if "row" not in cls.__dict__:
            return
        group = inspect.Parameter(
            "process_group", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any
        )
        cls._parameters = parameters(cls.row, SWITCHES) | {group.name: group}
        first, params = (
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("self", "params")
        )
        takes = inspect.Signature([params, *cls._parameters.values()])
        cls.__signature__ = shown or takes  # type: ignore[attr-defined]
        cls._binding = inspect.Signature([first, params, *cls._parameters.values()])
        if "__init__" not in cls.__dict__:
            cls.__init__ = constructor(Optimizer.__init__, cls._binding)
        own = {field.name for field in fields(cls.row.rule)}
        cls.__doc__ = class_doc(
            cls.row, cls._parameters, "params: tensors, (name, tensor) pairs, or dicts of groups"
        )
        cls.step = _hooked(cls.step)
        cls._check = checkpoints.check_of(cls.row)
        tuples = cls.row.rule.tuples
        cls._names = tuple((n, tuples.get(n, (n,))) for n in cls._parameters if n in own or n in tuples)
        names = [n for n, _ in cls._names]
        # itemgetter gives the bare value of a single name, and refuses to have none.
        values: Any = itemgetter(*names) if len(names) > 1 else lambda group: tuple(group[n] for n in names)
        cls._values = staticmethod(values)

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
        _check_given(type(self).__name__, params)
        group = defaults.pop("process_group")
        self._held = sharded.checked(sharded.of_zero() if group is None else group)
        check_options(defaults)
        self._live = _Live()
        self._forget()
        super().__init__(params, defaults)
        if self.row.state_at_construction:
            weights = list(chain.from_iterable(group["params"] for group in self.param_groups))
            self._adopt(weights, range(len(weights)), range(len(weights)))

    @classmethod
    def arguments(cls) -> Mapping[str, inspect.Parameter]:
        """What the constructor takes after `params`: default, kind and type of each by name."""
        return cls._parameters

    def _forget(self) -> None:
        """Hold nothing that was derived from groups and state: the next step finds it anew."""
        self._plan: Plan | None = None
        self._seen: Any = None
        self._rules: dict[int, tuple[tuple[Any, ...] | None, Rule]] = {}
        self._in_force: dict[int, tuple[int, dict[str, Any]]] = {}
        self._ledger = np.zeros((0, 1 + len(self.row.rule.scalars)))
        self._members: list[Tensor] = []
        self._views: list[tuple[Tensor, ...]] = []
        self._norm = None
        self._shards: sharded.Shards | None = None
        self._control = None
        self._unmoved: set[int] = set()  # weights whose state a dry step has made
        self._shared: dict[tuple[int, int], Tensor] = {}  # counts and scalars that other processes step too
        self._begun: dict[int, int] = {}  # a group's steps before the device's first

    # Groups and their hyperparameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights, with hyperparameters of their own where given: numbers, tensors or schedules."""
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"A parameter group has {', '.join(param_group) or 'nothing'} but no 'params'.")
        group: dict[str, Any] = {**self.defaults, "step": 0, "schedules": {}, **param_group}
        if group["params"] is None:
            raise TypeError("A parameter group's params=None is not a list of weights.")
        if isinstance(group["params"], Iterable) and not isinstance(group["params"], Tensor | set):
            group["params"] = list(cast(Iterable[Any], group["params"]))
            _check_weights(group["params"])
        if group.get("differentiable"):
            raise ValueError(
                "differentiable=True is not possible: a step here is a compiled kernel, which autograd cannot see "
                f"through. Use torch.optim.{self.row.name} for that."
            )
        self._check_own_options(group)
        group["schedules"] = dict(cast(dict[str, Any], group["schedules"]))
        self._rules.clear()
        self._rule_of(group)
        super().add_param_group(group)
        self._in_force.setdefault(id(group), _standing(group))
        for name in WHOLE:
            self.param_groups[-1].pop(name)

    def _check_own_options(self, group: dict[str, Any]) -> None:
        """Refuse a group's options that are none of its own, or outside their domains."""
        if "process_group" in group:
            raise ValueError("process_group belongs to the whole optimizer. Give it to the constructor.")
        self._check_spelling(group)
        for name in ("maximize", "capturable"):
            if not isinstance(group.get(name, False), bool):
                raise refusal(name, group[name], "True or False")
        for name in WHOLE:
            if group[name] != self.defaults[name]:
                raise ValueError(
                    f"{name}={group[name]!r} is of one parameter group, but {name} belongs to the whole optimizer. "
                    f"Give it to the constructor."
                )
        check_options(group)
        if group["state_dtype"] is not None:
            group["state_dtype"] = dtype_name(group["state_dtype"])

    def _check_spelling(self, group: dict[str, Any]) -> None:
        """Refuse a key that is nearly one of this optimizer's: it would change nothing, in silence.

        Other keys may be there: schedulers and frameworks keep theirs in groups (`initial_lr`, `max_momentum`, `name`).
        """
        own = {part: name for name, parts in self._names for part in parts} | {n: n for n in self._parameters}
        for key in group.keys() - self._parameters.keys() - {"params", "step", "schedules"}:
            near = closest(key, own, MISSPELLED)
            if near is not None:
                raise ValueError(
                    f"A parameter group has {key!r}, which {type(self).__name__} does not take. "
                    f"Did you mean {own[near]!r}?"
                )

    def _rule_of(self, group: dict[str, Any]) -> Rule:
        """The rule with this group's hyperparameters as they stand now."""
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
                for name, schedule in scheduled.items():
                    check_schedule(name, schedule)
                group["schedules"].update(scheduled)
                self._in_force.pop(id(group), None)
                return self._rule_of(group)
            rule = self._page(plain_number(values))
            self._rules[id(group)] = (values if _immutable(values) else None, rule)
        return rule

    def _ask_schedules(self, group: dict[str, Any]) -> None:
        """Show each schedule's value in its place: that after the group's finished steps, once.

        What is written there afterwards is used until a step is counted: whoever comes last has it.
        """
        if self._in_force.get(id(group), (-1,))[0] == group["step"]:
            return
        shown = {name: at(schedule, group["step"]) for name, schedule in group["schedules"].items()}
        group.update(shown)
        self._in_force[id(group)] = (group["step"], {"lr": group.get("lr", 0.0), **shown})

    def _show_schedules(self) -> None:
        """Show what the next step is taken with. A schedule that ends here says so at that step, before it begins."""
        for group in self.param_groups:
            if group["schedules"]:
                with suppress(Exception):
                    self._ask_schedules(group)

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
        chosen = {name: value for (name, _), value in zip(self._names, values, strict=True)}
        return self.row.rule(**own_names(self.row, chosen))

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
        if plan is None or not (self._seen == self._looked(weights, rules) and plan.fits(gradients)):
            self._plan = None  # what no longer fits is not to fit again, should the next plan be refused
            plan = self._plan = self._make_plan(weights, gradients, rules)
            self._shards = None
        if self._swapped:
            raise RuntimeError(
                "A step inside `with optimizer.averaged()` would be taken from the averaged weights and then be lost. "
                "Take it outside."
            )
        if not any(map(_lr, rules)) and self._is_dry(plan, gradients):
            self._unmoved.update(
                id(weight) for weight, row in zip(weights, self._ledger, strict=True) if not row[0]
            )
            return loss
        scheduled = [group for group in groups if group["schedules"]]
        overruled = list(filter(self._overruled, scheduled)) if scheduled else scheduled
        if overruled and self._control is not None:
            self._settle()
            rules = list(map(self._rule_of, groups))
        if self._on_device(plan, overruled):
            self._unmoved.clear()
            return loss
        scale = self._scale(plan, gradients)
        if scale is None:
            self._skipped += 1
            return loss
        terms = [self._terms(group, group["step"], scale) for group in groups]
        sparse_rules = {item.group: for_sparse(rules[item.group], self._sparse) for item in plan.sparse}
        for (member, column), count in self._shared.items():
            self._ledger[member, column] = float(count)
        counting = [partial(group.__setitem__, "step", group["step"] + 1) for group in groups]
        plan.step(gradients, self._ledger, rules, sparse_rules, terms, torch.get_num_threads(), counting)
        for (member, column), count in self._shared.items():
            count.fill_(self._ledger[member, column])
        if self._unmoved:
            self._unmoved.difference_update(map(id, plan.weights))
        self._show_schedules()
        return loss

    def _written(self, group: dict[str, Any]) -> dict[str, Any]:
        """What was written over the schedules' values since they were shown."""
        shown = self._in_force.get(id(group), (0, {}))[1]
        return {n: group[n] for n in group["schedules"] if n in shown and group[n] is not shown[n]}

    def _overruled(self, group: dict[str, Any]) -> bool:
        """Whether someone has written over a schedule's value, or is about to; it is said once."""
        found = self._written(group)
        if not found and (self._told or not _is_driven(self)):
            return False
        shown = self._in_force[id(group)][1]
        written = [name for name, value in found.items() if plain_number(value) != shown[name]]
        if not self._told and (written or "lr" in group["schedules"]):
            self._told = True
            warnings.warn(_two_hands((written or ["lr"])[0], group), stacklevel=4)
        return bool(written)

    def _is_dry(self, plan: Plan, gradients: list[Any]) -> bool:
        """Whether a step with no lr but 0 is none: each was written from outside, and every gradient is 0 throughout.

        So checkpoints (`torch.distributed.checkpoint`) have state made before it is loaded or saved. It is there then;
        nothing moves, decays, is averaged or counted.
        """
        if any(
            group.get("lr") is self._in_force.get(id(group), (0, group))[1].get("lr")
            for group in self.param_groups
        ):
            return False
        if any(device.capturing(place) for place in {weight.device for weight in plan.weights}):
            return False
        return self._norm_of(plan, gradients)[0] == 0

    def _on_device(self, plan: Plan, overruled: list[Any]) -> bool:
        """Take the step as a GPU decides, where it alone knows whether it is taken; False if the host does."""
        given = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        capturable = any(group.get("capturable") for group in self.param_groups)
        measured = self.max_norm is not None or self.skip_nonfinite
        asked = capturable or measured or given != (None, None)
        # What the device decides alone: it knows no other ranks, and schedules as they are given.
        alone = asked and not overruled and not (measured and self._shards_checked().several)
        launches = plan.on_one_device() if alone else None
        if launches is None:
            if self._control is not None:
                self._settle()
                self._skipped += self._control.skipped
                self._control = None
            return False
        if self._control is None or self._control.capturable != capturable:
            self._settle()
            self._skipped += self._control.skipped if self._control else 0
            self._control = device.Control(launches[0].device, capturable)
            self._begun = {}
        taken = self._control.taken
        for group in self.param_groups:
            self._begun.setdefault(id(group), group["step"] - taken)
        torch.autograd.graph.increment_version(plan.weights)
        self._control.step(
            launches,
            self._ledger,
            device.Ahead(self._known_ahead(), self._ahead),
            max_norm=self.max_norm,
            skip_nonfinite=self.skip_nonfinite,
            grad_scale=given[0],
            found_inf=given[1],
        )
        self._count(self._control.taken)
        return True

    def _known_ahead(self) -> Any:
        """What rules and terms of steps to come follow from: equal as long as nothing was changed."""
        return self.defaults["seed"], [
            (
                plain_number(type(self)._values({**group, **group["schedules"]})),  # of a tensor as it is now
                group["ema_decay"],
                group["maximize"],
                self._begun[id(group)],
            )
            for group in self.param_groups
        ]

    def _ahead(self, taken: int) -> tuple[list[Rule], list[Terms]]:
        """Rules and terms, by group, of the step after so many that the device has taken."""
        rules: list[Rule] = []
        terms: list[Terms] = []
        for group in self.param_groups:
            finished = self._begun[id(group)] + taken
            if group["schedules"]:
                then = {name: at(schedule, finished) for name, schedule in group["schedules"].items()}
                rules.append(self._page(plain_number(type(self)._values({**group, **then}))))
            else:
                rules.append(self._rule_of(group))
            terms.append(self._terms(group, finished, 1.0))
        return rules, terms

    def _count(self, taken: int) -> None:
        """Count the groups' steps, of which the device has taken so many."""
        for group in self.param_groups:
            if id(group) in self._begun:
                group["step"] = self._begun[id(group)] + taken
        self._show_schedules()

    def _settle(self) -> None:
        """Wait for the device, and learn which steps it has taken."""
        if self._control is not None:
            self._control.settle(wait=True)
            written = [(group, self._written(group)) for group in self.param_groups if group["schedules"]]
            self._count(self._control.taken)
            for group, values in written:  # after the last step, whenever its count is learnt
                group.update(values)

    def _looked(self, weights: list[Tensor], rules: list[Rule]) -> Any:
        """What a plan depends on, apart from the addresses."""
        modes = [
            (rule.variant, group["rounding"], group["compensated"], group["ema_decay"] is None)
            for rule, group in zip(rules, self.param_groups, strict=True)
        ]
        return changes(), id(self.state), list(map(id, weights)), modes

    def _scale(self, plan: Plan, gradients: list[Any]) -> float | None:
        """What all gradients are multiplied by: the loss scale undone, and clipped. None if the step is not taken."""
        found, given = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        stop = found is not None and bool(float(found))
        scale = 1.0 if given is None or stop else 1.0 / _loss_scale(given)
        if self.max_norm is None and not self.skip_nonfinite:
            return None if stop else scale
        if not self._shards_checked().several and stop:
            return None
        norm_, stop = self._norm_of(plan, gradients, stop)
        if stop:
            return None
        self._norm = norm_ * scale
        if self.skip_nonfinite and not math.isfinite(self._norm):
            return None
        return scale * norm.clipping(self._norm, self.max_norm)

    def _norm_of(self, plan: Plan, gradients: list[Any], stop: bool = False) -> tuple[float, bool]:
        """The norm of all gradients, on all ranks where they are divided; and whether any rank says `stop`."""
        shards = self._divided()
        if shards.meshes:
            return shards.norm(gradients, local_norm, stop)
        return shards.over_group(plan.norm(gradients, torch.get_num_threads()), stop)

    def _divided(self) -> sharded.Shards:
        """Between which ranks the weights are divided, found once a plan."""
        if self._shards is None:
            every = list(chain.from_iterable(group["params"] for group in self.param_groups))
            self._shards = sharded.Shards(every, self._held)
        return self._shards

    def _shards_checked(self) -> sharded.Shards:
        shards = self._divided()
        shards.check()
        return shards

    def _terms(self, group: dict[str, Any], finished: int, scale: float) -> Terms:
        share = renewed(group["ema_decay"], finished)
        return Terms(-scale if group["maximize"] else scale, share, self.defaults["seed"])

    @property
    def max_norm(self) -> float | None:
        """The largest norm that the gradients of all weights together may have; larger ones are scaled down to it.

        Of all weights of all ranks, where they are divided: DTensors (`fully_shard`, tensor parallel) know how, and
        `ZeroRedundancyOptimizer` is asked. FSDP1, pipeline stages and whatever else leaves plain weights on one rank
        each need `process_group=`, so that all clip and skip together.
        """
        return self.defaults["max_norm"]

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        check_options({**OPTIONS, "max_norm": value})
        self.defaults["max_norm"] = value

    @property
    def skip_nonfinite(self) -> bool:
        """Whether a step with an infinite or NaN gradient is left out."""
        return self.defaults["skip_nonfinite"]

    @skip_nonfinite.setter
    def skip_nonfinite(self, value: bool) -> None:
        check_options({**OPTIONS, "skip_nonfinite": value})
        self.defaults["skip_nonfinite"] = value

    @property
    def process_group(self) -> Any:
        """The process group on whose ranks the weights are divided, each plain weight on one of them; None if none is.

        The norm for `max_norm` and `skip_nonfinite` is then of the gradients of all its ranks, which have to step
        together. Deep copies share it; it is in no checkpoint, and after unpickling it has to be set again.
        """
        return self._held.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._held, self._shards = sharded.checked(group), None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves `grad_scale` and `found_inf` here, and gradients as they are: as in torch.optim,
        where it is asked for. GradScaler alone knows nothing of other ranks' infinities."""
        asked = any(group.get("fused") or group.get("capturable") for group in self.param_groups)
        return asked and self._held.group is None

    @property
    def skipped(self) -> int:
        """How many steps were left out: because of `skip_nonfinite`, or because GradScaler had found an infinity.

        To know it of weights on a GPU is to wait for it.
        """
        self._settle()
        return self._skipped + (self._control.skipped if self._control else 0)

    @property
    def gradient_norm(self) -> float | None:
        """The norm of all gradients at the last step, before clipping; None unless `max_norm` or `skip_nonfinite` asks.

        In the units of the loss: GradScaler's scale is taken out. To know it of weights on a GPU is to wait for it.
        """
        if self.max_norm is None and not self.skip_nonfinite:
            return None
        self._settle()
        return self._control.norm if self._control else self._norm

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Put the averaged weights in the place of the weights, until the `with` block is left, however it is left.

        For this `ema_decay` must be given. The average of a weight is renewed at each of its steps, in the same pass
        over memory: average ← average + (1 − ema_decay) · (weight − average), the first one being the weight itself, as
        torch.optim.swa_utils.AveragedModel has it. Buffers, such as BatchNorm's statistics, stay the model's own.

        Raises `ValueError` without `ema_decay`, `RuntimeError` inside another such block.
        """
        if all(group["ema_decay"] is None for group in self.param_groups):
            raise ValueError(
                f"There is no average of the weights. Try {type(self).__name__}(..., ema_decay=0.999)."
            )
        if self._swapped:
            raise RuntimeError(
                "The averaged weights are in place already: a block `averaged()` is inside another."
            )
        every = chain.from_iterable(group["params"] for group in self.param_groups)
        pairs = [(w, self.state[w][AVERAGE]) for w in every if w in self.state and AVERAGE in self.state[w]]
        own = [weight.detach().clone() for weight, _ in pairs]
        self._swapped = True
        try:
            with torch.no_grad():
                for weight, average in pairs:
                    weight.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (weight, _), mine in zip(pairs, own, strict=True):
                    weight.copy_(mine)
            self._swapped = False

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
        self._settle()
        for group in self.param_groups:  # which may have been changed by hand
            check_options({**OPTIONS, **group})
        group_of = [k for k, group in enumerate(self.param_groups) for _ in group["params"]]
        present = [k for k, gradient in enumerate(gradients) if gradient is not None]
        whole = {k for k in present if gradients[k].layout != torch.sparse_coo}
        for k in present:
            slots = [self.row.names[slot] for slot in rules[group_of[k]].slots]
            kept.check(k, weights[k], gradients[k], self.state.get(weights[k], {}), [*slots, AVERAGE])
        found = self._adopt(weights, present, whole)
        items = [
            Item(
                weights[k],
                arrays,
                names,
                formula(rules[group_of[k]], self.param_groups[group_of[k]]["ema_decay"] is not None),
                group_of[k],
                k,
            )
            for k, (names, arrays) in zip(present, found, strict=True)
        ]
        plan = Plan(items, gradients)
        plan.state = self.state
        self._seen = self._looked(weights, rules)
        return plan

    # State

    def _adopt(
        self, weights: list[Tensor], present: Iterable[int], whole: Container[int]
    ) -> list[tuple[tuple[str, ...], list[Tensor]]]:
        """Give the weights that are `present` what their rule remembers, where they have none.

        Return how each is kept, weight and slots, and the arrays of its slots and of what is beside them. State in
        blocks needs the `whole` of a gradient: where rows come alone, it is kept in float32.
        """
        if not isinstance(self.state, State):
            self.state = State(self.state)
        if list(map(id, weights)) != list(map(id, self._members)):
            self._renew_ledger(weights)
        group_of = [group for group in self.param_groups for _ in group["params"]]
        found: list[tuple[tuple[str, ...], list[Tensor]]] = []
        for k in present:
            weight, group = weights[k], group_of[k]
            rule = self._rule_of(group)
            first, names = self._start(group, rule).initial(), self.row.names
            stored = weight_storage(kept.name_of(weight), group["rounding"], group["compensated"])
            slots = [names[slot] for slot in rule.slots]
            extra = [AVERAGE] if group["ema_decay"] is not None else []
            if slots or extra or self.row.counts_steps or kept.beside(stored) or weight in self.state:
                entry = self.state[weight]
                remembers = [*slots, *extra]
                new = bool(remembers) and all(entry.get(name) is None for name in remembers)
                for slot, name in zip(rule.slots, slots, strict=True):
                    if entry.get(name) is None:
                        dtype = kept.slot_dtype_of(weight, group["state_dtype"], k in whole)
                        entry.update(kept.new(name, weight, dtype, first.get(slot, 0.0)))
                    elif entry[name].dtype == torch.int8 and k not in whole:
                        kept.convert(entry, name, "float32")
                if not extra:  # of no meaning once the weight has moved without it
                    entry.pop(AVERAGE, None)
                elif entry.get(AVERAGE) is None:
                    entry.update(kept.new(AVERAGE, weight, kept.slot_dtype_of(weight, None), 0.0))
                    entry[AVERAGE].copy_(weight.detach())
                new = new or id(weight) in self._unmoved
                self._remember(k, entry, first, new, max(group["step"], bool(remembers)))
            else:
                entry = {}
                self._ledger[k, 0] = max(self._ledger[k, 0], group["step"])
            found.append(kept.arrays(weight, stored, entry, [*slots, *extra]))
        return found

    def _start(self, group: dict[str, Any], rule: Rule) -> Rule:
        """The rule that state starts from: an lr of 0 that was written for a dry step is none that state remembers."""
        lr = plain_number(self._in_force.get(id(group), (0, {}))[1].get("lr", 0.0))
        return rule.changed(lr=lr) if lr and not _lr(rule) else rule

    def _remember(
        self, k: int, entry: dict[str, Any], first: dict[str, float], new: bool, steps: int
    ) -> None:
        """Bring the ledger's row of weight `k` and its state in agreement: what stands in the state is right."""
        row, views = self._ledger[k], self._views[k]
        if [view.data_ptr() - row.ctypes.data for view in views] != [8 * c for c in range(len(row))]:
            self._views[k] = torch.from_numpy(row).unbind()  # someone has given a view other memory
        if not self.row.counts_steps:
            self._ledger[k, 0] = 0 if new else max(self._ledger[k, 0], steps)
        else:
            self._view(k, 0, entry, "step", 0.0)
        for column, scalar in enumerate(self.row.rule.scalars, 1):
            self._view(k, column, entry, self.row.names[scalar], first.get(scalar, 0.0))

    def _view(self, k: int, column: int, entry: dict[str, Any], name: str, first: float) -> None:
        """Take a count or scalar from the state, and leave a view of the ledger there; what is shared stays itself."""
        value, view = entry.get(name), self._views[k][column]
        if value is view:
            return
        self._ledger[k, column] = first if value is None else float(value)
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.is_shared():
            self._shared[k, column] = value
        else:
            self._shared.pop((k, column), None)
            entry[name] = view

    def _renew_ledger(self, weights: list[Tensor]) -> None:
        """A ledger with a row for each weight. The state's counts and scalars are views of it: one `+ 1` moves all."""
        old = {id(weight): row for weight, row in zip(self._members, self._ledger, strict=True)}
        self._ledger = np.zeros((len(weights), self._ledger.shape[1]))
        self._views = [row.unbind() for row in torch.from_numpy(self._ledger).unbind()]
        self._members, self._shared = list(weights), {}
        self._drop_unstepped()
        for k, weight in enumerate(weights):
            if id(weight) in old:
                self._ledger[k] = old[id(weight)]
            if weight in self.state and self.row.counts_steps and "step" in self.state[weight]:
                self._remember(k, self.state[weight], {}, False, 0)

    def _strays(self) -> list[Tensor]:
        """The tensors that have state but are in no group: weights that were replaced since."""
        weights = {id(weight) for group in self.param_groups for weight in group["params"]}
        tensors = [key for key in cast(dict[Any, Any], self.state) if isinstance(key, Tensor)]
        return [one for one in tensors if id(one) not in weights]

    def _drop_unstepped(self) -> None:
        """Drop the state that construction made of weights that were replaced before a step, as FSDP does."""
        for one in self._strays() if self.row.state_at_construction else ():
            if not float(self.state[one].get("step", 0)):
                del self.state[one]

    # Checkpoints, in torch.optim's layout

    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's layout: its optimizers read it. Schedules are configuration, and not in it."""
        self._settle()
        self._drop_unstepped()
        for one in self._strays():
            raise ValueError(
                f"optimizer.state has the state of a tensor of shape {tuple(one.shape)} that is in no parameter group. "
                "Was a weight replaced after a step? Move its state to the new weight, or take it out."
            )
        packed = super().state_dict()
        state = {
            key: {
                kept.saved_name(name, value): checkpoints.exported(name, value, self.row)
                for name, value in entry.items()
            }
            if isinstance(entry, dict)
            else entry
            for key, entry in packed["state"].items()
        }
        own = {"schedules", *OPTIONS}  # configuration: the constructor's
        blocks = any(
            getattr(value, "dtype", None) == torch.int8 for e in state.values() for value in e.values()
        )
        block_size = {"block_size": BLOCK} if blocks else {}
        groups = [
            {k: v for k, v in group.items() if k not in own} | block_size for group in packed["param_groups"]
        ]
        more: dict[str, Any] = {checkpoints.RECORD: checkpoints.record(state, packed["param_groups"])}
        if self.skipped:
            more["skipped"] = self.skipped
        return {**packed, "state": state, "param_groups": groups, **more}

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Take the state of a checkpoint, torch.optim's or ours, as it is: nothing is cast, unless to a `state_dtype`
        that was asked for at construction.

        A schedule is configuration: the one given at construction goes on from the checkpoint's step. So are the
        options of how numbers are kept, clipped, skipped and averaged.

        Raises `ValueError` naming the key if the checkpoint does not fit, or is damaged, before anything is changed.
        With `strict=False` a weight whose state is missing, in part too, or has a NaN starts afresh, with a warning.
        """
        checkpoints.check_form(state_dict)
        loaded = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, loaded)
            loaded = loaded if result is None else result
        sizes = [len(group["params"]) for group in self.param_groups]
        saved = checkpoints.parsed(loaded, sizes, self.row, self._check)
        groups: list[dict[str, Any]] = []
        try:
            rules = self._fit(saved, groups)
            state, lost = self._checked_state(saved, groups, rules, strict)
        finally:  # what is remembered by a group's id must not outlive it
            for group in groups:
                self._rules.pop(id(group), None)
                self._in_force.pop(id(group), None)
        checkpoint.warn_of(lost)
        self.__setstate__({"state": State(state), "param_groups": groups, "_skipped": saved.skipped})
        if saved.schedule is not None:  # for a Scheduler that is built later
            vars(self)[checkpoints.SCHEDULE] = saved.schedule
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _fit(self, saved: checkpoints.Saved, groups: list[dict[str, Any]]) -> list[Rule]:
        """Append to `groups` this optimizer's own with the checkpoint's hyperparameters; return the rule of each."""
        rules: list[Rule] = []
        first = 0
        for k, (mine, theirs) in enumerate(zip(self.param_groups, saved.groups, strict=True)):
            members = range(first, first := first + len(mine["params"]))
            own = [name for name, _ in self._names]
            group = checkpoints.fitted_group(
                mine, theirs, self._needed(), own, self.row, saved.steps(members)
            )
            groups.append(group)
            self._rules.pop(id(group), None)
            self._in_force.pop(id(group), None)
            try:
                rules.append(self._rule_of(group))
            except ValueError as problem:
                raise ValueError(f"The checkpoint's param_groups[{k}]: {problem}") from None
        return rules

    def _checked_state(
        self, saved: checkpoints.Saved, groups: list[dict[str, Any]], rules: list[Rule], strict: bool
    ) -> tuple[dict[Any, Any], list[str]]:
        """A copy of the checkpoint's state by weight, and words on what of it is missing."""
        lost: list[str] = []
        state: dict[Any, Any] = dict(saved.others)
        belonging = [(w, g, r) for g, r in zip(groups, rules, strict=True) for w in g["params"]]
        for key, entry, (weight, group, rule) in zip(saved.keys, saved.entries, belonging, strict=True):
            if not entry:
                continue
            about = checkpoints.weight_of(key, weight)
            missing = checkpoint.settle(self._check.problems(about, entry, rule, saved.block), strict)
            lost += missing
            if missing:
                continue
            state[weight] = checkpoints.copied(entry, weight, self._check.parts, saved.block)
            if group["state_dtype"] is not None:
                asked = kept.slot_dtype_of(weight, group["state_dtype"])
                if asked == "int8" and saved.in_blocks:
                    continue  # what is not in blocks, as others are, had a reason: it has gradients of rows
                for name in self._slot_names & state[weight].keys():
                    kept.convert(state[weight], name, asked)
        return state, lost + checkpoint.settle(saved.problems, strict)

    def _needed(self) -> list[str]:
        """The hyperparameters that every checkpoint of this optimizer has: torch's numbers, not its switches."""
        theirs = set(self.row.arguments.split())
        return [
            name for name, _ in self._names if name in theirs and self._parameters[name].default is not False
        ]

    @functools.cached_property
    def _slot_names(self) -> set[str]:
        """The names of what a checkpoint stores of each weight."""
        return set(self.row.names.values()) - {self.row.names[scalar] for scalar in self.row.rule.scalars}

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is optimizer(self.row.rule) and self.row.name not in TABLE:
            return _again, (self.row.rule,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        # What is sent to another process is moved to shared memory, where views of the ledger would lose it.
        names = ["step", *(self.row.names[scalar] for scalar in self.row.rule.scalars)]
        for weight, views in zip(self._members, self._views, strict=True):
            entry: dict[str, Any] = self.state.get(weight, {})
            for name, view in zip(names, views, strict=True):
                if entry.get(name) is view:
                    entry[name] = view.clone()
        return {**super().__getstate__(), "_skipped": self.skipped, "_held": self._held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("_live", _Live())
        self.__dict__.setdefault("_held", sharded.Held())
        skipped = state.get("_skipped", 0)
        super().__setstate__({name: value for name, value in state.items() if name != "_skipped"})
        self._forget()
        self._skipped = skipped
        self._in_force = {id(group): _standing(group) for group in self.param_groups}


def _standing(group: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What is in force in a group as it stands: what a schedule has shown, and an lr that state may start from."""
    names = {"lr", *group.get("schedules", ())} & group.keys()
    return group.get("step", 0), {name: group[name] for name in names}


def _is_driven(optimizer: Optimizer) -> bool:
    """Whether one of torch's schedulers drives it: they wrap `step`, each in its own."""
    return getattr(vars(optimizer).get("step"), "_wrapped_by_lr_sched", False)


def _two_hands(name: str, group: dict[str, Any]) -> str:
    return (
        f"{name}={group['schedules'][name]!r} is the schedule of a parameter group, and {name} is written from outside "
        f"too, by hand or by a scheduler (it stands at {plain_number(group[name])!r}). Whoever writes last wins, for "
        f"one step: the schedule writes after each step. To hand {name} over, give the optimizer a number instead of a "
        "schedule; schuss.torch.Scheduler drives an lr from outside."
    )


def _check_given(name: str, params: Any) -> None:
    """Refuse what is often given for the weights and is none; torch refuses the rest."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a model, a {type(params).__name__}. Try {name}(model.parameters()).")
    if not isinstance(params, Iterable):
        raise TypeError(
            f"params={params!r} is not weights or groups of them. Try {name}(model.parameters())."
        )


def _loss_scale(given: Any) -> float:
    """What the loss was multiplied by, as GradScaler or the user left it."""
    advice = "The gradients are divided by it. GradScaler sets it; None says that the loss was not scaled."
    return real("grad_scale", given, "a finite number > 0", lambda scale: 0 < scale < math.inf, advice)


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


@functools.cache
def optimizer(rule: type[Rule]) -> type[Optimizer]:
    """The PyTorch optimizer of a rule: a class that takes weights, the rule's fields, and options by keyword.

    Raises `schuss.errors.RuleError`, with file, line and remedy, if the rule cannot be compiled as it is written.

    >>> from schuss.rules import Lion
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer(Lion)([weight], lr=0.1).param_groups[0]["betas"]
    (0.9, 0.99)
    """
    check(rule)
    row = row_of(rule)
    here = "schuss.torch" if row.name in TABLE and TABLE[row.name] is row else rule.__module__
    return type(row.name, (Optimizer,), {"row": row, "__module__": here})


def _again(rule: type[Rule]) -> Optimizer:
    """An optimizer that is being unpickled, of a class that stands in no module."""
    cls = optimizer(rule)
    return cls.__new__(cls)
