"""A process with its children: what they use, and their end. What needs /proc does nothing where there is none."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")
WATCHES_MEMORY = (PROC / "self" / "statm").exists()
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER

Children = Mapping[int, list[int]]


def lead() -> None:
    """Make this process the one to which all its descendants belong, those of dead children too."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def table() -> Children:
    """The children of every process; empty where that cannot be known."""
    children = defaultdict[int, list[int]](list)
    for file in PROC.glob("[0-9]*/stat") if PROC.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name stands in parentheses and may hold anything.
            parent = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            children[int(parent)].append(int(file.parent.name))
    return children


def descendants(pid: int, children: Children | None = None) -> list[int]:
    """All processes under this one, parents first."""
    children = table() if children is None else children
    found, waiting = list[int](), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end(pid: int, itself: bool = True) -> None:
    """Kill a process and all under it."""
    below = descendants(pid)
    if itself and not below:
        with contextlib.suppress(OSError, AttributeError):
            if os.getpgid(pid) == pid != os.getpgrp():
                os.killpg(pid, KILL)
    for each in [pid, *below] if itself else below:
        with contextlib.suppress(OSError):
            os.kill(each, KILL)


def end_children() -> None:
    """Kill what a run left behind in this process, and collect it.

    Daemons of `multiprocessing` stay: a DataLoader keeps such for the next run, and they end with this process.
    """
    daemons = [child.pid for child in multiprocessing.active_children() if child.daemon and child.pid]
    spared = {*daemons, *(pid for daemon in daemons for pid in descendants(daemon))}
    for pid in descendants(os.getpid()):
        if pid not in spared:
            with contextlib.suppress(OSError):
                os.kill(pid, KILL)
                os.waitpid(pid, 0)  # refused for a grandchild, which is collected by its own parent


def memory(pid: int, least: float, children: Children | None = None) -> float:
    """Bytes of memory that a process and all under it use; 0 if these are surely fewer than `least`.

    Resident sizes are quick to read, but count what processes share once for each of them.
    """
    tree = [pid, *descendants(pid, children)]
    if sum(map(_resident, tree)) <= least:
        return 0.0
    return float(sum(map(_proportional, tree)))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = (PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
        line = next((line for line in text.splitlines() if line.startswith("Pss:")), None)
        if line is not None:
            return 1024 * int(line.split()[1])
    return _resident(pid)
