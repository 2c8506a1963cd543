import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


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
