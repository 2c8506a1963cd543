"""One table of damages for both APIs: each is refused in words that name the key, and nothing has changed."""

import copy
import functools
import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import schuss.numpy
import schuss.torch
from schuss.compile.front import OPTIONS
from schuss.rules import TABLE

SMALL, LARGE, STEPS = (3, 2), (4200,), 2


@dataclass(frozen=True)
class Subject:
    """A rule with options, and the shapes of what it trains."""

    name: str
    rule: str
    options: dict = field(default_factory=dict, hash=False)
    shapes: tuple = (SMALL, (4,))

    def __str__(self):
        return self.name


SUBJECTS = [
    Subject("amsgrad", "Adam", dict(amsgrad=True)),
    Subject("momentum", "SGD", dict(momentum=0.9)),
    Subject("nadam", "NAdam"),
    Subject("asgd", "ASGD"),
    Subject("adagrad", "Adagrad"),
    Subject("int8", "Adam", dict(state_dtype="int8"), (SMALL, LARGE)),
    Subject("ema", "SGD", dict(ema_decay=0.9)),
]


class Torch:
    """A checkpoint of `schuss.torch`, and what is there before and after."""

    name, module, key = "torch", schuss.torch, 1

    def __init__(self, subject, seed=0, steps=STEPS):
        torch.manual_seed(seed)
        self.weights = [torch.randn(shape).requires_grad_() for shape in subject.shapes]
        self.optimizer = getattr(schuss.torch, subject.rule)(self.weights, lr=0.1, **subject.options)
        self.steps(steps)

    def steps(self, steps):
        for _ in range(steps):
            for k, weight in enumerate(self.weights):
                weight.grad = torch.full_like(weight, 0.5 + k)
            self.optimizer.step()

    def state(self):
        return copy.deepcopy(self.optimizer.state_dict())

    @staticmethod
    def place(key, part):
        return f"'{part}' of weight {key}"

    @staticmethod
    def entries(state):
        return {
            (key, name.removesuffix("_codes")): value
            for key, entry in state["state"].items()
            for name, value in entry.items()
        }

    @staticmethod
    def replaced(state, key, part, value):
        entry = state["state"][key]
        old = entry.pop(f"{part}_codes", None)
        entry.pop(part, None)
        if value is not None:
            tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            codes = old is not None and getattr(tensor, "dtype", None) == torch.int8
            entry[f"{part}_codes" if codes else part] = tensor

    @staticmethod
    def array(value):
        return value.numpy()

    def everything(self):
        optimizer = self.optimizer
        numbers = [(str(w.dtype), w.detach().numpy().tobytes()) for w in self.weights]
        for weight in self.weights:
            for name, value in optimizer.state[weight].items():
                numbers.append((name, str(value.dtype), tuple(value.shape), value.numpy().tobytes()))
        groups = [
            {k: v for k, v in group.items() if k != "params"} | {"ids": list(map(id, group["params"]))}
            for group in optimizer.param_groups
        ]
        kept = (optimizer._ledger.tobytes(), optimizer.skipped, dict(optimizer._in_force))
        return numbers, repr(groups), repr(kept), repr(optimizer.defaults)


class NumPy:
    """A checkpoint of `schuss.numpy`, and what is there before and after."""

    name, module, key = "numpy", schuss.numpy, "1"

    def __init__(self, subject, seed=0, steps=STEPS):
        random = np.random.default_rng(seed)
        self.params = {
            str(k): random.standard_normal(shape).astype(np.float32) for k, shape in enumerate(subject.shapes)
        }
        self.optimizer = getattr(schuss.numpy, subject.rule)(lr=0.1, **subject.options)
        self.steps(steps)

    def steps(self, steps):
        for _ in range(steps):
            self.optimizer.update(
                self.params, {key: np.full_like(w, 0.5 + int(key)) for key, w in self.params.items()}
            )

    def state(self):
        return self.optimizer.state_dict()

    @staticmethod
    def place(key, part):
        return f"'{key}/{part}'"

    @staticmethod
    def entries(state):
        return {tuple(key.split("/")): value for key, value in state.items() if "/" in key}

    @staticmethod
    def replaced(state, key, part, value):
        state.pop(f"{key}/{part}")
        if value is not None:
            state[f"{key}/{part}"] = np.asarray(value)

    @staticmethod
    def array(value):
        return value

    def everything(self):
        numbers = [
            (key, str(value.dtype), value.shape, value.tobytes())
            for key, value in {**self.params, **self.optimizer.state_dict()}.items()
        ]
        return numbers, repr(self.optimizer), self.optimizer.finished, self.optimizer.skipped


@functools.cache
def checkpoint(api, subject):
    return api(subject).state()


def filled(number):
    def change(array):
        changed = array.copy()
        changed.reshape(-1)[-1] = number
        return changed

    return change


# By kind of entry: what is done to it, and a word of the refusal. None takes it away.
COUNT = {
    "missing": None,
    "negative": lambda a: np.array(-1.0),
    "NaN": lambda a: np.array(np.nan),
    "infinite": lambda a: np.array(np.inf),
    "fraction": lambda a: np.array(1.5),
    "huge": lambda a: np.array(2.0**60),
    "text": lambda a: "three",
    "vector": lambda a: np.ones(2, a.dtype),
}
NUMBER = COUNT | {
    "negative": lambda a: np.array(-0.5),
    "fraction": lambda a: np.array(1j),
    "huge": lambda a: np.array(True),
}
SHARE = NUMBER | {"above one": lambda a: np.array(1.5)}
ARRAY = {
    "missing": None,
    "NaN": filled(np.nan),
    "shape": lambda a: np.zeros((*a.shape, 1), a.dtype),
    "whole numbers": lambda a: np.zeros(a.shape, np.int64),
    "complex": lambda a: np.zeros(a.shape, np.complex64),
    "yes and no": lambda a: np.zeros(a.shape, bool),
    "text": lambda a: "three",
}
POSITIVE = ARRAY | {"negative": filled(-1e-3)}
CODES = {k: v for k, v in ARRAY.items() if k != "NaN"} | {"no code": filled(-128)}
SCALES = {
    "missing": None,
    "NaN": filled(np.nan),
    "negative": filled(-1.0),
    "wide": lambda a: a.astype(np.float64),
    "short": lambda a: a[:-1],
    "text": lambda a: "three",
}


def damages_of(part, codes):
    if part.kind in ("count", "number"):
        return COUNT if part.kind == "count" else SHARE if part.high == 1 else NUMBER
    if part.kind == "scale":
        return SCALES
    if part.kind == "slot" and codes:
        return CODES | ({"negative": filled(-3)} if part.low == 0 else {})
    return POSITIVE if part.low == 0 else ARRAY


def table():
    for api in (Torch, NumPy):
        for subject in SUBJECTS:
            row, codes = TABLE[subject.rule], subject.name == "int8"
            parts = getattr(api.module, subject.rule)._check.parts
            own = {name: option for name, option in subject.options.items() if name not in OPTIONS}
            slots = [row.names[n] if api is Torch else n for n in row.rule(**own).slots]
            scalars = [row.names[n] if api is Torch else n for n in row.rule.scalars]
            found = [*(["step"] if api is NumPy or row.counts_steps else []), *scalars, *slots]
            found += [f"{slot}_scale" for slot in slots if codes]
            found += ["average"] if subject.name == "ema" else []
            for part in found:
                for name, change in damages_of(parts[part], codes).items():
                    yield pytest.param(
                        api, subject, part, name, change, id=f"{api.name}-{subject}-{part}-{name}"
                    )


def damaged(api, subject, key, part, change):
    state = copy.deepcopy(checkpoint(api, subject))
    value = api.array(api.entries(state)[key, part])
    api.replaced(state, key, part, None if change is None else change(value))
    return state


def assert_refused(one, state, words, **how):
    before = one.everything()
    with pytest.raises(ValueError, match=words) as caught:
        one.optimizer.load_state_dict(state, **how)
    assert one.everything() == before
    return caught


@pytest.mark.parametrize(("api", "subject", "part", "name", "change"), list(table()))
def test_a_damaged_entry_is_refused_by_name_and_changes_nothing(api, subject, part, name, change):
    key = api.key
    one, state = api(subject, seed=1, steps=1), damaged(api, subject, key, part, change)
    caught = assert_refused(one, state, re.escape(api.place(key, part)))
    if name in ("missing", "NaN") and not (part == "step" and name == "NaN"):
        assert "strict=False" in str(caught.value) or part == "average"
    else:
        assert_refused(one, state, re.escape(api.place(key, part)), strict=False)


@pytest.mark.parametrize("api", [Torch, NumPy], ids=lambda api: api.name)
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_the_undamaged_checkpoint_is_taken(api, subject):
    one, other = api(subject), api(subject, seed=1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.optimizer.load_state_dict(one.state())
    assert str(other.state()) == str(one.state())
