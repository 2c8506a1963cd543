"""A process with nothing else going on in it, so that what runs there repeats."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from schuss.randomness import preserved

# torch's generator and its number of threads belong to the process: two runs in one process would share them.
_one_at_a_time = threading.Lock()


@contextmanager
def quiet_process() -> Generator[None]:
    """One thread, one run at a time; the process's generators and thread count are put back."""
    with _one_at_a_time, preserved():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
