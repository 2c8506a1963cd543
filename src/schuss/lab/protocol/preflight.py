"""Look a task over before the race: what cannot work should say so now, not after an hour."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

import schuss
from schuss.lab.protocol.run import first_step, weights
from schuss.lab.protocol.work import quiet_process
from schuss.lab.tasks.data import Batch, Rows, leaves
from schuss.lab.tasks.task import Task

LOOK = 2048  # rows of a split that its fingerprint reads

# What a run's numbers depend on. The report and the command line may change without making old runs another
# race.
CODE = (
    "rules",
    "schedules",
    "compile",
    "torch",
    "newton",
    "lab/tasks",
    "lab/entries.py",
    "lab/schedules.py",
    "lab/protocol/run.py",
    "lab/protocol/curved.py",
)


@dataclass(frozen=True)
class Facts:
    """What the look at a task found."""

    fingerprint: str
    parameters: int
    lengths: dict[str, int | None]


def look_over(task: Task, source: str = "") -> Facts:
    """Check that the task can be raced, and fingerprint it. `source` is the text of the file it came from.

    Raises `ValueError` that names the task and what is wrong: a part that raises, a loss or metric that is
    no finite number, no data, or batches that come in another order when asked for again.
    """
    with quiet_process():
        first, again = (list(islice(_named(task, "train", task.stream(0)), 2)) for _ in range(2))
        if [_bytes(batch) for batch in first] != [_bytes(batch) for batch in again]:
            raise ValueError(
                f"Task {task.name!r} gives other training batches when asked again with the same seed. "
                "Give a Dataset or tensors, which are shuffled here, or draw from torch's generator."
            )
        found = _try(task, "model or loss", lambda: first_step(task, 0))
        if not found.finite:
            raise ValueError(f"Task {task.name!r}: the untrained model's loss is {found.loss}.")
        if not found.reached:
            raise ValueError(
                f"Task {task.name!r}: no weight has a gradient. Does the loss use the model's output?"
            )
        loss, metric = _try(task, "loss or metric on validation", found.validation)
        for name, value in (("loss", loss), (task.metric_name, metric)):
            if not math.isfinite(value):
                raise ValueError(
                    f"Task {task.name!r}: its {name} on validation is {value} before any training."
                )
        _try(task, "loss or metric on test", found.try_test)
        lengths = {name: task.length(name) for name in task.splits}
        return Facts(_fingerprint(task, source, found.model), weights(found.model), lengths)


def _named(task: Task, split: str, batches: Iterator[Batch]) -> Iterator[Batch]:
    while True:
        batch = _try(task, f"{split} data", lambda: next(batches, _END))
        if batch is _END:
            return
        yield batch


_END = object()


def _try(task: Task, what: str, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except Exception as error:
        raise ValueError(f"Task {task.name!r}: its {what} raised {type(error).__name__}: {error}") from error


def _fingerprint(task: Task, source: str, model: nn.Module) -> str:
    """A hash of model, data and code: runs under one fingerprint may be compared."""
    seen = hashlib.blake2b(digest_size=8)
    shapes = [(name, tuple(w.shape), str(w.dtype)) for name, w in model.named_parameters()]
    plain = (
        task.name,
        task.best,
        task.metric_name,
        task.batch_size,
        task.epochs,
        task.steps,
        task.measured_on,
    )
    code = [_code(part) for part in (task.model, task.loss, task.metric, task.outputs)]
    seen.update(repr((plain, task.search, task.decay, shapes, code, source, code_version())).encode())
    for name, part in task.splits.items():
        seen.update(f"{name} {task.length(name)}".encode())
        if isinstance(part, Rows):
            picks = torch.arange(min(LOOK, len(part))) * len(part) // min(LOOK, len(part))
            seen.update(_bytes(part.take(part.index[picks])))
        elif part is not None and name == "train":
            for batch in islice(task.stream(0), 2):
                seen.update(_bytes(batch))
    return seen.hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of every file of ours, and the version of every package, that a run's numbers depend on."""
    seen = hashlib.blake2b(digest_size=6)
    root = Path(schuss.__file__).parent
    for part in CODE:
        place = root / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.is_file():
                seen.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("torch", "numpy", "numba")]
    seen.update(repr((versions, platform.python_version_tuple()[:2])).encode())
    return f"schuss {schuss.__version__}, code {seen.hexdigest()}"


def _bytes(batch: Batch) -> bytes:
    return b"".join(_tensor_bytes(leaf) for leaf in leaves(batch))


def _tensor_bytes(leaf: Tensor) -> bytes:
    flat = leaf.detach().cpu().contiguous().reshape(-1)
    return f"{tuple(leaf.shape)} {leaf.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes()


def _code(part: object) -> object:
    """What a function does, in a form that neither its file nor its line enters."""
    code = getattr(part, "__code__", None)
    if isinstance(code, CodeType):
        constants = [_code_object(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
        return code.co_code.hex(), constants, code.co_names
    return getattr(type(part), "__qualname__", "")


def _code_object(code: CodeType) -> object:
    return code.co_code.hex(), [repr(c) for c in code.co_consts if not isinstance(c, CodeType)], code.co_names
