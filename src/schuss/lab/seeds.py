"""What draws in the lab begin with: seeds that are words, and the process's generators under them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

from schuss.randomness import Randomness, preserved


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on these words alone, on every machine and in every process.

    >>> stable_seed("shuffle", 0, 1) == stable_seed("shuffle", 0, 1) != stable_seed("shuffle", 1, 0)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(number: int) -> None:
    """Seed torch, NumPy and Python: a user's model or loader may draw from any of them."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    random.seed(number)


@contextmanager
def seeded(number: int) -> Generator[None]:
    """Draw the same numbers inside the block each time; the generators are put back."""
    with preserved():
        seed_everything(number)
        yield


class Strand:
    """A private strand of the process's generators: entered, it goes on where it was left."""

    def __init__(self, number: int) -> None:
        """Begin at this seed."""
        with seeded(number):
            self.inner = Randomness()

    def __enter__(self) -> Strand:
        """Draw from the strand."""
        self.outer = Randomness()
        self.inner.rewind()
        return self

    def __exit__(self, *exception: object) -> None:
        """Draw from the process's own again."""
        self.inner = Randomness()
        self.outer.rewind()
