"""Many tensors on a GPU, one launch: what is kept there, and what is sent at each step.

The host waits for nothing. It looks whether an address has changed, works out the scalars of the step, and sends what
is new; the device does the rest when it gets there. That is `DeviceLaunch.step`.

**A step that the device decides on.** A norm to clip by, gradients that may not be finite, and the loss scale and flag
of a `torch.amp.GradScaler` are on the device while the host prepares the step. To ask for them is to wait.
`Control.step` does not ask:

    squares   a sum for each stretch of the gradients; one launch a kernel, only if a norm is needed
    decide    one program: the norm, what gradients are multiplied by, whether the step is taken; it counts the
              steps taken and skipped, and writes all of this to the gate
    step      as ever, one launch a kernel, its gradients times the gate's coefficient; of a step that is not
              taken nothing is written

So the number of the next step (the t of 1 − βᵗ) is the device's to know. The host sends a *window*: the coefficients
of consecutive steps, from a count on of which it is sure. They follow from the step number, the rules and their
schedules, so it can work them out ahead, and the gate picks the row. After a step it has the counts copied to pinned
memory, and looks at a later step whether they have arrived: from then on it is sure of more, and settles the ledger.
The window covers the steps under way, and is twice as long each time it is used up with nothing changed.

**CUDA graphs.** With `capturable=True` the window is `HORIZON` steps long and stays where it is. A captured step is
replayed without the host: it advances the device's count, and reads the next row. Ordinary steps in between renew the
window when half of it is used; replays that go on beyond its end repeat its last row. A capture needs an ordinary
step before it, which allocates and compiles. The addresses of the gradients are the graph's own; what else it reads
stays with the `Control`. So a graph is captured anew when weights, groups or counts of steps are replaced.
Hyperparameters that are changed by hand count from the next ordinary step on. The host's counts are those of the last
ordinary step until `settle(wait=True)`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schuss.compile import gpu
from schuss.compile.formula import Formula
from schuss.compile.launch import TENSOR_BITS, Launch, Terms, numbers
from schuss.compile.storage import STORAGES, Column, columns, compute_dtype
from schuss.rules.rule import Rule

Array = np.ndarray[Any, Any]
Rules = Sequence[Rule] | Mapping[int, Rule]

# Steps for which a captured graph finds coefficients, and for which a step that is not captured prepares at most.
HORIZON, WINDOW = 2**16, 64


@functools.cache
def _can_run(index: int) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        warnings.warn(
            "Triton needs a C compiler and finds none, so a step on the GPU runs as many operations instead of one "
            "kernel. Try installing gcc, or setting CC.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)


def runs_on(device: torch.device) -> bool:
    """Whether kernels can run there: on AMD's GPUs, on NVIDIA's from Ampere on, where Triton is installed."""
    return device.type == "cuda" and _can_run(device.index or 0)


_NOTHING = contextlib.nullcontext()


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make a GPU the current one, if it is not."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _NOTHING
    return torch.cuda.device(device)


def capturing(device: torch.device) -> bool:
    """Whether what is launched there now is recorded in a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


_UNPREPARED = (
    "This step cannot be captured in a CUDA graph yet. Take a step as it is before the capture, with gradients of the "
    "same weights and the same options: it allocates, compiles and sends what a captured step may only read."
)


class _Sent:
    """A small array on the device, and lines of pinned memory in which new contents wait for their copy.

    Each line is used once. PyTorch gives pinned memory to someone else only when the copies from it are done, so a host
    that runs ahead by many steps overwrites nothing.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.there = torch.empty(tuple(shape), dtype=dtype, device=device)
        self.count = max(1, min(64, 2**20 // max(1, self.there.nbytes)))
        self.lines: list[tuple[Array, torch.Tensor]] = []

    def line(self) -> tuple[Array, torch.Tensor]:
        """Memory to write to, and the same as a tensor."""
        if not self.lines:
            shape = (self.count, *self.there.shape)
            block = torch.empty(shape, dtype=self.there.dtype, device="cpu", pin_memory=self.there.is_cuda)
            self.lines = list(zip(block.numpy(), block.unbind(), strict=True))
        return self.lines.pop()

    def send(self, values: Array) -> None:
        """Copy these values to the device, without waiting for it; they may be fewer rows than there are."""
        array, tensor = self.line()
        rows, there = len(values), self.there
        array[:rows] = values
        if rows < len(array):
            tensor, there = tensor[:rows], there[:rows]
        there.copy_(tensor, non_blocking=True)


class _Program:
    """A Triton function over a grid: compiled at its first call, then called past Triton's look at its arguments.

    They are of the same dtypes ever after, and start where PyTorch starts memory.
    """

    def __init__(self, function: Any, programs: int) -> None:
        self.function, self.grid = function, (programs, 1, 1)
        self.run: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> None:
        if self.run is not None:
            self.run(*arguments)
        elif self.grid[0]:
            compiled = self.function[self.grid](*arguments, **gpu.OPTIONS)
            # Triton's interpreter has compiled nothing.
            self.run = compiled[self.grid] if compiled else self.function[self.grid]


class _Pass:
    """One pass of an update over all tensors, with or without a gate; one that measures adds up what it found."""

    def __init__(self, kernels: dict[str, Any], suffix: str, programs: int, tensors: int) -> None:
        self.move = _Program(kernels[f"launch{suffix}"], programs)
        self.gated = _Program(kernels[f"launch{suffix}_gated"], programs)
        self.adding = _Program(kernels[f"finish{suffix}"], tensors) if suffix else None

    def finish(self, tensors: Tensors, table: torch.Tensor, *measures: torch.Tensor) -> None:
        """Add up the sums of each tensor's programs."""
        if self.adding:
            self.adding(tensors.starts, table, table.shape[1], *measures)


class Tensors:
    """What a launch knows of its tensors: addresses by column, place, length, and which coefficients apply."""

    def __init__(self, columns: Sequence[Column], lengths: Sequence[int], device: torch.device) -> None:
        whole = np.asarray(lengths, dtype=np.int64)
        rows_of = -(-whole // gpu.ROW)
        owner = np.repeat(np.arange(len(whole)), rows_of)
        first = np.cumsum(rows_of) - rows_of
        rows = np.column_stack([owner, (np.arange(len(owner)) - first[owner]) * gpu.ROW])
        self.columns = columns
        self.elements = int(whole.sum())
        cut = _Sent(rows.shape, torch.int64, device)
        cut.send(rows)
        self.rows = cut.there
        begun = _Sent(first.shape, torch.int64, device)  # which program is each tensor's first
        begun.send(first)
        self.starts = begun.there
        self.cells = np.zeros((len(whole), len(columns) + 3), dtype=np.int64)
        self.cells[:, -2] = whole
        self.address = 0
        self.sent = _Sent(self.cells.shape, torch.int64, device)
        self.spare: tuple[Array, torch.Tensor] | None = None
        self.changed = True

    def number(self, members: Array) -> None:
        """Say which of all tensors each is: so each of their numbers has a place of its own."""
        self.cells[:, -3] = members << TENSOR_BITS
        self.changed = True

    def place(self, column: int, addresses: Array) -> None:
        """Say where each tensor's memory of this column is."""
        self.cells[:, column] = addresses
        self.changed = True

    def assign(self, which: Array) -> None:
        """Say which row of the coefficient matrix moves each tensor."""
        self.cells[:, -1] = which
        self.changed = True

    def on_device(self) -> torch.Tensor:
        """The same on the device: sent again only if something changed."""
        if self.changed:
            self.sent.send(self.cells)
            self.changed = False
        return self.sent.there

    def in_graph(self, kept: list[Any]) -> torch.Tensor:
        """The same for a graph that is being captured, which copies it at every replay from memory that is `kept`."""
        assert self.spare
        array, tensor = self.spare
        self.spare = None
        array[...] = self.cells
        there = torch.empty_like(self.sent.there)
        there.copy_(tensor, non_blocking=True)
        kept.append((tensor, there))
        return there


class DeviceLaunch(Launch):
    """All tensors on one device that one kernel moves in one call.

    `kept` says how weights, gradients and slots are kept; `lengths`, `groups` and `members` are tensor by tensor, as of
    `Launch`, and so are their `shapes` as matrices, of which an update may speak. Scalars are computed on the host and
    sent along; nothing waits for the device.
    """

    def __init__(
        self,
        formula: Formula,
        kept: tuple[str, ...],
        lengths: Sequence[int],
        groups: Sequence[int],
        members: Sequence[int],
        device: torch.device,
        shapes: Sequence[tuple[int, int]] = (),
    ) -> None:
        if capturing(device):
            raise RuntimeError(_UNPREPARED)
        self.tensors = Tensors(columns(("w", "g", *formula.slots), kept), lengths, device)
        self.programs = len(self.tensors.rows)
        self.real, self.gradient = getattr(torch, compute_dtype(kept)), kept[1]
        self.device = device
        kernels = gpu.kernels(formula, kept)
        self.passes = [
            _Pass(kernels, suffix, self.programs, len(lengths)) for suffix in gpu.suffixes(formula)
        ]
        # What an update in passes measures: a row of sums for each program, a row of numbers for each tensor.
        width = len(formula.passes.numbers) if formula.passes else 0
        self.sums = torch.empty((self.programs, width), dtype=torch.float64, device=device)
        self.found = torch.empty((len(lengths), width), dtype=self.real, device=device)
        known = formula.passes.known_before(shapes, STORAGES[kept[0]].dtype) if formula.passes else {}
        for k, values in known.items():
            self.found[:, k] = torch.tensor(values, dtype=self.real, device=device)
        self.measures = (self.sums, self.found) if width else ()
        self.square: _Program | None = None
        self.coefficients = self.window = _Sent((0,), self.real, device)
        super().__init__(formula, self._launch, self.tensors, groups, members)  # pyright: ignore[reportArgumentType]

    def prepare(self, ledger: Array, rules: Rules, terms: Sequence[Terms]) -> None:
        """As of any launch; what a graph could not repeat is refused."""
        if capturing(self.device):
            raise RuntimeError(
                "A step whose scalars come from the host cannot be captured in a CUDA graph. Construct the optimizer "
                "with capturable=True, or capture the forward and backward pass and call step() after each replay: it "
                "is one launch."
            )
        super().prepare(ledger, rules, terms)
        if self.coefficients.there.shape != self.matrix.shape:
            self.coefficients = _Sent(self.matrix.shape, self.real, self.device)

    def step(self, ledger: Array, rules: Rules, terms: Sequence[Terms], workers: int = 1) -> None:
        """Take one step of every tensor; the device has its own workers."""
        super().step(ledger, rules, terms, workers)

    def moving(self, workers: int) -> functools.partial[None]:
        """What takes the step that was prepared; the device has its own workers."""
        return functools.partial(self._launch, 0, 0, 0, 0)

    def _launch(self, table: int, matrix: int, first: int, last: int) -> None:
        """What `Launch` calls with addresses on the host; here they are those of `tensors` and `matrix`."""
        if not self.programs:
            return
        with _on(self.device):
            self.coefficients.send(self.matrix)
            lines = self.tensors.on_device()
            for one in self.passes:
                one.move(self.tensors.rows, lines, self.coefficients.there, *self.measures)
                one.finish(self.tensors, lines, *self.measures)

    # The steps that a `Control` takes

    def prepare_window(
        self, ledger: Array, ahead: Ahead, taken: int, fewest: int, most: int, capacity: int
    ) -> int:
        """Send the coefficients of coming steps, the first after `taken` steps, where the ledger stands; say how many.

        They are `most`, or fewer where what is ahead ends: someone's schedule may know no more steps than are planned.
        """
        if not self.stands(ledger):
            self._gather(ledger[self.place])
        now = [history for _, history in self.cohorts]
        histories, rows = [now], []
        for row in range(most):
            try:
                rules, terms = ahead.at(taken + row)
            except Exception:
                if row < fewest:
                    raise
                break
            both = [
                numbers(self.formula, self.drawn, rules[group], history, terms[group])
                for (group, _), history in zip(self.cohorts, now, strict=True)
            ]
            rows.append([found for found, _ in both])
            now = [after for _, after in both]
            histories.append(now)
        self.histories, self.reached = np.array(histories), 0
        if self.window.there.shape != (capacity, *self.matrix.shape):
            self.window = _Sent((capacity, *self.matrix.shape), self.real, self.device)
        self.window.send(np.array(rows))
        self.write(ledger, histories[0])
        return len(rows)

    def settle(self, ledger: Array, steps: int) -> None:
        """Write to the ledger that so many more steps of the window are taken; what someone has set since stands."""
        if not self.stands(ledger):
            return
        self.reached += steps
        last = len(self.histories) - 1
        history = self.histories[min(self.reached, last)].copy()
        history[:, 0] += max(0, self.reached - last)
        self.cohorts = [(group, h) for (group, _), h in zip(self.cohorts, history.tolist(), strict=True)]
        self.write(ledger, history.tolist())

    def lines(self, graph: list[Any] | None) -> torch.Tensor:
        """The table of tensors on the device; where a graph is captured, one of its own, with what it needs kept."""
        return self.tensors.on_device() if graph is None else self.tensors.in_graph(graph)

    def ready(self) -> bool:
        """Whether a graph can be captured without anything new being allocated or compiled."""
        return self.tensors.spare is not None

    def squares(self, table: torch.Tensor, sums: torch.Tensor, start: int) -> None:
        """Leave the sums of the gradients' squares in `sums`, one a program, from `start` on."""
        if self.square is None:
            from schuss.compile import triton_gate

            self.square = _Program(getattr(triton_gate, f"squares_{self.gradient}"), self.programs)
        self.square(self.tensors.rows, table, sums, start, self.tensors.cells.shape[1])

    def gated(self, table: torch.Tensor, gate: torch.Tensor) -> None:
        """Take the step that the gate says."""
        window, cohorts = self.window.there, len(self.cohorts)
        for one in self.passes:
            one.gated(self.tensors.rows, table, window, cohorts, gate, *self.measures)
            one.finish(self.tensors, table, *self.measures)


@dataclass(frozen=True)
class Ahead:
    """What is known of steps to come.

    `at(taken)` gives rules and terms, by group, for the step after so many of a control. `same` equals that of the
    step before as long as `at` says the same.
    """

    same: Any
    at: Callable[[int], tuple[Rules, Sequence[Terms]]]


class Control:
    """What decides, on one device, whether and how an optimizer's steps are taken, and counts them.

    `taken`, `skipped` and `norm` (the last, if one was asked for) are what the host has learnt: of all steps after
    `settle(wait=True)`, which has to come before the tensors of a launch or the ledger are replaced.
    """

    def __init__(self, device: torch.device, capturable: bool = False) -> None:
        from schuss.compile import triton_gate

        self.device, self.capturable = device, capturable
        self.taken, self.skipped, self.norm = 0, 0, 0.0
        self.decide = _Program(triton_gate.decide, 1)
        self.gate = torch.zeros(len(gpu.GATE), dtype=torch.float64, device=device)
        self.one, self.zero = torch.ones(1, device=device), torch.zeros(1, device=device)
        self.sums = self.gate.new_zeros(1)
        self.asked = _Sent((len(gpu.ASKED),), torch.float64, device)
        self.asking: list[float] = []
        # The window: for which launches and ledger, under what rules, from which count of steps on, how many rows.
        self.launches: list[DeviceLaunch] = []
        self.ledger: Array = np.empty((0, 1))
        self.same: Any = None
        self.changed = self.long = False
        self.base = self.rows = 0
        # Steps launched, those of which the outcome is known, and those whose counts are on their way to `arriving`.
        self.issued = self.answered = 0
        self.looked: int | None = None
        self.arriving = torch.zeros(
            len(gpu.GATE), dtype=torch.float64, device="cpu", pin_memory=device.type == "cuda"
        )
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self.graphs: list[Any] = []

    def step(
        self,
        launches: Sequence[DeviceLaunch],
        ledger: Array,
        ahead: Ahead,
        *,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        grad_scale: torch.Tensor | None = None,
        found_inf: torch.Tensor | None = None,
    ) -> None:
        """Take a step of all launches, or none: on the device, and without waiting for it.

        Gradients are divided by `grad_scale`, then clipped to `max_norm`. No step is taken if `found_inf` is not 0, or
        if `skip_nonfinite` and a gradient is infinite or NaN. Both tensors have one element, on this device.

        Raises `RuntimeError` if a graph is captured and no step like this one has come before.
        """
        launches = list(launches)
        asking = [math.inf if max_norm is None else float(max_norm), float(skip_nonfinite)]
        with _on(self.device):
            graph = self.graphs if capturing(self.device) else None
            if graph is None:
                self._prepare(launches, ledger, ahead, asking)
            elif not self._ready(launches, ahead, asking):
                raise RuntimeError(_UNPREPARED)
            tables = [launch.lines(graph) for launch in launches]
            count = 0
            if max_norm is not None or skip_nonfinite:
                for launch, table in zip(launches, tables, strict=True):
                    launch.squares(table, self.sums, count)
                    count += launch.programs
            scale = self.one if grad_scale is None else grad_scale.to(torch.float32)
            flag = self.zero if found_inf is None else found_inf.to(torch.float32)
            self.decide(self.sums, count, self.asked.there, scale, flag, self.gate)
            for launch, table in zip(launches, tables, strict=True):
                launch.gated(table, self.gate)
            if graph is None:
                self.issued += 1
                self._look()
            else:
                graph.append((self.sums, scale, flag, launches, [launch.window for launch in launches]))

    def _ready(self, launches: list[DeviceLaunch], ahead: Ahead, asking: list[float]) -> bool:
        """Whether a captured step has all that it reads."""
        alike = launches == self.launches and (ahead.same, asking) == (self.same, self.asking[2:])
        return alike and self.long and all(launch.ready() for launch in launches)

    def _prepare(
        self, launches: list[DeviceLaunch], ledger: Array, ahead: Ahead, asking: list[float]
    ) -> None:
        """See to it that the device has a row for each step that may be next."""
        self.settle()
        renewed = launches != self.launches or not all(launch.stands(ledger) for launch in launches)
        changed = renewed or ahead.same != self.same
        # What a rule remembers of whole tensors depends on which of the steps under way were taken under the old rules.
        if renewed or (changed and any(launch.formula.rule.scalars for launch in launches)):
            self.settle(wait=True)
        may_be = self.taken + self.issued - self.answered  # so many are taken at most when this one begins
        long = self.capturable and not (changed and self.changed)
        if changed or may_be >= self.base + (self.rows // 2 if long else self.rows):
            fewest = may_be - self.taken + 1
            wanted = HORIZON if long else fewest if changed else max(fewest, min(2 * self.rows, WINDOW))
            capacity = max(HORIZON if self.capturable else 1, 1 << (wanted - 1).bit_length())
            self.launches, self.ledger = launches, ledger
            self.same, self.base, self.rows, self.long = ahead.same, self.taken, 0, long
            for launch in launches:
                self.rows = launch.prepare_window(ledger, ahead, self.taken, fewest, wanted, capacity)
            programs = sum(launch.programs for launch in launches)
            if len(self.sums) < programs:
                self.sums = self.sums.new_empty(programs)
        self.changed = changed
        if self.asking != (asked := [self.base, self.rows - 1, *asking]):
            self.asking = asked
            self.asked.send(np.array(asked))
        if self.capturable:
            for launch in launches:
                launch.tensors.spare = launch.tensors.spare or launch.tensors.sent.line()

    def _look(self) -> None:
        """Have the counts copied to the host, unless a copy is on its way."""
        if self.looked is None:
            self.arriving.copy_(self.gate, non_blocking=True)
            if self.event:
                self.event.record()
            self.looked = self.issued

    def settle(self, *, wait: bool = False) -> None:
        """Write to the ledger what is known of the steps taken; if `wait`, of all of them, replayed ones too."""
        if wait and (self.issued > self.answered or self.graphs):
            if capturing(self.device):
                raise RuntimeError(_UNPREPARED)
            self.arriving.copy_(self.gate)
            self.answered, self.looked = self.issued, None
        elif self.looked is not None and (self.event is None or self.event.query()):
            self.answered, self.looked = self.looked, None
        else:
            return
        said = dict(zip(gpu.GATE, self.arriving.tolist(), strict=True))
        steps = int(said["steps"]) - self.taken
        self.taken, self.skipped, self.norm = int(said["steps"]), int(said["skipped"]), said["norm"]
        for launch in self.launches:
            launch.settle(self.ledger, steps)
