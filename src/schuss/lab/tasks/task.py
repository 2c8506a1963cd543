"""A task: what every optimizer in a race is given to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import Any, Literal

from torch import Tensor, arange, nn

from schuss.errors import real, refusal, whole
from schuss.lab.tasks.data import Batch, Rows, Stream, source, split

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, a loss, data and a measure of success; all that a race needs to know.

    | field         | meaning                                                                                |
    | `name`        | what it is called; also the salt of the split                                          |
    | `model`       | makes a fresh model; called once per run under the run's seed                          |
    | `loss`        | `loss(model, batch)`: the mean loss of a batch, a scalar tensor with a graph           |
    | `train`       | tensors or arrays (alone, in a tuple or a dict), a Dataset, a DataLoader, a list       |
    |               | of batches (tuples or dicts of tensors), a function that returns them, or None:        |
    |               | `batch` is then None, for a pure function                                              |
    | `validation`  | the same; carved from `train` by hash if not given                                     |
    | `test`        | the same; opened once, at the very end                                                 |
    | `metric`      | `metric(model, batch)`: mean over the batch, a number; the loss, if not given          |
    | `outputs`     | `outputs(model, batch)`, for Gauss-Newton alone: residuals r with loss ½ Σ r², or      |
    |               | (logits, targets) with their mean cross-entropy as loss; it applies only where given   |
    | `metric_name` | how it is called                                                                       |
    | `best`        | "max" if a larger metric is better, "min" if a smaller one is                          |
    | `batch_size`  | examples per step (a stream brings its own)                                            |
    | `epochs`      | the horizon, in passes over `train`                                                    |
    | `steps`       | or in steps: needed for a stream or a function                                         |
    | `measured_on` | at most so many examples of a split are measured at each evaluation                    |
    | `optimum`     | the lowest possible training loss, where it is known                                   |
    | `search`      | learning rates to search: "measured" on this model, or the "published" ranges          |
    | `decay`       | whether weight decay is searched; not where it would move the optimum                  |

    >>> import torch
    >>> x = torch.linspace(-1, 1, 200).unsqueeze(1)
    >>> line = Task(
    ...     name="line",
    ...     model=lambda: torch.nn.Linear(1, 1),
    ...     loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    ...     train=(x, 2 * x),
    ...     batch_size=20,
    ...     epochs=10,
    ... )
    >>> len(line.rows("train")), len(line.rows("validation")), line.total_steps()
    (140, 30, 70)
    """

    name: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    train: Any = None
    validation: Any = None
    test: Any = None
    metric: Callable[[Any, Any], Any] | None = None
    outputs: Callable[[Any, Any], Any] | None = None
    metric_name: str = "loss"
    best: Literal["max", "min"] = "min"
    batch_size: int = 64
    epochs: float | None = None
    steps: int | None = None
    measured_on: int = 2048
    optimum: float | None = None
    search: Literal["measured", "published"] = "measured"
    decay: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what no race could run."""
        if not (isinstance(self.name, str) and self.name.isprintable() and self.name):  # pyright: ignore
            raise refusal("name", self.name, "a name", "It is one line of text that can be printed.")
        for name in ("model", "loss", "metric", "outputs"):
            value = getattr(self, name)
            if not (callable(value) or (value is None and name in ("metric", "outputs"))):
                raise refusal(name, value, "a function", "See schuss.lab.Task for what it takes and returns.")
        if isinstance(self.model, nn.Module):  # which can be called, but on data
            allowed, advice = "a function that builds a model", "Try model=lambda: Net()."
            raise refusal("model", type(self.model).__name__, allowed, advice)
        if self.best not in ("max", "min"):
            advice = "Say whether a larger or a smaller metric is better."
            raise refusal("best", self.best, "'max' or 'min'", advice)
        if self.search not in ("measured", "published"):
            raise refusal("search", self.search, "'measured' or 'published'")
        whole("measured_on", self.measured_on, 1)
        whole("batch_size", self.batch_size, 1)
        if self.epochs is not None:
            real("epochs", self.epochs, "a finite number greater than 0", lambda x: 0 < x < inf)
        if self.steps is not None:
            whole("steps", self.steps, 1)
        if (self.epochs is None) == (self.steps is None):
            given = f"epochs={self.epochs}, steps={self.steps}"
            raise ValueError(
                f"Task {self.name!r} got {given}. Give exactly one of them: it is the length of a run."
            )
        if self.steps is None and not isinstance(self.splits["train"], Rows):
            advice = "This data has no length: give steps= instead."
            raise refusal("epochs", self.epochs, "possible here", advice)

    @cached_property
    def splits(self) -> dict[str, Rows | Stream | None]:
        """Train, validation and test; what was not given is carved from train by hash."""
        given = {name: getattr(self, name) for name in SPLITS}
        if self.train is None:
            return dict.fromkeys(given)
        parts = {name: source(name, data) for name, data in given.items() if data is not None}
        train, missing = parts["train"], self._missing
        if missing:
            if not isinstance(train, Rows):
                advice = "A stream cannot be split: give validation= and test=."
                raise refusal(missing[0], None, "possible here", advice)
            carved = split(self.name, train, [1 - 0.15 * len(missing), *[0.15] * len(missing)])
            if not all(map(len, carved)):
                advice = "Give more, or validation= and test=."
                raise refusal("train", f"{len(train)} rows", "enough to split", advice)
            parts |= zip(["train", *missing], carved, strict=True)
        return {name: parts[name] for name in SPLITS}

    @property
    def _missing(self) -> list[str]:
        return [name for name in SPLITS if getattr(self, name) is None]

    @property
    def how(self) -> str:
        """How the splits came about, in a sentence."""
        if self.train is None:
            return "No data: the same function is trained on and measured."
        if not self._missing:
            return "Train, validation and test were given."
        return f"{' and '.join(self._missing).capitalize()} carved from train by a hash, 15 % each."

    def rows(self, name: str) -> Rows:
        """A split that has a length; `TypeError` if it has none."""
        part = self.splits[name]
        if not isinstance(part, Rows):
            raise TypeError(f"The {name} split of {self.name!r} has no length.")
        return part

    def length(self, name: str) -> int | None:
        """Examples in a split; None for a stream or a function."""
        part = self.splits[name]
        return len(part) if isinstance(part, Rows) else None

    def total_steps(self, batch_size: int | None = None) -> int:
        """Steps in one run at this batch size: as many examples whatever it is."""
        rows = self.splits["train"]
        if not isinstance(rows, Rows):
            return self.steps or 1
        if self.epochs is not None:
            return max(1, round(self.epochs * ceil(len(rows) / (batch_size or self.batch_size))))
        own = (self.steps or 1) * self.batch_size
        return max(1, ceil(own / (batch_size or self.batch_size)))

    def stream(self, seed: int, batch_size: int | None = None) -> Iterator[Batch]:
        """Training batches without end, each epoch shuffled by (seed, epoch)."""
        part, epoch = self.splits["train"], 0
        while True:
            if part is None:
                yield None
                continue
            empty = True
            for batch in part.batches(batch_size or self.batch_size, seed, epoch):
                empty = False
                yield batch
            if empty:
                raise ValueError(f"The training stream of {self.name!r} gave no batch in epoch {epoch}.")
            epoch += 1

    def batches(self, name: str, whole: bool = False) -> Iterator[Batch]:
        """A split in order, for measuring; at most `measured_on` examples of it unless `whole`."""
        part = self.splits[name]
        if part is None:
            yield None
        elif isinstance(part, Rows):
            count = len(part) if whole else min(len(part), self.measured_on)
            even = arange(count) * len(part) // count  # rows stand in their source's order
            yield from part.subset(even).batches(1024)
        else:
            yield from part.batches(self.batch_size)
