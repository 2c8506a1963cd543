"""What the tests of the PyTorch front share: oracles for one step, and gradients to step with."""

import numpy as np
import pytest
import torch

from schuss.compile.reference import Reference
from schuss.core.storage import dtype_name

collect_ignore = ["ranks.py"]  # a program of its own, for several processes


@pytest.fixture
def float64_default():
    """Torch keeps its own scalars (μ products, rates) in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def oracle():
    """`oracle(rule, weight, gradients)`: where the float64 reference takes a tensor."""

    def run(rule, weight, gradients):
        reference = Reference(rule, weight.detach().double().numpy(), dtype_name(weight.dtype))
        return torch.from_numpy(
            np.array(reference.run([g.double().resolve_neg().numpy() for g in gradients]))
        )

    return run


@pytest.fixture(scope="session")
def noise():
    """`noise(*shape, seed=)`: standard normal numbers in float64."""

    def make(*shape, seed=0):
        return torch.from_numpy(np.asarray(np.random.default_rng(seed).standard_normal(shape)))

    return make
