"""The NumPy API: an optimizer for dicts of arrays, changed in place, with one launch where plain code has a loop."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile

import numpy as np

from schuss.core import checkpoint
from schuss.core.arguments import Kind, OfRule
from schuss.core.averages import Averages
from schuss.core.hyperparameters import Group, Hyperparameters
from schuss.core.norm import limited
from schuss.core.options import KNOWN, check_options, formula_of, step_options
from schuss.core.schedules import at, is_schedule, plain_number
from schuss.core.storage import dtype_name
from schuss.machine import cores
from schuss.numpy import checkpoints
from schuss.numpy.plan import Plan
from schuss.numpy.state import State
from schuss.numpy.tree import pair
from schuss.rules import Row, Rule

Array = np.ndarray[Any, Any]


# What torch's optimizers have and these need not, and what to call in their place.
_TORCH = ("step", "zero_grad", "param_groups", "state", "defaults", "add_param_group")
_UPDATE = "The arrays are given to each step, with their gradients: optimizer.update(params, grads)."


class Optimizer(OfRule):
    """What all optimizers here have in common. A subclass is its row of the table of rules, and nothing else.

    Hyperparameters are attributes, by torch.optim's names: read them, and assign to them between updates. Each may be
    a schedule, a function of the number of finished updates; reading it gives the value that the next update will use.
    `maximize` maximizes. None of this compiles anything.

    State and finished steps of each array are stored under its keys in `params`, so an array whose first gradient
    comes late starts as if it were the first update.

    Every optimizer has these options too, by keyword and as attributes:

    | option           | domain                  | meaning                                                             |
    |------------------|-------------------------|---------------------------------------------------------------------|
    | `ema_decay`      | None, [0, 1]; schedule  | a running average of each array: see `averaged`                     |
    | `cautious`       | True, False             | leave out of each change what goes against −gradient, scale up the  |
    |                  |                         | rest: Δ · mask / max(mean(mask), 0.001), mask = [Δ · gradient < 0]  |
    | `max_update`     | None, > 0               | a change of an array has a root mean square of at most this · lr    |
    | `max_norm`       | None, > 0               | gradients are multiplied by min(1, max_norm / (norm + 1e-6))        |
    | `skip_nonfinite` | True, False             | leave out updates with an infinity or NaN in a gradient: `skipped`  |
    | `rounding`       | "nearest", "stochastic" | how float16 arrays are rounded; stochastic rounding is unbiased     |
    | `compensated`    | True, False             | a Kahan compensation term for float16 arrays: 2 bytes more a number |
    | `state_dtype`    | None, a dtype           | of state that is new or loaded; None: the array's, at least float32 |
    | `seed`           | a whole number          | of the random bits of stochastic rounding                           |

    `state_dtype` is "float64", "float32", "bfloat16" (rounded stochastically; NumPy has no such dtype: state is its
    bits, in uint16) or "int8" (block-wise quantized, a float32 scale for each 128). Arrays of fewer than 4096
    numbers and those with gradients `(indices, values)` then have state in float32. Schedule-Free's z, which holds
    weights, has 32 bits at least. Complex arrays always have complex state. The average is of the array's dtype, at
    least float32.

    `cautious` and `max_update` are of the change without decoupled decay: see `schuss.torch` for what that means for
    which rule. None of these options changes a gradient.

    >>> from schuss.numpy import Adam
    >>> params = {"W": np.ones((2, 3)), "b": np.zeros(3)}
    >>> optimizer = Adam(lr=lambda n: 0.1 / (1 + n))
    >>> optimizer.update(params, {"W": np.full((2, 3), 4.0), "b": np.array([-1.0, 0.0, 1.0])})
    >>> params["b"].round(3) + 0.0
    array([ 0.1,  0. , -0.1])
    >>> optimizer.lr
    0.05

    With averaged weights and clipped gradients:

    >>> optimizer = Adam(lr=0.1, ema_decay=0.99, max_norm=1.0)
    >>> for _ in range(2):
    ...     optimizer.update(params, {"W": np.full((2, 3), 4.0), "b": np.array([-1.0, 0.0, 1.0])})
    >>> round(optimizer.gradient_norm, 3)
    9.899
    >>> with optimizer.averaged(params):
    ...     print(params["b"].round(3) + 0.0)
    [ 0.201  0.    -0.201]
    """

    package = "schuss.numpy"

    # Hyperparameters and options with their finished steps and schedules; what is remembered; how a step is taken.
    _group: Group
    _hyperparameters: Hyperparameters
    _state: State
    _skipped: int
    _norm: float | None
    _averages: Averages
    _plan: Plan | None

    @staticmethod
    def kind_of(row: Row) -> Kind:
        """What a row of the table is here."""
        return Kind(row, checkpoints.check_of(row), {}, {})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take hyperparameters: numbers or schedules. `ValueError` says which is outside its domain, and why."""
        if _holds_arrays(args):
            raise TypeError(f"{type(self).__name__}: lr is a {type(args[0]).__name__}, not a rate. {_UPDATE}")
        given = self.kind.bound(type(self).__name__, args, kwargs)
        counts = np.zeros((0, 1 + len(self.row.rule.scalars)))
        first = {
            "_group": {"step": 0, "schedules": {}},
            "_state": State(counts),
            "_skipped": 0,
            "_norm": None,
        }
        self.__setstate__(first)
        self._choose(given)

    # Hyperparameters

    def _choose(self, changes: dict[str, Any]) -> None:
        """Take these hyperparameters and options, all of them at first, or say which is outside its domain."""
        old, hyperparameters = self._group, self._hyperparameters
        kept = {name: one for name, one in old["schedules"].items() if name not in changes}
        group: Group = {
            **old,
            **{key: _plain(key, value) for key, value in changes.items()},
            "schedules": kept,
        }
        if not KNOWN.keys().isdisjoint(changes):
            check_options(group)
        try:
            formula_of(hyperparameters.rule(group, like=old), group)
            step_options(group, group["step"], 1.0, group["seed"])
        except BaseException:
            hyperparameters.drop(group)
            raise
        hyperparameters.drop(old)
        self._group = group
        if not changes.keys().isdisjoint(("rounding", "compensated")):
            self._plan = None

    if not TYPE_CHECKING:  # the stubs of each class say which attributes it has

        def __getattr__(self, key: str) -> Any:
            if key.startswith("_") or key not in self.arguments():
                raise self._has_no(key, _UPDATE if key in _TORCH else "")
            group = self._group
            return at(group["schedules"].get(key, group[key]), group["step"])

        def __setattr__(self, key: str, value: Any) -> None:
            if key.startswith("_"):
                super().__setattr__(key, value)
            elif key in self.arguments():
                self._choose({key: value})
            else:
                raise self._has_no(key)

    def _has_no(self, key: str, advice: str = "") -> AttributeError:
        advice = advice or f"It has {', '.join(self.arguments())}."
        return AttributeError(f"{type(self).__name__} has no {key!r}. {advice}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.arguments()})

    def __repr__(self) -> str:
        chosen = self._group | self._group["schedules"]
        return f"{type(self).__name__}({', '.join(f'{key}={chosen[key]!r}' for key in self.arguments())})"

    def __getstate__(self) -> dict[str, Any]:
        state = {key: self.__dict__[key] for key in ("_state", "_skipped", "_norm")}
        return {**state, "_group": dict(self._group)}  # a shallow copy counts its own updates

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hyperparameters = Hyperparameters(self.kind)
        self._averages, self._plan = Averages("averaged(params)"), None

    @property
    def finished(self) -> int:
        """The number of finished updates, which is what a schedule is asked with."""
        return self._group["step"]

    @property
    def skipped(self) -> int:
        """The number of updates that were left out because of `skip_nonfinite`."""
        return self._skipped

    @property
    def gradient_norm(self) -> float | None:
        """The norm of all gradients together at the last update, before clipping.

        None unless `max_norm` or `skip_nonfinite` asks for it.
        """
        return self._norm if self._measures else None

    @property
    def _measures(self) -> bool:
        return self._group["max_norm"] is not None or self._group["skip_nonfinite"]

    # One update

    def update(self, params: Any, grads: Any) -> None:
        """Move every array of `params` by one step along its gradient, in place.

        Args:
            params: a dict of arrays, of float64, 32 or 16 or complex; dicts and lists in it may go to any depth.
                An array may lie in memory in any way.
            grads: the same keys. A gradient has its array's shape and any of these dtypes; it is never written to.
                None says that the array, or all below it, has no gradient this time and stays as it is.
                `(indices, values)` says that only these rows of the array have one: indices of shape (n,), values of
                shape (n, *shape of a row). A row given twice has the sum. Other rows, and what is remembered of
                them, stay as they are.

        Raises:
            KeyError: keys that only one of the two has.
            ValueError: a shape, dtype or memory that does not fit; a row that there is not.
            TypeError: something that is no array.
            RuntimeError: L2 weight decay with `(indices, values)`: it would need every row; or inside `averaged`.

            Each says where, and nothing is changed then.
        """
        if self._averages.in_place:
            raise self._averages.refused()
        group, workers = self._group, cores()
        finished = group["step"]
        rule, scale = self._hyperparameters.rule(group), 1.0
        one = formula_of(rule, group)
        leaves = paths, weights, gradients = pair(params, grads)
        plan, state = self._plan, self._state
        if plan is None or not plan.fits(one, paths, weights, gradients):
            plan, state = state.planned(rule, one, group, leaves)
        work = plan.prepare(gradients, rule, self.kind.sparse)
        options = step_options(group, finished, scale, group["seed"])
        # Nothing was refused: from here on things change.
        if group["max_norm"] is not None or group["skip_nonfinite"]:
            self._norm = norm = plan.norm(work, gradients, workers)
            scale = limited(norm, group["max_norm"], group["skip_nonfinite"])
            if scale is None:
                self._skipped += 1
                return
            options = replace(options, scale=options.scale * scale)
        if plan is not self._plan:
            self._plan, self._state = plan, state
        counting = partial(group.__setitem__, "step", finished + 1)
        plan.step(work, state.counts, options, workers, counting)

    def averaged(self, params: Any) -> AbstractContextManager[None]:
        """Put the averaged weights into the arrays of `params`, until the `with` block is left, however it is left.

        Schedule-Free optimizers have an average of their own, which is what they evaluate: see `evaluates_average`. For
        the others `ema_decay` must be given. The average of an array is then renewed at each of its steps, in the same
        pass over memory: average ← average + (1 − ema_decay) · (array − average), the first one being the array itself.
        Of an array whose gradient is `(indices, values)`, only the average of these rows is renewed. An array that has
        had no step stays as it is. The arrays are those that `update` is given, or some of them under the same keys.

        Raises `ValueError` where there is no average, `KeyMismatchError` for an array that `update` has not seen,
        `RuntimeError` inside another such block.
        """
        averaged = self._group["ema_decay"] is not None or self.evaluates_average
        rule = self._hyperparameters.rule(self._group)
        pairs = partial(self._state.averages, params, rule) if averaged else None
        return self._averages.swapped(type(self).__name__, pairs, np.array, np.copyto)

    @property
    def evaluates_average(self) -> bool:
        """Whether to evaluate inside `averaged`: the rule trains other weights than it evaluates (Schedule-Free)."""
        return self.row.rule.has_evaluated()

    # Checkpoints

    def state_dict(self) -> dict[str, Array]:
        """A copy of all that is remembered, as a flat dict of arrays, so that `np.savez(file, **state)` keeps it.

        | key                | dtype          |                                                                      |
        |--------------------|----------------|----------------------------------------------------------------------|
        | `optimizer`        | text           | the name                                                             |
        | `finished`         | int64          | updates                                                              |
        | `entries`          | int64          | how many entries its arrays have, those below                        |
        | `layers/0/W/step`  | int64          | steps of `params["layers"][0]["W"]`; a `/` in a key is `%2F`         |
        | `layers/0/W/m`     | as stored      | its state, by the rule's names                                       |

        and, where an option asks for it:

        | key                    | dtype         |                                                                   |
        |------------------------|---------------|-------------------------------------------------------------------|
        | `layers/0/W/average`   | of W, or wide | the average of W; float32 for float16                             |
        | `layers/0/W/rest`      | float16       | the compensation term of W, times 2¹¹                             |
        | `layers/0/W/m_scale`   | float32       | a scale for each block of `layers/0/W/m`, counted row by row      |
        | `block_size`           | int64         | how many numbers are a block                                      |
        | `skipped`              | int64         | updates that were left out                                        |

        State in bfloat16 is there as its bits, in uint16. Hyperparameters and options are not in it: they are the
        constructor's.
        """
        return checkpoints.saved(
            self.row, self.finished, self._skipped, self._state, self._group["state_dtype"]
        )

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from a `state_dict()`, or from `np.load` of one; before the first update too.

        Nothing is cast, unless to a `state_dtype` that was asked for.

        Raises `ValueError` (`KeyMismatchError` for keys) naming the key if it does not fit: another optimizer's, other
        shapes, keys missing or unknown, numbers that no training leaves. Nothing is changed then. With `strict=False`
        an array whose state is missing, in part too, or has a NaN starts afresh, with a warning.
        """
        rule, group = self._hyperparameters.rule(self._group), self._group
        loaded, finished, skipped, lost = checkpoints.loaded(
            state, self.row, self.kind.check, rule, group["state_dtype"], self._state, strict
        )
        checkpoint.warn_of(lost)
        self._state, self._skipped, self._plan = loaded, skipped, None
        group["step"] = finished

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a `.npz` file of exactly this name: whole, or not at all."""
        place = File(path)
        if not place.parent.is_dir():
            raise FileNotFoundError(
                f"{place.parent} is not a folder. Make it before saving {place.name} in it."
            )
        temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file:
                np.savez(file, **cast(Any, self.state_dict()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        """Go on from a file that `save` wrote; errors and `strict` as of `load_state_dict`."""
        with File(path).open("rb") as file:
            try:
                loaded = np.load(file, allow_pickle=False)
            except (ValueError, EOFError, BadZipFile) as problem:
                # NumPy takes whatever it does not know for a pickle.
                raise ValueError(
                    f"{os.fspath(path)} is not an .npz file that save wrote: it is of another kind, or damaged."
                ) from problem
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError(f"{os.fspath(path)} is one array, not an .npz file that save wrote.")
            self.load_state_dict(loaded, strict=strict)


def _holds_arrays(args: tuple[Any, ...]) -> bool:
    """Whether the first argument is what torch's optimizers take there: the weights."""
    first = args[0] if args else None
    return isinstance(first, Mapping | list | Iterator) or (isinstance(first, np.ndarray) and first.size != 1)


def _plain(key: str, value: Any) -> Any:
    """What was given for a hyperparameter or option as Python's own numbers and words, or its schedule."""
    if key == "state_dtype":
        return value if value is None else dtype_name(value)
    value = tuple(cast(list[Any], value)) if isinstance(value, list) else value
    return value if is_schedule(value) else plain_number(value)


def optimizer(rule: type[Rule]) -> type[Optimizer]:
    """The optimizer of a rule for dicts of arrays: a class that takes the rule's fields, and options by keyword.

    Raises `schuss.errors.RuleError`, with file, line and remedy, if the rule cannot be compiled as it is written.

    >>> from schuss.rules import Lion
    >>> params = {"w": np.ones(2)}
    >>> optimizer(Lion)(lr=0.1).update(params, {"w": np.array([1.0, -1.0])})
    >>> params["w"]
    array([0.9, 1.1])
    """
    return Optimizer.of_rule(rule)
