"""A kernel's rows shared among threads; small work stays on the calling one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from schuss.compile.cpu import Kernel

# Below this many elements a thread, handing work over costs more than it saves.
ELEMENTS_A_THREAD = 200_000
# Pieces a thread: several, so that a thread that the machine holds up leaves its share to the others.
PIECES = 8

_pools: dict[int, ThreadPoolExecutor] = {}


def available() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(helpers: int) -> ThreadPoolExecutor:
    if helpers not in _pools:
        _pools[helpers] = ThreadPoolExecutor(helpers, thread_name_prefix="schuss")
    return _pools[helpers]


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a child makes its own.
    os.register_at_fork(after_in_child=_pools.clear)


def _take(pieces: Iterator[tuple[int, int]], kernel: Kernel, table: int, matrix: int) -> None:
    for first, last in pieces:
        kernel(table, matrix, first, last)


def run(kernel: Kernel, table: int, matrix: int, rows: int, elements: int, workers: int) -> None:
    """Call the kernel over all rows of the table and matrix at these addresses, on at most `workers` threads."""
    workers = min(workers, max(1, elements // ELEMENTS_A_THREAD), rows)
    if workers <= 1:
        kernel(table, matrix, 0, rows)
        return
    edges = np.linspace(0, rows, min(rows, workers * PIECES) + 1).astype(int).tolist()
    pieces = itertools.pairwise(edges)  # each is handed out once, to whichever thread asks next
    pool = _pool(workers - 1)
    helpers = [pool.submit(_take, pieces, kernel, table, matrix) for _ in range(workers - 1)]
    try:
        _take(pieces, kernel, table, matrix)
    finally:  # also when interrupted: no thread may outlive the memory that it walks over
        for helper in helpers:
            helper.result()
