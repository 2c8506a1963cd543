"""The NumPy API: an optimizer for dicts of arrays, changed in place, with one launch where plain code has a loop."""

from __future__ import annotations

import functools
import inspect
import math
import os
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as File
from typing import Any, ClassVar, cast
from zipfile import BadZipFile

import numpy as np

from schuss.compile import checkpoint, norm
from schuss.compile.formula import AVERAGE, Formula, formula
from schuss.compile.front import (
    OPTIONS,
    at,
    check_options,
    check_schedule,
    dtype_name,
    is_schedule,
    own_names,
    plain_number,
    renewed,
    weight_storage,
)
from schuss.compile.grammar import check
from schuss.compile.kind import Kind, bound, show_arguments
from schuss.compile.launch import Terms
from schuss.compile.storage import BLOCK
from schuss.errors import refusal
from schuss.machine import cores
from schuss.numpy import checkpoints, kept
from schuss.numpy.layout import KERNEL_NAMES
from schuss.numpy.plan import Item, Plan, Work, check_apart, check_gradient, check_weight
from schuss.numpy.tree import KeyMismatchError, Path, flat_key, name, pair
from schuss.rules import TABLE, Row, Rule, row_of

Array = np.ndarray[Any, Any]


# What torch's optimizers have and these need not, and what to call in their place.
_TORCH = ("step", "zero_grad", "param_groups", "state", "defaults", "add_param_group")
_UPDATE = "The arrays are given to each step, with their gradients: optimizer.update(params, grads)."


@dataclass
class _Entry:
    """What is remembered of one array: the shape it had, its row of the ledger, and its state by slot."""

    shape: tuple[int, ...] | None
    member: int
    slots: dict[str, Array]


class Optimizer:
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
    | `max_norm`       | None, > 0               | gradients are multiplied by min(1, max_norm / (norm + 1e-6))        |
    | `skip_nonfinite` | True, False             | leave out updates with an infinity or NaN in a gradient: `skipped`  |
    | `rounding`       | "nearest", "stochastic" | how float16 arrays are rounded; stochastic rounding is unbiased     |
    | `compensated`    | True, False             | a Kahan compensation term for float16 arrays: 2 bytes more a number |
    | `state_dtype`    | None, a dtype           | of state that is new or loaded; None: the array's, at least float32 |
    | `seed`           | a whole number          | of the random bits of stochastic rounding                           |

    `state_dtype` is "float64", "float32", "bfloat16" (rounded stochastically; NumPy has no such dtype: state is its
    bits, in uint16) or "int8" (block-wise quantized, a float32 scale for each 128). Arrays of fewer than 4096
    numbers and those with gradients `(indices, values)` then have state in float32. Complex arrays always have complex
    state. The average is of the array's dtype, at least float32.

    None of them changes a gradient.

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

    row: ClassVar[Row]
    kind: ClassVar[Kind]

    # What is chosen, what it makes, and what is remembered
    _chosen: dict[str, Any]
    _scheduled: list[str]
    _rule: Rule
    _terms: Terms
    _finished: int
    _skipped: int
    _norm: float | None
    _swapped: bool
    _entries: dict[str, _Entry]
    _ledger: Array
    _unmatched: bool  # loaded, and not yet compared with the arrays
    _plan: Plan | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "row" in cls.__dict__:
            cls.kind = Kind(cls.row, checkpoints.check_of(cls.row), {})
        show_arguments(cls, cls.kind if "row" in cls.__dict__ else None, Optimizer.__init__, {})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take hyperparameters: numbers or schedules. `ValueError` says which is outside its domain, and why."""
        if _holds_arrays(args):
            raise TypeError(f"{type(self).__name__}: lr is a {type(args[0]).__name__}, not a rate. {_UPDATE}")
        given = bound(type(self), self.kind, args, kwargs)
        self._finished, self._skipped, self._norm, self._swapped = 0, 0, None, False
        self._chosen, self._scheduled = {}, []
        self._forget()
        self._choose(given)

    @classmethod
    def arguments(cls) -> Mapping[str, inspect.Parameter]:
        """What the constructor takes: default, kind and type of each by name."""
        return cls.kind.arguments.parameters

    # Hyperparameters

    def _choose(self, changes: dict[str, Any]) -> None:
        """Take these hyperparameters and options, all of them at first, or say which is outside its domain."""
        for key, value in changes.items():
            if key not in OPTIONS:
                check_schedule(key, value)
        chosen = self._chosen | {key: _plain(key, value) for key, value in changes.items()}
        if not OPTIONS.keys().isdisjoint(changes):
            check_options(chosen)
        now = {key: at(chosen[key], self._finished) for key in (*changes, *self._scheduled)}
        rule, terms = self._made(now, chosen)
        if any(chosen[key] != self._chosen.get(key) for key in ("rounding", "compensated")):
            self._plan = None
        if chosen["max_norm"] is None and not chosen["skip_nonfinite"]:
            self._norm = None
        self._chosen, self._rule, self._terms = chosen, rule, terms
        self._scheduled = [key for key, value in chosen.items() if is_schedule(value)]

    def _ask_schedules(self) -> None:
        """Bring the hyperparameters up to the finished updates; errors say which is outside its domain."""
        now = {key: at(self._chosen[key], self._finished) for key in self._scheduled if key != "ema_decay"}
        self._rule, self._terms = self._made(now, self._chosen)

    def _made(self, now: dict[str, Any], chosen: Mapping[str, Any]) -> tuple[Rule, Terms]:
        """The rule, and the terms of a step, with what is new or scheduled as it is `now`."""
        own = {key: value for key, value in now.items() if key not in OPTIONS and key != "maximize"}
        parts = own_names(self.row, own)
        rule = self._rule.changed(**parts) if self._chosen else self.row.rule(**parts)
        maximize = now.get("maximize", chosen["maximize"])
        if not isinstance(maximize, bool):
            raise refusal("maximize", maximize, "True or False")
        share = renewed(chosen["ema_decay"], self._finished)
        return rule, Terms(-1.0 if maximize else 1.0, share, chosen["seed"])

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self.arguments():
            raise AttributeError(
                f"{type(self).__name__} has no {key!r}. "
                + (_UPDATE if key in _TORCH else f"It has {', '.join(self.arguments())}.")
            )
        return at(self._chosen[key], self._finished)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.arguments():
            self._choose({key: value})
        elif key.startswith("_"):
            super().__setattr__(key, value)
        else:
            raise AttributeError(
                f"{type(self).__name__} has no {key!r}. It has {', '.join(self.arguments())}."
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is optimizer(self.row.rule) and TABLE.get(self.row.name) is not self.row:
            return _again, (self.row.rule,), self.__getstate__()
        return super().__reduce_ex__(protocol)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.arguments()})

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self._chosen.items())})"
        )

    @property
    def finished(self) -> int:
        """The number of finished updates, which is what a schedule is asked with."""
        return self._finished

    @property
    def skipped(self) -> int:
        """The number of updates that were left out because of `skip_nonfinite`."""
        return self._skipped

    @property
    def gradient_norm(self) -> float | None:
        """The norm of all gradients together at the last update, before clipping.

        None unless `max_norm` or `skip_nonfinite` asks for it.
        """
        return self._norm

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
        if self._swapped:
            raise RuntimeError(
                "An update inside `with optimizer.averaged(params)` would be taken from the averaged weights and then "
                "be lost. Take it outside."
            )
        if self._scheduled:
            self._ask_schedules()
        rule, workers = self._rule, cores()
        paths, weights, gradients = pair(params, grads)
        plan, page = self._plan, formula(rule, self._averages)
        entries, ledger = self._entries, self._ledger
        if plan is None or not plan.fits(page, paths, weights, gradients):
            plan, entries, ledger = self._find_plan(page, paths, weights, gradients)
        work = plan.prepare(gradients, rule, self.kind.sparse)
        # Nothing was refused: from here on things change.
        terms = self._limited(plan, work, gradients, workers)
        if terms is None:
            self._skipped += 1
            return
        if plan is not self._plan:
            self._plan, self._entries, self._ledger, self._unmatched = plan, entries, ledger, False
        counting = partial(self.__dict__.__setitem__, "_finished", self._finished + 1)
        plan.step(work, self._ledger, terms, workers, counting)

    @property
    def _averages(self) -> bool:
        return self._chosen["ema_decay"] is not None

    def _limited(self, plan: Plan, work: Work, gradients: list[Any], workers: int) -> Terms | None:
        """The terms of an update whose gradients' norm is limited; None if it is not taken."""
        terms, most, skip = self._terms, self._chosen["max_norm"], self._chosen["skip_nonfinite"]
        if most is None and not skip:
            return terms
        self._norm = plan.norm(work, gradients, workers)
        if skip and not math.isfinite(self._norm):
            return None
        return replace(terms, scale=terms.scale * norm.clipping(self._norm, most))

    @contextmanager
    def averaged(self, params: Any) -> Generator[None]:
        """Put the averaged weights into the arrays of `params`, until the `with` block is left, however it is left.

        For this `ema_decay` must be given. The average of an array is renewed at each of its steps, in the same pass
        over memory: average ← average + (1 − ema_decay) · (array − average), the first one being the array itself. Of
        an array whose gradient is `(indices, values)`, only the average of these rows is renewed. An array that has
        had no step stays as it is. The arrays are those that `update` is given, or some of them under the same keys.

        Raises `ValueError` without `ema_decay`, `KeyMismatchError` for an array that `update` has not seen,
        `RuntimeError` inside another such block.
        """
        if not self._averages:
            raise ValueError(
                f"There is no average of the weights. Try {type(self).__name__}(..., ema_decay=0.999)."
            )
        if self._swapped:
            raise RuntimeError(
                "The averaged weights are in place already: a block `averaged(params)` is inside another."
            )
        pairs = self._with_averages(params)
        own = [weight.copy() for weight, _ in pairs]
        self._swapped = True
        try:
            for weight, average in pairs:
                weight[...] = average
            yield
        finally:
            for (weight, _), mine in zip(pairs, own, strict=True):
                weight[...] = mine
            self._swapped = False

    def _with_averages(self, params: Any) -> list[tuple[Array, Array]]:
        """The arrays that have an average, each with its own."""
        paths, weights, _ = pair(params, None)
        pairs: list[tuple[Array, Array]] = []
        for path, key, weight in zip(paths, _flat_keys(paths), weights, strict=True):
            if self._entries and key not in self._entries:
                raise KeyMismatchError(
                    f"{name('params', path)} has no average: update has seen {', '.join(map(repr, self._entries))}. "
                    "Give the same dict as to update, or a part of it under the same keys."
                )
            if self._entries and AVERAGE in self._entries[key].slots:
                array = check_weight(path, weight)
                _check_shape(path, array, self._entries[key])
                pairs.append((array, self._entries[key].slots[AVERAGE]))
        return pairs

    def _find_plan(
        self, page: Formula, paths: list[Path], weights: list[Any], gradients: list[Any]
    ) -> tuple[Plan, dict[str, _Entry], Array]:
        """Check everything; return the plan, and what is remembered with what is new."""
        keys = _flat_keys(paths)
        if self._unmatched:
            checkpoint.settle(
                checkpoints.differing(set(self._entries), set(keys), "params"), True, KeyMismatchError
            )
        moving = [k for k, gradient in enumerate(gradients) if gradient is not None]
        arrays = {k: check_weight(paths[k], weights[k]) for k in moving}
        check_apart([paths[k] for k in moving], list(arrays.values()))
        for k, weight in arrays.items():
            if not isinstance(gradients[k], tuple):
                check_gradient(paths[k], weight, gradients[k])
        entries = self._entries | {
            key: _Entry(None, member, {})
            for member, key in enumerate(
                (key for key in keys if key not in self._entries), len(self._entries)
            )
        }
        items: list[Item] = []
        for k, weight in arrays.items():
            entry = entries[keys[k]]
            _check_shape(paths[k], weight, entry)
            slots = self._with_slots(entry.slots, page, paths[k], weight, not isinstance(gradients[k], tuple))
            entries[keys[k]] = _Entry(weight.shape, entry.member, slots)
            lying = kept.arrays(weight, self._stored(weight), slots, page.slots)
            items.append(Item(paths[k], weight, *lying, k, entry.member))
        plan = Plan(page, paths, weights, gradients, items)
        ledger = np.zeros((len(entries), self._ledger.shape[1]))
        ledger[: len(self._ledger)] = self._ledger
        ledger[ledger[:, 0] == 0] = _first_row(self._rule)
        return plan, entries, ledger

    def _stored(self, weight: Array) -> str:
        """The storage of a weight."""
        dtype = KERNEL_NAMES[weight.dtype.name]
        return weight_storage(dtype, self._chosen["rounding"], self._chosen["compensated"])

    def _with_slots(
        self, slots: dict[str, Array], page: Formula, path: Path, weight: Array, whole: bool
    ) -> dict[str, Array]:
        """What is remembered of the array, with every slot of the rule; in blocks only if its gradient is `whole`."""
        first, found = self._rule.initial(), dict(slots)
        if not page.averaged:
            found.pop(AVERAGE, None)  # of no meaning once the array has moved without it
        for slot in page.slots:
            if slot not in found:
                dtype = kept.wanted(weight, None if slot == AVERAGE else self._chosen["state_dtype"], whole)
                value = _first_value(first.get(slot, 0.0), dtype)
                found |= (
                    {AVERAGE: weight.astype(dtype)}
                    if slot == AVERAGE
                    else kept.new(slot, weight, dtype, value)
                )
            elif (found[slot].dtype.kind == "c") != (weight.dtype.kind == "c"):
                raise ValueError(
                    f"{name('params', path)} is {weight.dtype.name}, but its state {found[slot].dtype.name}. "
                    "Use a new optimizer for new arrays."
                )
            elif found[slot].dtype == np.int8 and not whole:
                kept.convert(found, slot, "float32")
        return found

    # State

    def _forget(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ledger = np.zeros((0, 1 + len(self.row.rule.scalars)))
        self._unmatched = False
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None, "_swapped": False}

    def state_dict(self) -> dict[str, Array]:
        """A copy of all that is remembered, as a flat dict of arrays, so that `np.savez(file, **state)` keeps it.

        | key                | dtype          |                                                                      |
        |--------------------|----------------|----------------------------------------------------------------------|
        | `optimizer`        | text           | the name                                                             |
        | `finished`         | int64          | updates                                                              |
        | `entries`          | int64          | how many entries its arrays have, those below                        |
        | `layers/0/W/step`  | int64          | steps of `params["layers"][0]["W"]`; a `/` in a key is `%2F`         |
        | `layers/0/W/m`     | as kept        | its state, by the page's names                                       |

        and, where an option asks for it:

        | key                    | dtype         |                                                                   |
        |------------------------|---------------|-------------------------------------------------------------------|
        | `layers/0/W/average`   | of W, or wide | the average of W; float32 for float16                             |
        | `layers/0/W/rest`      | float16       | what rounding took from W, times 2¹¹                              |
        | `layers/0/W/m_scale`   | float32       | a scale for each block of `layers/0/W/m`, counted row by row      |
        | `block_size`           | int64         | how many numbers are a block                                      |
        | `skipped`              | int64         | updates that were left out                                        |

        State in bfloat16 is there as its bits, in uint16. Hyperparameters and options are not in it: they are the
        constructor's.
        """
        state = {"optimizer": np.array(self.row.name), "finished": np.array(self._finished, dtype=np.int64)}
        if self._skipped:
            state["skipped"] = np.array(self._skipped, dtype=np.int64)
        every = [array for entry in self._entries.values() for array in entry.slots.values()]
        if self._chosen["state_dtype"] == "int8" or any(array.dtype == np.int8 for array in every):
            state["block_size"] = np.array(BLOCK, dtype=np.int64)
        for key, entry in self._entries.items():
            steps, *scalars = self._ledger[entry.member]
            state[f"{key}/step"] = np.array(steps, dtype=np.int64)
            state |= {f"{key}/{n}": np.array(x) for n, x in zip(self.row.rule.scalars, scalars, strict=True)}
            state |= {f"{key}/{slot}": array.copy(order="K") for slot, array in entry.slots.items()}
        if self._entries:
            state[checkpoints.RECORD] = np.array(sum("/" in key for key in state), dtype=np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on from a `state_dict()`, or from `np.load` of one; before the first update too.

        Nothing is cast, unless to a `state_dtype` that was asked for.

        Raises `ValueError` (`KeyMismatchError` for keys) naming the key if it does not fit: another optimizer's, other
        shapes, keys missing or unknown, numbers that no training leaves. Nothing is changed then. With `strict=False`
        an array whose state is missing, in part too, or has a NaN starts afresh, with a warning.
        """
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"The checkpoint is of type {type(state).__name__}. Give what state_dict() or numpy.load returned, or "
                "its file's name to load()."
            )
        given = {key: np.asarray(state[key]) for key in state}
        theirs = str(given.pop("optimizer", "of an unknown kind"))
        if theirs != self.row.name:
            raise ValueError(
                f"The checkpoint's 'optimizer' is {theirs}, this one is {self.row.name}. Load it into its own kind."
            )
        read = checkpoints.Arrays()
        if "finished" not in given:
            raise KeyMismatchError("The checkpoint has no 'finished'. Was it made by state_dict()?")
        counts = {
            key: checkpoint.check_count(f"The checkpoint's {key!r}", read.count(given[key]), given[key])
            for key in ("finished", "skipped", checkpoints.RECORD)
            if key in given
        }
        block = BLOCK
        if in_blocks := "block_size" in given:
            size = given["block_size"]
            block = checkpoint.check_block("The checkpoint's 'block_size'", read.count(size), size)
        grouped = checkpoints.grouped(
            {key: array for key, array in given.items() if key not in counts and key != "block_size"},
            self.kind.check.parts,
            self.row,
        )
        entries: dict[str, _Entry] = {}
        ledger = np.zeros((len(grouped), 1 + len(self.row.rule.scalars)))
        lost: list[str] = []
        for key, parts in grouped.items():
            known, member = self._entries.get(key), len(entries)
            if known is None and self._entries and not strict:
                continue  # an array that is not among this optimizer's, as the warning says
            about = checkpoints.weight_of(key, known.shape if known else None, known.slots if known else {})
            missing = checkpoint.settle(
                self.kind.check.problems(about, parts, self._rule, block), strict, KeyMismatchError
            )
            lost += missing
            if missing:
                entries[key], ledger[member] = _Entry(None, member, {}), _first_row(self._rule)
                continue
            ledger[member] = [float(parts[name]) for name in ("step", *self.row.rule.scalars)]
            slots = checkpoints.copied(parts, self.kind.check.parts)
            shape = next(
                (slots[n].shape for n in slots if self.kind.check.parts[n].kind != "scale"), about.shape
            )
            self._convert(slots, in_blocks, block)
            entries[key] = _Entry(shape, member, slots)
        lost += checkpoint.settle(checkpoints.lost(counts, grouped, self._entries), strict, KeyMismatchError)
        checkpoint.warn_of(lost)
        self._entries, self._ledger = entries, ledger[: len(entries)]
        self._finished, self._skipped = counts["finished"], counts.get("skipped", 0)
        self._unmatched, self._plan = bool(entries) and strict, None

    def _convert(self, slots: dict[str, Array], in_blocks: bool, block: int) -> None:
        """Store a checkpoint's state as `state_dtype` says, and in blocks of this library's size."""
        for slot in [one for one in slots if self.kind.check.parts[one].kind == "slot"]:
            dtype = kept.name_of(slots[slot])
            if self._chosen["state_dtype"] is not None:
                asked = kept.wanted(slots[slot], self._chosen["state_dtype"])
                # Where others are in blocks already, what is not had a reason: it is small, or has gradients of rows.
                dtype = dtype if asked == "int8" and in_blocks else asked
            kept.convert(slots, slot, dtype, block)

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


def _flat_keys(paths: list[Path]) -> list[str]:
    """The keys of a flat checkpoint, each checked to be one's own."""
    if not paths:
        raise ValueError("params has no arrays. Give a dict of arrays.")
    for path in paths:
        if any(not isinstance(key, str | int) for key in cast(tuple[object, ...], path)):
            raise TypeError(f"{name('params', path)} has a key that is neither a str nor an int.")
    keys = list(map(flat_key, paths))
    if len(set(keys)) < len(keys):
        twice = next(k for k, key in enumerate(keys) if key in keys[:k])
        other = keys.index(keys[twice])
        raise ValueError(
            f"{name('params', paths[other])} and {name('params', paths[twice])} would both be "
            f"{keys[twice]!r} in a checkpoint. Rename one."
        )
    return keys


def _first_row(rule: Rule) -> list[float]:
    """What is remembered of an array as a whole before its first step."""
    return [0.0, *(rule.initial().get(scalar, 0.0) for scalar in rule.scalars)]


def _check_shape(path: Path, weight: Array, entry: _Entry) -> None:
    """Refuse an array of another shape than the one whose state this is."""
    if entry.shape is not None and entry.shape != weight.shape:
        raise ValueError(
            f"{name('params', path)} has shape {weight.shape}, but its state {entry.shape}. "
            "Use a new optimizer for new arrays."
        )


def _plain(key: str, value: Any) -> Any:
    """What was given for a hyperparameter or option as Python's own numbers and words, or its schedule."""
    if key == "state_dtype":
        return value if value is None else dtype_name(value)
    value = tuple(cast(list[Any], value)) if isinstance(value, list) else value
    return value if is_schedule(value) else plain_number(value)


def _first_value(value: float, dtype: str) -> complex:
    """Both parts of a complex number start alike: each is a number of its own to the rules."""
    return complex(value, value) if dtype.startswith("complex") else value


@functools.cache
def optimizer(rule: type[Rule]) -> type[Optimizer]:
    """The optimizer of a rule for dicts of arrays: a class that takes the rule's fields, and options by keyword.

    Raises `schuss.errors.RuleError`, with file, line and remedy, if the rule cannot be compiled as it is written.

    >>> from schuss.rules import Lion
    >>> params = {"w": np.ones(2)}
    >>> optimizer(Lion)(lr=0.1).update(params, {"w": np.array([1.0, -1.0])})
    >>> params["w"]
    array([0.9, 1.1])
    """
    check(rule)
    row = row_of(rule)
    here = "schuss.numpy" if row.name in TABLE and TABLE[row.name] is row else rule.__module__
    return type(row.name, (Optimizer,), {"row": row, "__module__": here})


def _again(rule: type[Rule]) -> Optimizer:
    """An optimizer that is being unpickled, of a class that stands in no module."""
    cls = optimizer(rule)
    return cls.__new__(cls)
