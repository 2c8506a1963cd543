"""Handwritten digits: scikit-learn's 1797 bundled images of 8 × 8, or MNIST's own 70 000 of 28 × 28.

Sources: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the bundled ones);
Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
"""

from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schuss.errors import refusal
from schuss.lab.tasks.idx import find, read_idx
from schuss.lab.tasks.task import Task

Images: TypeAlias = tuple[Tensor, Tensor]  # (n, 1, side, side) float32 in [0, 1], (n,) int64


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
        raise NotADirectoryError(f"{data} is not a folder. MNIST's four IDX files are expected there.")
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
    pixels, labels = find(folder, f"{part}-images-idx3-ubyte"), find(folder, f"{part}-labels-idx1-ubyte")
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
