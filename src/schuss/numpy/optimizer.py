"""The NumPy front: an optimizer for dicts of arrays, changed in place, with one launch where the notes have a loop."""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, ClassVar, cast

import numpy as np

from schuss.compile import threads
from schuss.compile.formula import formula
from schuss.compile.front import OPTIONS, at, is_schedule, parameters, plain_number
from schuss.compile.launch import Terms
from schuss.errors import refusal
from schuss.numpy.plan import (
    Item,
    Plan,
    axes_of,
    check_apart,
    check_gradient,
    check_weight,
    has_kernel,
    laid,
    native,
)
from schuss.numpy.tree import KeyMismatchError, Path, flat_key, name, pair
from schuss.rules import PAIRS, Row, Rule

Array = np.ndarray[Any, Any]


@dataclass
class _Entry:
    """What is remembered of one array: the shape it had, its row of the ledger, and its state by slot."""

    shape: tuple[int, ...] | None
    member: int
    slots: dict[str, Array]


class Optimizer:
    """What all optimizers here share. A subclass is its row of the table of rules, and nothing else.

    Hyperparameters are attributes, by torch.optim's names: read them, and assign to them between updates. Each may be
    a schedule, a function of the number of finished updates; reading it gives the value that the next update will use.
    `maximize` climbs. None of this compiles anything.

    What is remembered of each array is kept by its keys in `params`; so are its finished steps, so that an array whose
    first gradient comes late starts as if it were the first update.

    >>> from schuss.numpy import Adam
    >>> params = {"W": np.ones((2, 3)), "b": np.zeros(3)}
    >>> optimizer = Adam(lr=lambda n: 0.1 / (1 + n))
    >>> optimizer.update(params, {"W": np.full((2, 3), 4.0), "b": np.array([-1.0, 0.0, 1.0])})
    >>> params["b"].round(3) + 0.0
    array([ 0.1,  0. , -0.1])
    >>> optimizer.lr
    0.05
    """

    row: ClassVar[Row]
    _known: ClassVar[dict[str, inspect.Parameter]]
    _lazy: ClassVar[tuple[tuple[str, Any], ...]]

    # What is chosen, what it makes, and what is remembered
    _chosen: dict[str, Any]
    _made: tuple[dict[str, Any], Rule] | None
    _finished: int
    _entries: dict[str, _Entry]
    _ledger: Array
    _unmatched: bool  # loaded, and not yet compared with the arrays
    _plan: Plan | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._known = parameters(cls.row, {})
        cls._lazy = tuple(cls.row.sparse.items())
        cls.__signature__ = inspect.Signature(list(cls._known.values()))  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take hyperparameters: numbers or schedules. `ValueError` says which is outside its domain, and why."""
        try:
            bound = inspect.signature(type(self)).bind(*args, **kwargs)
        except TypeError as problem:
            raise TypeError(f"{type(self).__name__}: {problem}. It takes {', '.join(self._known)}.") from None
        bound.apply_defaults()
        self._finished, self._made = 0, None
        self._choose(bound.arguments)
        self._forget()

    # Hyperparameters

    def _choose(self, chosen: Mapping[str, Any]) -> None:
        checked = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
        checked = {k: v if is_schedule(v) else plain_number(v) for k, v in checked.items()}
        self._make(checked)
        self._chosen = checked

    def _make(self, chosen: dict[str, Any]) -> Rule:
        """The page with these hyperparameters as they stand after the finished updates; errors say which is wrong."""
        now = {key: at(value, self._finished) for key, value in chosen.items()}
        if self._made is None or self._made[0] != now:
            if not isinstance(now["maximize"], bool):
                raise refusal("maximize", now["maximize"], "True or False")
            parts: dict[str, Any] = {}
            for key, value in now.items():
                if key not in PAIRS:
                    parts[key] = value
                elif isinstance(value, tuple) and len(cast(tuple[Any, ...], value)) == 2:
                    parts |= zip(PAIRS[key], cast(tuple[Any, ...], value), strict=True)
                else:
                    default = self._known[key].default
                    raise ValueError(f"{key}={value!r} is not a pair of numbers. Try {key}={default}.")
            for option in ("maximize", *OPTIONS):
                del parts[option]
            self._made = (now, self.row.rule(**parts))
        return self._made[1]

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self._known:
            raise AttributeError(f"{type(self).__name__} has no {key!r}. It has {', '.join(self._known)}.")
        return at(self._chosen[key], self._finished)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self._known:
            self._choose(self._chosen | {key: value})
        elif key.startswith("_"):
            super().__setattr__(key, value)
        else:
            raise AttributeError(f"{type(self).__name__} has no {key!r}. It has {', '.join(self._known)}.")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._known})

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self._chosen.items())})"
        )

    @property
    def finished(self) -> int:
        """The number of finished updates, which is what a schedule is asked with."""
        return self._finished

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
            RuntimeError: L2 weight decay with `(indices, values)`: it would need every row.

            Each says where, and nothing is changed then.
        """
        rule = self._make(self._chosen)
        paths, weights, gradients = pair(params, grads)
        plan, page = self._plan, formula(rule)
        entries, ledger = self._entries, self._ledger
        if plan is None or not plan.fits(page, paths, weights, gradients):
            plan, entries, ledger = self._find_plan(rule, paths, weights, gradients)
        work = plan.prepare(gradients, rule, self._lazy)
        # Nothing was refused: from here on things change.
        if plan is not self._plan:
            self._plan, self._entries, self._ledger, self._unmatched = plan, entries, ledger, False
        plan.step(work, self._ledger, Terms(-1.0 if self.maximize else 1.0), threads.available())
        self._finished += 1

    def _find_plan(
        self, rule: Rule, paths: list[Path], weights: list[Any], gradients: list[Any]
    ) -> tuple[Plan, dict[str, _Entry], Array]:
        """Check everything; return the plan, and what is remembered with what is new."""
        keys = self._check_keys(paths)
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
            axes = axes_of(weight)
            entry = entries[keys[k]] = _with_slots(entries[keys[k]], rule, paths[k], weight, axes)
            items.append(
                Item(paths[k], weight, axes, [entry.slots[slot] for slot in rule.slots], k, entry.member)
            )
        plan = Plan(formula(rule), paths, weights, gradients, items)
        ledger = np.zeros((len(entries), self._ledger.shape[1]))
        ledger[: len(self._ledger)] = self._ledger
        ledger[ledger[:, 0] == 0] = _first_row(rule)
        return plan, entries, ledger

    def _check_keys(self, paths: list[Path]) -> list[str]:
        """The keys of a flat checkpoint, each checked to be one's own, and after a load to be the checkpoint's."""
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
        if self._unmatched:
            _check_same_keys(set(self._entries), set(keys), "params")
        return keys

    # State

    def _forget(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ledger = np.zeros((0, 1 + len(self.row.rule.scalars)))
        self._unmatched = False
        self._plan: Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}

    def state_dict(self) -> dict[str, Array]:
        """A copy of all that is remembered, as a flat dict of arrays, so that `np.savez(file, **state)` keeps it.

        | key                | dtype          |                                                                      |
        |--------------------|----------------|----------------------------------------------------------------------|
        | `optimizer`        | text           | the name                                                             |
        | `finished`         | int64          | updates                                                              |
        | `layers/0/W/step`  | int64          | steps of `params["layers"][0]["W"]`; a `/` in a key is `%2F`         |
        | `layers/0/W/m`     | as kept        | its state, by the page's names                                       |

        Hyperparameters are not in it: they are the constructor's.
        """
        state = {"optimizer": np.array(self.row.name), "finished": np.array(self._finished, dtype=np.int64)}
        for key, entry in self._entries.items():
            steps, *scalars = self._ledger[entry.member]
            state[f"{key}/step"] = np.array(steps, dtype=np.int64)
            state |= {f"{key}/{n}": np.array(x) for n, x in zip(self.row.rule.scalars, scalars, strict=True)}
            state |= {f"{key}/{slot}": array.copy(order="K") for slot, array in entry.slots.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`, or from `np.load` of one; before the first update too. Nothing is cast.

        Raises `ValueError` (`KeyMismatchError` for keys) naming the key if it does not fit: another optimizer's, other
        shapes, keys missing or unknown. Nothing is changed then.
        """
        given = {key: np.asarray(state[key]) for key in state}
        theirs = str(given.pop("optimizer", "of an unknown kind"))
        if theirs != self.row.name:
            raise ValueError(
                f"The checkpoint's 'optimizer' is {theirs}, this one is {self.row.name}. Load it into its own kind."
            )
        if "finished" not in given:
            raise KeyMismatchError("The checkpoint has no 'finished'. Was it made by state_dict()?")
        finished = _count("finished", given.pop("finished"))
        rule, scalars = self._make(self._chosen), self.row.rule.scalars
        grouped: dict[str, dict[str, Array]] = {}
        for key, array in given.items():
            array_key, _, part = key.rpartition("/")
            if "/" not in key or part not in _parts(self.row.rule):
                raise KeyMismatchError(
                    f"The checkpoint has {key!r}, which is nothing that {self.row.name} keeps: that is "
                    f"{', '.join(sorted(_parts(self.row.rule)))} of each array. Is it another optimizer's?"
                )
            grouped.setdefault(array_key, {})[part] = array
        entries: dict[str, _Entry] = {}
        ledger = np.zeros((len(grouped), 1 + len(scalars)))
        for member, (key, parts) in enumerate(grouped.items()):
            _check_parts(key, parts, rule)
            steps = _count(f"{key}/step", parts.pop("step"))
            ledger[member] = [steps, *(_scalar(f"{key}/{n}", parts.pop(n)) for n in scalars)]
            known = self._entries.get(key)
            shape = known.shape if known else None
            entries[key] = _Entry(shape, member, _checked_slots(key, parts, shape))
        if finished and not entries:
            raise KeyMismatchError("The checkpoint has no arrays. Was it cut short?")
        if self._entries and entries:
            _check_same_keys(set(entries), set(self._entries), "this optimizer")
        self._entries, self._ledger, self._finished = entries, ledger, finished
        self._unmatched, self._plan = bool(entries), None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a `.npz` file of exactly this name: whole, or not at all."""
        place = File(path)
        temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("xb") as file:
                np.savez(file, **cast(Any, self.state_dict()))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that `save` wrote; errors as `load_state_dict`."""
        with File(path).open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError(f"{os.fspath(path)} is one array, not an .npz file that save wrote.")
            self.load_state_dict(loaded)


def _first_row(rule: Rule) -> list[float]:
    """What is remembered of an array as a whole before its first step."""
    return [0.0, *(rule.initial().get(scalar, 0.0) for scalar in rule.scalars)]


def _with_slots(entry: _Entry, rule: Rule, path: Path, weight: Array, axes: tuple[int, ...]) -> _Entry:
    """The array's entry with every slot of the rule, laid out as the array; new ones in at least 32 bits."""
    first, slots = rule.initial(), dict(entry.slots)
    shapes = {slots[slot].shape for slot in slots} | ({entry.shape} if entry.shape is not None else set())
    if shapes - {weight.shape}:
        raise ValueError(
            f"{name('params', path)} has shape {weight.shape}, but its state {(shapes - {weight.shape}).pop()}. "
            "Use a new optimizer for new arrays."
        )
    for slot in rule.slots:
        if slot in slots:
            if (slots[slot].dtype.kind == "c") != (weight.dtype.kind == "c"):
                raise ValueError(
                    f"{name('params', path)} is {weight.dtype.name}, but its state {slots[slot].dtype.name}. "
                    "Use a new optimizer for new arrays."
                )
            slots[slot] = laid(slots[slot], axes)
        else:
            wide = np.dtype(np.float32) if weight.dtype.itemsize == 2 else native(weight)
            ordered = np.full([weight.shape[k] for k in axes], _first_value(first.get(slot, 0.0), wide), wide)
            slots[slot] = ordered.transpose(np.argsort(axes))
    return _Entry(weight.shape, entry.member, slots)


def _first_value(value: float, dtype: np.dtype[Any]) -> complex:
    """Both parts of a complex number start alike: each is a number of its own to the rules."""
    return complex(value, value) if dtype.kind == "c" else value


# Checkpoints


def _parts(rule: type[Rule]) -> set[str]:
    """What can be kept of an array, by name."""
    return {"step", *rule.scalars, *(slot for slots in rule.variants.values() for slot in slots)}


def _check_parts(key: str, parts: dict[str, Array], rule: Rule) -> None:
    for part in ("step", *rule.scalars):
        if part not in parts:
            raise KeyMismatchError(f"The checkpoint has no '{key}/{part}'. Was it cut short?")
    for slot in rule.slots if parts["step"] > 0 else ():
        if slot not in parts:
            raise KeyMismatchError(
                f"The checkpoint has no '{key}/{slot}'. Build the optimizer with the options of the one that was saved."
            )


def _count(key: str, array: Array) -> int:
    if array.shape != () or array.dtype.kind not in "iu" or array < 0:
        raise refusal(f"The checkpoint's {key!r}", array.tolist(), "a count: a whole number ≥ 0")
    return int(array)


def _scalar(key: str, array: Array) -> float:
    if array.shape != () or array.dtype.kind != "f":
        raise refusal(f"The checkpoint's {key!r}", array.tolist(), "a number")
    return float(array)


def _checked_slots(key: str, slots: dict[str, Array], shape: tuple[int, ...] | None) -> dict[str, Array]:
    for slot, array in slots.items():
        shape = array.shape if shape is None else shape
        if array.shape != shape:
            raise ValueError(
                f"The checkpoint's '{key}/{slot}' has shape {array.shape}, but its array {shape}. "
                "Are the arrays those that were saved?"
            )
        if not has_kernel(array):
            raise refusal(f"The checkpoint's '{key}/{slot}'", array.dtype.name, "of a dtype that state has")
    return {slot: np.array(array, dtype=native(array), order="K") for slot, array in slots.items()}


def _check_same_keys(theirs: set[str], ours: set[str], what: str) -> None:
    for missing, where, there in (
        (ours - theirs, "The checkpoint", what),
        (theirs - ours, what, "the checkpoint"),
    ):
        if missing:
            raise KeyMismatchError(
                f"{where} has no {', '.join(map(repr, sorted(missing)))}, but {there} has. "
                "Load a checkpoint of the same arrays."
            )
