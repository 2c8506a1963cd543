"""Minibatches: every example once per epoch, the same batches after a resume, and clear refusals."""

import json
import re
from itertools import count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schuss.numpy.minibatches import minibatches

SIZES = st.one_of(st.none(), st.integers(1, 40))
SEEDS = st.integers(0, 2**64 - 1)
few = settings(max_examples=60, deadline=None)

KEPT = ([2, 6, 1, 7, 0, 4, 5, 3], [1, 4, 3, 7, 0, 2, 5, 6], [1, 3, 0, 6, 2, 7, 5, 4])


def data(n):
    """Return features and labels from which the number of an example can be read back."""
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3), np.arange(n)


def labels(batches):
    return [y.tolist() for *_, y in batches]


def take(batches, k):
    """Return the labels of the next `k` batches, over as many epochs as that takes."""
    taken = []
    while len(taken) < k:
        for *_, y in batches:
            taken.append(y.tolist())
            if len(taken) == k:
                break
    return taken


def flat(nested):
    return [x for inner in nested for x in inner]


class Reads:
    """A stream of the numbers 0 ... n − 1 that can be opened again and counts what was read."""

    def __init__(self, n):
        self.n, self.read = n, 0

    def __iter__(self):
        for i in range(self.n):
            self.read += 1
            yield np.full(2, float(i)), i


@few
@given(n=st.integers(1, 60), size=SIZES, seed=SEEDS, shuffle=st.booleans())
def test_every_example_once_per_epoch_and_rows_stay_together(n, size, seed, shuffle):
    X, y = data(n)
    batches = minibatches(X, y, batch_size=size, seed=seed, shuffle=shuffle)
    for epoch in range(3):
        assert batches.epoch == epoch
        seen = []
        for number, (X_batch, y_batch) in enumerate(batches, start=1):
            assert (batches.epoch, batches.batch) == (epoch, number)
            assert X_batch.dtype == X.dtype
            np.testing.assert_array_equal(X_batch, X[y_batch])
            seen.append(y_batch)
        assert number == len(batches)
        assert {len(y_batch) for y_batch in seen[:-1]} <= {size}
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), y)


@few
@given(n=st.integers(1, 40), size=SIZES, seed=SEEDS, done=st.integers(0, 90), then=st.integers(1, 30))
def test_a_resumed_run_sees_the_very_same_batches(n, size, seed, done, then):
    X, y = data(n)
    straight = minibatches(X, y, batch_size=size, seed=seed)
    take(straight, done)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = minibatches(X, y, batch_size=size, seed=seed)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed, then) == take(straight, then)
    assert resumed.state_dict() == straight.state_dict()


@few
@given(n=st.integers(1, 40), size=st.integers(1, 12), done=st.integers(0, 80), hold=st.integers(1, 50))
def test_a_resumed_stream_gives_the_very_same_batches(n, size, done, hold):
    def fresh():
        return minibatches(Reads(n), batch_size=size, seed=5, shuffle_buffer=hold)

    straight, resumed = fresh(), fresh()
    take(straight, done)
    resumed.load_state_dict(straight.state_dict())
    assert take(resumed, 9) == take(straight, 9)
    assert resumed.state_dict() == straight.state_dict()


@few
@given(n=st.integers(0, 40), size=st.integers(1, 12), hold=st.integers(1, 50), seed=SEEDS)
def test_a_stream_gives_every_example_once_and_reads_no_further_than_it_must(n, size, hold, seed):
    stream = Reads(n + 1)
    batches = minibatches(stream, batch_size=size, seed=seed, shuffle_buffer=hold)
    seen = []
    for X_batch, y_batch in batches:
        np.testing.assert_array_equal(X_batch, np.stack([y_batch, y_batch], axis=1))
        seen += y_batch.tolist()
        assert stream.read <= len(seen) + hold - 1
    assert sorted(seen) == list(range(n + 1))
    assert len(y_batch) == (n % size) + 1
    assert all(place > example - hold for place, example in enumerate(seen))
    if hold == 1:
        assert seen == sorted(seen)


def test_epochs_and_seeds_have_orders_of_their_own():
    X, y = data(50)
    epochs = minibatches(X, y, batch_size=7, seed=3)
    orders = [tuple(flat(labels(epochs))) for _ in range(5)]
    orders += [tuple(flat(labels(minibatches(X, y, batch_size=7, seed=seed)))) for seed in range(3)]
    assert len(set(orders)) == 8
    assert tuple(flat(labels(minibatches(X, y, batch_size=11, seed=3)))) == orders[0]
    held = minibatches(Reads(50), batch_size=7, shuffle_buffer=20)
    assert labels(held) != labels(held)


def test_the_order_is_the_one_that_older_checkpoints_were_saved_with():
    batches = minibatches(np.arange(8), batch_size=8 - 1, seed=2026)
    assert flat(labels(batches)) == KEPT[0]
    assert flat(labels(batches)) == KEPT[1]
    held = minibatches(iter(range(8)), batch_size=8, seed=2026, shuffle_buffer=4)
    assert flat(labels(held)) == KEPT[2]


@pytest.mark.parametrize("kind", ["array", "stream"])
def test_every_example_is_equally_likely_to_come_first(kind):
    n, epochs = 4, 4000
    source = np.arange(n) if kind == "array" else (lambda: range(n).__iter__())
    options = {} if kind == "array" else {"shuffle_buffer": n}
    batches = minibatches(source, batch_size=1, **options)
    first = [flat(labels(batches))[0] for _ in range(epochs)]
    counts = np.bincount(first, minlength=n)
    # Four standard deviations of a binomial; the orders are fixed by the seed, so this never flickers.
    assert np.abs(counts - epochs / n).max() < 4 * np.sqrt(epochs * (1 / n) * (1 - 1 / n))


def test_the_full_batch_is_the_data_itself_seen_read_only():
    X, y = data(10)
    for batches in (minibatches(X, y), minibatches(X, y, batch_size=10), minibatches(X, y, batch_size=99)):
        assert len(batches) == 1
        ((X_batch, y_batch),) = batches
        assert np.shares_memory(X_batch, X)
        assert np.shares_memory(y_batch, y)
        with pytest.raises(ValueError, match="read-only"):
            X_batch -= 1
        assert X.flags.writeable
        minibatches(X, y).load_state_dict(batches.state_dict())


def test_a_shuffled_batch_may_be_changed_without_changing_the_data():
    X, y = data(10)
    before = X.copy()
    for X_batch, _ in minibatches(X, y, batch_size=3):
        X_batch *= 0
    np.testing.assert_array_equal(X, before)


def test_one_example_at_a_time_keeps_the_axis_of_examples():
    X, y = data(5)
    batches = minibatches(X, y, batch_size=1)
    assert len(batches) == 5
    assert all(X_batch.shape == (1, 3) and y_batch.shape == (1,) for X_batch, y_batch in batches)


def test_without_shuffling_the_data_keeps_its_order():
    assert labels(minibatches(np.arange(5), batch_size=2, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_a_stream_that_is_too_short_for_one_batch_is_refused_when_the_last_is_dropped():
    with pytest.raises(ValueError, match=r"len\(stream\)=3 is not 4 or more"):
        list(minibatches(Reads(3), batch_size=4, drop_last=True))


def test_dropping_the_last_batch():
    batches = minibatches(np.arange(11), batch_size=4, drop_last=True)
    assert len(batches) == 2
    assert [len(y) for y in labels(batches)] == [4, 4]
    assert batches.epoch == 1
    streamed = minibatches(Reads(11), batch_size=4, drop_last=True)
    assert labels(streamed) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "memmap"])
def test_any_layout_gives_the_same_batches(layout, tmp_path):
    X, y = data(23)
    other = {
        "F": lambda: np.asfortranarray(X),
        "strided": lambda: np.repeat(X, 2, axis=0)[::2],
        "reversed": lambda: X[::-1].copy()[::-1],
        "memmap": lambda: np.memmap(tmp_path / "x", dtype=X.dtype, mode="w+", shape=X.shape),
    }[layout]()
    other[:] = X
    pairs = zip(minibatches(X, y, batch_size=5), minibatches(other, y, batch_size=5), strict=True)
    for (a, _), (b, _) in pairs:
        np.testing.assert_array_equal(a, b)


def test_a_loop_left_early_is_continued_by_the_next():
    batches = minibatches(np.arange(10), batch_size=3, shuffle=False)
    assert next(iter(batches))[0].tolist() == [0, 1, 2]
    assert labels(batches) == [[3, 4, 5], [6, 7, 8], [9]]
    assert labels(islice(batches, 2)) == [[0, 1, 2], [3, 4, 5]]
    assert (batches.epoch, batches.batch) == (1, 2)


def test_a_state_saved_at_the_last_batch_of_an_epoch_leaves_nothing_of_it():
    batches = minibatches(np.arange(4), batch_size=2)
    for _ in batches:
        state = batches.state_dict()
    resumed = minibatches(np.arange(4), batch_size=2)
    resumed.load_state_dict(state)
    assert resumed.epoch == 0
    assert labels(resumed) == []
    assert labels(resumed) == labels(batches)


def test_a_state_survives_a_npz_file(tmp_path):
    batches = minibatches(np.arange(20), batch_size=3)
    take(batches, 9)
    np.savez(tmp_path / "state.npz", **batches.state_dict())
    resumed = minibatches(np.arange(20), batch_size=3)
    with np.load(tmp_path / "state.npz") as state:
        resumed.load_state_dict(state)
    assert take(resumed, 9) == take(batches, 9)


def test_a_stream_without_end_goes_on_where_it_was_left():
    batches = minibatches(count(), batch_size=3)
    assert labels(islice(batches, 2)) == [[0, 1, 2], [3, 4, 5]]
    assert labels(islice(batches, 1)) == [[6, 7, 8]]
    assert not hasattr(batches, "__len__")


@pytest.mark.parametrize("source", [np.arange(20), Reads(20)], ids=["array", "stream"])
def test_loading_takes_a_loop_under_way_back(source):
    batches = minibatches(source, batch_size=3)
    take(batches, 2)
    state = batches.state_dict()
    expected = take(batches, 3)
    batches.load_state_dict(state)
    assert take(batches, 3) == expected


def test_a_plain_iterator_has_one_epoch():
    batches = minibatches(iter(range(5)), batch_size=2)
    assert labels(batches) == [[0, 1], [2, 3], [4]]
    message = (
        "stream='range_iterator' is not one that can be read again. Try a function that opens the stream"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        list(batches)


def test_a_function_that_opens_a_stream_has_any_number_of_epochs():
    def squares():
        for i in range(4):
            yield i, i * i

    batches = minibatches(squares, batch_size=3)
    for _ in range(3):
        assert labels(batches) == [[0, 1, 4], [9]]


class Faulty(Reads):
    """Fails once, at example 7: as an unsteady connection, or as Ctrl-C would."""

    fault: BaseException | None

    def __iter__(self):
        for example in super().__iter__():
            if example[1] == 7 and self.fault is not None:
                fault, self.fault = self.fault, None
                raise fault
            yield example


@pytest.mark.parametrize("fault", [OSError("gone"), KeyboardInterrupt()])
def test_a_stream_that_was_interrupted_loses_and_repeats_nothing(fault):
    stream = Faulty(20)
    stream.fault = fault
    batches = minibatches(stream, batch_size=3, shuffle_buffer=4)
    seen = []
    with pytest.raises(type(fault)):
        seen.extend(int(y) for _, group in batches for y in group)
    assert 0 < len(seen) < 7
    seen += flat(labels(batches))
    assert seen == flat(labels(minibatches(Reads(20), batch_size=3, shuffle_buffer=4)))


def test_an_iterator_that_was_interrupted_does_not_pretend_to_have_ended():
    stream = Faulty(20)
    stream.fault = OSError("gone")
    batches = minibatches(iter(stream), batch_size=3)
    with pytest.raises(OSError, match="gone"):
        list(batches)
    with pytest.raises(ValueError, match="can be read again"):
        list(batches)


def test_a_failed_load_moves_nothing():
    batches = minibatches(np.arange(20), batch_size=3)
    take(batches, 4)
    before = batches.state_dict()
    for wrong in (
        {**before, "seed": 1},
        {**before, "batch_size": 4},
        {**before, "examples": 21},
        {**before, "batch": 8},
        {**before, "batch": -1},
        {**before, "epoch": 0.5},
        {"epoch": 0, "batch": 0},
        {},
    ):
        with pytest.raises(ValueError, match="state"):
            batches.load_state_dict(wrong)
        assert batches.state_dict() == before


def test_a_stream_shorter_than_the_position_is_refused():
    batches = minibatches(Reads(20), batch_size=3)
    take(batches, 6)
    short = minibatches(Reads(10), batch_size=3)
    short.load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match=r"len\(stream\)=10 is not 16 or more"):
        list(short)


X, y = data(10)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "arrays=() is not one array or more. Try minibatches(X, y, batch_size=32)."),
        ((X,), {"batch_size": 0}, "batch_size=0 is not an integer ≥ 1."),
        ((X,), {"batch_size": -3}, "batch_size=-3 is not an integer ≥ 1."),
        ((X,), {"batch_size": 2.0}, "batch_size=2.0 is not an integer ≥ 1."),
        ((X,), {"batch_size": True}, "batch_size=True is not an integer ≥ 1."),
        ((X,), {"batch_size": "all"}, "batch_size='all' is not an integer ≥ 1."),
        ((X,), {"seed": -1}, "seed=-1 is not an integer in [0, 18446744073709551615]."),
        ((X,), {"seed": None}, "An epoch can be resumed only if its order has a seed."),
        ((X,), {"shuffle": "no"}, "shuffle='no' is not True or False."),
        ((X,), {"shuffle_buffer": 9}, "shuffle_buffer=9 is not for arrays, only for a stream."),
        ((X,), {"batch_size": 11, "drop_last": True}, "batch_size=11 is not at most 10"),
        ((X, y[:9]), {}, "len(arrays[1])=9 is not 10, the length of arrays[0]."),
        ((X[:0],), {}, "arrays[0].shape=(0, 3) is not of one example or more."),
        ((np.float64(3),), {}, "type(arrays[0])='float64' is not a NumPy array or a stream."),
        ((np.array(3),), {}, "arrays[0].shape=() is not of one axis or more."),
        ((X, [1, 2]), {}, "type(arrays[1])='list' is not a NumPy array or a stream. Try numpy.asarray(...)"),
        ((None,), {}, "type(arrays[0])='NoneType' is not a NumPy array or a stream."),
        ((iter(X),), {}, "batch_size=None is not an integer, as a stream needs. The full batch needs every"),
        ((iter(X), iter(y)), {"batch_size": 2}, "Try minibatches(zip(xs, ys), ...)."),
        ((X, iter(y)), {"batch_size": 2}, "is not one stream alone, or arrays."),
        ((iter(X),), {"batch_size": 2, "shuffle_buffer": 0}, "shuffle_buffer=0 is not an integer ≥ 1."),
        ((iter(X),), {"batch_size": 2, "shuffle": False, "shuffle_buffer": 9}, "Leave out one of the two."),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        minibatches(*arguments, **options)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (lambda: iter(()), "len(stream)=0 is not 1 or more."),
        (lambda: 3, "stream()='int' is not an iterable of examples."),
        (lambda: iter([{"x": 1}]), "example 0={'x': 1} is not an array or a tuple of arrays."),
        (lambda: iter([()]), "example 0=() is not an array or a tuple of arrays."),
        (lambda: iter([(1, 2), (3,)]), "shape of example 1=((),) is not ((), ()), as of example 0."),
        (lambda: iter(np.split(X, [1, 3])), "shape of example 1=((2, 3),) is not ((1, 3),)"),
    ],
)
def test_bad_streams_are_refused_when_they_are_read(stream, message):
    batches = minibatches(stream, batch_size=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        list(batches)
