"""A kernel's rows shared among threads; small work stays on the calling one."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import signal
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from schuss.compile.cpu import Kernel

# Below this many elements a thread, handing work over costs more than it saves.
ELEMENTS_A_THREAD = 200_000
# Pieces a thread: several, so that a thread that the machine holds up leaves its share to the others.
PIECES = 8

Array = np.ndarray[Any, Any]

_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(helpers: int) -> ThreadPoolExecutor:
    if helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="schuss")
    return _pools[helpers]


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a child makes its own.
    os.register_at_fork(after_in_child=_pools.clear)


def _take(pieces: Iterator[tuple[int, int]], kernel: Kernel, table: int, matrix: int) -> None:
    # No line of Python between two pieces: a signal's handler runs when all are done.
    deque(itertools.starmap(functools.partial(kernel, table, matrix), pieces), maxlen=0)


def call(
    kernel: Kernel,
    table: int,
    matrix: int,
    rows: slice,
    elements: int,
    workers: int,
    starts: Array | None = None,
) -> functools.partial[None]:
    """What calls the kernel over these rows of the table and matrix at these addresses, on at most `workers` threads.

    Rows are cut anywhere, or only at `starts`. Once it has begun all rows are walked, also when it is interrupted.
    """
    count = rows.stop - (rows.start or 0)
    workers = min(workers, max(1, elements // ELEMENTS_A_THREAD), count)
    if workers <= 1:
        return functools.partial(kernel, table, matrix, rows.start or 0, rows.stop)
    edges = np.linspace(rows.start or 0, rows.stop, min(count, workers * PIECES) + 1).astype(int)
    if starts is not None:
        edges = np.unique(starts[np.searchsorted(starts, edges)])
    return functools.partial(_shared, kernel, table, matrix, edges.tolist(), workers)


def _shared(kernel: Kernel, table: int, matrix: int, edges: list[int], workers: int) -> None:
    pieces = itertools.pairwise(edges)  # each is handed out once, to whichever thread asks next
    helpers: list[Future[None]] = []
    try:
        pool = _pool(workers - 1)
        for _ in range(workers - 1):
            helpers.append(pool.submit(_take, pieces, kernel, table, matrix))
    finally:  # also when interrupted: no thread may outlive the memory that it walks over
        try:
            _take(pieces, kernel, table, matrix)
        finally:
            _wait(helpers)


def _wait(helpers: list[Future[None]]) -> None:
    try:
        for helper in helpers:
            helper.result()
    except KeyboardInterrupt:
        _wait(helpers)
        raise


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of Python on a thread of its own, where no interrupt ends it halfway."""
    _wait([_pool(1).submit(function, *arguments)])


def run(kernel: Kernel, table: int, matrix: int, rows: int, elements: int, workers: int) -> None:
    """Call the kernel over all rows of the table and matrix at these addresses, on at most `workers` threads."""
    call(kernel, table, matrix, slice(rows), elements, workers)()


def together(actions: Iterable[functools.partial[Any]]) -> None:
    """Call each of these in turn, to the end: an interrupt finds all of them done, or none.

    Between functions of C no signal's handler runs. Where any is of Python, Ctrl-C is held back until all are done.
    """
    actions = list(actions)
    of_c = _OF_PYTHON.isdisjoint(map(type, map(_function, actions)))
    own = None if of_c else signal.getsignal(signal.SIGINT)
    if not callable(own):
        _all(actions)
        return
    arrived: list[Any] = []
    try:
        signal.signal(signal.SIGINT, lambda *given: arrived.append(given))
    except ValueError:  # not the main thread, which alone is interrupted
        _all(actions)
        return
    try:
        _all(actions)
    finally:
        signal.signal(signal.SIGINT, own)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def _all(actions: Iterable[functools.partial[Any]]) -> None:
    """Call each of these; an interrupt that a function of Python lets through is raised when the rest is done too."""
    rest = iter(actions)
    try:
        list(map(_call, rest))
    except KeyboardInterrupt:
        list(map(_call, rest))
        raise


_OF_PYTHON = {types.FunctionType, types.MethodType}
_function = operator.attrgetter("func")


_call = functools.partial.__call__
