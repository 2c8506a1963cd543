"""The generators that belong to the process: torch's, NumPy's and Python's, remembered and given back."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Randomness:
    """The random state of this moment on the CPU and the given devices; `rewind` returns to it."""

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        """Remember the state of torch (CPU and `devices`), NumPy's global generator and `random`."""
        self.cpu = torch.get_rng_state()
        self.accelerators = {
            device: _generators(device).get_rng_state(device)
            for device in set(devices)
            if device.type not in ("cpu", "meta")
        }
        self.numpy = np.random.get_state(legacy=False)  # noqa: NPY002  a loss may draw from it
        self.python = random.getstate()

    def rewind(self) -> None:
        """Go back to the remembered state, so that the same draws (a dropout mask) follow again."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators.items():
            _generators(device).set_rng_state(state, device)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def _generators(device: torch.device) -> Any:
    return torch.get_device_module(device)


@contextmanager
def preserved() -> Generator[None]:
    """Give the generators of the CPU back as they were, whatever is drawn inside the block."""
    before = Randomness()
    try:
        yield
    finally:
        before.rewind()
