"""Predict the next character with a small transformer, in the text that every machine has: Python's standard library.

The model is the decoder of Vaswani et al., "Attention is all you need", 2017, with the norm before each part
(Xiong et al., 2020), learned positions and no dropout.
"""

import math
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schuss.errors import refusal, whole
from schuss.lab.tasks.task import Task

# Printable ASCII and the line break; everything else is one more symbol.
ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
SYMBOLS = len(ALPHABET) + 1
WINDOW = 64
CHARACTERS = 400_000  # of the text


def text(width: int = 48, layers: int = 2, data: Path | None = None) -> Task:
    """Predict each character of Python's own source, or of the file `data`, from up to 63 before it."""
    if width < 4 or width % 4:
        raise refusal("width", width, "a positive multiple of 4", "The transformer has four heads.")
    whole("layers", layers, 1)
    code = {character: number for number, character in enumerate(ALPHABET)}
    numbers = torch.tensor([code.get(c, SYMBOLS - 1) for c in _read(data)], dtype=torch.uint8)
    windows = numbers[: len(numbers) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return Task(
        name="text",
        description=f"next character of text, a transformer of {layers} layers and width {width}",
        model=partial(Transformer, width, layers),
        loss=cross_entropy,
        metric=bits,
        metric_name="bits per character",
        train=windows,
        batch_size=16,
        steps=200,
        measured_on=64,
        search="published",
    )


def modules() -> Iterator[tuple[str, str]]:
    """Name and source of each module at the top of the standard library: they depend on Python's version alone."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield path.stem, path.read_text(encoding="utf-8", errors="replace")


def _read(data: Path | None) -> str:
    """The first `CHARACTERS` of the user's file, or of the standard library."""
    if data is not None:
        if not data.is_file():
            raise FileNotFoundError(f"{data} is not a file. Any text file will do.")
        return data.read_text(encoding="utf-8", errors="replace")[:CHARACTERS]
    found = ""
    for _, code in modules():
        found += code
        if len(found) >= CHARACTERS:
            break
    if not found:
        advice = "Name a file: schuss race text --data FILE"
        raise refusal("standard library", sysconfig.get_paths()["stdlib"], "there as source", advice)
    return found[:CHARACTERS]


def cross_entropy(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    symbols = batch.long()
    return F.cross_entropy(model(symbols[:, :-1]).flatten(0, 1), symbols[:, 1:].flatten())


def bits(model: nn.Module, batch: Tensor) -> float:
    """The same in bits."""
    return cross_entropy(model, batch).item() / math.log(2)


class Transformer(nn.Module):
    """Symbols in, (batch, length), logits out, (batch, length, symbols)."""

    def __init__(self, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.symbol = nn.Embedding(SYMBOLS, width)
        self.position = nn.Embedding(WINDOW, width)
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        """Logits of the symbol after each."""
        places = torch.arange(symbols.shape[1], device=symbols.device)
        return self.head(self.norm(self.layers(self.symbol(symbols) + self.position(places))))


class _Layer(nn.Module):
    """Attend, then think: each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_thought = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).reshape(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.think(self.before_thought(x))
