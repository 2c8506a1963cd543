"""Bad input: an error that says where, what was given and what to try; and nothing is changed."""

import copy

import numpy as np
import pytest

import schuss.numpy
from schuss.numpy import SGD, Adam
from schuss.rules import TABLE
from schuss.schedules import Warmup

ROOM = np.zeros((4, 4))


def read_only(a):
    a.flags.writeable = False
    return a


BAD = [
    # params of key "w" (None for good ones), grads of key "w", error, words
    (None, np.ones((3, 2)), ValueError, r"grads\['w'\] has shape \(3, 2\), but params\['w'\] has \(2, 3\)"),
    (None, np.ones(3), ValueError, r"grads\['w'\] has shape \(3,\)"),
    (None, 1.0, ValueError, r"grads\['w'\] has shape \(\)"),
    (
        None,
        np.ones((2, 3), int),
        ValueError,
        r"grads\['w'\] dtype='int64' is not one of float64, float32, float16",
    ),
    (None, np.ones((2, 3), bool), ValueError, r"grads\['w'\] dtype='bool'"),
    (None, np.ones((2, 3), object), ValueError, r"grads\['w'\] dtype='object'"),
    (None, np.ones((2, 3), complex), ValueError, r"grads\['w'\] is complex128, but params\['w'\] is float64"),
    (None, np.ma.ones((2, 3)), TypeError, r"grads\['w'\] is a masked array"),
    (None, [[1.0] * 3] * 2, TypeError, r"grads\['w'\] is of type list. Give an array, None"),
    (None, "much", TypeError, r"grads\['w'\] is of type str"),
    (None, {"W": np.ones((2, 3))}, TypeError, r"grads\['w'\] is of type dict"),
    (
        np.ones((2, 3), int),
        np.ones((2, 3)),
        ValueError,
        r"params\['w'\] dtype='int64'.*Try params\['w'\].astype",
    ),
    (np.ones((2, 3), np.longdouble), np.ones((2, 3)), ValueError, r"params\['w'\] dtype="),
    (np.ones((2, 3), object), np.ones((2, 3)), ValueError, r"params\['w'\] dtype='object'"),
    (
        read_only(np.ones((2, 3))),
        np.ones((2, 3)),
        ValueError,
        r"params\['w'\] is read-only.*Try params\['w'\].copy",
    ),
    (np.broadcast_to(1.0, (2, 3)), np.ones((2, 3)), ValueError, r"params\['w'\] is read-only"),
    (
        np.float64(1.0),
        np.float64(1.0),
        TypeError,
        r"params\['w'\] is of type float64.*cannot be changed in place",
    ),
    (1.0, 1.0, TypeError, r"params\['w'\] is of type float"),
    (
        np.lib.stride_tricks.as_strided(np.zeros(4), (2, 3), (8, 8)),
        np.ones((2, 3)),
        ValueError,
        r"params\['w'\] has elements that share memory",
    ),
    (np.ma.ones((2, 3)), np.ones((2, 3)), TypeError, r"params\['w'\] is a masked array"),
    (
        {"x": np.ones(2)},
        np.ones(2),
        TypeError,
        r"grads\['w'\] is of type ndarray, but params\['w'\] is a dict with 'x'",
    ),
    (
        {"x": np.ones(2)},
        {"y": np.ones(2)},
        KeyError,
        r"grads\['w'\]\['x'\] is missing: grads has 'y'. Give None",
    ),
    (
        [np.ones(2)] * 2,
        np.ones((2, 2)),
        TypeError,
        r"grads\['w'\] is of type ndarray, but params\['w'\] is a list",
    ),
    (
        [np.ones(2), np.ones(2)],
        [np.ones(2)],
        KeyError,
        r"grads\['w'\]\[1\] is missing: params\['w'\] has 2 entries",
    ),
    ([np.ones(2)], [np.ones(2)] * 3, KeyError, r"params\['w'\]\[1\] is missing"),
    ({(1, 2): np.ones(2)}, {(1, 2): np.ones(2)}, TypeError, "a key that is neither a str nor an int"),
    ({1: np.ones(2), "1": np.ones(2)}, {1: np.ones(2), "1": np.ones(2)}, ValueError, "would both be 'w/1'"),
]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("weight", "gradient", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_what_does_not_fit_is_refused_by_key_and_changes_nothing(weight, gradient, error, words, warm):
    optimizer = Adam(lr=0.1)
    params = {"first": np.ones(5), "w": np.ones((2, 3)), "z": np.ones(2)}
    grads = {key: np.ones_like(w) for key, w in params.items()}
    if warm:
        optimizer.update(params, grads)
    kept, state = copy.deepcopy(params), optimizer.state_dict()
    bad = params if weight is None else params | {"w": weight}
    with pytest.raises(error, match=words):
        optimizer.update(bad, grads | {"w": gradient})
    for key in params:
        np.testing.assert_array_equal(params[key], kept[key])
    after = optimizer.state_dict()
    assert after.keys() == state.keys()
    assert all(np.array_equal(after[key], state[key]) for key in state)
    # and it can go on
    fresh = Adam(lr=0.1)
    fresh.load_state_dict(state)
    fresh.update(kept, grads)
    optimizer.update(params, grads)
    np.testing.assert_array_equal(params["w"], kept["w"])


@pytest.mark.parametrize(
    ("params", "grads", "words"),
    [
        (
            {"a": ROOM, "b": ROOM},
            {"a": ROOM + 1, "b": ROOM + 1},
            r"params\['a'\] and params\['b'\] share memory",
        ),
        (
            {"a": ROOM[:2], "b": [ROOM[1:]]},
            {"a": ROOM[:2], "b": [ROOM[1:]]},
            r"params\['a'\] and params\['b'\]\[0\]",
        ),
        ({"a": ROOM}, {}, r"grads\['a'\] is missing: grads has nothing. Give None"),
        (
            {"a": ROOM},
            {"a": ROOM, "c": ROOM},
            r"params\['c'\] is missing, but has a gradient: params has 'a'",
        ),
        ({}, {}, "params has no arrays. Give a dict of arrays"),
    ],
)
def test_trees_that_do_not_fit_are_refused(params, grads, words):
    with pytest.raises(ValueError, match=words):
        SGD(lr=1.0).update(params, grads)
    assert not ROOM.any()


def test_views_that_interleave_without_sharing_are_moved():
    room = np.zeros((6, 4))
    params = {"left": room[:, :2], "right": room[:, 2:]}
    SGD(lr=1.0).update(params, {"left": np.ones((6, 2)), "right": np.full((6, 2), 2.0)})
    np.testing.assert_array_equal(room, np.tile([-1.0, -1, -2, -2], (6, 1)))


def test_an_array_that_becomes_read_only_is_noticed():
    params, optimizer = {"w": np.zeros(2)}, Adam()
    optimizer.update(params, {"w": np.ones(2)})
    params["w"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.update(params, {"w": np.ones(2)})


def test_memory_that_a_kernel_is_pointed_at_cannot_be_resized_away():
    """Resized there and back, an array has all that it had, but for the address: a step would write to freed memory."""
    params, grads = {"w": np.ones((64, 64))}, {"w": np.ones((64, 64))}
    optimizer = Adam(lr=0.1)
    optimizer.update(params, grads)
    with pytest.raises(ValueError, match="cannot resize an array that references or is referenced"):
        params["w"].resize((4096, 64), refcheck=False)
    before = params["w"].copy()
    optimizer.update(params, grads)
    assert (params["w"] < before).all()


@pytest.mark.parametrize("name", TABLE)
def test_an_unknown_option_lists_the_known(name):
    make = getattr(schuss.numpy, name)
    with pytest.raises(TypeError, match=rf"{name}: .*'learning_rate'. It takes lr, .*maximize"):
        make(learning_rate=1e-3)
    with pytest.raises(TypeError, match="'foreach'"):
        make(foreach=True)
    with pytest.raises(AttributeError, match=f"{name} has no 'learning_rate'. It has lr, "):
        make().learning_rate = 1e-3


def test_scalars_that_fail_for_a_later_batch_leave_the_earlier_ones(monkeypatch):
    """The coefficients of every kernel are worked out before the first one runs, and a failure leaves no trace."""
    made = schuss.numpy.Adam()
    params = {"a": np.ones(5), "b": np.ones(5, dtype=np.float32)}
    grads = {key: np.ones_like(array) for key, array in params.items()}
    kind = schuss.numpy.Adam.row.rule
    own, calls = kind.coefficients, []

    def failing(self, step, **scalars):
        calls.append(step)
        if len(calls) == 2:
            raise OverflowError("too far")
        return own(self, step, **scalars)

    made.update(params, grads)
    before = {key: array.copy() for key, array in (params | made.state_dict()).items()}
    with monkeypatch.context() as patch:
        patch.setattr(kind, "coefficients", failing)
        with pytest.raises(OverflowError, match="too far"):
            made.update(params, grads)
    after = params | made.state_dict()
    assert before.keys() == after.keys()
    for key, array in after.items():
        np.testing.assert_array_equal(array, before[key])
    made.update(params, grads)
    again, clean = {"a": np.ones(5), "b": np.ones(5, dtype=np.float32)}, schuss.numpy.Adam()
    for _ in range(2):
        clean.update(again, grads)
    for key, array in again.items():
        np.testing.assert_array_equal(params[key], array)


@pytest.mark.parametrize("key", ["step", "zero_grad", "param_groups"])
def test_what_torch_has_names_what_is_called_here(key):
    with pytest.raises(AttributeError, match=rf"Adam has no '{key}'\..*optimizer\.update\(params, grads\)"):
        getattr(Adam(), key)


@pytest.mark.parametrize("given", [{"w": ROOM}, [ROOM], ROOM, iter([ROOM])])
@pytest.mark.parametrize("more", [{}, {"lr": 0.1}])
def test_arrays_given_to_the_constructor_belong_to_update(given, more):
    with pytest.raises(TypeError, match=r"given to each step.*optimizer\.update\(params, grads\)"):
        Adam(given, **more)


def test_a_warmup_alone_is_no_rate():
    with pytest.raises(ValueError, match=r"lr=Warmup\(5\) is not a schedule of values"):
        Adam(lr=Warmup(5))
    optimizer = Adam(lr=Warmup(5) * 0.1)
    with pytest.raises(ValueError, match=r"lr=Warmup\(3\) is not a schedule of values"):
        optimizer.lr = Warmup(3)
    assert optimizer.lr == 0


def test_no_arrays_at_all():
    with pytest.raises(TypeError, match=r"params is None. Give a dict of arrays."):
        Adam().update(None, None)


@pytest.mark.parametrize("content", [b"a text of some length", b"", b"PK\x03\x04 cut short"])
def test_a_file_of_another_kind_is_named_and_no_pickle_advised(content, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state.npz is not an .npz file that save wrote") as refused:
        Adam().load(path)
    assert "pickle" not in str(refused.value)


@pytest.mark.parametrize("given", [None, "state.npz", [1]])
def test_what_is_no_checkpoint(given):
    with pytest.raises(TypeError, match=r"The checkpoint is of type .* what state_dict"):
        Adam().load_state_dict(given)


def test_saving_where_there_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is not a folder. Make it before saving state.npz"):
        Adam().save(tmp_path / "there" / "state.npz")
