import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from schuss.lab import Task


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder with four IDX files of a few random images."""

    def write(compress: bool = False, images: int = 40) -> Path:
        rng = np.random.default_rng(0)
        for part in ("train", "t10k"):
            pixels = rng.integers(0, 256, (images, 28, 28), dtype=np.uint8)
            labels = (np.arange(images) % 10).astype(np.uint8)
            files = {
                f"{part}-images-idx3-ubyte": struct.pack(">4I", 0x803, images, 28, 28) + pixels.tobytes(),
                f"{part}-labels-idx1-ubyte": struct.pack(">2I", 0x801, images) + labels.tobytes(),
            }
            for name, content in files.items():
                if compress:
                    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
                else:
                    (tmp_path / name).write_bytes(content)
        return tmp_path

    return write


def mean_square(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def make_line(**changes: Any) -> Task:
    """A regression so small that a run takes milliseconds."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(120, 3, generator=draw)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(120, 1, generator=draw)
    given: dict[str, Any] = {"name": "line", "model": lambda: nn.Linear(3, 1), "loss": mean_square}
    return Task(**given | {"train": (x, y), "batch_size": 28, "epochs": 10} | changes)


@pytest.fixture(scope="session")
def line():
    return make_line
