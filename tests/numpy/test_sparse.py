"""Gradients of some rows: these move as if alone, and nothing else does."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schuss.numpy
from schuss.compile.formula import formula
from schuss.compile.launch import Launch
from schuss.numpy import SGD, Adam, AdamW
from schuss.rules import TABLE


def make(name):
    decay = {"ASGD": {"lambd": 0.0}, "AdamW": {"weight_decay": 0.1}}.get(name, {})
    return getattr(schuss.numpy, name)(lr=0.1, **decay)


def dense_twin(name):
    """The same optimizer for a dense gradient: with the conventions that sparse gradients have by default."""
    twin = make(name)
    for key, value in TABLE[name].sparse.items():
        setattr(twin, key, value)
    return twin


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray], ids=["C", "F"])
@pytest.mark.parametrize("name", TABLE)
def test_touched_rows_move_as_if_they_were_the_whole_array(name, layout):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(9, 4))
    rows = np.array([1, 4, 7])
    sparse, dense = {"e": layout(start.copy())}, {"e": start[rows].copy()}
    one, other = make(name), dense_twin(name)
    if formula(TABLE[name].rule).passes:
        with pytest.raises(
            RuntimeError, match=f"{name} measures whole tensors, of which a sparse gradient has only"
        ):
            one.update(sparse, {"e": (rows, rng.normal(size=(3, 4)))})
        np.testing.assert_array_equal(sparse["e"], start)
        return
    for _ in range(4):
        values = rng.normal(size=(3, 4))
        kept = values.copy()
        one.update(sparse, {"e": (rows, values)})
        other.update(dense, {"e": values})
        np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(sparse["e"][rows], dense["e"])
    rest = np.setdiff1d(np.arange(9), rows)
    np.testing.assert_array_equal(sparse["e"][rest], start[rest])
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours["e/step"] == 4
    for key in theirs:
        if theirs[key].ndim == 2:
            np.testing.assert_array_equal(ours[key][rows], theirs[key])
            assert len(np.unique(ours[key][rest])) == 1


@given(
    indices=st.lists(st.integers(0, 5), max_size=12),
    shape=st.sampled_from([(6,), (6, 3), (6, 2, 2), (6, 0)]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_rows_in_any_order_and_repeated_are_summed(indices, shape, seed):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=shape)
    values = rng.integers(-8, 8, size=(len(indices), *shape[1:])).astype(float)  # sums of these are exact
    total = np.zeros(shape)
    np.add.at(total, indices, values)
    sparse, dense = {"e": start.copy()}, {"e": start.copy()}
    SGD(lr=0.5).update(sparse, {"e": (np.array(indices, dtype=np.int32), values)})
    SGD(lr=0.5).update(dense, {"e": total})
    np.testing.assert_array_equal(sparse["e"], dense["e"])


@pytest.mark.parametrize("dtype", ["float16", "float32", "complex64"])
def test_other_dtypes_have_rows_too(dtype):
    start = np.arange(8).reshape(4, 2).astype(dtype)
    params = {"e": start.copy()}
    SGD(lr=0.5).update(params, {"e": (np.array([2, 0, 2]), np.ones((3, 2), dtype))})
    expected = start.copy()
    expected[2] -= 1
    expected[0] -= 0.5
    np.testing.assert_array_equal(params["e"], expected)


def test_dense_and_sparse_gradients_share_their_state():
    rng = np.random.default_rng(1)
    params, optimizer = {"e": rng.normal(size=(5, 2)), "w": np.ones(3)}, AdamW(lr=0.1, weight_decay=0.0)
    whole = copy.deepcopy(params)
    twin = AdamW(lr=0.1, weight_decay=0.0)
    for k in range(4):
        e, w = rng.normal(size=(5, 2)), rng.normal(size=3)
        optimizer.update(params, {"e": (np.arange(5), e) if k % 2 else e, "w": w})
        twin.update(whole, {"e": e, "w": w})
    np.testing.assert_array_equal(params["e"], whole["e"])
    np.testing.assert_array_equal(params["w"], whole["w"])


def test_values_may_be_the_arrays_own_rows():
    params = {"e": np.arange(6.0).reshape(3, 2)}
    SGD(lr=0.5).update(params, {"e": (np.array([1, 2]), params["e"][:2])})
    np.testing.assert_array_equal(params["e"], [[0, 1], [2, 2.5], [3, 3.5]])


def test_the_work_is_that_of_the_touched_rows(monkeypatch):
    params, optimizer = {"e": np.zeros((10_000, 8))}, Adam()
    worked, moving = [], Launch.moving

    def noted(launch, *call):
        worked.append(launch.table.elements)
        return moving(launch, *call)

    monkeypatch.setattr(Launch, "moving", noted)
    optimizer.update(params, {"e": (np.array([3, 9_999]), np.ones((2, 8)))})
    assert worked == [16]


BAD = [
    ((np.array([0, 4]), np.ones((2, 3))), ValueError, r"grads\['e'\] indices=4 is not in \[0, 4\)"),
    (
        (np.array([0, -1]), np.ones((2, 3))),
        ValueError,
        r"indices=-1 is not in \[0, 4\). Rows are counted from the front",
    ),
    (
        (np.array([0.0, 1.0]), np.ones((2, 3))),
        ValueError,
        r"indices='float64 of shape \(2,\)' is not whole numbers",
    ),
    ((np.array([True, False]), np.ones((2, 3))), ValueError, "indices='bool"),
    (
        (np.array([[0], [1]]), np.ones((2, 3))),
        ValueError,
        r"of shape \(2, 1\)' is not whole numbers of shape \(n,\)",
    ),
    (
        (np.array([0]), np.ones((2, 3))),
        ValueError,
        r"values have shape \(2, 3\), but 1 rows .* have \(1, 3\)",
    ),
    ((np.array([0]), np.ones((1, 2))), ValueError, r"values have shape \(1, 2\)"),
    ((np.array([0]), np.ones((1, 3), int)), ValueError, r"grads\['e'\] dtype='int64'"),
    ((np.array([0]), np.ones((1, 3), complex)), ValueError, r"grads\['e'\] is complex128, but params"),
    (
        ([0], np.ones((1, 3))),
        TypeError,
        r"is a tuple of \(list, ndarray\). A sparse gradient is \(indices, values\)",
    ),
    ((np.array([0]),), TypeError, r"is a tuple of \(ndarray\)"),
]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("gradient", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_rows_that_do_not_fit_are_refused_and_nothing_is_changed(gradient, error, words, warm):
    params = {"a": np.ones(3), "e": np.ones((4, 3)), "z": np.ones((4, 3))}
    good = (np.array([1]), np.ones((1, 3)))
    optimizer = Adam(lr=0.1)
    if warm:
        optimizer.update(params, {"a": np.ones(3), "e": good, "z": good})
    kept, state = copy.deepcopy(params), optimizer.state_dict()
    with pytest.raises(error, match=words):
        optimizer.update(params, {"a": np.ones(3), "e": gradient, "z": good})
    for key in params:
        np.testing.assert_array_equal(params[key], kept[key])
    after = optimizer.state_dict()
    assert after.keys() == state.keys()
    assert all(np.array_equal(after[key], state[key]) for key in state)


def test_l2_decay_is_refused_and_decoupled_decay_is_lazy():
    params, gradient = {"e": np.ones((3, 2))}, {"e": (np.array([1]), np.ones((1, 2)))}
    with pytest.raises(RuntimeError, match=r"weight_decay=0.1 \(L2\) is not possible with sparse gradients"):
        (optimizer := Adam(weight_decay=0.1)).update(params, gradient)
    assert set(optimizer.state_dict()) == {"optimizer", "finished"}
    np.testing.assert_array_equal(params["e"], 1)
    SGD(lr=0.5, weight_decay=0.5, decoupled_weight_decay=True).update(params, gradient)
    np.testing.assert_array_equal(params["e"], [[1, 1], [0.25, 0.25], [1, 1]])


def test_a_0d_weight_has_no_rows():
    with pytest.raises(ValueError, match=r"shape \(\) has no rows"):
        SGD().update({"b": np.array(1.0)}, {"b": (np.array([0]), np.ones(1))})
