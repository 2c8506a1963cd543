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
from schuss.core import checkpoint as checkpoint_checks
from schuss.core.options import OPTIONS
from schuss.rules import TABLE, Rule

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
        kept = (optimizer._counts.table.tobytes(), optimizer.skipped, dict(optimizer._hyperparameters.shown))
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
            parts = getattr(api.module, subject.rule).kind.check.parts
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
        # NumPy's average alone may be without its weight: then the count of entries tells that it is gone.
        counted = api is NumPy and (part, name) == ("average", "missing")
        assert ("strict=False" in str(caught.value)) == (not counted)
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


# Damages to a whole checkpoint of the PyTorch API


def in_group(**changes):
    return lambda state: state["param_groups"][0].update(changes)


def without(*path):
    def change(state):
        *where, last = path
        for key in where:
            state = state[key]
        del state[last]

    return change


def moved(old, new):
    return lambda state: state["state"].update({new: state["state"].pop(old)})


WHOLE = {
    "string keys": (moved(1, "1"), r"state under '1', but its groups have no such weight"),
    "renamed key": (moved(1, "layer.weight"), r"state under 'layer.weight', but its groups"),
    "number of no weight": (moved(1, 7), r"state under 7, but its groups"),
    "a weight's state": (without("state", 1), r"no 'exp_avg' of weight 1: it had 2 of them, and has 1"),
    "an empty state": (lambda s: s["state"][1].clear(), r"no 'exp_avg' of weight 1"),
    "all states": (lambda s: s["state"].clear(), r"no 'exp_avg' of weight 0, 1: it had 2 of them, and has 0"),
    "no state": (without("state"), r"a dict with 'state' and 'param_groups'; this one has 'param_groups'"),
    "no groups": (without("param_groups"), "this one has 'state'"),
    "groups no list": (lambda s: s.update(param_groups={}), "'param_groups'='dict' is not a list of groups"),
    "group no dict": (lambda s: s.update(param_groups=[3]), r"param_groups\[0\] has no list of 'params'"),
    "group without params": (
        without("param_groups", 0, "params"),
        r"param_groups\[0\] has no list of 'params'",
    ),
    "params no list": (in_group(params=3), r"param_groups\[0\] has no list of 'params'"),
    "params no keys": (
        in_group(params=[0, 1.5]),
        r"\['params'\]=\[0, 1.5\] is not a list of numbers or names",
    ),
    "params twice": (in_group(params=[0, 0]), r"\['params'\] has 0 a second time"),
    "one param": (in_group(params=[0]), r"groups of \[1\] weights, this optimizer of \[2\]"),
    "state no dict": (lambda s: s.update(state=[]), "'state'='list' is not a dict"),
    "entry no dict": (lambda s: s["state"].update({0: 3}), "state of weight 0=3 is not a dict"),
    "a stranger": (
        lambda s: s["state"][0].update(kahan_comp=torch.zeros(3, 2)),
        "weight 0 has 'kahan_comp'; Adam",
    ),
    "codes and numbers": (
        lambda s: s["state"][0].update(exp_avg_codes=s["state"][0]["exp_avg"]),
        "weight 0 has 'exp_avg' twice",
    ),
    "scales without codes": (
        lambda s: s["state"][0].update(exp_avg_scale=torch.ones(1)),
        "'exp_avg_scale' of weight 0 are scales of int8 codes, but 'exp_avg' of weight 0 is not int8",
    ),
    "lr text": (in_group(lr="fast"), r"param_groups\[0\]: lr='fast' is not a finite number"),
    "lr NaN": (in_group(lr=float("nan")), "lr=nan is not a finite number"),
    "lr negative": (in_group(lr=-1.0), "lr=-1.0 is not a finite number"),
    "lr vector": (in_group(lr=torch.ones(2)), r"lr=\[1.0, 1.0\] is not a finite number"),
    "lr None": (in_group(lr=None), "lr=None is not a finite number"),
    "lr a function": (
        in_group(lr=abs),
        "'lr'=.*abs.* is not a number. A schedule is given to the constructor",
    ),
    "no lr": (without("param_groups", 0, "lr"), "have no 'lr', which Adam needs"),
    "betas of one": (in_group(betas=(0.9,)), r"betas=\(0.9,\) is not a pair of numbers"),
    "betas text": (in_group(betas=("a", "b")), r"beta1='a' is not in \[0, 1\)"),
    "amsgrad text": (in_group(amsgrad="yes"), "amsgrad='yes' is not True or False"),
    "maximize text": (in_group(maximize="yes"), "'maximize'='yes' is not True or False"),
    "step negative": (in_group(step=-1), "'step' of a parameter group=-1 is not a count"),
    "step NaN": (in_group(step=float("nan")), "'step' of a parameter group=nan is not a count"),
    "step text": (in_group(step="two"), "'step' of a parameter group='two' is not a count"),
    "step fraction": (in_group(step=1.5), "'step' of a parameter group=1.5 is not a count"),
    "skipped": (lambda s: s.update(skipped=-1), "'skipped'=-1 is not a count"),
    "skipped text": (lambda s: s.update(skipped="x"), "'skipped'='x' is not a count"),
    "record": (lambda s: s.update(state_entries=3), "'state_entries'=3 is not how many weights"),
    "record's number": (
        lambda s: s.update(state_entries={"step": "x"}),
        "'state_entries' of 'step'='x' is not a count",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(name):
    change, words = WHOLE[name]
    one, state = Torch(SUBJECTS[0], seed=1, steps=1), copy.deepcopy(checkpoint(Torch, SUBJECTS[0]))
    change(state)
    assert_refused(one, state, words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "this one has nothing. Give what optimizer.state_dict"),
        (torch.nn.Linear(2, 2).state_dict(), "this one has 'weight', 'bias'.*not a model's"),
        (3, "this one is a int"),
        (None, "this one is a NoneType"),
    ],
    ids=["empty", "a model's", "a number", "None"],
)
def test_what_is_no_checkpoint_is_refused(given, words):
    assert_refused(Torch(SUBJECTS[0], steps=1), given, words)


SIZES = [0, -1, 129, 2**62, 1.5, "x", float("nan"), True]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_codes_in_blocks_of_no_size_are_refused(size):
    subject = next(one for one in SUBJECTS if one.name == "int8")
    state = copy.deepcopy(checkpoint(Torch, subject))
    in_group(block_size=size)(state)
    assert_refused(Torch(subject, steps=1), state, f"'block_size'={size!r} is not a ")
    state = checkpoint(NumPy, subject) | {"block_size": np.array(size)}
    assert_refused(NumPy(subject, steps=1), state, "'block_size'=.* is not a ")


@pytest.mark.parametrize("size", [64, 256])
def test_codes_in_blocks_of_another_size_than_their_scales_are_refused(size):
    subject = next(one for one in SUBJECTS if one.name == "int8")
    state = copy.deepcopy(checkpoint(Torch, subject))
    in_group(block_size=size)(state)
    assert_refused(Torch(subject, steps=1), state, f"4200 int8 codes in blocks of {size}, which need")
    state = checkpoint(NumPy, subject) | {"block_size": np.array(size)}
    assert_refused(NumPy(subject, steps=1), state, f"4200 int8 codes in blocks of {size}, which need")


def test_groups_with_blocks_of_different_sizes_are_refused():
    a, b = (torch.zeros(4200, requires_grad=True) for _ in range(2))
    optimizer = schuss.torch.Adam([{"params": [a]}, {"params": [b]}], state_dtype="int8")
    a.grad, b.grad = torch.ones(4200), torch.ones(4200)
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][1]["block_size"] = 64
    with pytest.raises(ValueError, match="groups have blocks of 128, 64; it is one size for all"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(finished=np.array(-1)), "'finished'=-1 is not a count"),
        (lambda s: s.update(finished=np.array(1.5)), "'finished'=1.5 is not a count"),
        (lambda s: s.pop("finished"), "has no 'finished'"),
        (lambda s: s.pop("optimizer"), "'optimizer' is of an unknown kind"),
        (lambda s: s.update(skipped=np.array("x")), "'skipped'='x' is not a count"),
        (lambda s: s.update(entries=np.array(-3)), "'entries'=-3 is not a count"),
        (
            lambda s: [s.pop(f"1/{part}") for part in ("step", "m", "v", "p")],
            "has no '1', but this optimizer",
        ),
        (lambda s: s.update({"b/step": s.pop("1/step")}), "has no '(1/step|b/m)'"),
        (lambda s: s.update({"1/kahan_comp": np.ones(4)}), "has '1/kahan_comp', which Adam does not store"),
    ],
)
def test_a_damaged_checkpoint_of_numpy_is_refused_and_changes_nothing(change, words):
    state = dict(checkpoint(NumPy, SUBJECTS[0]))
    change(state)
    assert_refused(NumPy(SUBJECTS[0], seed=1, steps=1), state, words)


def test_a_lost_array_is_missed_before_the_first_update_too():
    state = {key: value for key, value in checkpoint(NumPy, SUBJECTS[0]).items() if not key.startswith("1/")}
    optimizer = schuss.numpy.Adam(amsgrad=True)
    with pytest.raises(KeyError, match="had 8 entries of its arrays, and has 4"):
        optimizer.load_state_dict(state)
    with pytest.raises(TypeError, match=r"The checkpoint is of type list"):
        optimizer.load_state_dict([])


# The way out


@pytest.mark.parametrize("api", [Torch, NumPy], ids=lambda api: api.name)
@pytest.mark.parametrize("name", ["missing", "NaN"])
@pytest.mark.parametrize(
    "subject", [one for one in SUBJECTS if one.name in ("amsgrad", "nadam", "asgd")], ids=str
)
def test_with_strict_false_the_weight_starts_afresh_and_says_so_once(api, subject, name):
    row = TABLE[subject.rule]
    slot = row.rule(**subject.options).slots[-1]
    part = row.names[slot] if api is Torch else slot
    state = damaged(api, subject, api.key, part, ARRAY[name])
    one, other, fresh = (api(subject, seed=1, steps=1) for _ in range(3))
    with pytest.warns(UserWarning, match=re.escape(api.place(api.key, part))) as caught:
        one.optimizer.load_state_dict(state, strict=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    # The other weight goes on, this one starts as in a new optimizer.
    other.optimizer.load_state_dict(checkpoint(api, subject))
    fresh.optimizer = api(subject, steps=0).optimizer
    if api is Torch:
        fresh.optimizer = getattr(schuss.torch, subject.rule)(fresh.weights, lr=0.1, **subject.options)
    for each in (one, other, fresh):
        each.steps(2)
    values = [
        [w.detach().numpy() for w in each.weights] if api is Torch else list(each.params.values())
        for each in (one, other, fresh)
    ]
    np.testing.assert_array_equal(values[0][0], values[1][0])
    np.testing.assert_array_equal(values[0][1], values[2][1])


def test_with_strict_false_state_of_no_weight_is_left_out():
    one, state = Torch(SUBJECTS[0], seed=1, steps=1), copy.deepcopy(checkpoint(Torch, SUBJECTS[0]))
    moved(1, "layer.weight")(state)
    with pytest.warns(UserWarning, match=r"state under 'layer.weight'.*no 'exp_avg' of weight 1"):
        one.optimizer.load_state_dict(state, strict=False)
    assert list(one.state()["state"]) == [0]


def test_numpys_lost_arrays_start_afresh_with_strict_false():
    state = {key: value for key, value in checkpoint(NumPy, SUBJECTS[0]).items() if not key.startswith("1/")}
    for one in (NumPy(SUBJECTS[0], seed=1, steps=1), NumPy(SUBJECTS[0], seed=1, steps=0)):
        with pytest.warns(UserWarning, match="had 8 entries of its arrays, and has 4"):
            one.optimizer.load_state_dict(state, strict=False)
        one.steps(1)
        assert one.optimizer.state_dict()["0/step"] == STEPS + 1
        assert one.optimizer.state_dict()["1/step"] == 1


def test_an_array_that_numpy_does_not_know_is_left_out_with_strict_false():
    one, state = NumPy(SUBJECTS[0], seed=1, steps=1), dict(checkpoint(NumPy, SUBJECTS[0]))
    state = {"0a/step": np.array(3)} | {f"0a/{part}": np.ones(2) for part in "mvp"} | state
    with pytest.warns(UserWarning, match="this optimizer has no '0a', but the checkpoint has"):
        one.optimizer.load_state_dict(state, strict=False)
    one.steps(1)
    assert set(one.optimizer.state_dict()) == set(checkpoint(NumPy, SUBJECTS[0]))
    assert one.optimizer.state_dict()["1/step"] == STEPS + 1


# Rules of one's own


class Bounded(Rule):
    state = ("x", "y")
    bounds = {"x": (-1.0, 1.0)}


@pytest.mark.parametrize("module", [schuss.torch, schuss.numpy], ids=["torch", "numpy"])
def test_a_rule_of_ones_own_says_between_which_numbers_its_state_stays(module):
    read = module.SGD.kind.check._read
    check = checkpoint_checks.Check(Bounded, {}, True, read, lambda key, part: f"{key}/{part}", ("float16",))

    def wrong(x, y):
        entry = {"step": np.array(3), "x": np.array(x), "y": np.array(y)}
        if module is schuss.torch:
            entry = {name: torch.from_numpy(value) for name, value in entry.items()}
        return [problem.words for problem in check.problems(about, entry, Bounded(), 128)]

    about = checkpoint_checks.Weight("w", (2,), "float64")
    assert wrong([-1.0, 1.0], [-np.inf, 5.0]) == []
    assert wrong([0.0, 1.5], [0.0, 0.0]) == [
        "The checkpoint's w/x has 1.5, but it is never more than 1. Was it damaged?"
    ]
    assert wrong([-2.0, 0.0], [0.0, 0.0]) == [
        "The checkpoint's w/x has -2, but it is never less than -1. Was it damaged?"
    ]


# What is no damage


def test_what_diverged_can_be_loaded():
    """A second moment that overflowed, and averages that did, are what a training can leave."""
    for api in (Torch, NumPy):
        for part in ("exp_avg", "exp_avg_sq") if api is Torch else ("m", "v"):
            state = damaged(api, SUBJECTS[0], api.key, part, filled(np.inf))
            one = api(SUBJECTS[0], seed=1)
            one.optimizer.load_state_dict(state)
            assert np.isinf(api.array(api.entries(one.state())[api.key, part])).any()


def test_options_in_a_checkpoint_do_not_override_the_constructors():
    one, state = Torch(SUBJECTS[0], seed=1, steps=1), copy.deepcopy(checkpoint(Torch, SUBJECTS[0]))
    junk = dict.fromkeys(OPTIONS, "junk") | {"fused": "junk", "foreach": 3, "schedules": 3}
    in_group(**junk, mine="kept")(state)
    before = {name: one.optimizer.param_groups[0].get(name) for name in junk}
    one.optimizer.load_state_dict(state)
    group = one.optimizer.param_groups[0]
    assert {name: group.get(name) for name in junk} == before
    assert group["mine"] == "kept"
    one.steps(1)


def test_a_users_own_entry_of_state_is_kept():
    one = Torch(SUBJECTS[0])
    one.optimizer.state["seen"] = {"examples": 3}
    other = Torch(SUBJECTS[0], seed=1)
    other.optimizer.load_state_dict(one.state())
    assert other.optimizer.state["seen"] == {"examples": 3}
