"""Schedules where a framework asks for a torch `LRScheduler`; and the one scheduler that needs a state,
`Plateau`.

With the optimizers of this library nothing of this is needed: `lr=schedule` does it. `Scheduler` drives any
torch optimizer, `torch.optim`'s own included, through the interface that trainers know.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, cast
from weakref import WeakKeyDictionary, WeakMethod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from schuss.core.checkpoint import is_count
from schuss.core.schedules import check_schedule
from schuss.errors import real, refusal
from schuss.torch.checkpoints import SCHEDULE

_hooks: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()


class _Driver(LRScheduler):
    """What both schedulers share: an optimizer whose `group["lr"]` they set, without torch's bookkeeping.

    `LRScheduler.__init__` wraps `optimizer.step` to warn about the order of calls and takes a step of its
    own; neither is wanted where the lr is a function of the step and a step may be skipped by loss scaling.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer. The optimizer comes first.")
        self.optimizer = optimizer
        self.last_epoch = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self._step_count = 1
        self._last_lr = [float(group["lr"]) for group in optimizer.param_groups]

    def _apply(self, rates: Sequence[float | Tensor]) -> None:
        """Put the rates in force; a tensor lr stays in its memory, since a captured graph may read it."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = list(rates)

    def _written(self) -> list[int]:
        """The groups whose lr someone else has written since."""
        pairs = enumerate(zip(self.optimizer.param_groups, self._last_lr, strict=False))
        return [
            k for k, (group, last) in pairs if not isinstance(group["lr"], Tensor) and group["lr"] != last
        ]


class Scheduler(_Driver):
    """Set `group["lr"]` to `schedule(n)`, where n counts the calls of `step()`.

    | here         | meaning                                                                              |
    | `optimizer`  | any `torch.optim.Optimizer`, also this library's                                     |
    | `schedule`   | one for all groups, or a list with one for each                                      |
    | `last_epoch` | as torch says it: finished steps − 1. Left out, it goes on from a loaded optimizer's |
    |              | checkpoint, or starts at 0; −1 starts at 0 in any case                               |

    The lr is a function of the step alone. A new schedule on resume, a longer one for example, counts from
    the first step after loading; what was saved of the old one is for reading only. Calling
    `optimizer.step()` is not required before `step()`, and never warned about. Loading the optimizer and the
    scheduler may come in any order. The optimizer's checkpoint has the step too, so that it alone will do, for an
    optimizer of `torch.optim` if the scheduler is built before it is loaded; otherwise `step()` warns, unless the
    scheduler was loaded too.

    Groups added later: with one schedule they follow it from the next step; with a list, append theirs to
    `schedules`.

    With a second scheduler, the one whose `step()` comes last before `optimizer.step()` wins; that there are two is
    said once, in a warning.

    >>> import torch
    >>> from schuss.schedules import Linear
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    >>> scheduler = Scheduler(optimizer, Linear(1e-3, steps=4))
    >>> for _ in range(3):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> optimizer.param_groups[0]["lr"]
    0.00025
    >>> scheduler.state_dict()
    {'last_epoch': 3, 'schedules': ['Linear(0.001, steps=4)']}
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int | None = None,
    ) -> None:
        """Set the lr of step 0, or of the step that the optimizer's checkpoint had reached."""
        scheduled = isinstance(optimizer, Optimizer) and _was_scheduled(optimizer)  # pyright: ignore
        super().__init__(optimizer)
        self._meddled: int | None = 0  # how often in a row someone else has written the lr; None: it is said
        self._incoming: int | None = None
        if not callable(schedule) and not isinstance(schedule, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"schedule={schedule!r} is not a schedule or a list of them. Try Constant({schedule!r})."
            )
        self._shared = callable(schedule)
        self.schedules: list[Callable[[int], float]] = [schedule] if callable(schedule) else list(schedule)
        for one in self.schedules:
            if not callable(one):
                raise TypeError(f"schedule={one!r} is not callable. Try Constant({one!r}).")
            check_schedule("schedule", one)
        marked = self._take_mark()
        self.last_epoch = (marked or 0) if last_epoch is None else last_epoch + 1
        self._lost = last_epoch is None and marked is None and scheduled
        self._apply(self.get_lr())
        self._hook()

    def get_lr(self) -> list[float | Tensor]:
        """Return the lr of each group at the present step; it may be called at any time."""
        groups = len(self.optimizer.param_groups)
        schedules = self.schedules * groups if self._shared else self.schedules
        if len(schedules) != groups:
            raise ValueError(
                f"{len(schedules)} schedules do not fit {groups} parameter groups. Give one for all or one "
                "for each; after add_param_group, append the new group's to scheduler.schedules."
            )
        return [float(schedule(self.last_epoch)) for schedule in schedules]

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step, or to a given one, and put its lr in force."""
        if self._meddled is not None:
            self._look_for_others()
        if self._lost and epoch is None:
            self._lost = False
            warnings.warn(
                "The optimizer was loaded from a checkpoint that a scheduler had a part in, but its step was not: this "
                f"Scheduler has begun at step {self.last_epoch}. Load the scheduler's state too, or build it with "
                "last_epoch=; -1 begins at 0 without this warning.",
                stacklevel=2,
            )
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._step_count += 1
        self._apply(self.get_lr())

    def _look_for_others(self) -> None:
        """Once may be a hand, or torch's own composition of schedulers; twice in a row is a second scheduler."""
        groups = self.optimizer.param_groups
        # An optimizer of this library that has a schedule of its own says so itself.
        found = [k for k in self._written() if "lr" not in groups[k].get("schedules", ())]
        self._meddled = (self._meddled or 0) + 1 if found else 0
        if self._meddled < 2:
            return
        self._meddled = None
        k = found[0]
        warnings.warn(
            f"lr={groups[k]['lr']!r} of parameter group {k} is not from this scheduler, which had written "
            f"{self._last_lr[k]!r}: a second scheduler writes it too. The one whose step() comes last before "
            "optimizer.step() wins. Leave one of them out.",
            stacklevel=3,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the step, and for reading only the expressions of the schedules."""
        return {"last_epoch": self.last_epoch, "schedules": [repr(one) for one in self.schedules]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved step; the schedule stays the one that this scheduler was built with."""
        self.last_epoch, self._lost = _saved(self, state_dict, "last_epoch", is_count), False
        self._step_count = self.last_epoch + 1
        self._apply(self.get_lr())

    def _hook(self) -> None:
        """Keep the step in the optimizer's checkpoint, and let no loaded lr outlive the schedule.

        The latest scheduler of an optimizer replaces the one before, and is not kept alive by it.
        """
        for old in _hooks.pop(self.optimizer, []):
            old.remove()
        saving, reading, loading = map(WeakMethod, (self._mark, self._read, self._loaded))
        _hooks[self.optimizer] = [
            self.optimizer.register_state_dict_post_hook(lambda _, state: _call(saving, state)),
            self.optimizer.register_load_state_dict_pre_hook(lambda _, state: _call(reading, state)),
            self.optimizer.register_load_state_dict_post_hook(lambda _: _call(loading)),
        ]

    def _mark(self, state_dict: dict[str, Any]) -> None:
        state_dict[SCHEDULE] = self.last_epoch

    def _read(self, state_dict: dict[str, Any]) -> None:
        self._incoming = state_dict.get(SCHEDULE)
        saved = state_dict.get("param_groups", ())
        # Neither this scheduler nor the checkpoint knows how far another one had come.
        self._lost |= self.last_epoch == 0 and any("initial_lr" in group for group in saved)

    def _take_mark(self) -> int | None:
        """The step in an optimizer that was loaded; None if there is none. Earlier versions kept it in the groups."""
        marks = [group.pop(SCHEDULE, None) for group in self.optimizer.param_groups]
        marks += [vars(self.optimizer).pop(SCHEDULE, None), self._incoming]
        self._incoming = None
        return next((mark for mark in marks if mark is not None), None)

    def _loaded(self) -> None:
        marked = self._take_mark()
        self._lost &= marked is None
        self.last_epoch = self.last_epoch if marked is None else marked
        self._apply(self.get_lr())


def _was_scheduled(optimizer: Optimizer) -> bool:
    """Whether the optimizer was loaded after a scheduler had set its rate, and none is at work on it here."""
    here = optimizer in _hooks or hasattr(optimizer.step, "_wrapped_by_lr_sched")
    return not here and any("initial_lr" in group for group in optimizer.param_groups)


class Plateau(_Driver, ReduceLROnPlateau):
    """Multiply the lr by `factor` when a metric has not improved for more than `patience` steps.

    It needs a state, the best value so far and how long ago, so it is no schedule. The lr is always
    max(initial lr · factor^reductions, min_lr), and the state is saved whole. An lr that is written from outside is
    left alone, and is what the next reduction multiplies. Frameworks take it for the `ReduceLROnPlateau` that it is.

    | here             | domain   | meaning                                                        |
    | `mode`           | min, max | whether a lower or a higher metric is better                   |
    | `factor`         | (0, 1)   | what a reduction multiplies by                                 |
    | `patience`       | ≥ 0      | how many steps in a row without improvement are allowed        |
    | `threshold`      | ≥ 0      | a smaller improvement is none                                  |
    | `threshold_mode` | rel, abs | the threshold as a fraction of the best, or as a difference    |
    | `cooldown`       | ≥ 0      | steps after a reduction in which nothing is counted            |
    | `min_lr`         | ≥ 0      | a floor                                                        |

    A metric of NaN or infinity is never an improvement. Settings are not loaded: a changed `patience` holds
    at once.

    Where implementations differ: the same as torch's `ReduceLROnPlateau`, but a relative threshold is a fraction
    of the best value's *size*, so that it asks for an improvement of negative metrics too (torch takes values
    that are worse); and there is no `eps`, below which torch leaves the lr as it is.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> plateau = Plateau(optimizer, factor=0.5, patience=1)
    >>> for loss in (1.0, 0.5, 0.5, 0.5):
    ...     plateau.step(loss)
    >>> plateau.get_last_lr()
    [0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        """Check the settings; the lr stays as it is until a metric stops improving."""
        if mode not in ("min", "max"):
            raise refusal("mode", mode, "one of min, max")
        if threshold_mode not in ("rel", "abs"):
            raise refusal("threshold_mode", threshold_mode, "one of rel, abs")
        real("factor", factor, "in (0, 1)", lambda x: 0 < x < 1, "It multiplies the lr, for example 0.1.")
        for name, value in dict(
            patience=patience, threshold=threshold, cooldown=cooldown, min_lr=min_lr
        ).items():
            real(name, value, "a finite number, 0 or more", lambda x: 0 <= x < math.inf)
        super().__init__(optimizer)
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.cooldown, self.min_lr = factor, patience, cooldown, min_lr
        self.base_lrs = list(self._last_lr)
        self.best: float | None = None
        self.bad_steps = self.cooling = self.reductions = 0

    def get_lr(self) -> list[float | Tensor]:
        """Return the lr of each group after the reductions so far."""
        # A floor never lifts an lr that began below it.
        return [max(base * self.factor**self.reductions, min(self.min_lr, base)) for base in self.base_lrs]

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in the metric of one more step (or epoch), and reduce the lr if it is time to."""
        try:
            value = float(metrics)
        except (TypeError, ValueError):
            raise TypeError(
                f"metrics={metrics!r} is not a number. Give the metric: plateau.step(loss)."
            ) from None
        self._take_in()
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._step_count += 1
        better, cooling = self._is_better(value), self.cooling > 0
        self.best = value if better else self.best
        self.bad_steps = 0 if better or cooling else self.bad_steps + 1
        self.cooling -= cooling
        if self.bad_steps > self.patience:
            self.reductions, self.cooling, self.bad_steps = self.reductions + 1, self.cooldown, 0
        self._apply(self.get_lr())

    def _take_in(self) -> None:
        """A group added later joins with the lr that it has, and one that was written to from outside goes on with it:
        as if that were reduced so far already."""
        groups = self.optimizer.param_groups
        self.base_lrs += [0.0] * (len(groups) - len(self.base_lrs))
        for k in {*self._written(), *range(len(self._last_lr), len(groups))}:
            self.base_lrs[k] = float(groups[k]["lr"]) / self.factor**self.reductions

    @property
    def num_bad_epochs(self) -> int:
        """How many steps in a row were without improvement, as torch's says it."""
        return self.bad_steps

    @property
    def cooldown_counter(self) -> int:
        """How many steps of the cooldown are left, as torch's says it."""
        return self.cooling

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        margin = self.threshold * (abs(self.best) if self.threshold_mode == "rel" else 1.0)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > margin

    _STATE = ("last_epoch", "base_lrs", "best", "bad_steps", "cooling", "reductions")

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, as plain numbers."""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was seen, and put the lr in force that follows under the present settings."""
        counts = ("last_epoch", "bad_steps", "cooling", "reductions")
        seen: dict[str, Any] = {name: _saved(self, state_dict, name, is_count) for name in counts}
        rates = _saved(self, state_dict, "base_lrs")
        if not isinstance(rates, Sequence) or len(rates) != len(self.base_lrs):
            allowed = f"a list of {len(self.base_lrs)} rates, one per group"
            raise refusal("The checkpoint's 'base_lrs'", rates, allowed)
        seen["base_lrs"] = [
            real("The checkpoint's 'base_lrs'", rate, "finite numbers ≥ 0", lambda x: 0 <= x < math.inf)
            for rate in rates
        ]
        best = _saved(self, state_dict, "best")
        if best is not None:
            best = real("The checkpoint's 'best'", best, "a finite number or None")
        vars(self).update(seen, best=best)
        self._step_count = self.last_epoch + 1
        self._apply(self.get_lr())


def _saved(scheduler: _Driver, state: Any, name: str, holds: Callable[[float], bool] | None = None) -> Any:
    """An entry of a scheduler's checkpoint; a count where `holds` says so."""
    made = f"Was it made by {type(scheduler).__name__}.state_dict()?"
    if not isinstance(state, Mapping):
        raise TypeError(f"The checkpoint is of type {type(state).__name__}, not a dict. {made}")
    if name not in state:
        raise ValueError(f"The checkpoint has no {name!r}. {made}")
    value: Any = cast(Mapping[str, Any], state)[name]
    if holds is None:
        return value
    return int(real(f"The checkpoint's {name!r}", value, "a count: a whole number ≥ 0", holds))


def _call(method: WeakMethod[Any], *args: Any) -> None:
    """Call a method unless what it belonged to is gone."""
    alive = method()
    if alive is not None:
        alive(*args)
