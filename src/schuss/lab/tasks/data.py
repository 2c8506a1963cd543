"""What a task learns from: tensors, arrays, a Dataset, a DataLoader, or any iterable of batches.

Two shapes are enough. `Rows` have a length and can be indexed, so they are split, shuffled and cut into
batches of any size here, by (seed, epoch) alone. A `Stream` is a fresh iterator of ready batches for every
epoch; its order is its owner's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from schuss.errors import refusal
from schuss.lab.seeds import Strand, stable_seed

Batch: TypeAlias = Any  # whatever the task's own loss understands: a tensor, a tuple, a dict, None


@dataclass(frozen=True)
class Rows:
    """Examples that can be picked by number: `take(indices)` is the batch of those rows."""

    take: Callable[[Tensor], Batch]
    index: Tensor  # (rows,) int64: which rows of the source belong here

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.index)

    def subset(self, picks: Tensor) -> Rows:
        """The rows at these positions, in this order."""
        return Rows(self.take, self.index[picks])

    def batches(self, batch_size: int, seed: int | None = None, epoch: int = 0) -> Iterator[Batch]:
        """One epoch. With a seed it is shuffled, by (seed, epoch) and nothing else."""
        order = self.index
        if seed is not None:
            shuffle = torch.Generator().manual_seed(stable_seed("shuffle", seed, epoch))
            order = order[torch.randperm(len(order), generator=shuffle)]
        for picks in order.split(batch_size):
            yield self.take(picks)


@dataclass(frozen=True)
class Stream:
    """Ready batches in their owner's order; `fresh()` begins an epoch."""

    fresh: Callable[[], Iterable[Batch]]

    def batches(self, batch_size: int, seed: int | None = None, epoch: int = 0) -> Iterator[Batch]:
        """One epoch. Whatever draws from torch's, NumPy's or Python's global generators is pinned to (seed, epoch).

        The generators are put back before each batch is handed on, so that training draws its own numbers.
        """
        numbers = stable_seed("stream", seed, epoch)
        with Strand(numbers) as strand:
            iterator = iter(self.fresh())
        while True:
            with strand:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch


def source(name: str, data: Any) -> Rows | Stream:
    """Turn what a task was given under this name into rows or a stream, or say why that cannot be."""
    found = _source(name, data)
    if isinstance(found, Rows) and len(found) == 0:
        raise refusal(name, "no rows", "data", "There is nothing in it to learn from.")
    return found


def _source(name: str, data: Any) -> Rows | Stream:
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            return Stream(lambda: data)
        return _from_dataset(data.dataset, data.collate_fn or default_collate)
    if _is_table(data):
        return _from_table(name, data)
    if isinstance(data, list) and data and all(isinstance(batch, Mapping | list | tuple) for batch in data):
        return Stream(lambda: data)
    if isinstance(data, Mapping | list | tuple):
        advice = "It takes a table: tensors or arrays in a tuple, list or dict; or a list of batches."
        raise refusal(name, _short(data), "data", advice)
    if hasattr(data, "__getitem__") and isinstance(data, Sized) and not isinstance(data, str | bytes):
        return _from_dataset(data, default_collate)
    if callable(data):
        return Stream(cast("Callable[[], Iterable[Batch]]", data))
    if not isinstance(data, Iterable):
        advice = "Give tensors, arrays, a Dataset, a DataLoader or an iterable of batches."
        raise refusal(name, _short(data), "data", advice)
    if iter(data) is data:
        advice = "It can be read only once; give a function that returns a fresh one, or a list of batches."
        raise refusal(name, _short(data), "data that can be read again", advice)
    return Stream(lambda: data)


def split(name: str, rows: Rows, shares: Sequence[float]) -> list[Rows]:
    """Part rows by a hash of (name, position): the same rows fall the same way for ever, on any machine."""
    keys = [hashlib.blake2b(f"{name}:{i}".encode(), digest_size=8).digest() for i in range(len(rows))]
    order = torch.tensor(sorted(range(len(rows)), key=keys.__getitem__))
    ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
    return [rows.subset(order[start:end].sort().values) for start, end in zip([0, *ends], ends, strict=False)]


def leaves(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, however it is nested; arrays as tensors."""
    found: list[Tensor] = []
    _each(batch, lambda leaf: found.append(torch.as_tensor(leaf)))
    return found


def size(batch: Batch) -> int:
    """How many examples a batch holds: the length of its first tensor, or 1."""
    found = leaves(batch)
    return len(found[0]) if found and found[0].ndim else 1


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with every tensor on the device."""
    return _each(batch, lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)


def _each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """The same nest of dicts, lists and tuples with every tensor and array changed."""
    if isinstance(batch, Tensor | np.ndarray):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each(value, change) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        changed = [_each(value, change) for value in batch]
        return type(batch)(*changed) if hasattr(batch, "_fields") else type(batch)(changed)
    return batch


def _is_table(data: Any) -> bool:
    if isinstance(data, Mapping):
        return bool(data) and all(map(_is_table, data.values()))
    if isinstance(data, list | tuple):
        return bool(data) and all(isinstance(column, Tensor | np.ndarray) for column in data)
    return isinstance(data, Tensor | np.ndarray)


def _from_table(name: str, data: Any) -> Rows:
    """Tensors or arrays that share their first dimension: one row of each is an example."""
    table = _each(data, lambda x: x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x)))
    lengths = {len(column) if column.ndim else 0 for column in leaves(table)}
    if len(lengths) != 1:
        advice = "The columns of a table must have the same length."
        raise refusal(name, f"columns of length {sorted(lengths)}", "a table", advice)
    return Rows(lambda picks: _each(table, lambda column: column[picks]), torch.arange(lengths.pop()))


def _from_dataset(dataset: Any, collate: Callable[[list[Any]], Batch]) -> Rows:
    return Rows(lambda picks: collate([dataset[i] for i in picks.tolist()]), torch.arange(len(dataset)))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{type(value).__name__} {text[:50]}…"
