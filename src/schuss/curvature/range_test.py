"""The learning-rate range test: a short training run while the learning rate grows.

It shows at which rates this optimizer makes progress on this model in its first steps. It is no measurement
of stability: on a noiseless quadratic whose limit is 2 the curve has its minimum near 9 and never rises in
time, because a few steps at each rate are too few to diverge. `stability_limit` measures that.

Everything is done in log lr: slopes by linear lr put all weight on the smallest rates, where noise decides.

Sources: Smith 2017 (range test).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schuss.curvature.lanczos import Array
from schuss.curvature.objective import Loss, Model, Objective, Progress, check_optimizer, leaves, objective
from schuss.curvature.restore import restoring
from schuss.errors import real, refusal, whole


@dataclass(frozen=True, eq=False)
class RangeTest:
    """The result of a learning-rate range test: loss by learning rate, for each sweep.

    `rates` (steps) and `losses` (sweeps × steps): the loss on the batch before the step at each rate, NaN
    once a sweep had stopped. `interval`: the rates between which the smoothed loss made its progress (from a
    tenth to nine tenths of its fall), the median of the sweeps; None if it never fell clearly beyond its own
    noise. `suggestion`: the rate of the steepest fall by log lr, the geometric mean of `suggestions`, one for
    each sweep that fell; their scatter says how far to trust it. `stopped_at`: for each sweep the rate at
    which the loss blew up, infinite if it did not.
    """

    rates: Array
    losses: Array
    interval: tuple[float, float] | None
    suggestion: float | None
    suggestions: tuple[float, ...]
    stopped_at: tuple[float, ...]

    def __repr__(self) -> str:
        """The interval, and what it is not."""
        if self.interval is None:
            return self.words
        return f"{self.words}. This test does not measure stability: see stability_limit."

    @property
    def words(self) -> str:
        """The interval in words."""
        if self.interval is None or self.suggestion is None:
            return (
                f"the loss never fell beyond its noise from lr {self.rates[0]:.3g} to {self.rates[-1]:.3g}. "
                "Try a wider range, more steps or larger batches."
            )
        return (
            f"the loss falls from lr {self.interval[0]:.3g} to {self.interval[1]:.3g}, fastest at "
            f"{self.suggestion:.3g} (sweeps: {', '.join(f'{s:.3g}' for s in self.suggestions)})"
        )


def range_test(
    model: Model,
    loss: Loss,
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    sweeps: int = 3,
    progress: Progress | None = None,
) -> RangeTest:
    """Learning-rate range test: train while the rate grows from `lowest` to `highest`, then restore everything.

    Args:
        model, loss: as for `hvp`; a plain function's tensors must be leaves that require a gradient.
        batches: any iterable; the first `steps` are used, again from the start if there are fewer.
        optimizer: holds the model's weights; a copy of it, state included, takes the steps. With several
            groups the rate is the first group's, and the others stay in proportion to it.
        lowest, highest: first and last learning rate; those between are equally spaced in log lr.
        steps: learning rates per sweep, one step at each. A sweep ends early where the loss is not finite, or
            has risen above its start by more than three times its best fall (and its noise).
        sweeps: runs from the same weights with the batches in another rotation.
        progress: called as `progress(done, at_most)` after each step.

    Raises:
        ValueError: as `hvp`; no batch; an empty or reversed range; an optimizer of other weights.

    >>> x = torch.tensor([2.0, -1.0], requires_grad=True)
    >>> result = range_test(x, lambda x, _: (x**2).sum() / 2, [None], torch.optim.SGD([x]), highest=1.0)
    >>> result.interval[0] < result.suggestion < result.interval[1], x.tolist()
    (True, [2.0, -1.0])
    """
    lowest = real("lowest", lowest, "a finite number > 0", lambda x: 0 < x < math.inf)
    above = f"a finite number > lowest={lowest:g}"
    highest = real("highest", highest, above, lambda x: lowest < x < math.inf)
    steps = whole("steps", steps, 10, advice="A slope needs several learning rates.")
    sweeps = whole("sweeps", sweeps, 1)
    check_optimizer(optimizer)
    if not hasattr(batches, "__iter__"):
        raise refusal("batches", batches, "an iterable of batches", "Try a list or a DataLoader.")
    rates = np.geomspace(lowest, highest, steps)
    losses = np.full((sweeps, steps), np.nan)
    with objective(model, loss, None) as f:
        chosen = list(islice(batches, steps))
        if not chosen:
            raise refusal("batches", chosen, "at least one batch")
        f.batch = chosen[0]
        f.steady()
        weights = _claimed(f, optimizer)
        for sweep in range(sweeps):
            f.rewind()
            turn = sweep * len(chosen) // sweeps
            for k, value in enumerate(_sweep(f, chosen[turn:] + chosen[:turn], optimizer, weights, rates)):
                losses[sweep, k] = value
                if progress is not None:
                    progress(sweep * steps + k + 1, sweeps * steps)
    return _read(rates, losses)


def _claimed(f: Objective, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All weights, of which the optimizer holds some of the model's; there is memory for a copy of it and them."""
    trained: dict[int, Tensor] = {id(w): w for group in optimizer.param_groups for w in group["params"]}
    weights = {id(weight): weight for weight in f.weights}
    if not weights.keys() & trained.keys():
        raise ValueError(
            "optimizer holds none of the model's weights. Pass the optimizer of this model; for a "
            "plain function the tensors must be leaves with requires_grad."
        )
    state = sum(leaf.numel() for leaf in leaves(dict(optimizer.state)) if isinstance(leaf, Tensor))
    f.claim("a copy of weights and optimizer", 2 + math.ceil(state / f.n))  # weights, gradients, state
    return list((weights | trained).values())


def _sweep(
    f: Objective, batches: list[Any], optimizer: torch.optim.Optimizer, weights: list[Tensor], rates: Array
) -> list[float]:
    """The losses of one sweep; ends early when the loss has blown up."""
    losses: list[float] = []
    with restoring(weights):
        runner = copy.deepcopy(optimizer, {id(weight): weight for weight in weights})
        first = float(runner.param_groups[0]["lr"]) or 1.0
        factors = [float(group["lr"]) / first or 1.0 for group in runner.param_groups]
        for k, rate in enumerate(rates):
            for group, factor in zip(runner.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            f.batch = batches[k % len(batches)]
            seen: list[float] = []
            try:
                runner.step(lambda seen=seen: _closure(f, seen))
            except ValueError:
                if not losses:
                    raise
                break
            losses.append(seen[0])
            fall, noise = losses[0] - min(losses), float(np.std(np.diff(losses[:10]))) if k > 1 else 0.0
            if losses[-1] - losses[0] > 3 * max(fall, noise, 1e-12 * abs(losses[0])) and k >= 10:
                break
    return losses


def _closure(f: Objective, seen: list[float]) -> float:
    """One gradient, put where an optimizer looks for it."""
    total = 0.0
    with torch.enable_grad():
        for weight in f.weights:
            weight.grad = None
        torch.clear_autocast_cache()
        for fraction, value, gradients in f.passes():
            total += fraction * value
            for weight, gradient in zip(f.weights, gradients, strict=True):
                if gradient is not None:
                    part = fraction * gradient
                    weight.grad = part if weight.grad is None else weight.grad + part
    seen.append(total)
    return total


def _read(rates: Array, losses: Array) -> RangeTest:
    """Interval and steepest rate of each sweep by its smoothed curve over log lr, and what they agree on."""
    falls: list[tuple[float, float, float]] = []
    stopped: list[float] = []
    for curve in losses:
        reached = int(np.isfinite(curve).sum())
        stopped.append(float(rates[reached]) if reached < len(rates) else math.inf)
        fall = _fall(np.log(rates[:reached]), curve[:reached])
        if fall is not None:
            falls.append(fall)
    low, steepest, high = zip(*map(np.exp, falls), strict=True) if falls else ((), (), ())
    agreed = len(falls) > len(losses) / 2
    return RangeTest(
        rates=rates,
        losses=losses,
        interval=(float(np.median(low)), float(np.median(high))) if agreed else None,
        suggestion=float(np.exp(np.mean(np.log(steepest)))) if agreed else None,
        suggestions=tuple(map(float, steepest)),
        stopped_at=tuple(stopped),
    )


def _fall(x: Array, y: Array) -> tuple[float, float, float] | None:
    """Where y(x) has fallen by a tenth, falls fastest, has fallen by nine tenths; None if by noise only.

    Smoothed by straight lines through windows of a tenth of the points, which give level and slope at once.
    """
    half = max(len(y) // 20, 2)
    if len(y) < 4 * half:
        return None
    level, slope, scatter = np.empty((3, len(y)))
    for i in range(len(y)):
        window = slice(max(i - half, 0), i + half + 1)
        centred = x[window] - x[i]
        slope[i], level[i] = np.polyfit(centred, y[window], 1)
        scatter[i] = np.std(y[window] - level[i] - slope[i] * centred)
    start, bottom = float(level[: 2 * half].mean()), int(level.argmin())
    fall = start - float(level[bottom])
    if bottom == 0 or fall <= 3 * float(np.median(scatter)) or fall <= 1e-9 * abs(start):
        return None
    low = int(np.argmax(level <= start - 0.1 * fall))
    high = int(np.argmax(level <= start - 0.9 * fall))
    fastest = low + int(slope[low : high + 1].argmin())
    return float(x[low]), float(x[fastest]), float(x[high])
