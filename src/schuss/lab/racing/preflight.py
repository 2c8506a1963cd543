"""Check a task before the race: what cannot work should say so now, not after an hour."""

from __future__ import annotations

import hashlib
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import CodeType
from typing import Any

import torch
from torch import nn

from schuss.lab.racing.version import code_version
from schuss.lab.reason import reason
from schuss.lab.tasks.data import Batch, Rows, leaves
from schuss.lab.tasks.task import Task
from schuss.lab.training.moments import evenly
from schuss.lab.training.quiet import quiet_process
from schuss.lab.training.run import EVALUATIONS, FirstStep, first_step, measure, weights

ROWS = 2048  # of a split that its fingerprint reads


@dataclass(frozen=True)
class Facts:
    """What was found about a task."""

    fingerprint: str
    parameters: int
    lengths: dict[str, int | None]
    parts: dict[str, str] = field(default_factory=dict[str, str])  # what the fingerprint is made of, by name
    seconds: float = 0.0  # that a run should take


def preflight(task: Task, files: Mapping[str, str] | None = None) -> Facts:
    """Check that the task can be raced, and fingerprint it. `files` are the texts of the files it came from.

    Raises `ValueError` that names the task and what is wrong: a part that raises, a loss or metric that is
    no finite number, no data, or batches that come in another order when asked for again.
    """
    with quiet_process():
        first, again = (_try(task, "train data", lambda: _first_batches(task)) for _ in range(2))
        if first != again:
            raise ValueError(
                f"Task {task.name!r} gives other training batches when asked again with the same seed. "
                "Give a Dataset or tensors, which are shuffled here, or draw from torch's generator."
            )
        found = _try(task, "model or loss", lambda: first_step(task, 0))
        model = found.model
        if not math.isfinite(found.loss):
            raise ValueError(f"Task {task.name!r}: the untrained model's loss is {found.loss}.")
        if not found.reached:
            raise ValueError(
                f"Task {task.name!r}: no weight has a gradient. Does the loss use the model's output?"
            )
        began = time.perf_counter()
        loss, metric = _try(task, "loss or metric on validation", lambda: measure(task, model, "validation"))
        evaluation = time.perf_counter() - began
        for name, value in (("loss", loss), (task.metric_name, metric)):
            if not math.isfinite(value):
                raise ValueError(
                    f"Task {task.name!r}: its {name} on validation is {value} before any training."
                )
        _try(task, "loss or metric on test", lambda: measure(task, model, "test", most=1))
        lengths = {name: task.length(name) for name in task.splits}
        parts = _parts(task, files or {}, model)
        fingerprint = _digest(repr(parts).encode())
        return Facts(fingerprint, weights(model), lengths, parts, _expected(task, found, evaluation))


def _expected(task: Task, found: FirstStep, evaluation: float) -> float:
    """Seconds of a whole run: its gradients, and the evaluations of training and validation data."""
    began = time.perf_counter()
    _try(task, "model or loss", lambda: task.loss(found.model, found.batch).backward())
    gradient = time.perf_counter() - began
    return task.total_steps() * gradient + 2 * (EVALUATIONS + 1) * evaluation


def _first_batches(task: Task) -> list[bytes]:
    return [_bytes(batch) for batch in islice(task.stream(0), 2)]


def _try(task: Task, what: str, do: Callable[[], Any]) -> Any:
    try:
        return do()
    except (Exception, SystemExit) as error:
        raise ValueError(f"Task {task.name!r}: its {what} raised {reason(traceback.format_exc())}") from error


def _parts(task: Task, files: Mapping[str, str], model: nn.Module) -> dict[str, str]:
    """Digests of model, data and code, by what they are called: runs under the same ones may be compared."""
    shapes = [(name, tuple(w.shape), str(w.dtype)) for name, w in model.named_parameters()]
    settings = (
        *(task.name, task.best, task.metric_name, task.batch_size, task.epochs, task.steps),
        *(task.measured_on, task.search, task.decay),
    )
    code = [_code(part) for part in (task.model, task.loss, task.metric, task.outputs)]
    parts = {
        **{f"the file {file}": _digest(text.encode()) for file, text in files.items()},
        "the settings of the task": _digest(repr(settings).encode()),
        "the shapes of the model's weights": _digest(repr(shapes).encode()),
        "the functions of the task": _digest(repr(code).encode()),
    }
    for name, part in task.splits.items():
        seen = [f"{name} {task.length(name)}".encode()]
        if isinstance(part, Rows):
            seen.append(_bytes(evenly(part, ROWS)))
        elif part is not None and name == "train":
            seen += _first_batches(task)
        parts[f"the {name} data"] = _digest(b"".join(seen))
    return parts | {"the version of schuss, torch, numpy or numba": code_version()}


def _digest(seen: bytes) -> str:
    return hashlib.blake2b(seen, digest_size=8).hexdigest()


def _bytes(batch: Batch) -> bytes:
    """All tensors of a batch with their shapes and dtypes."""
    found = b""
    for leaf in leaves(batch):
        flat = leaf.detach().cpu().contiguous().reshape(-1)
        found += f"{tuple(leaf.shape)} {leaf.dtype}".encode() + flat.view(torch.uint8).numpy().tobytes()
    return found


def _code(part: object) -> object:
    """What a function does, in a form that neither its file nor its line enters."""
    code = part if isinstance(part, CodeType) else getattr(part, "__code__", None)
    if not isinstance(code, CodeType):
        return getattr(type(part), "__qualname__", "")
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code.hex(), constants, code.co_names
