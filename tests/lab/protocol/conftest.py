from typing import Any

import pytest
import torch
from torch import nn

from schuss.lab import Task


def mean_square(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def make_line(**changes: Any) -> Task:
    """A regression so small that a run takes milliseconds."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=draw)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(120, 1, generator=draw)
    given: dict[str, Any] = {"name": "line", "model": lambda: nn.Linear(3, 1), "loss": mean_square}
    return Task(**given | {"train": (x, y), "batch_size": 28, "epochs": 10} | changes)


@pytest.fixture
def line():
    return make_line
