"""Every page on dicts of arrays means what its float64 reference means, however the arrays lie."""

import copy
import inspect
import pickle
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schuss.numpy
from schuss.compile import cpu
from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.core.arguments import own_names
from schuss.core.options import OPTIONS as OPTIONS_OF_ALL
from schuss.numpy import SGD, Adagrad, Adam, AdamW, Lion, NAdam
from schuss.rules import TABLE

# One at a time beside the defaults: what changes a formula, a state or a convention.
OPTIONS = [
    ("weight_decay", 0.1),
    ("momentum", 0.9),
    ("amsgrad", True),
    ("centered", True),
    ("decoupled_weight_decay", True),
    ("eps_position", "inside"),
    ("eps_position", "uncorrected"),
    ("initial_accumulator_value", 0.1),
    ("t0", 2.0),
    ("lr_decay", 0.1),
    ("etas", (0.4, 1.3)),
    ("betas", (0.8, 0.95)),
    ("betas", (0.8, 0.95, 0.9)),
    ("eps_position", "once"),
    ("clip", False),
    ("no_prox", True),
    ("alpha_warmup", 5.0),
    ("beta3_warmup", 5.0),
    ("maximize", True),
]


def cases():
    for name, row in TABLE.items():
        if formula(row.rule).of_matrices:
            continue
        own = {f.name: f.metadata["domain"] for f in fields(row.rule)} | {"maximize": None}
        yield name, {"lr": 0.05}
        for option, value in OPTIONS:
            domain = own.get(option)
            if option in ("etas", "betas"):
                known = len(row.rule.tuples.get(option, ())) == len(value)
            else:
                known = option in own and (
                    option != "eps_position" or value in getattr(domain, "choices", ())
                )
            if known:
                yield name, {"lr": 0.05, option: value}
    yield "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    yield "SGD", {"lr": 0.05, "momentum": 0.9, "lr_inside_velocity": True}
    yield "SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}
    yield "RMSprop", {"lr": 0.05, "momentum": 0.9, "centered": True}


def make(name, options):
    return getattr(schuss.numpy, name)(**options)


def reference(optimizer, weights):
    """The float64 meaning of an optimizer's page with its hyperparameters."""
    chosen = {}
    for name in inspect.signature(type(optimizer)).parameters:
        value = getattr(optimizer, name)
        if name not in ("maximize", *OPTIONS_OF_ALL):
            chosen[name] = value
    return Reference(optimizer.row.rule(**own_names(optimizer.row, chosen)), weights)


def gradients(rng, shape, steps=6):
    """Gradients over many sizes, with exact zeros."""
    for _ in range(steps):
        g = rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3, size=shape)
        yield np.where(rng.random(shape) < 0.1, 0.0, g)


@pytest.mark.parametrize(("name", "options"), list(cases()), ids=str)
def test_every_page_and_variant_equals_the_float64_reference(name, options):
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(7, 5)), "b": rng.normal(size=5)}
    optimizer = make(name, options)
    sign = -1 if optimizer.maximize else 1
    expected = {key: reference(optimizer, weights) for key, weights in params.items()}
    for W, b in zip(gradients(rng, (7, 5)), gradients(rng, 5), strict=True):
        kept = W.copy(), b.copy()
        optimizer.update(params, {"W": W, "b": b})
        np.testing.assert_array_equal(W, kept[0])
        np.testing.assert_array_equal(b, kept[1])
        for key, g in (("W", W), ("b", b)):
            np.testing.assert_allclose(params[key], expected[key].step(sign * g), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", TABLE)
def test_the_constructor_takes_the_arguments_of_torch_by_name_and_the_pages_own(name):
    optimizer_class = getattr(schuss.numpy, name)
    known = inspect.signature(optimizer_class).parameters
    own = {f.name for f in fields(TABLE[name].rule)}
    tuples = TABLE[name].rule.tuples
    together = {part for parts in tuples.values() for part in parts}
    assert set(known) - set(tuples) == (own - together) | {"maximize", *OPTIONS_OF_ALL}
    defaults = optimizer_class()
    for argument, parameter in known.items():
        assert getattr(defaults, argument) == parameter.default
    assert optimizer_class(0.25).lr == 0.25


# Layouts: the same numbers in other memory


def strided(a):
    room = np.full([2 * n for n in a.shape], np.nan, a.dtype)
    view = room[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def backwards(a):
    return np.ascontiguousarray(a[::-1])[::-1]


def misaligned(a):
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def other_byte_order(a):
    return a.astype(a.dtype.newbyteorder())


def permuted(a):
    return np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2)


LAYOUTS = {
    f.__name__: f
    for f in (
        np.ascontiguousarray,
        np.asfortranarray,
        permuted,
        strided,
        backwards,
        misaligned,
        other_byte_order,
    )
}


@pytest.mark.parametrize("shape", [(3, 4, 2), (40, 30, 20)], ids=["small", "large"])
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_weight", LAYOUTS)
def test_arrays_of_any_layout_get_the_same_answer(of_weight, of_gradient, shape):
    rng = np.random.default_rng(1)
    start, gs = rng.normal(size=shape), list(rng.normal(size=(3, *shape)))
    plain, laid = {"w": start.copy()}, {"w": LAYOUTS[of_weight](start)}
    one, other = Adam(lr=0.1), Adam(lr=0.1)
    before = laid["w"].strides
    for g in gs:
        one.update(plain, {"w": g})
        other.update(laid, {"w": LAYOUTS[of_gradient](g)})
    np.testing.assert_array_equal(laid["w"], plain["w"])
    assert laid["w"].strides == before


def test_memory_between_the_elements_of_a_view_is_not_touched():
    room = np.arange(40.0).reshape(8, 5)
    view, kept = room[::2, 1:4], room.copy()
    SGD(lr=1.0).update({"w": view}, {"w": np.ones((4, 3))})
    kept[::2, 1:4] -= 1
    np.testing.assert_array_equal(room, kept)


def test_layouts_of_weight_and_gradient_may_change_between_updates():
    rng = np.random.default_rng(2)
    start, gs = rng.normal(size=(90, 80)), rng.normal(size=(6, 90, 80))
    plain, changing = {"w": start.copy()}, {"w": start.copy()}
    one, other = Adam(lr=0.1), Adam(lr=0.1)
    layouts = [np.ascontiguousarray, np.asfortranarray, strided]
    for k, g in enumerate(gs):
        changing["w"] = layouts[k % 3](changing["w"])
        one.update(plain, {"w": g})
        other.update(changing, {"w": layouts[k // 2](g)})
    np.testing.assert_array_equal(changing["w"], plain["w"])


def test_a_gradient_may_be_the_weights_own_memory():
    for shape in [(10,), (300, 30)]:
        params = {"w": np.ones(shape), "v": np.full(shape, 2.0)}
        SGD(lr=0.5).update(params, {"w": params["v"], "v": params["w"]})
        np.testing.assert_array_equal(params["w"], np.zeros(shape))
        np.testing.assert_array_equal(params["v"], np.full(shape, 1.5))


@pytest.mark.parametrize("of_gradient", ["float16", "float32", "float64"])
@pytest.mark.parametrize("of_weight", ["float16", "float32", "float64"])
def test_real_dtypes_mix(of_weight, of_gradient):
    rng = np.random.default_rng(3)
    start = rng.normal(size=50).astype(of_weight)
    params, optimizer = {"w": start.copy()}, Adam(lr=0.01)
    expected = reference(optimizer, start)
    for g in rng.normal(size=(5, 50)).astype(of_gradient):
        optimizer.update(params, {"w": g})
        expected.step(g)
    assert params["w"].dtype == of_weight
    # Five roundings to the dtype of the weights; of float16, eps is 1e-3.
    tolerance = 8 * np.finfo(of_weight).eps
    np.testing.assert_allclose(params["w"].astype(float), expected.w, rtol=tolerance, atol=tolerance)
    state = optimizer.state_dict()
    assert state["w/m"].dtype == ("float32" if of_weight == "float16" else of_weight)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_complex_weight_moves_as_pairs_of_real_ones(dtype):
    rng = np.random.default_rng(4)
    real = np.dtype(dtype).type(0).real.dtype
    pairs = rng.normal(size=(3, 20, 2)).astype(real)
    for make_one in (lambda: Adam(lr=0.1), lambda: Adagrad(initial_accumulator_value=0.1)):
        one, other = {"w": pairs[0].copy().view(dtype)[:, 0]}, {"w": pairs[0].copy()}
        complex_one, real_one = make_one(), make_one()
        for g in pairs[1:]:
            complex_one.update(one, {"w": g.copy().view(dtype)[:, 0]})
            real_one.update(other, {"w": g})
        np.testing.assert_array_equal(one["w"], other["w"].view(dtype)[:, 0])


def test_0d_and_empty_arrays_and_scalar_gradients():
    params = {"none": np.zeros((0, 3)), "one": np.array(1.0), "two": np.ones(2), "last": np.zeros(0)}
    optimizer = SGD(lr=0.5)
    grads = {"none": np.zeros((0, 3)), "one": np.float64(2.0), "two": np.ones(2), "last": np.zeros(0)}
    optimizer.update(params, grads)
    assert params["one"] == 0.0
    np.testing.assert_array_equal(params["two"], [0.5, 0.5])
    optimizer.update(params, grads | {"one": 1.0})
    assert params["one"] == -0.5
    optimizer.update(params, grads | {"one": np.array(1.0)})
    assert params["one"] == -1.0


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    views=st.lists(
        st.sampled_from([np.ascontiguousarray, np.asfortranarray, strided, backwards]), min_size=6
    ),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_any_mixture_of_arrays_moves_as_each_alone(shapes, views, seed):
    rng = np.random.default_rng(seed)
    together, alone, optimizer = [], [], AdamW(lr=0.1)
    for shape, view in zip(shapes, views, strict=False):
        w = rng.normal(size=shape)
        together.append(view(w) if w.ndim else w)
        alone.append((AdamW(lr=0.1), w.copy()))
    for _ in range(2):
        gs = [rng.normal(size=w.shape) for w in together]
        optimizer.update(together, gs)
        for (one, w), g in zip(alone, gs, strict=True):
            one.update({"w": w}, {"w": np.asarray(g)})
    for w, (_, expected) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(w, expected)


# Structure


def test_dicts_lists_and_tuples_go_to_any_depth():
    flat = {"a": np.ones(2), "b": np.ones(3), "c": np.ones(4), "d": np.ones(5)}
    nested = {"x": [flat["a"].copy(), (flat["b"].copy(), {"y": flat["c"].copy()})], "z": flat["d"].copy()}
    one, other = Adam(lr=0.1), Adam(lr=0.1)
    for _ in range(2):
        one.update(flat, {key: np.full_like(w, 3) for key, w in flat.items()})
        other.update(
            nested,
            {"z": np.full(5, 3.0), "x": ([np.full(2, 3.0), [np.full(3, 3.0), {"y": np.full(4, 3.0)}]])},
        )
    np.testing.assert_array_equal(nested["x"][0], flat["a"])
    np.testing.assert_array_equal(nested["x"][1][0], flat["b"])
    np.testing.assert_array_equal(nested["x"][1][1]["y"], flat["c"])
    np.testing.assert_array_equal(nested["z"], flat["d"])
    assert {"x/0/step", "x/1/1/y/m", "z/v"} <= set(other.state_dict())


def test_a_key_whose_first_gradient_comes_late_starts_its_own_count():
    params = {"a": np.zeros(3), "b": np.zeros(3)}
    optimizer = NAdam(lr=0.1)
    g = np.array([1.0, -2.0, 3.0])
    for _ in range(4):
        optimizer.update(params, {"a": g, "b": None})
    np.testing.assert_array_equal(params["b"], 0)
    early = {"b": np.zeros(3)}
    NAdam(lr=0.1).update(early, {"b": g})
    optimizer.update(params, {"a": g, "b": g})
    np.testing.assert_array_equal(params["b"], early["b"])
    state = optimizer.state_dict()
    assert (state["a/step"], state["b/step"], state["finished"]) == (5, 1, 5)


def test_none_for_a_whole_branch_leaves_it_alone():
    params = {"frozen": {"W": np.ones(2), "name": "pretrained", "counts": np.arange(3)}, "head": np.ones(2)}
    SGD(lr=1.0).update(params, {"frozen": None, "head": np.ones(2)})
    np.testing.assert_array_equal(params["frozen"]["W"], 1)
    np.testing.assert_array_equal(params["head"], 0)


def test_new_arrays_under_the_same_keys_go_on_with_their_state():
    one, other = {"w": np.zeros(4)}, {"w": np.zeros(4)}
    steady, replaced = Lion(lr=0.1), Lion(lr=0.1)
    for k in range(4):
        g = np.array([1.0, -1.0, k - 2.0, 0.5])
        steady.update(one, {"w": g})
        other = {"w": other["w"].copy()}
        replaced.update(other, {"w": g.copy()})
    np.testing.assert_array_equal(one["w"], other["w"])


# Hyperparameters


def test_hyperparameters_can_be_reassigned_and_nothing_recompiles():
    params, optimizer = {"w": np.zeros(2)}, SGD(lr=1.0)
    optimizer.update(params, {"w": np.ones(2)})
    kernels = dict(cpu._kernels)
    optimizer.lr = 0.5
    optimizer.update(params, {"w": np.ones(2)})
    optimizer.maximize = True
    optimizer.lr = np.float32(0.25)
    optimizer.update(params, {"w": np.ones(2)})
    np.testing.assert_array_equal(params["w"], -1.25)
    assert cpu._kernels == kernels
    optimizer.momentum = 0.5  # has state, so this one may compile
    optimizer.maximize = False
    optimizer.update(params, {"w": np.ones(2)})
    optimizer.update(params, {"w": np.ones(2)})
    np.testing.assert_array_equal(params["w"], -1.25 - 0.25 - 0.375)


def test_any_hyperparameter_may_be_a_schedule():
    params = {"w": np.zeros(1)}
    optimizer = SGD(lr=lambda n: 1.0 / (1 + n), weight_decay=lambda n: 0.0)
    expected = 0.0
    for n in range(4):
        assert optimizer.finished == n
        assert optimizer.lr == 1 / (1 + n)
        optimizer.update(params, {"w": np.ones(1)})
        expected -= 1 / (1 + n)
    assert params["w"] == pytest.approx(expected, rel=1e-15)
    pair = Adam(betas=(lambda n: 0.5 + 0.1 * n, 0.99))
    pair.update(params, {"w": np.ones(1)})
    assert pair.betas == (0.6, 0.99)


def test_hyperparameters_are_checked_together_with_schedules_as_they_stand():
    optimizer = SGD(momentum=lambda n: 0.9 * n)
    with pytest.raises(ValueError, match="nesterov"):
        optimizer.nesterov = True
    optimizer.update({"w": np.ones(2)}, {"w": np.ones(2)})
    optimizer.nesterov = True


def test_a_schedule_that_leaves_its_domain_changes_nothing():
    params = {"w": np.ones(2)}
    optimizer = Adam(lr=lambda n: 0.1 - 0.1 * n - 0.05 * (n > 0))
    optimizer.update(params, {"w": np.ones(2)})
    before, state = params["w"].copy(), optimizer.state_dict()
    with pytest.raises(ValueError, match=r"lr=-0.05 is not a finite number ≥ 0"):
        optimizer.update(params, {"w": np.ones(2)})
    np.testing.assert_array_equal(params["w"], before)
    after = optimizer.state_dict()
    assert all(np.array_equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on_by_itself(copied):
    params, optimizer = {"w": np.zeros(3)}, Adam(lr=0.1)
    g = {"w": np.array([1.0, 2.0, -3.0])}
    optimizer.update(params, g)
    twin, twin_params = copied(optimizer), copy.deepcopy(params)
    twin.lr = 0.01
    assert (optimizer.lr, twin.lr) == (0.1, 0.01)
    for _ in range(2):
        optimizer.update(params, g)
    twin.lr = 0.1
    for _ in range(2):
        twin.update(twin_params, g)
    np.testing.assert_array_equal(params["w"], twin_params["w"])
    assert twin.finished == 3
    assert repr(twin) == repr(optimizer)
    assert repr(SGD(lr=0.5)).startswith("SGD(lr=0.5, momentum=0.0")
