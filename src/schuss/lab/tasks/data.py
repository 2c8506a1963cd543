"""What a task learns from: tensors, arrays, a Dataset, a DataLoader, or any iterable of batches.

Two shapes are enough. `Rows` have a length and can be indexed, so they are split, shuffled and cut into
batches of any size here, by (seed, epoch) alone. A `Stream` is a fresh iterator of ready batches for every
epoch; its order is its owner's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from schuss.errors import refusal
from schuss.lab.seeds import Strand, stable_seed

Batch: TypeAlias = Any  # whatever the task's own loss understands: a tensor, a tuple, a dict, None

Source = TypeVar("Source", "Rows", "Stream")


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


def source(name: str, data: object) -> Rows | Stream:
    """Turn what a task was given under this name into rows or a stream, or say why that cannot be."""
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            return _sized(name, Stream(lambda: data))
        collate = cast("Callable[[list[Any]], Batch]", data.collate_fn or default_collate)
        return _sized(name, _from_dataset(cast("Sequence[Any]", data.dataset), collate))
    if _is_table(data):
        return _sized(name, _from_table(name, data))
    if isinstance(data, list) and data and all(isinstance(batch, Mapping | list | tuple) for batch in data):
        batches = cast("list[Batch]", data)
        return Stream(lambda: batches)
    if isinstance(data, Mapping | list | tuple):
        raise refusal(
            name,
            _short(data),
            "data",
            "It takes a table: tensors or arrays in a tuple, list or dict; or a list of batches.",
        )
    if hasattr(data, "__getitem__") and isinstance(data, Sized) and not isinstance(data, str | bytes):
        return _sized(name, _from_dataset(cast("Sequence[Any]", data), default_collate))
    if callable(data):
        return Stream(cast("Callable[[], Iterable[Batch]]", data))
    if isinstance(data, Iterable):
        stream = cast("Iterable[Batch]", data)
        if iter(stream) is stream:
            advice = (
                "It can be read only once; give a function that returns a fresh one, or a list of batches."
            )
            raise refusal(name, _short(stream), "data that can be read again", advice)
        return Stream(lambda: stream)
    raise refusal(
        name, _short(data), "data", "Give tensors, arrays, a Dataset, a DataLoader or an iterable of batches."
    )


def split(name: str, rows: Rows, shares: Sequence[float]) -> list[Rows]:
    """Part rows by a hash of (name, position): the same rows fall the same way for ever, on any machine."""
    keys = [hashlib.blake2b(f"{name}:{i}".encode(), digest_size=8).digest() for i in range(len(rows))]
    order = torch.tensor(sorted(range(len(rows)), key=keys.__getitem__))
    ends = [round(sum(shares[: i + 1]) * len(rows)) for i in range(len(shares))]
    return [rows.subset(order[start:end].sort().values) for start, end in zip([0, *ends], ends, strict=False)]


def leaves(batch: Batch) -> Iterator[Tensor]:
    """Every tensor of a batch, however it is nested."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, np.ndarray):
        yield torch.from_numpy(batch)
    elif isinstance(batch, Mapping):
        for value in cast("Mapping[Any, Any]", batch).values():
            yield from leaves(value)
    elif isinstance(batch, list | tuple):
        for value in cast("Sequence[Any]", batch):
            yield from leaves(value)


def size(batch: Batch) -> int:
    """How many examples a batch holds: the length of its first tensor, or 1."""
    first = next(leaves(batch), None)
    return 1 if first is None or first.ndim == 0 else len(first)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with every tensor on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in cast("Mapping[Any, Any]", batch).items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in cast("Sequence[Any]", batch)]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def _is_table(data: object) -> bool:
    if isinstance(data, Tensor | np.ndarray):
        return True
    if isinstance(data, Mapping):
        return bool(data) and all(_is_table(value) for value in cast("Mapping[Any, Any]", data).values())
    if isinstance(data, list | tuple):
        return bool(data) and all(
            isinstance(value, Tensor | np.ndarray) for value in cast("Sequence[Any]", data)
        )
    return False


def _from_table(name: str, data: Any) -> Rows:
    """Tensors or arrays that share their first dimension: one row of each is an example."""
    table = _tensors(data)
    lengths = {len(column) if column.ndim else 0 for column in leaves(table)}
    if len(lengths) != 1:
        advice = "The columns of a table must have the same length."
        raise refusal(name, f"columns of length {sorted(lengths)}", "a table", advice)
    return Rows(lambda picks: _pick(table, picks), torch.arange(lengths.pop()))


def _tensors(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(data))
    if isinstance(data, Mapping):
        return {key: _tensors(value) for key, value in cast("Mapping[Any, Any]", data).items()}
    return tuple(_tensors(value) for value in data)


def _pick(table: Any, picks: Tensor) -> Batch:
    if isinstance(table, Tensor):
        return table[picks]
    if isinstance(table, dict):
        return {key: _pick(value, picks) for key, value in cast("dict[Any, Any]", table).items()}
    return tuple(_pick(value, picks) for value in table)


def _from_dataset(dataset: Sequence[Any], collate: Callable[[list[Any]], Batch]) -> Rows:
    return Rows(lambda picks: collate([dataset[i] for i in picks.tolist()]), torch.arange(len(dataset)))


def _sized(name: str, data: Source) -> Source:
    if isinstance(data, Rows) and len(data) == 0:
        raise refusal(name, "no rows", "data", "There is nothing in it to learn from.")
    return data


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{type(value).__name__} {text[:50]}…"
