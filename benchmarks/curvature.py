"""What it takes to find both ends of the spectrum of ten million weights.

An MLP on scikit-learn's digits and a small transformer on the source text of Python's standard library, at
their random start and after some training, in float32 on one thread: the five largest and five smallest
eigenvalues of the Hessian within the default 100 Hessian-vector products (HVPs) and 24 vectors. Printed for
each: HVPs, their cost in gradients, peak memory in vectors of the model's size (over the model itself), and
the worst residual at each end, relative to the largest |λ|.

Run: python benchmarks/curvature.py [--only mlp,transformer] [--width 3130]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from schuss.bench.grids import markdown_table
from schuss.bench.program import RESET, resident
from schuss.curvature import extreme_eigenvalues, hvp

TRAINING = {"mlp": 30, "transformer": 40}
HEADS = (
    *("model", "weights", "HVPs", "one `hvp` / gradient", "all / gradient", "peak memory, vectors"),
    *("converged", "worst residual, largest", "smallest"),
)


class Block(nn.Module):
    """Causal attention and an MLP, each on the normalised stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.between(x))


class Transformer(nn.Module):
    """Six blocks over 128 characters, input and output tables tied."""

    def __init__(self, width: int = 384, length: int = 64):
        super().__init__()
        self.table, self.position = nn.Embedding(128, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads=6) for _ in range(6)], nn.LayerNorm(width))
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.table(tokens) + self.position.weight[: tokens.shape[1]])
        return x @ self.table.weight.T


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def build(name: str, trained: bool, width: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(1)
    if name == "mlp":
        x, y = load_digits(return_X_y=True)
        inputs, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
        inputs -= inputs.mean(dim=0)
        model = nn.Sequential(
            nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

        def batch() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(inputs), (128,), generator=draws)
            return inputs[rows], labels[rows]
    else:
        sources = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
        text = "".join(source.read_text(encoding="utf-8") for source in sources)
        tokens = torch.tensor([min(ord(letter), 127) for letter in text])
        model = Transformer()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

        def batch() -> tuple[Tensor, Tensor]:
            starts = torch.randint(len(tokens) - 65, (4,), generator=draws)
            rows = torch.stack([tokens[start : start + 65] for start in starts])
            return rows[:, :-1], rows[:, 1:]

    for _ in range(TRAINING[name] if trained else 0):
        optimizer.zero_grad()
        cross_entropy(model, batch()).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, batch()


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median of the processor's time for a call: on one thread other work on the machine does not count."""
    return statistics.median(timeit.repeat(work, timer=time.process_time, repeat=repeats, number=1))


def measure(name: str, trained: bool, width: int) -> None:
    torch.set_num_threads(1)
    model, batch = build(name, trained, width)
    weights = list(model.parameters())
    n = sum(weight.numel() for weight in weights)
    gradient = seconds(lambda: torch.autograd.grad(cross_entropy(model, batch), weights))
    product = seconds(partial(hvp, model, cross_entropy, batch, torch.ones(n)))
    RESET.write_text("5")  # the peak of memory counts from here
    held, start = resident("VmRSS"), time.process_time()
    got = extreme_eigenvalues(model, cross_entropy, batch, k=5)
    took = time.process_time() - start
    peak, k = resident("VmHWM") - held, len(got.largest)
    largest = max(abs(got.largest[0]), abs(got.smallest[0]))
    row = [
        *(f"{name}, {'trained' if trained else 'at its start'}", f"{n / 1e6:.2f}M", str(got.products)),
        *(f"{product / gradient:.2f}", f"{took / gradient:.0f}", f"{peak / (4 * n):.1f}", str(got.converged)),
        *(f"{end.max() / largest:.1e}" for end in (got.residuals[:k], got.residuals[k:])),
    ]
    print(f"| {' | '.join(row)} |\n{got}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(TRAINING), help="models, comma-separated")
    parser.add_argument("--width", type=int, default=3130, help="of the MLP: 3130 makes 10 million weights")
    given = parser.parse_args()
    print(*markdown_table(HEADS), sep="\n", flush=True)
    for name in given.only.split(","):
        for trained in (False, True):
            # Each in a process of its own, so that its peak memory is its own.
            child = multiprocessing.get_context("spawn").Process(
                target=measure, args=(name, trained, given.width)
            )
            child.start()
            child.join()


if __name__ == "__main__":
    main()
