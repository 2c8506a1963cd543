"""Rare features: which module of the standard library does this handful of words come from?

Each example is the bag of words of a few lines of source. A step touches only the embedding rows of the
words in its batch, and most words are rare: the setting that AdaGrad was made for (Duchi, Hazan and Singer,
"Adaptive subgradient methods", 2011).
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch import nn

from schuss.errors import refusal
from schuss.lab.tasks.digits import accuracy, cross_entropy
from schuss.lab.tasks.task import Task
from schuss.lab.tasks.text import modules

WORD = re.compile(r"[A-Za-z_]\w+")
MODULES = 16
LINES = 8  # to a bag
WORDS = 32  # of a bag that are used; 0 fills up
VOCABULARY = 8000


def sparse(data: Path | None = None) -> Task:
    """Name the module that eight lines come from; `data`: a folder with a text file for each class."""
    sources = list(modules()) if data is None else _folder(data)
    largest = sorted(sources, key=lambda source: (-len(source[1]), source[0]))[:MODULES]
    bags: list[tuple[int, list[str]]] = []
    for label, (_, code) in enumerate(sorted(largest)):
        lines = code.splitlines()
        groups = ("\n".join(lines[at : at + LINES]) for at in range(0, len(lines), LINES))
        found = (WORD.findall(group)[:WORDS] for group in groups)
        bags += [(label, words) for words in found if len(words) >= 4]
    counts = Counter(word for _, words in bags for word in words)
    common = sorted(counts, key=lambda word: (-counts[word], word))[:VOCABULARY]
    number = {word: i for i, word in enumerate(common, start=1)}
    rows = [[number.get(word, 0) for word in words] + [0] * (WORDS - len(words)) for _, words in bags]
    return Task(
        name="sparse",
        description=f"which of {len(largest)} files a bag of words comes from, {len(number)} words",
        model=partial(_model, len(number) + 1, len(largest)),
        loss=cross_entropy,
        metric=accuracy,
        metric_name="accuracy",
        best="max",
        train=(torch.tensor(rows), torch.tensor([label for label, _ in bags])),
        batch_size=32,
        epochs=4,
        search="published",
        decay=False,
    )


def _model(words: int, classes: int) -> nn.Module:
    """Only the table of words is trained, so that every gradient is sparse."""
    bag = nn.EmbeddingBag(words, classes, mode="sum", sparse=True, padding_idx=0)
    nn.init.normal_(bag.weight, std=0.01)
    with torch.no_grad():
        bag.weight[0] = 0
    return bag


def _folder(data: Path) -> list[tuple[str, str]]:
    if not data.is_dir():
        raise NotADirectoryError(f"{data} is not a folder. Put one text file for each class in it.")
    files = sorted(path for path in data.iterdir() if path.is_file())
    if len(files) < 2:
        raise refusal("data", str(data), "a folder with a file for each of two or more classes")
    return [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in files]
