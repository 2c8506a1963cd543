"""State goes to a file and back, and going on from it equals never having stopped."""

import copy
from pathlib import Path

import numpy as np
import pytest

import schuss.numpy
from schuss.compile.formula import formula
from schuss.numpy import SGD, Adam, Lion, NAdam, RMSprop
from schuss.rules import TABLE


def trees():
    rng = np.random.default_rng(0)
    params = {
        "layers": [
            {"W": rng.normal(size=(4, 3)), "b": rng.normal(size=3)},
            np.asfortranarray(rng.normal(size=(3, 2))),
        ],
        "a/b %": rng.normal(size=2).astype(np.float32),
        "half": rng.normal(size=2).astype(np.float16),
        "late": rng.normal(size=2),
    }
    return params, [gradient_tree(params, rng, late=k > 3) for k in range(6)]


def gradient_tree(params, rng, late):
    def like(node):
        if isinstance(node, dict):
            return {key: like(value) for key, value in node.items()}
        return [like(value) for value in node] if isinstance(node, list) else rng.normal(size=node.shape)

    return like(params) | ({} if late else {"late": None})


def leaves(node):
    if isinstance(node, dict | list):
        return [leaf for one in (node.values() if isinstance(node, dict) else node) for leaf in leaves(one)]
    return [node]


def assert_same(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert one[key].dtype == other[key].dtype, key


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if not formula(row.rule).of_matrices])
def test_save_load_continue_equals_uninterrupted(name, tmp_path):
    params, grads = trees()
    make = getattr(schuss.numpy, name)
    straight, interrupted = make(lr=lambda n: 0.1 / (1 + n)), make(lr=lambda n: 0.1 / (1 + n))
    ours, theirs = copy.deepcopy(params), copy.deepcopy(params)
    for k, g in enumerate(grads):
        straight.update(ours, g)
        if k == 3:
            interrupted.save(tmp_path / "state.npz")
            interrupted = make(lr=lambda n: 0.1 / (1 + n))
            interrupted.load(tmp_path / "state.npz")
        interrupted.update(theirs, g)
    assert_same(ours, theirs)
    assert_same_state(straight.state_dict(), interrupted.state_dict())
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_numpys_own_savez_and_load_do(tmp_path):
    params, grads = trees()
    one, other = Adam(), Adam()
    one.update(params, grads[0])
    state = one.state_dict()
    np.savez(tmp_path / "state.npz", **state)
    with np.load(tmp_path / "state.npz") as loaded:
        other.load_state_dict(loaded)
    assert_same_state(other.state_dict(), state)
    assert {"optimizer", "finished", "layers/0/W/step", "layers/1/v", "a%2Fb %25/m", "late/step"} <= set(
        state
    )
    assert state["layers/0/W/step"].dtype == np.int64
    assert state["late/step"] == 0


def test_a_state_dict_is_a_copy_both_ways():
    params, optimizer = {"w": np.zeros(2)}, Lion()
    optimizer.update(params, {"w": np.ones(2)})
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.update(params, {"w": np.ones(2)})
    assert_same_state(state, kept)
    optimizer.load_state_dict(state)
    state["w/m"][:] = np.nan
    assert_same_state(optimizer.state_dict(), kept)


def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch):
    params, optimizer = {"w": np.zeros(2)}, Adam()
    optimizer.update(params, {"w": np.ones(2)})
    optimizer.save(tmp_path / "state.npz")
    before = (tmp_path / "state.npz").read_bytes()

    def half(file, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        optimizer.save(tmp_path / "state.npz")
    assert (tmp_path / "state.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_single_array_file_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(2))
    with pytest.raises(ValueError, match=r"one.npy is one array, not an .npz file"):
        Adam().load(tmp_path / "one.npy")


def good():
    optimizer = Adam()
    optimizer.update({"W": np.ones((2, 3)), "b": np.ones(3)}, {"W": np.ones((2, 3)), "b": np.ones(3)})
    return optimizer.state_dict()


def without(*keys):
    return {key: value for key, value in good().items() if key not in keys}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (good() | {"optimizer": np.array("SGD")}, "'optimizer' is SGD, this one is Adam"),
        (without("optimizer"), "'optimizer' is of an unknown kind, this one is Adam"),
        (without("finished"), "has no 'finished'"),
        (without("b/step"), "has no 'b/step'"),
        (without("W/v"), "has no 'W/v'"),
        (good() | {"W/q": np.ones(3)}, "has 'W/q', which Adam does not store: it stores m, p, step, v"),
        (good() | {"extra": np.ones(3)}, "has 'extra', which Adam does not store"),
        (good() | {"W/m": np.ones((3, 2))}, r"'W/(m|v)' has shape \((3, 2|2, 3)\)"),
        (good() | {"W/m": np.ones((2, 3), int)}, "'W/m'=.*int64.* is not of a dtype that state has"),
        (good() | {"W/step": np.array(1.5)}, "'W/step'.*=1.5 is not a count"),
        (good() | {"b/step": np.array(-1)}, "'b/step'.*=-1 is not a count"),
        (without("b/step", "b/m", "b/v"), "The checkpoint has no 'b', but this optimizer has"),
        (
            good() | {"c/step": np.array(0)},
            "this optimizer has no 'c', but the checkpoint has. Load a checkpoint of the same arrays",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key_and_changes_nothing(state, words):
    optimizer = Adam()
    params = {"W": np.zeros((2, 3)), "b": np.zeros(3)}
    optimizer.update(params, {"W": np.ones((2, 3)), "b": np.ones(3)})
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(state)
    assert_same_state(optimizer.state_dict(), before)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"W": np.ones((2, 3))}, "params has no 'b', but the checkpoint has"),
        (
            {"W": np.ones((2, 3)), "b": np.ones(3), "c": np.ones(2)},
            "The checkpoint has no 'c', but params has",
        ),
        (
            {"W": np.ones((3, 3)), "b": np.ones(3)},
            r"params\['W'\] has shape \(3, 3\), but its state \(2, 3\)",
        ),
        (
            {"W": np.ones((2, 3), complex), "b": np.ones(3)},
            r"params\['W'\] is complex128, but its state float64",
        ),
    ],
)
def test_a_state_loaded_before_the_arrays_came_is_compared_with_them_when_they_do(params, words):
    optimizer = Adam()
    optimizer.load_state_dict(good())
    before, kept = copy.deepcopy(params), optimizer.state_dict()
    with pytest.raises(ValueError, match=words):
        optimizer.update(params, {key: np.ones_like(w) for key, w in params.items()})
    assert_same(params, before)
    assert_same_state(optimizer.state_dict(), kept)


def test_state_is_never_cast():
    optimizer = Adam()
    optimizer.load_state_dict(good())
    params = {"W": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float16)}
    optimizer.update(params, {"W": np.ones((2, 3)), "b": np.ones(3)})
    state = optimizer.state_dict()
    assert {state[key].dtype.name for key in ("W/m", "W/v", "b/m", "b/v")} == {"float64"}
    assert state["W/step"] == state["finished"] == 2


def test_a_state_of_other_options_says_which_part_is_missing():
    with pytest.raises(
        ValueError, match=r"no 'W/p'. Build the optimizer with the options of the one that was saved"
    ):
        Adam(amsgrad=True).load_state_dict(good())
    plain, w = RMSprop(), {"w": np.zeros(2)}
    plain.update(w, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="no 'w/b'"):
        RMSprop(momentum=0.9).load_state_dict(plain.state_dict())


def test_an_optimizer_without_state_counts_all_the_same():
    params, optimizer = {"w": np.zeros(2)}, SGD()
    optimizer.update(params, {"w": np.ones(2)})
    assert {k: v.tolist() for k, v in optimizer.state_dict().items()} == {
        "optimizer": "SGD",
        "finished": 1,
        "entries": 1,
        "w/step": 1,
    }


def test_a_checkpoint_from_before_the_first_update_starts_anew():
    optimizer = Adam(lr=0.1)
    start, params = optimizer.state_dict(), {"w": np.zeros(2)}
    optimizer.update(params, {"w": np.array([1.0, -5.0])})
    optimizer.load_state_dict(start)
    optimizer.update(params, {"w": np.array([-1.0, 5.0])})
    np.testing.assert_allclose(params["w"], 0, atol=1e-8)
    with pytest.raises(ValueError, match="The checkpoint has no arrays"):
        optimizer.load_state_dict({"optimizer": np.array("Adam"), "finished": np.array(3)})


def test_an_array_alone_is_a_tree_too(tmp_path):
    w, optimizer = np.zeros(2), Adam(lr=0.1)
    optimizer.update(w, np.ones(2))
    optimizer.save(tmp_path / "state.npz")
    again = Adam(lr=0.1)
    again.load(tmp_path / "state.npz")
    again.update(w, np.ones(2))
    np.testing.assert_allclose(w, -0.2)


def test_an_older_checkpoint_is_read(tmp_path):
    """Saved before a checkpoint said how many entries it has; float16 with what rounding took, and an average."""
    file = Path(__file__).with_name("nadam_0.npz")
    params = {
        "a": np.zeros((2, 3), np.float16),
        "b": [np.zeros(4)],
        "late": np.ones(2),
    }
    optimizer = NAdam(lr=0.1, compensated=True, ema_decay=0.9, state_dtype="bfloat16")
    optimizer.load(file)
    again = optimizer.state_dict()
    assert again.pop("entries") == len([key for key in again if "/" in key])
    with np.load(file) as saved:
        assert_same_state(again, dict(saved))
    optimizer.update(params, {"a": np.ones((2, 3)), "b": [np.ones(4)], "late": np.ones(2)})
    assert [int(optimizer.state_dict()[f"{key}/step"]) for key in ("a", "b/0", "late")] == [4, 4, 1]
