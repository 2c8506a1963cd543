"""Averaged weights, clipping and skipping, and how float16 arrays and state are kept: in every front the same."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import schuss.numpy
import schuss.torch
from schuss.compile import eager, narrow
from schuss.compile.launch import Launch
from schuss.compile.storage import BLOCK
from schuss.numpy import SGD, Adam, NAdam, storage
from schuss.rules import TABLE


def strided(a):
    room = np.zeros([2 * n for n in a.shape], a.dtype)
    view = room[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def misaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def other_byte_order(a):
    return a.astype(a.dtype.newbyteorder())


def backwards(a):
    return np.ascontiguousarray(a[::-1])[::-1]


def leaves(node):
    if isinstance(node, dict | list):
        return [leaf for one in (node.values() if isinstance(node, dict) else node) for leaf in leaves(one)]
    return [node]


def tree():
    """Arrays of every kind: nested, of all dtypes, in odd memory, large and small, with gradients of rows, and late."""
    rng = np.random.default_rng(0)
    return {
        "layers": [
            {"W": rng.normal(size=(70, 60)), "b": rng.normal(size=3)},
            strided(rng.normal(size=(4, 3))),
        ],
        "F": np.asfortranarray(rng.normal(size=(50, 90))),
        "complex": rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2)),
        "half": rng.normal(size=(65, 64)).astype(np.float16),
        "swapped": other_byte_order(rng.normal(size=(64, 65)).astype(np.float32)),
        "rows": rng.normal(size=(600, 8)).astype(np.float32),
        "late": rng.normal(size=2),
    }


def gradients(params, steps):
    """A gradient for each array at each step; at step 2 none for "late" yet, and for "rows" always of some rows."""
    rng = np.random.default_rng(1)

    def like(node):
        if isinstance(node, dict):
            return {key: like(value) for key, value in node.items()}
        if isinstance(node, list):
            return [like(value) for value in node]
        real = rng.normal(size=node.shape)
        if node.dtype.kind == "c":
            return real + 1j * rng.normal(size=node.shape)
        return real.astype(node.dtype.newbyteorder("="))

    for k in range(steps):
        rows = rng.permutation(600)[:5], rng.normal(size=(5, 8)).astype(np.float32)
        yield like(params) | {"rows": rows} | ({"late": None} if k < 2 else {})


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_state(one, other, but=()):
    assert one.keys() - set(but) == other.keys() - set(but)
    for key in one.keys() - set(but):
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert one[key].dtype == other[key].dtype, key


# Averaged weights


@pytest.mark.parametrize("decay", [0.9, lambda n: n / (n + 3)], ids=["number", "schedule"])
def test_the_average_follows_its_recursion(decay):
    params = tree()
    optimizer = NAdam(lr=0.01, ema_decay=decay)
    grads = list(gradients(params, 5))
    expected = {}
    touched = np.zeros(600, dtype=bool)
    for n, g in enumerate(grads):
        before = copy.deepcopy(params)
        optimizer.update(params, g)
        part = 1 - (decay(n) if callable(decay) else decay)
        touched[g["rows"][0]] = True
        for k, (w, was) in enumerate(zip(leaves(params), leaves(before), strict=True)):
            w, was = (a.astype(complex if a.dtype.kind == "c" else float) for a in (w, was))
            if w.shape == (600, 8):  # only what was touched is renewed, from the array at its first step
                rows = g["rows"][0]
                average = expected.setdefault(k, was.copy())
                average[rows] += (part if n else 1.0) * (w - average)[rows]
            elif k in expected:
                expected[k] = expected[k] + part * (w - expected[k])
            elif (w != was).any():
                expected[k] = w
    own = copy.deepcopy(params)
    with optimizer.averaged(params):
        for k, (w, mine) in enumerate(zip(leaves(params), leaves(own), strict=True)):
            eps = np.finfo(w.dtype).eps
            np.testing.assert_allclose(w, expected[k], rtol=8 * eps, atol=8 * eps)
            if w.shape != (600, 8):
                assert (w != mine).any()
    assert_same(params, own)
    assert not touched.all()
    state = optimizer.state_dict()
    assert state["half/average"].dtype == np.float32
    assert state["swapped/average"].dtype == np.dtype("=f4")


def test_an_array_without_a_step_stays_as_it_is_and_a_part_of_the_dict_will_do():
    params = tree()
    optimizer = SGD(lr=0.1, ema_decay=0.5, compensated=True)
    with optimizer.averaged(params):  # there is nothing yet
        assert_same(params, tree())
    optimizer.update(params, next(gradients(params, 1)))
    optimizer.update(params, next(gradients(params, 1)))
    own = copy.deepcopy(params)
    with optimizer.averaged({"layers": params["layers"]}):
        assert (params["layers"][0]["W"] != own["layers"][0]["W"]).any()
        np.testing.assert_array_equal(params["F"], own["F"])
    with optimizer.averaged(params):
        np.testing.assert_array_equal(params["late"], own["late"])
    assert_same(params, own)
    loaded = SGD(lr=0.1, ema_decay=0.5, compensated=True)
    loaded.load_state_dict(optimizer.state_dict())
    with loaded.averaged({"layers": params["layers"]}):
        assert (params["layers"][0]["W"] != own["layers"][0]["W"]).any()


def test_the_average_costs_no_launch_of_its_own(monkeypatch):
    launches, moving = [], Launch.moving

    def noted(launch, *call):
        launches.append(launch)
        return moving(launch, *call)

    monkeypatch.setattr(Launch, "moving", noted)
    params = {"a": np.ones(3), "b": np.ones((2, 2))}
    NAdam(ema_decay=0.9).update(params, {"a": np.ones(3), "b": np.ones((2, 2))})
    assert len(launches) == 1


ONES = {"a": np.ones(3), "b": np.ones(2, np.float16)}


def averaging():
    params = {"a": np.ones(3), "b": np.ones(2, np.float16)}
    optimizer = NAdam(lr=0.1, ema_decay=0.9)
    for _ in range(3):
        optimizer.update(params, ONES)
    return params, optimizer


def test_the_weights_come_back_if_they_could_not_all_be_put_in():
    params, optimizer = averaging()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state | {"b/average": np.full(2, 1e6, np.float32)})  # more than float16 holds
    own = copy.deepcopy(params)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError), optimizer.averaged(params):
        pass
    assert_same(params, own)
    optimizer.update(params, ONES)


def test_an_update_of_averaged_weights_and_a_block_in_a_block_are_refused():
    params, optimizer = averaging()
    state = optimizer.state_dict()
    with optimizer.averaged(params):
        inside = copy.deepcopy(params)
        with pytest.raises(
            RuntimeError, match=r"inside `with optimizer.averaged\(params\)`.*Take it outside"
        ):
            optimizer.update(params, ONES)
        with (
            pytest.raises(RuntimeError, match="are in place already"),
            optimizer.averaged(params),
        ):
            pass
        assert_same(params, inside)
        twin = pickle.loads(pickle.dumps(optimizer))
    assert_same_state(optimizer.state_dict(), state)
    twin.update(params, {"a": np.ones(3), "b": np.ones(2)})  # a copy is outside of the block


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda p, o: (setattr(o, "ema_decay", None), p)[1],
            ValueError,
            r"Try NAdam\(..., ema_decay=0.999\)",
        ),
        (lambda p, o: {"c": p["a"]}, KeyError, r"params\['c'\] has no average: update has seen 'a', 'b'"),
        (lambda p, o: {"a": np.ones(4)}, ValueError, r"params\['a'\] has shape \(4,\), but its state \(3,\)"),
        (lambda p, o: {"a": [1.0] * 3}, KeyError, r"params\['a'\]\[0\] has no average"),
        (lambda p, o: {"a": 1.0}, TypeError, r"params\['a'\] is of type float"),
        (lambda p, o: {}, ValueError, "params has no arrays"),
    ],
)
def test_what_has_no_average_is_refused(change, error, words):
    params, optimizer = averaging()
    given = change(params, optimizer)
    with pytest.raises(error, match=words), optimizer.averaged(given):
        pass
    optimizer.update(params, ONES)


# Clipping and skipping


WHERE = {"strided": ("layers", 1), "complex": ("complex",)}


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", WHERE)
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(where, bad):
    params, steady = tree(), tree()
    grads = list(gradients(params, 3))
    options = dict(ema_decay=0.9, rounding="stochastic", state_dtype="int8")
    options |= dict(lr=lambda n: 0.1 / (1 + n), skip_nonfinite=True)
    optimizer, twin = NAdam(**options), NAdam(**options)
    path = WHERE[where]
    for k, g in enumerate(grads):
        poisoned = copy.deepcopy(g)
        at = poisoned
        for key in path[:-1]:
            at = at[key]
        at[path[-1]].flat[-1] = bad * 1j if where == "complex" else bad
        state, kept_params = optimizer.state_dict(), copy.deepcopy(params)
        with np.errstate(invalid="ignore"):
            optimizer.update(params, poisoned)
        assert (optimizer.skipped, optimizer.finished) == (k + 1, k)
        assert not math.isfinite(optimizer.gradient_norm)
        assert_same(params, kept_params)
        assert_same_state(optimizer.state_dict(), state, but=["skipped"])
        optimizer.update(params, g)
        twin.update(steady, g)
    assert_same(params, steady)
    assert twin.skipped == 0


# How numbers are kept


WAYS = {
    "stochastic": (np.float16, dict(rounding="stochastic", seed=7)),
    "compensated": (np.float16, dict(compensated=True)),
    "int8": (np.float32, dict(state_dtype="int8", seed=-3)),
    "int8 of float64": (np.float64, dict(state_dtype="int8")),
    "bfloat16": (np.float32, dict(state_dtype="bfloat16", seed=2**70)),
    "float64": (np.float32, dict(state_dtype="float64")),
    "averaged": (np.float32, dict(ema_decay=0.9)),
    "clipped": (np.float64, dict(max_norm=0.5, skip_nonfinite=True)),
    "all": (
        np.float16,
        dict(
            rounding="stochastic",
            state_dtype="int8",
            ema_decay=0.9,
            max_norm=0.5,
            skip_nonfinite=True,
            seed=1,
        ),
    ),
}
LAYOUTS = {f.__name__: f for f in (np.asfortranarray, strided, backwards, misaligned, other_byte_order)}


@pytest.mark.parametrize(
    ("way", "layout"),
    [  # a draw, and a sum, go by the order in memory, unless blocks need that of rows
        (way, layout)
        for way in WAYS
        for layout in LAYOUTS
        if layout != "asfortranarray" or way not in ("stochastic", "bfloat16", "clipped")
    ],
)
def test_arrays_of_any_layout_get_the_same_answer(way, layout):
    dtype, options = WAYS[way]
    rng = np.random.default_rng(4)
    start = rng.normal(size=(80, 60)).astype(dtype)
    plain, laid = {"w": start.copy()}, {"w": LAYOUTS[layout](start)}
    one, other = NAdam(lr=0.01, **options), NAdam(lr=0.01, **options)
    for k, g in enumerate(rng.normal(size=(4, 80, 60)).astype(dtype)):
        one.update(plain, {"w": g})
        other.update(laid, {"w": LAYOUTS[layout](g) if k % 2 else g})
        np.testing.assert_array_equal(laid["w"], plain["w"])
    assert_same_state(other.state_dict(), one.state_dict())


@pytest.mark.parametrize(
    "options", [dict(ema_decay=0.9, compensated=True), dict(rounding="stochastic")], ids=str
)
@pytest.mark.parametrize("layout", [np.asfortranarray, strided])
def test_rows_of_an_array_of_any_layout_get_the_same_answer(layout, options):
    rng = np.random.default_rng(8)
    start = rng.normal(size=(9, 4)).astype(np.float16)
    plain, laid = {"e": start.copy()}, {"e": layout(start)}
    one, other = SGD(lr=1e-3, **options), SGD(lr=1e-3, **options)
    for _ in range(4):
        g = {"e": (rng.permutation(9)[:3], rng.normal(size=(3, 4)).astype(np.float16))}
        one.update(plain, g)
        other.update(laid, g)
    np.testing.assert_array_equal(laid["e"], plain["e"])
    assert_same_state(other.state_dict(), one.state_dict())
    assert (plain["e"] != start).any()


@pytest.mark.parametrize(
    ("way", "name", "more"),
    [
        *((way, "NAdam", {}) for way in WAYS),
        ("stochastic", "SGD", dict(momentum=0.9, weight_decay=0.1)),
        ("int8", "Rprop", {}),
        ("int8", "Adagrad", dict(initial_accumulator_value=0.3)),
        ("bfloat16", "Adagrad", dict(initial_accumulator_value=0.3)),
        ("all", "Adam", dict(amsgrad=True, maximize=True)),
        ("averaged", "SGD", {}),
    ],
    ids=str,
)
def test_both_fronts_agree_to_the_bit(way, name, more):
    dtype, options = WAYS[way]
    options = dict(lr=0.01, **more, **options)
    rng = np.random.default_rng(5)
    start = [rng.normal(size=shape).astype(dtype) for shape in ((70, 80), (5,), (4500,))]
    params = {str(k): w.copy() for k, w in enumerate(start)}
    theirs = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    ours = getattr(schuss.numpy, name)(**options)
    other = getattr(schuss.torch, name)(theirs, **options)
    for step in range(4):
        gs = [rng.normal(size=w.shape).astype(dtype) for w in start]
        if step == 2 and "skip_nonfinite" in options:
            gs[1][3] = np.nan
        ours.update(params, {str(k): g for k, g in enumerate(gs)})
        for w, g in zip(theirs, gs, strict=True):
            w.grad = torch.from_numpy(g)
        other.step()
    assert ours.skipped == other.skipped == ("skip_nonfinite" in options)
    state, names = ours.state_dict(), TABLE[name].names
    for k, w in enumerate(theirs):
        np.testing.assert_array_equal(params[str(k)], w.detach().numpy())
        for key, tensor in other.state[w].items():
            mine = {value: slot for slot, value in names.items()}.get(key, key)
            if key.endswith("_scale"):
                mine = {f"{value}_scale": f"{slot}_scale" for slot, value in names.items()}[key]
            bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(state[f"{k}/{mine}"], bits.numpy(), err_msg=key)


# Conversions


def test_levels_are_those_of_the_pytorch_path():
    rng = np.random.default_rng(6)
    for size in (0, 1, 127, 128, 1000):
        value = (
            rng.choice([-1, 1], size) * 10 ** rng.uniform(-12, 6, size) * (rng.random(size) > 0.1)
        ).astype(np.float32)
        codes, scales = narrow.to_levels(value)
        their_codes, their_scales = eager.to_levels(torch.from_numpy(value))
        np.testing.assert_array_equal(codes, their_codes.numpy())
        np.testing.assert_array_equal(scales, their_scales.numpy())
        for block in (BLOCK, 50):
            scales = rng.random(-(-size // block)).astype(np.float32)
            back = eager.from_levels(their_codes, torch.from_numpy(scales), block)
            np.testing.assert_array_equal(narrow.from_levels(codes, scales, block), back.numpy())


def test_bfloat16_bits_are_those_of_pytorch():
    bits = np.random.default_rng(7).integers(0, 2**32, 100_000, dtype=np.uint32)
    special = [0.0, -0.0, 1e-45, np.inf, -np.inf, np.nan, 3.4e38, 1.00390625, 1.01171875]
    value = np.concatenate([bits.view(np.float32), np.array(special, np.float32)])
    slots = {"m": value.copy()}
    storage.convert(slots, "m", "bfloat16")
    theirs = torch.from_numpy(value).bfloat16()
    numbers = ~np.isnan(value)
    np.testing.assert_array_equal(slots["m"][numbers], theirs.view(torch.uint16).numpy()[numbers])
    storage.convert(slots, "m", "float32")
    np.testing.assert_array_equal(slots["m"], theirs.float().numpy())


# Checkpoints


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "NAdam",
            dict(
                state_dtype="int8",
                rounding="stochastic",
                ema_decay=0.9,
                max_norm=0.5,
                skip_nonfinite=True,
            ),
        ),
        ("SGD", dict(ema_decay=0.9, compensated=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_save_load_continue_equals_uninterrupted(name, options, tmp_path):
    make, options = getattr(schuss.numpy, name), dict(lr=0.01, **options)
    straight, interrupted = make(**options), make(**options)
    ours, theirs = tree(), tree()
    grads = list(gradients(ours, 6))
    if "skip_nonfinite" in options:
        grads[1]["F"][3, 3] = np.nan
    grads[4]["rows"] = np.ones((600, 8), np.float32)  # for once all of them
    for k, g in enumerate(grads):
        straight.update(ours, g)
        if k in (2, 5):
            interrupted.save(tmp_path / "state.npz")
            interrupted = make(**options)
            interrupted.load(tmp_path / "state.npz")
        interrupted.update(theirs, g)
    assert_same(ours, theirs)
    assert_same_state(straight.state_dict(), interrupted.state_dict())
    assert straight.skipped == interrupted.skipped == ("skip_nonfinite" in options)
    if "ema_decay" in options:
        with straight.averaged(ours), interrupted.averaged(theirs):
            assert_same(ours, theirs)


def in_blocks():
    optimizer = NAdam(lr=0.1, state_dtype="int8")
    optimizer.update({"w": np.ones(4200)}, {"w": np.linspace(-1, 1, 4200)})
    return optimizer.state_dict()


def test_a_checkpoint_with_blocks_of_another_size_is_read():
    state = in_blocks()
    one = NAdam(lr=0.1, state_dtype="int8")
    halves = {f"w/{s}_scale": np.repeat(state[f"w/{s}_scale"], 2)[: -(-4200 // 64)] for s in "mv"}
    one.load_state_dict(state | halves | {"block_size": np.array(64)})
    found = one.state_dict()
    assert (found["block_size"], found["w/m_scale"].shape) == (BLOCK, (-(-4200 // BLOCK),))
    for s in "mv":
        was, now = (narrow.from_levels(each[f"w/{s}"], each[f"w/{s}_scale"]) for each in (state, found))
        np.testing.assert_allclose(now, was, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"w/m_scale": None},
            r"'w/m' has 4200 int8 codes in blocks of 128, which need 33 scales.*; there are none",
        ),
        ({"w/m_scale": np.ones(32, np.float32)}, r"there is float32 of shape \(32,\). Was it cut short"),
        ({"w/m_scale": np.ones(33)}, r"there is float64 of shape \(33,\)"),
        ({"block_size": np.array(64)}, "in blocks of 64, which need 66 scales"),
        ({"block_size": np.array(-1)}, "'block_size'=-1 is not a count"),
        ({"skipped": np.array(1.5)}, "'skipped'=1.5 is not a count"),
        ({"w/average": np.ones(4200, np.int8)}, "'w/average'='int8' is not of a dtype"),
        ({"w/average": np.ones(4199)}, r"shape \(4199,\)"),
        ({"w/rest": np.ones(4200)}, "'w/rest'='float64' is not of a dtype"),
        (
            {"w/q_scale": np.ones(33)},
            "has 'w/q_scale', which NAdam does not store: it stores m, product, step, v",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, words):
    state = {key: value for key, value in (in_blocks() | change).items() if value is not None}
    optimizer = NAdam(lr=0.1, state_dtype="int8")
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    assert set(optimizer.state_dict()) == {"optimizer", "finished", "block_size"}


# Options


def test_options_are_attributes_and_take_numpys_own_words():
    optimizer = Adam(
        state_dtype=np.float32, max_norm=np.float32(2.0), seed=np.int64(4), skip_nonfinite=np.True_
    )
    assert (optimizer.state_dtype, optimizer.max_norm, optimizer.seed) == ("float32", 2.0, 4)
    assert optimizer.skip_nonfinite is True
    optimizer.state_dtype = np.dtype("float64")
    assert optimizer.state_dtype == "float64"
    for name in ("skipped", "gradient_norm", "finished"):
        with pytest.raises(AttributeError, match=name):
            setattr(optimizer, name, 1)
