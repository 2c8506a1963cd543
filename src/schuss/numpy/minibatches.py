"""Minibatches: the three forms of gradient descent, from arrays or from a stream, resumable at any batch.

The order of an epoch is a pure function of (seed, epoch), so a position in the data is two numbers and
nothing has to be replayed or stored to come back to it. The function is Philox, a counter-based generator
(Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by the two. Its
raw bits are used, because NumPy promises that those never change between versions; it does not promise that
of `Generator.permutation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, ClassVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from schuss.errors import refusal, whole

Array = NDArray[Any]
Stream = Iterable[Any] | Callable[[], object]


@overload
def minibatches(
    *arrays: Array,
    batch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
) -> ArrayBatches: ...
@overload
def minibatches(
    stream: Stream,
    /,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    shuffle_buffer: int | None = None,
) -> StreamBatches: ...
def minibatches(
    *arrays: Array | Stream,
    batch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    shuffle_buffer: int | None = None,
) -> ArrayBatches | StreamBatches:
    """Cut data into batches; every `for` over the result is one epoch, freshly shuffled.

    | `batch_size` | form of descent | an update uses     |
    |--------------|-----------------|--------------------|
    | `None`       | batch           | the whole data set |
    | `1`          | stochastic      | one example        |
    | `32`, say    | mini-batch      | 32 examples        |

    Args:
        arrays: NumPy arrays of one length, row i of each belonging to example i; or a single stream: an
            iterator, an iterable without a length, or a function that opens one (what a second epoch
            needs). A stream gives one example at a time, an array or a tuple of arrays.
        batch_size: examples in a batch. More than there are is the full batch; the last batch of an epoch
            may be smaller. A stream has no full batch.
        seed: an integer in [0, 2⁶⁴). The same seed gives the same order, on any machine.
        shuffle: whether an epoch of arrays has an order of its own. A stream stays in its order but for
            `shuffle_buffer`.
        drop_last: whether to leave out a last batch that is smaller than the others.
        shuffle_buffer: for a stream, how many examples to hold back and draw from at random. Memory stays
            bounded by it; an example moves forward by fewer places than this.

    Returns:
        An iterable of tuples, one entry per array (for a stream: per entry of an example), each of shape
        `(batch_size, ...)`. It is a bookmark: it knows its `epoch` and `batch`, a `for` that was left early
        is continued by the next one, and `state_dict()` carries the place to another process. `len()` is
        the number of batches in an epoch, where it is known.

        Shuffled batches are copies, free to be changed. Batches in the data's own order (`shuffle=False`,
        and the full batch) are read-only views: the arrays are never copied whole.

    Raises:
        ValueError: an argument outside its domain, arrays of different lengths, nothing to cut.

    >>> X, y = np.arange(10.0).reshape(5, 2), np.arange(5)
    >>> batches = minibatches(X, y, batch_size=2, seed=1)
    >>> for epoch in range(2):
    ...     for X_batch, y_batch in batches:
    ...         print(epoch, X_batch.shape, y_batch)
    0 (2, 2) [3 2]
    0 (2, 2) [0 1]
    0 (1, 2) [4]
    1 (2, 2) [0 3]
    1 (2, 2) [4 2]
    1 (1, 2) [1]

    A stream, such as lines of a file, is stacked as it comes:

    >>> squares = ((n, n * n) for n in range(5))
    >>> for n, square in minibatches(squares, batch_size=2):
    ...     print(n, square)
    [0 1] [0 1]
    [2 3] [4 9]
    [4] [16]
    """
    if not arrays:
        raise refusal("arrays", arrays, "one array or more", "Try minibatches(X, y, batch_size=32).")
    size = None if batch_size is None else whole("batch_size", batch_size, least=1)
    seed = whole("seed", seed, most=2**64 - 1, advice="An epoch can be resumed only if its order has a seed.")
    flags: dict[str, Any] = {"shuffle": shuffle, "drop_last": drop_last}
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool):  # "no" is true
            raise refusal(name, value, "True or False")
    if any(is_stream(data) for data in arrays):
        if len(arrays) > 1:
            kinds = tuple(type(data).__name__ for data in arrays)
            raise refusal(
                "arrays", kinds, "one stream alone, or arrays", "Try minibatches(zip(xs, ys), ...)."
            )
        return StreamBatches(
            cast("Stream", next(iter(arrays))), size, seed, shuffle, drop_last, shuffle_buffer
        )
    if shuffle_buffer is not None:
        advice = "Arrays are shuffled whole: leave it out."
        raise refusal("shuffle_buffer", shuffle_buffer, "for arrays, only for a stream", advice)
    return ArrayBatches(cast("tuple[Array, ...]", arrays), size, seed, shuffle, drop_last)


class Batches(ABC):
    """A bookmark in the data: the next batch is number `batch` (from 0) of epoch `epoch` (from 0).

    Both have moved on when a batch is handed out, so a state saved in the body of a loop, after the update,
    names the batch that comes next. The epoch turns when its loop ends.
    """

    epoch: int = 0
    batch: int = 0
    _SETTINGS: ClassVar[tuple[str, ...]]

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        """Yield what is left of this epoch (all of it, unless an earlier loop was left early)."""
        epoch = self.epoch
        while self.epoch == epoch:
            batch = self._next()
            if batch is None:
                self.epoch, self.batch = epoch + 1, 0
            else:
                self.batch += 1
                yield batch

    @abstractmethod
    def _next(self) -> tuple[Array, ...] | None:
        """Return batch number `self.batch` of this epoch, or None where the epoch has ended."""

    def _settings(self) -> dict[str, int]:
        """Return all that the order depends on besides the position and the data's values."""
        return {name: int(getattr(self, name)) for name in self._SETTINGS}

    def state_dict(self) -> dict[str, int]:
        """Return the position and what the order depends on, as plain integers (fit for JSON).

        >>> batches = minibatches(np.arange(100), batch_size=10)
        >>> for (numbers,) in batches:
        ...     if batches.batch == 3:
        ...         break
        >>> state = batches.state_dict()
        >>> state["epoch"], state["batch"]
        (0, 3)
        >>> resumed = minibatches(np.arange(100), batch_size=10)
        >>> resumed.load_state_dict(state)
        >>> all((a == b).all() for (a,), (b,) in zip(batches, resumed, strict=True))
        True
        """
        return {"epoch": self.epoch, "batch": self.batch, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move to a position that `state_dict` has named; the batches that follow are then the same.

        Raises:
            ValueError: the state is of other data or of other settings, which would give other batches.
                Nothing has moved then.
        """
        settings = self._settings()
        keys = ("epoch", "batch", *settings)
        if set(state) != set(keys):
            raise refusal("state.keys()", list(state), str(list(keys)), "Try what state_dict() returned.")
        epoch, batch = whole("state['epoch']", state["epoch"]), whole("state['batch']", state["batch"])
        for key, value in settings.items():
            saved = whole(f"state[{key!r}]", state[key])
            if saved != value:
                advice = "Other batches would follow: use the data and the settings the state was saved with."
                raise refusal(f"state[{key!r}]", saved, f"{value}, as here", advice)
        self._move(epoch, batch)

    def _move(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch


class ArrayBatches(Batches):
    """Batches of arrays held in memory (or mapped from a file): any position is reached at once."""

    _SETTINGS = ("seed", "batch_size", "examples", "shuffle", "drop_last")

    def __init__(
        self, arrays: tuple[Array, ...], batch_size: int | None, seed: int, shuffle: bool, drop_last: bool
    ) -> None:
        """Check the arrays; `minibatches` has checked the rest and says what it all means."""
        self.arrays, self.seed, self.shuffle, self.drop_last = arrays, seed, shuffle, drop_last
        self.examples = common_length(arrays)
        if drop_last and batch_size is not None and batch_size > self.examples:
            allowed = f"at most {self.examples}, the number of examples, with drop_last=True"
            raise refusal("batch_size", batch_size, allowed, "Every epoch would be empty.")
        self.batch_size = min(batch_size or self.examples, self.examples)
        self._order: tuple[int, Array] | None = None

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return self.examples // self.batch_size if self.drop_last else -(-self.examples // self.batch_size)

    def _next(self) -> tuple[Array, ...] | None:
        if self.batch >= len(self):
            return None
        rows = slice(self.batch * self.batch_size, (self.batch + 1) * self.batch_size)
        if self.shuffle and self.batch_size < self.examples:
            chosen = self._epoch_order()[rows]
            return tuple(array[chosen] for array in self.arrays)
        views = tuple(array[rows] for array in self.arrays)
        for view in views:  # a batch changed in place would change the data for all epochs
            view.flags.writeable = False
        return views

    def _epoch_order(self) -> Array:
        """Return the order of this epoch, worked out once per epoch."""
        if self._order is None or self._order[0] != self.epoch:
            # Sorting random keys shuffles; the stable sort makes even equal keys (one pair in 2⁶⁴) definite.
            keys = philox(self.seed, self.epoch).random_raw(self.examples)
            self._order = self.epoch, np.argsort(keys, kind="stable")
        return self._order[1]

    def _move(self, epoch: int, batch: int) -> None:
        if batch > len(self):
            raise refusal("state['batch']", batch, f"in [0, {len(self)}]", "An epoch has no more batches.")
        super()._move(epoch, batch)


class StreamBatches(Batches):
    """Batches of a stream without a length: examples are stacked as they come, and never read ahead.

    (But for the shuffle buffer.) A loaded position is reached by reading up to it from the beginning. A
    plain iterator can be read once, so it has one epoch; a function that opens the stream has any number.
    """

    _SETTINGS = ("seed", "batch_size", "shuffle_buffer", "drop_last")

    def __init__(
        self,
        stream: Stream,
        batch_size: int | None,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        shuffle_buffer: int | None,
    ) -> None:
        """Check what only a stream needs; `minibatches` has checked the rest and says what it all means."""
        if batch_size is None:
            advice = (
                "The full batch needs every example in memory at once, and a stream may never end. "
                "Try batch_size=32, or collect it into arrays first."
            )
            raise refusal("batch_size", None, "an integer, as a stream needs", advice)
        hold = 1 if shuffle_buffer is None else whole("shuffle_buffer", shuffle_buffer, least=1)
        if hold > 1 and not shuffle:
            raise refusal("shuffle_buffer", hold, "of use with shuffle=False", "Leave out one of the two.")
        self.stream, self.batch_size, self.seed, self.drop_last = stream, batch_size, seed, drop_last
        self.shuffle_buffer = hold
        self._reading: Iterator[tuple[Array, ...]] | None = None
        self._spent = False

    def _next(self) -> tuple[Array, ...] | None:
        if self._reading is None:
            self._reading = self._read(self._open(), done=self.batch)
        try:
            batch = next(self._reading, None)
        except BaseException:
            # An iterator that failed or was interrupted would claim to have ended: forget it, so that the
            # next loop opens the stream anew, reads up to this position, and loses nothing.
            self._reading = None
            raise
        if batch is None:
            self._reading = None
        return batch

    def _open(self) -> Iterator[Any]:
        if self._spent:
            advice = "Try a function that opens the stream: minibatches(lambda: read(path), batch_size=32)."
            raise refusal("stream", type(self.stream).__name__, "one that can be read again", advice)
        opened = self.stream() if callable(self.stream) else self.stream
        if not isinstance(opened, Iterable):
            advice = "Try a generator function, one that yields example after example."
            raise refusal("stream()", type(opened).__name__, "an iterable of examples", advice)
        examples = iter(opened)
        self._spent = examples is self.stream
        return examples

    def _read(self, examples: Iterator[Any], done: int) -> Iterator[tuple[Array, ...]]:
        """Yield the batches of one epoch but for the first `done`, which are read and dropped."""
        mixed = held_back(examples, self.shuffle_buffer, philox(self.seed, self.epoch))
        seen = 0
        for number in count():
            group = list(islice(mixed, self.batch_size))
            seen += len(group)
            if not group or (self.drop_last and len(group) < self.batch_size):
                least = max(done, 1) * self.batch_size - (0 if self.drop_last else self.batch_size - 1)
                if seen < least:
                    advice = "Is it the right stream, from its beginning?"
                    raise refusal("len(stream)", seen, f"{least} or more", advice)
                return
            if number >= done:
                yield stack(group, first=number * self.batch_size)

    def _move(self, epoch: int, batch: int) -> None:
        super()._move(epoch, batch)
        self._reading = None


def held_back(examples: Iterator[Any], hold: int, bits: np.random.Philox) -> Iterator[Any]:
    """Yield all examples, each drawn at random from at most `hold` that wait.

    With `hold=1` that is the order they came in, and nothing is read before it is asked for.
    """
    waiting: list[Any] = []
    for example in examples:
        waiting.append(example)
        if len(waiting) >= hold:
            yield draw(waiting, bits)
    while waiting:
        yield draw(waiting, bits)


def draw(waiting: list[Any], bits: np.random.Philox) -> Any:
    """Take one example out, each equally likely (to within 2⁻⁶⁴)."""
    position = int(bits.random_raw()) * len(waiting) >> 64
    waiting[position], waiting[-1] = waiting[-1], waiting[position]
    return waiting.pop()


def philox(seed: int, epoch: int) -> np.random.Philox:
    """Return the random bits that belong to (seed, epoch)."""
    return np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))


def stack(group: list[Any], first: int) -> tuple[Array, ...]:
    """Stack examples into one array per entry; `first` is the number of the first in the order of reading."""
    rows = [tuple(map(np.asarray, e if isinstance(e, tuple) else (e,))) for e in group]
    shapes = [tuple(entry.shape for entry in row) for row in rows]
    for number, (row, shape) in enumerate(zip(rows, shapes, strict=True), start=first):
        if shape != shapes[0]:
            raise refusal(f"shape of example {number}", shape, f"{shapes[0]}, as of example {first}")
        if not row or any(entry.dtype == object for entry in row):
            advice = "Try a tuple (x, y) for each example."
            raise refusal(f"example {number}", group[number - first], "an array or a tuple of arrays", advice)
    return tuple(np.stack(entries) for entries in zip(*rows, strict=True))


def is_stream(data: object) -> bool:
    """Whether examples can only be had one after another: iterable or opened by a call, without a length."""
    return (isinstance(data, Iterable) or callable(data)) and not hasattr(data, "__len__")


def common_length(arrays: tuple[object, ...]) -> int:
    """Return the number of examples, the same in all arrays."""
    lengths: list[int] = []
    for number, array in enumerate(arrays):
        name = f"arrays[{number}]"
        if not isinstance(array, np.ndarray):
            advice = "Try numpy.asarray(...), or iter(...) to read it as a stream."
            raise refusal(f"type({name})", type(array).__name__, "a NumPy array or a stream", advice)
        if array.ndim == 0:
            raise refusal(f"{name}.shape", (), "of one axis or more", "The first axis counts the examples.")
        if array.shape[0] == 0:
            raise refusal(f"{name}.shape", array.shape, "of one example or more")
        lengths.append(array.shape[0])
        if lengths[-1] != lengths[0]:
            advice = "Row i of every array belongs to example i."
            raise refusal(f"len({name})", lengths[-1], f"{lengths[0]}, the length of arrays[0]", advice)
    return lengths[0]
