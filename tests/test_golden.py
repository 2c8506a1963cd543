"""Checkpoints that an older version wrote load, and the steps after them are the ones that it took, bit for bit."""

import platform

import numpy as np
import pytest
import torch
from tests.golden.write import AFTER, BEFORE, GOLDEN, NumPy, Torch


def bits(number):
    """What a tensor or an array consists of."""
    value = number.view(torch.uint8).numpy() if torch.is_tensor(number) else number
    return str(number.dtype), tuple(number.shape), np.ascontiguousarray(value).tobytes()


@pytest.mark.parametrize("api", [Torch, NumPy])
@pytest.mark.parametrize("name", GOLDEN)
def test_an_older_checkpoint_continues_bit_for_bit(name, api):
    subject = api(GOLDEN[name])
    expected = subject.load(name)
    subject.steps(BEFORE, BEFORE + AFTER)
    found = subject.numbers()
    assert len(found) == len(expected) > 0
    if platform.machine().lower() in ("x86_64", "amd64"):
        assert [bits(one) for one in found] == [bits(one) for one in expected]
    for one, other in zip(found, expected, strict=True):  # other processors fuse other products and sums
        one, other = (np.asarray(x.double() if torch.is_tensor(x) else x, np.float64) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=0.01)
    start = api(GOLDEN[name])
    assert bits(start.numbers()[0]) != bits(expected[0])
