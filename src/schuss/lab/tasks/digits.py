"""Handwritten digits: scikit-learn's 1797 bundled images of 8 × 8, or MNIST's own 70 000 of 28 × 28.

Sources: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (the bundled ones);
Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

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
    return Task(
        name="digits" if model == "mlp" else f"digits-{model}",
        description=f"1797 handwritten digits of 8 × 8 pixels, {_described(model)}",
        model=_network(model, side=8, width=64),
        loss=cross_entropy,
        outputs=logits,
        metric=accuracy,
        metric_name="accuracy",
        best="max",
        train=(images, labels),
        batch_size=64,
        epochs=40,
        search="published",
    )


def mnist(model: str = "mlp", data: Path | None = None) -> Task:
    """Classify MNIST's digits, from its four IDX files in the folder `data`."""
    if data is None:
        raise ValueError("The task mnist needs MNIST's own IDX files. Try: schuss race mnist --data DIR")
    if not data.is_dir():
        raise NotADirectoryError(f"{data} is not a folder. MNIST's four IDX files are expected there.")
    return Task(
        name="mnist" if model == "mlp" else f"mnist-{model}",
        description=f"MNIST's handwritten digits of 28 × 28 pixels, {_described(model)}",
        model=_network(model, side=28, width=128),
        loss=cross_entropy,
        outputs=logits,
        metric=accuracy,
        metric_name="accuracy",
        best="max",
        train=_images(data, "train"),
        test=_images(data, "t10k"),
        batch_size=128,
        epochs=5,
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


def _network(kind: str, side: int, width: int) -> type[nn.Module] | _Network:
    if kind not in ("mlp", "convnet"):
        raise refusal("model", kind, "'mlp' or 'convnet'")
    return _Network(kind, side, width)


class _Network:
    """Makes the network; an object rather than a lambda, so that it can be sent to another process."""

    def __init__(self, kind: str, side: int, width: int) -> None:
        self.kind, self.side, self.width = kind, side, width

    def __call__(self) -> nn.Module:
        if self.kind == "mlp":
            hidden = nn.Linear(self.side**2, self.width)
            return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(self.width, 10))
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * (self.side // 4) ** 2, 10),
        )


def _described(model: str) -> str:
    return "a network with one hidden layer" if model == "mlp" else "a small convolutional network"


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
