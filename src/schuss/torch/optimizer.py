"""The PyTorch API: `torch.optim.Optimizer`, with one launch where torch has a loop.

The class answers to torch and its frameworks. Its parts have modules of their own: the rules of its groups (`kinds`,
`hyperparameters`), the counts of steps (`counts`), whether a step is taken (`gate`, `device_steps`), state and the
memory of a step (`planner`, `plan`), and checkpoints (`checkpoints`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, cast

import torch
import torch.optim.optimizer as base

from schuss.compile import device
from schuss.compile.formula import AVERAGE, formula
from schuss.core import checkpoint
from schuss.core.arguments import Kind, OfRule, for_sparse
from schuss.core.averages import Averages, Pair
from schuss.core.hyperparameters import Group
from schuss.core.matrices import check_matrix
from schuss.core.options import (
    OPTIONS,
    WHOLE,
    check_options,
    formula_of,
    kernel_options,
    step_options,
)
from schuss.core.storage import dtype_name
from schuss.rules import Rule
from schuss.torch import checkpoints, sharded
from schuss.torch.counts import Counts
from schuss.torch.device_steps import DeviceSteps
from schuss.torch.gate import Gate
from schuss.torch.hyperparameters import Hyperparameters, rate
from schuss.torch.kinds import Kinds, of_row
from schuss.torch.plan import Plan
from schuss.torch.planner import GROUPS, Planner
from schuss.torch.state import State, changes

Tensor = torch.Tensor

_gradient = attrgetter("grad")


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` with torch's hooks and profiler label, which cost as much as a small step, only where there are any."""
    with_hooks = torch.optim.Optimizer.profile_hook_step(step)
    # torch.compiler.disable would import all of the compiler, a second, for everyone who never compiles.
    untraced: Any = cast(Any, torch)._disable_dynamo(with_hooks)

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


def _torch(name: str) -> Callable[..., Any]:
    """A method of torch's own optimizer. Its wrapper, for compiled callers, would import the compiler: a second."""
    method = getattr(torch.optim.Optimizer, name)
    return method if torch.compiler.is_compiling() else inspect.unwrap(method)


def _whole(name: str, doc: str) -> Any:
    """An attribute for an option of the whole optimizer."""

    def read(self: Optimizer) -> Any:
        return self.defaults[name]

    def write(self: Optimizer, value: Any) -> None:
        check_options({**OPTIONS, name: value})
        self.defaults[name] = value

    return property(read, write, doc=doc)


class Optimizer(OfRule, torch.optim.Optimizer):
    """What all optimizers here have in common. A subclass is its row of the table of rules, and nothing else.

    A parameter group may name a rule of its own, `{"params": ..., "rule": "AdamW", "lr": 1e-3}`: a name in the table or
    the class of a rule. Its hyperparameters then start from that rule's defaults, its options from the optimizer's.
    Step, checkpoint, `max_norm` and `skipped` are one for all groups.
    """

    package = "schuss.torch"
    kind_of = staticmethod(of_row)
    grad_scale: Tensor | None
    found_inf: Tensor | None

    max_norm = _whole(
        "max_norm",
        """The largest norm that the gradients of all weights together may have; larger ones are scaled down to it.

        Of all weights of all ranks, where they are divided: DTensors (`fully_shard`, tensor parallel) know how, and
        `ZeroRedundancyOptimizer` is asked. FSDP1, pipeline stages and whatever else leaves plain weights on one rank
        each need `process_group=`, so that all clip and skip together.
        """,
    )
    skip_nonfinite = _whole(
        "skip_nonfinite", """Whether a step with an infinite or NaN gradient is left out."""
    )
    seed = _whole(
        "seed", """From which the random bits of stochastic rounding follow, with step and position."""
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "row" in cls.__dict__:
            cls.step = _hooked(cls.step)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults = self.kind.bound(type(self).__name__, args, kwargs)
        params = defaults.pop("params")
        _check_given(type(self).__name__, params)
        group = defaults.pop("process_group")
        held = sharded.checked(sharded.of_zero() if group is None else group)
        check_options(defaults)
        self.defaults = defaults
        self._assemble(held, ())
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._planner.begin_at_construction(self)

    def _assemble(self, held: sharded.Held, rules: Iterable[type[Rule]]) -> None:
        """Make the parts, which wrappers that copy this object's attributes share with it."""
        self._kinds = Kinds(self.kind, rules)
        self._hyperparameters = Hyperparameters(self._kinds)
        self._counts = Counts(self._kinds.scalars)
        self._planner = Planner(self._kinds, self._hyperparameters, self._counts)
        self._gate = Gate(self.defaults, held)
        self._device_steps = DeviceSteps(self._hyperparameters, self._gate)
        self._averages = Averages("averaged()")
        self._plan: Plan | None = None
        self._seen: Any = None

    # Groups and their hyperparameters

    def add_param_group(self, param_group: Group) -> None:
        """Add weights, with hyperparameters of their own where given: numbers, tensors or schedules; and a `rule`."""
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError(f"A parameter group has {', '.join(param_group) or 'nothing'} but no 'params'.")
        kind = self._kinds.add(param_group.get("rule"))
        own = kind is self.kind
        start = self.defaults if own else {**self.defaults, **kind.defaults(self.defaults)}
        group: Group = {**start, "step": 0, "schedules": {}, **param_group}
        group.pop("rule", None)
        if not own:
            group["rule"] = kind.row.name
        if group["params"] is None:
            raise TypeError("A parameter group's params=None is not a list of weights.")
        if isinstance(group["params"], Iterable) and not isinstance(group["params"], Tensor | set):
            group["params"] = list(cast(Iterable[Any], group["params"]))
            _check_weights(group["params"])
        if group.get("differentiable"):
            raise ValueError(
                "differentiable=True is not possible: a step here is a compiled kernel, which autograd cannot see "
                f"through. Use torch.optim.{kind.row.name} for that."
            )
        foreign = self.kind.parameters.keys() - kind.parameters.keys() - param_group.keys()
        self._check_own_options({k: v for k, v in group.items() if k not in foreign}, kind)
        if group["state_dtype"] is not None:
            group["state_dtype"] = dtype_name(group["state_dtype"])
        group["schedules"] = dict(cast(dict[str, Any], group["schedules"]))
        self._hyperparameters.drop(group)
        try:
            rule = self._hyperparameters.rule(group)
            self._check_matrices(group, rule)
            formula_of(rule, group)
            _torch("add_param_group")(self, group)
        except BaseException:
            self._hyperparameters.drop(group)
            raise
        self._hyperparameters.stand(group)
        for name in (*WHOLE, *foreign):
            self.param_groups[-1].pop(name, None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; with `set_to_none=False` set them to 0."""
        _torch("zero_grad")(self, set_to_none)

    def _check_own_options(self, group: Group, kind: Kind) -> None:
        """Refuse a group's options that are none of its own, or outside their domains."""
        if "process_group" in group:
            raise ValueError("process_group belongs to the whole optimizer. Give it to the constructor.")
        kind.check_spelling(group)
        for name in WHOLE:
            if group[name] != self.defaults[name]:
                raise ValueError(
                    f"{name}={group[name]!r} is of one parameter group, but {name} belongs to the whole optimizer. "
                    f"Give it to the constructor."
                )
        check_options(group)

    def _check_matrices(self, group: Group, rule: Rule) -> None:
        """Refuse weights that a rule of matrices could never move, before any of the group is added."""
        one, first = formula(rule), sum(len(others["params"]) for others in self.param_groups)
        given = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for k, param in enumerate(given if one.of_matrices else ()):
            name, weight = param if isinstance(param, tuple) else ("", param)
            if isinstance(weight, Tensor):
                where = f"Weight {first + k}{f' ({name})' if name else ''}"
                check_matrix(one, where, weight.shape, weight.is_complex(), GROUPS)

    # One step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients in `.grad`; with a closure, call it first and return its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups, hyperparameters = self.param_groups, self._hyperparameters
        weights = list(chain.from_iterable([group["params"] for group in groups]))
        gradients = list(map(_gradient, weights))
        rules = list(map(hyperparameters.rule, groups))
        plan = self._plan
        if plan is None or not (self._seen == self._key(weights, rules) and plan.fits(gradients)):
            plan = self._make_plan(weights, gradients, rules)
        if self._averages.own is not None:  # read as it is: a property would be a call at every step
            raise self._averages.refused()
        if (
            not any(map(rate, rules))
            and hyperparameters.dry(groups)
            and self._no_gradient(plan, weights, gradients)
        ):
            self._counts.dry()
            return loss
        scheduled = [group for group in groups if group["schedules"]]
        overruled = False
        if scheduled:
            driven = getattr(
                vars(self).get("step"), "_wrapped_by_lr_sched", False
            )  # by one of torch's schedulers
            overruled = hyperparameters.overruled(scheduled, driven)
        if overruled and self._device_steps.control is not None:
            self._device_steps.settle()
            rules = list(map(hyperparameters.rule, groups))
        scale = self._scale(plan, weights, gradients, overruled)
        if scale is not None:
            self._take(plan, gradients, rules, scale)
            if scheduled:
                hyperparameters.show(scheduled)
        return loss

    def _scale(
        self, plan: Plan, weights: list[Tensor], gradients: list[Any], overruled: bool
    ) -> float | None:
        """What the gradients are multiplied by. None if no step is to be taken here: it is left out, or a GPU takes it.

        `overruled`: whether someone has written over a schedule.
        """
        groups, gate, device_steps = self.param_groups, self._gate, self._device_steps
        found, given = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        capturable = any([group.get("capturable") for group in groups])  # noqa: C419 (a step has few groups)
        measures = self.defaults["max_norm"] is not None or self.defaults["skip_nonfinite"]
        asked = capturable or found is not None or given is not None or measures
        if not asked and device_steps.control is None:
            return 1.0
        divided = measures and gate.divided(weights, checked=True).several
        alone = asked and not overruled and not divided
        if device_steps.take(plan, self._counts.table, groups, alone, capturable, found, given):
            self._counts.unmoved.clear()
            return None
        scale = gate.scale(plan, weights, gradients, found, given)
        gate.skipped += scale is None
        return scale

    def _take(self, plan: Plan, gradients: list[Any], rules: list[Rule], scale: float) -> None:
        """Take a step by kernels that the host launches, and count it."""
        groups, counts, seed = self.param_groups, self._counts, self.defaults["seed"]
        options = [step_options(group, group["step"], scale, seed) for group in groups]
        sparse_rules: dict[int, Rule] = {}
        for item in plan.sparse:
            sparse_rules[item.group] = for_sparse(
                rules[item.group], self._kinds.of(groups[item.group]).sparse, item.formula
            )
        if counts.shared:
            counts.take_shared()
        counting = [partial(group.__setitem__, "step", group["step"] + 1) for group in groups]
        plan.step(gradients, counts.table, rules, sparse_rules, options, torch.get_num_threads(), counting)
        if counts.shared:
            counts.give_shared()
        if counts.unmoved:
            counts.unmoved.difference_update(map(id, plan.weights))

    def _make_plan(self, weights: list[Tensor], gradients: list[Any], rules: list[Rule]) -> Plan:
        self._plan = None  # what no longer fits is not to fit again, should the next plan be refused
        self._device_steps.settle()
        for group in self.param_groups:  # which may have been changed by hand
            check_options({**OPTIONS, **group})
        self._plan = self._planner.plan(self, weights, gradients, rules)
        self._seen = self._key(weights, rules)
        self._gate.shards = None
        return self._plan

    def _no_gradient(self, plan: Plan, weights: list[Tensor], gradients: list[Any]) -> bool:
        """Whether every gradient is 0 throughout, so that a step with every lr at 0 is none.

        So checkpoints (`torch.distributed.checkpoint`) have state made before it is loaded or saved. It is there then;
        nothing moves, decays, is averaged or counted.
        """
        if any(device.capturing(place) for place in {weight.device for weight in plan.weights}):
            return False
        return self._gate.norm_of(plan, weights, gradients)[0] == 0

    def _key(self, weights: list[Tensor], rules: list[Rule]) -> Any:
        """What a plan depends on, other than the memory itself."""
        modes = [
            (
                type(rule),
                rule.variant,
                kernel_options(group),
                group["ema_decay"] is None,
                group["max_update"] is None,
            )
            for rule, group in zip(rules, self.param_groups, strict=True)
        ]
        return changes(), id(self.state), list(map(id, weights)), modes

    @property
    def process_group(self) -> Any:
        """The process group on whose ranks the weights are divided, each plain weight on one of them; None if none is.

        The norm for `max_norm` and `skip_nonfinite` is then of the gradients of all its ranks, which have to step
        together. Deep copies share it; it is in no checkpoint, and after unpickling it has to be set again.
        """
        return self._gate.held.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._gate.held, self._gate.shards = sharded.checked(group), None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves `grad_scale` and `found_inf` here, and gradients as they are: as in torch.optim,
        where it is asked for. GradScaler alone knows nothing of other ranks' infinities."""
        asked = any(group.get("fused") or group.get("capturable") for group in self.param_groups)
        return asked and self._gate.held.group is None

    @property
    def skipped(self) -> int:
        """How many steps were left out: because of `skip_nonfinite`, or because GradScaler had found an infinity.

        To know it of weights on a GPU is to wait for it.
        """
        self._device_steps.settle()
        return self._gate.skipped + self._device_steps.skipped

    @property
    def gradient_norm(self) -> float | None:
        """The norm of all gradients at the last step, before clipping; None unless `max_norm` or `skip_nonfinite` asks.

        In the units of the loss: GradScaler's scale is taken out. To know it of weights on a GPU is to wait for it.
        """
        if self.max_norm is None and not self.skip_nonfinite:
            return None
        self._device_steps.settle()
        control = self._device_steps.control
        return control.norm if control else self._gate.norm

    def averaged(self) -> AbstractContextManager[None]:
        """Put the averaged weights in the place of the weights, until the `with` block is left, however it is left.

        Schedule-Free optimizers have an average of their own, which is what they evaluate: see `evaluates_average`. For
        the others `ema_decay` must be given. The average of a weight is then renewed at each of its steps, in the same
        pass over memory: average ← average + (1 − ema_decay) · (weight − average), the first one being the weight
        itself, as torch.optim.swa_utils.AveragedModel has it. Weights of a group that has neither, and those that had
        no step, stay as they are. So do buffers, such as BatchNorm's statistics. A copy of the optimizer that is made
        inside the block is outside of it: its weights are the trained ones.

        Raises `ValueError` where no group has an average, `RuntimeError` inside another such block.
        """
        averaged = any(group["ema_decay"] is not None for group in self.param_groups)
        pairs = self._average_pairs if averaged or self.evaluates_average else None
        return self._averages.swapped(type(self).__name__, pairs, _copy, _write)

    @property
    def evaluates_average(self) -> bool:
        """Whether to evaluate inside `averaged()`: a rule trains other weights than it evaluates (Schedule-Free)."""
        return any(self._kinds.of(group).row.rule.has_evaluated() for group in self.param_groups)

    def _average_pairs(self) -> list[Pair]:
        if self.evaluates_average:  # which goes by the count of steps
            self._device_steps.settle()
        return [
            (weight, average)
            for group in self.param_groups
            for weight in group["params"]
            if (average := self._average_of(weight, group)) is not None
        ]

    def _average_of(self, weight: Tensor, group: Group) -> Callable[[], Tensor] | None:
        """What works out a weight's average; None if it has none."""
        entry, row = self.state.get(weight, {}), self._kinds.of(group).row
        if not row.rule.has_evaluated():
            return partial(entry.__getitem__, AVERAGE) if AVERAGE in entry else None
        rule = self._hyperparameters.rule(group)
        names = [row.names[slot] for slot in rule.slots]
        begun = all(name in entry for name in names) and id(weight) not in self._counts.unmoved
        if not begun or not float(entry.get("step", 1)):  # state that a dry step has made means nothing yet
            return None
        return partial(rule.evaluated, weight.detach(), *(entry[name] for name in names))

    def _step_hooks(self) -> bool:
        return bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks  # pyright: ignore[reportPrivateUsage]
            or base._global_optimizer_post_hooks  # pyright: ignore[reportPrivateUsage]
        )

    # Checkpoints, in torch.optim's layout

    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's layout: its optimizers read it. Schedules are configuration, and not in it."""
        self._device_steps.settle()
        self._planner.drop_unstepped(self)
        for one in checkpoints.strays(self.param_groups, self.state):
            raise ValueError(
                f"optimizer.state has the state of a tensor of shape {tuple(one.shape)} that is in no parameter group. "
                "Was a weight replaced after a step? Move its state to the new weight, or take it out."
            )
        return checkpoints.packed(super().state_dict(), self._kinds, self.skipped)

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Take the state of a checkpoint, torch.optim's or ours, as it is: nothing is cast, unless to a `state_dtype`
        that was asked for at construction.

        A schedule is configuration: the one given at construction goes on from the checkpoint's step. So are the
        options of how numbers are stored, clipped, skipped and averaged, and the rules of groups.

        Raises `ValueError` naming the key if the checkpoint does not fit, or is damaged, before anything is changed.
        With `strict=False` a weight whose state is missing, in part too, or has a NaN starts afresh, with a warning.
        """
        checkpoints.check_form(state_dict)
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, given)
            given = given if result is None else result
        loaded = checkpoints.Loaded(given, self.param_groups, self._hyperparameters, strict)
        checkpoint.warn_of(loaded.lost)
        self._put(State(loaded.state), loaded.groups, loaded.saved.skipped)
        if loaded.saved.schedule is not None:  # for a Scheduler that is built later
            vars(self)[checkpoints.SCHEDULE] = loaded.saved.schedule
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _put(self, state: Any, groups: list[Group], skipped: int) -> None:
        """Go on with this state and these groups; whatever followed from the old ones is found anew."""
        super().__setstate__({"state": state, "param_groups": groups})
        self._hyperparameters.forget(groups)
        self._counts.forget(self._kinds.scalars)
        self._gate.forget()
        self._gate.skipped = skipped
        self._device_steps.forget()
        self._plan = self._seen = None

    def __getstate__(self) -> dict[str, Any]:
        self._device_steps.settle()
        self._counts.part(self.state)
        more = {"_skipped": self.skipped, "_held": self._gate.held, "_rules": self._kinds.rules()}
        more |= {"_averages": self._averages} if self._averages.in_place else {}
        return {**super().__getstate__(), **more}

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = dict(state)
        self.defaults = given.get("defaults") or self.defaults
        skipped, held, rules = given.pop("_skipped", 0), given.pop("_held", None), given.pop("_rules", ())
        averages = given.pop("_averages", None)
        if "_kinds" not in self.__dict__:
            self._assemble(held or sharded.Held(), rules)
        super().__setstate__(given)
        self._put(self.state, self.param_groups, skipped)
        if averages is not None:  # of an optimizer that was copied inside its block `averaged()`
            self._averages = averages
            averages.put_back(_write)


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().clone()


@torch.no_grad()
def _write(weight: Tensor, numbers: Tensor) -> None:
    weight.copy_(numbers)


def _check_given(name: str, params: Any) -> None:
    """Refuse what is often given for the weights and is none; torch refuses the rest."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(f"params is a model, a {type(params).__name__}. Try {name}(model.parameters()).")
    if not isinstance(params, Iterable):
        raise TypeError(
            f"params={params!r} is not weights or groups of them. Try {name}(model.parameters())."
        )


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


def optimizer(rule: type[Rule]) -> type[Optimizer]:
    """The PyTorch optimizer of a rule: a class that takes weights, the rule's fields, and options by keyword.

    Raises `schuss.errors.RuleError`, with file, line and remedy, if the rule cannot be compiled as it is written.

    >>> from schuss.rules import Lion
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer(Lion)([weight], lr=0.1).param_groups[0]["betas"]
    (0.9, 0.99)
    """
    return Optimizer.of_rule(rule)
