"""Handwritten digits: scikit-learn's 1797 bundled images of 8 × 8, or MNIST's own 70 000 of 28 × 28.

Sources: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the bundled ones);
Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
"""

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from schuss.errors import refusal
from schuss.lab.tasks.task import Task

Images: TypeAlias = tuple[Tensor, Tensor]  # (n, 1, side, side) float32 in [0, 1], (n,) int64
EXPECTED = "MNIST's four IDX files are expected there."


def digits(model: str = "mlp", data: Path | None = None) -> Task:
    """Classify 8 × 8 digits; with `data`, MNIST's instead."""
    if data is not None:
        return mnist(model, data)
    from sklearn.datasets import load_digits

    bunch = cast("Any", load_digits())
    images = torch.from_numpy((bunch.images / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return _task("digits", "1797 handwritten digits of 8 × 8 pixels", model, (images, labels), 64, 64, 40)


def mnist(model: str = "mlp", data: Path | None = None) -> Task:
    """Classify MNIST's digits, from its four IDX files in the folder `data`."""
    if data is None:
        raise ValueError("The task mnist needs MNIST's own IDX files. Try: schuss race mnist --data DIR")
    if not data.is_dir():
        raise NotADirectoryError(f"{data} is not a folder. {EXPECTED}")
    train, test = _images(data, "train"), _images(data, "t10k")
    return _task("mnist", "MNIST's handwritten digits of 28 × 28 pixels", model, train, 128, 128, 5, test)


def _task(
    name: str,
    description: str,
    model: str,
    train: Images,
    width: int,
    batch_size: int,
    epochs: float,
    test: Images | None = None,
) -> Task:
    if model not in ("mlp", "convnet"):
        raise refusal("model", model, "'mlp' or 'convnet'")
    plain, side = model == "mlp", train[0].shape[-1]
    kind = "a network with one hidden layer" if plain else "a small convolutional network"
    return Task(
        name=name if plain else f"{name}-{model}",
        description=f"{description}, {kind}",
        model=partial(_mlp, side, width) if plain else partial(_convnet, side),
        loss=cross_entropy,
        outputs=logits,
        metric=accuracy,
        metric_name="accuracy",
        best="max",
        train=train,
        test=test,
        batch_size=batch_size,
        epochs=epochs,
        search="published",
    )


def cross_entropy(model: nn.Module, batch: Images) -> Tensor:
    """Mean cross-entropy, in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def logits(model: nn.Module, batch: Images) -> tuple[Tensor, Tensor]:
    """Log-odds and labels, whose mean cross-entropy is the loss."""
    images, labels = batch
    return model(images), labels


def accuracy(model: nn.Module, batch: Images) -> Tensor:
    """Share of images whose most likely class is the right one."""
    images, labels = batch
    return (model(images).argmax(1) == labels).double().mean()


def _mlp(side: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(side**2, width), nn.ReLU(), nn.Linear(width, 10))


def _convnet(side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (side // 4) ** 2, 10),
    )


def _images(folder: Path, part: str) -> Images:
    pixels, labels = _find(folder, f"{part}-images-idx3-ubyte"), _find(folder, f"{part}-labels-idx1-ubyte")
    images, classes = read_idx(pixels, 3), read_idx(labels, 1)
    if len(images) != len(classes):
        raise ValueError(f"{pixels} holds {len(images)} images but {labels} holds {len(classes)} labels.")
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{pixels} holds images of {images.shape[1]} × {images.shape[2]} pixels, expected 28 × 28."
        )
    if len(classes) and classes.max() > 9:
        raise ValueError(f"{labels} holds the label {classes.max()}; digits end at 9.")
    scaled = torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1)
    return scaled, torch.from_numpy(classes.astype(np.int64))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    The format, from http://yann.lecun.com/exdb/mnist: a big-endian magic number 0x0000TTDD (TT: element type,
    DD: number of dimensions), one 32-bit length per dimension, then the elements, the last dimension running
    fastest. Raises `ValueError` naming the file when its magic number is wrong, when it is cut short or goes on
    too long, and `FileNotFoundError` when it is not there.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut short or not gzip: {error}.") from error
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is cut short: {len(content)} bytes, but its header alone has {header}.")
    magic = struct.unpack(">I", content[:4])[0]
    expected = 0x0800 | dimensions  # 08: unsigned bytes
    if magic != expected:
        raise ValueError(
            f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes: "
            f"its magic number is 0x{magic:08x}, expected 0x{expected:08x}."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    found, stated = len(content) - header, math.prod(shape)
    if found != stated:
        wrong = "cut short" if found < stated else "too long"
        raise ValueError(f"{path} is {wrong}: its header says {stated} bytes of data, it has {found}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    """The file of that name in the folder, plain or `.gz`; some archives spell the last dash as a dot."""
    spellings = (name, name.replace("-idx", ".idx"))
    candidates = [folder / (spelling + ending) for spelling in spellings for ending in ("", ".gz")]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder / name} is missing (plain or .gz). {EXPECTED}")
    return found
