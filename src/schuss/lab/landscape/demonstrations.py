"""Demonstrations of why optimizers differ; each measures its claim on the trajectories that it draws.

Sources: Goh 2017 (momentum in a valley); Dauphin et al. 2014 (saddles); Duchi, Hazan and Singer 2011
(AdaGrad); Loshchilov and Hutter 2017 (warm restarts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.landscape.picture import Picture, picture
from schuss.lab.landscape.surfaces import SURFACES, Surface, quadratic
from schuss.lab.landscape.trajectories import Trajectory, descend
from schuss.schedules import Cosine, CosineRestarts
from schuss.torch import SGD, Adagrad, Adam, RMSprop

KAPPA = 50.0
LR = 0.1


def jitter() -> Picture:
    """A step that is nearly too long for the steep direction and far too short for the flat one."""
    valley, lr, steps = quadratic(KAPPA), 1.9 / KAPPA, 40
    wild = _sgd(valley, steps, "sgd near its limit", lr)
    calm = _sgd(valley, steps, "sgd at a fifth of it", lr / 5)
    moved = np.abs(np.diff(wild.points, axis=0)).sum(axis=0)
    left = [f"{abs(each.points[-1, 0] / each.points[0, 0]):.0%}" for each in (wild, calm)]
    return picture(
        valley,
        (wild, calm),
        id="jitter",
        title="Jitter in a narrow valley",
        lede=f"The curvature across the valley is {KAPPA:g} times that along it. A learning rate that is stable across "
        f"(below 2/{KAPPA:g}) makes slow progress along.",
        found=f"At lr {lr:.3g}, 95 % of the stability limit, {_crossings(wild)} of {steps} steps crossed the valley, "
        f"and {moved[1] / moved.sum():.0%} of the distance moved was across it. {left[0]} of the distance along it "
        f"remains. At a fifth of that rate nothing jitters, and {left[1]} remains.",
        how="The learning rates follow from the formula; they are not searched.",
    )


def momentum() -> Picture:
    """Averaging the gradient cancels what alternates and adds up what agrees."""
    valley, steps, beta, rate = quadratic(KAPPA), 60, 0.9, 1.9 / KAPPA
    pair = (
        _sgd(valley, steps, "sgd", rate),
        _sgd(valley, steps, "momentum", (1 - beta) * rate, beta),
    )
    turns = [_crossings(each) for each in pair]
    across = [float(np.abs(np.diff(each.points[:, 1])).sum()) for each in pair]
    slow, fast = (each.values[-1] / each.values[0] for each in pair)
    root = math.sqrt(KAPPA)
    lr, best = 4 / (root + 1) ** 2, ((root - 1) / (root + 1)) ** 2
    fastest = _sgd(valley, steps, "fastest in theory", lr, best)
    swing = float(np.abs(fastest.points[:, 1]).max()) / abs(float(fastest.points[0, 1]))
    return picture(
        valley,
        pair,
        id="momentum",
        title="Momentum damps the jitter",
        lede=f"The same valley. With β {beta:g} a gradient counts in every later step, 1/(1 − β) = "
        f"{1 / (1 - beta):.0f} times in sum. So the learning rate is a tenth of that without momentum. "
        "Gradients that alternate cancel, gradients that agree add up.",
        found=f"In {steps} steps plain descent crosses the valley {turns[0]} times and moves {across[0]:.2g} across "
        f"it; momentum does so {turns[1]} times and moves {across[1]:.2g}. The fractions of the height that remain are "
        f"{slow:.2g} and {fast:.2g}. Not every momentum damps: at the settings that are fastest in theory "
        f"(lr {lr:.2g}, β {best:.2g}) it first swings to {swing:.2g} times the start's distance, and "
        f"{fastest.values[-1] / fastest.values[0]:.1g} remains.",
        how="The settings follow from formulas: 95 % of the stability limit 2/L; the same times 1 − β. Fastest in "
        "theory are lr 4/(√L + √μ)² and β ((√κ − 1)/(√κ + 1))².",
    )


def saddle() -> Picture:
    """At a saddle the gradient is zero: what starts exactly on its ridge stays."""
    surface, steps, noise = SURFACES["saddle"], 150, 1e-3
    draw = torch.Generator().manual_seed(0)

    def noisy(w: Tensor, n: int) -> Tensor:
        x, y = w
        return torch.stack([x, y**3 - y]) + noise * torch.randn(2, dtype=w.dtype, generator=draw)

    def start(y: float) -> dict[str, Any]:
        return {"start": (1.0, y), "settings": f"lr {LR:g}, from (1, {y:g})"}

    every = (
        _sgd(surface, steps, "sgd on the ridge", LR, **start(0.0)),
        _sgd(surface, steps, "sgd with noise", LR, slope=noisy, **start(0.0)),
        _sgd(surface, steps, "sgd", LR, **start(1e-3)),
        _sgd(surface, steps, "momentum", LR, 0.9, **start(1e-3)),
        descend(surface, lambda w: Adam(w, lr=LR), steps, name="adam", **start(1e-3)),
    )
    left = [(each.name, each.first_below(-0.2)) for each in every]
    escapes = "; ".join(f"{name}: {'never' if at is None else f'step {at}'}" for name, at in left)
    return picture(
        surface,
        every,
        id="saddle",
        title="Escaping a saddle",
        lede="There are two minima at (0, ±1) and a saddle between them at (0, 0). From the ridge y = 0 the gradient "
        "leads straight to the saddle. An offset of a thousandth from the ridge, or noise of that size, grows by a "
        "factor of 1 + lr per step and leads out.",
        found=f"Escaped the saddle (four fifths of the descent) – {escapes}.",
        how=f"All at lr {LR:g}. The noise is Gaussian of size {noise:g} in each direction, seed 0.",
    )


def noise() -> Picture:
    """The gradient of a few examples points somewhere near the gradient of all."""
    draw, kind = torch.Generator().manual_seed(1), torch.float64
    X = torch.randn(256, 2, dtype=kind, generator=draw) * torch.tensor([1.0, 1.5], dtype=kind)
    y = X @ torch.tensor([1.0, -0.5], dtype=kind) + torch.randn(256, dtype=kind, generator=draw)
    best = torch.linalg.lstsq(X, y).solution

    def value(w: Tensor) -> Tensor:
        return (X @ w - y).square().mean() / 2

    lowest = float(value(best))
    bowl = Surface(
        "least squares on 256 examples",
        value,
        start=(-0.6, 0.9),
        window=(-1.0, 1.8, -1.3, 1.2),
        minima=((float(best[0]), float(best[1])),),
        lowest=lowest,
    )
    steps, lr = 400, 0.02

    def batches(size: int) -> Callable[[Tensor, int], Tensor]:
        picks = torch.randint(256, (steps, size), generator=torch.Generator().manual_seed(size))
        return lambda w, n: X[picks[n]].T @ (X[picks[n]] @ w - y[picks[n]]) / size

    every = (
        _sgd(bowl, steps, "batch 1", lr, slope=batches(1)),
        _sgd(bowl, steps, "batch 16", lr, slope=batches(16)),
        _sgd(bowl, steps, "all 256", lr),
    )
    hover = [float((each.values[steps // 2 :] - lowest).mean()) for each in every]
    return picture(
        bowl,
        every,
        id="noise",
        title="Noise of small batches",
        lede="All three use the same learning rate on the same data. With every example the trajectory is a smooth "
        "curve. With a few examples it wanders, and in the end it hovers at a height that depends on the learning rate "
        "and the batch size.",
        found=f"Mean height above the minimum in the last {steps // 2} steps: batch 1 {hover[0]:.2g}, batch 16 "
        f"{hover[1]:.2g} ({hover[0] / hover[1]:.0f} times less; theory says about 16), all examples {hover[2]:.1g}.",
        how=f"All at lr {lr:g}. Batches are sampled with replacement, seeds fixed.",
    )


def adagrad() -> Picture:
    """A sum of squares never forgets, so the rate can only fall."""
    surface, steps, first = SURFACES["beale"], 600, 0.05
    lr = first * math.sqrt(1 - 0.99)

    def run(make: Any, name: str, lr: float, settings: str, key: str) -> Trajectory:
        def effective(optimizer: Optimizer) -> float:
            group = optimizer.param_groups[0]
            square = optimizer.state[group["params"][0]][key]
            return float((group["lr"] / (square.sqrt() + group["eps"])).mean())

        return descend(
            *(surface, lambda w: make(w, lr=lr), steps), name=name, settings=settings, watch=effective
        )

    slow = run(Adagrad, "adagrad", first, f"lr {first:g}", "sum")
    fast = run(RMSprop, "rmsprop", lr, f"lr {lr:.3g}, α 0.99", "square_avg")
    target = np.array(surface.minima[0])
    whole = float(np.linalg.norm(slow.points[0] - target))
    gone = [1 - float(np.linalg.norm(each.points[-1] - target)) / whole for each in (slow, fast)]
    return picture(
        surface,
        (slow, fast),
        id="adagrad",
        title="AdaGrad stalls",
        lede="Both divide by the size of past gradients, and take the same first step. AdaGrad divides by the root of "
        "their sum of squares, which can only grow. RMSprop divides by the root of an average that forgets: once the "
        "steep wall is behind it, its effective rate recovers.",
        found=f"Effective rate, first step to last: AdaGrad {slow.seen[0]:.2g} to {slow.seen[-1]:.2g}, RMSprop "
        f"{fast.seen[0]:.2g} to {fast.seen[-1]:.2g}. After {steps} steps AdaGrad has covered {gone[0]:.0%} of the "
        f"distance to the minimum and is at height {slow.values[-1]:.2g}; RMSprop has covered {gone[1]:.0%} and is at "
        f"{fast.values[-1]:.2g}.",
        how="RMSprop's rate is AdaGrad's times √(1 − α), which makes the first steps equal.",
        watched="effective rate",
        watching="The learning rate over the square root of the sum, or average, of squared gradients: the "
        "mean of the two weights",
        logarithmic=True,
    )


def restarts() -> Picture:
    """A restart raises the learning rate, leaves this minimum, and descends into the next."""
    depth, wave, steps, cycles, peak = 0.5, 4.0, 240, 4, 0.7
    bowls = Surface(
        "a bowl of small bowls",
        lambda w: 0.04 * (w * w).sum() + depth * (1 - torch.cos(wave * w)).sum(),
        start=(-3.3, 2.9),
        window=(-4.2, 4.2, -4.2, 4.2),
        minima=((0.0, 0.0),),
        lowest=0.0,
    )
    words: dict[str, Any] = {
        "settings": f"lr {peak:g} to 0",
        "watch": lambda optimizer: float(optimizer.param_groups[0]["lr"]),
    }
    plan = CosineRestarts(peak, 0.0, cycles=cycles, steps=steps)
    once = _sgd(bowls, steps, "cosine once", peak, schedule=Cosine(peak, 0.0, steps=steps), **words)
    again = _sgd(bowls, steps, "with restarts", peak, schedule=plan, **words)
    sharp, spacing, cycle = depth * wave**2 + 0.08, 2 * math.pi / wave, steps // cycles
    ends, heights = again.points[cycle::cycle], again.values[cycle::cycle]
    rests = {tuple(np.round(point / spacing).astype(int)) for point in ends}
    same = tuple(np.round(once.points[-1] / spacing).astype(int)) in rests
    return picture(
        bowls,
        (once, again),
        id="restarts",
        title="Warm restarts jump out of a minimum",
        lede=f"Every small bowl has sharpness about {sharp:.3g}, so learning rates above 2/{sharp:.3g} = "
        f"{2 / sharp:.2g} are unstable in it. Each restart raises the rate to {peak:g}, leaves the bowl, and settles "
        "in a bowl as the rate falls.",
        found=f"The {cycles} cycles ended in {len(rests)} different bowls, at heights "
        f"{', '.join(f'{height:.2g}' for height in heights)}. A single cosine ended in one, at "
        f"{once.values[-1]:.2g}{', one of those' if same else ''}.",
        how=f"Plain gradient descent without noise. Both learning rates start at {peak:g} and end at 0 after {steps} "
        "steps.",
        watched="learning rate",
        watching="The learning rate of each step",
        marks=tuple((float(x), float(y), str(k)) for k, (x, y) in enumerate(ends, 1)),
        marked="a number: where that cycle of the restarts ended",
    )


DEMONSTRATIONS: dict[str, Callable[[], Picture]] = {
    make.__name__: make for make in (jitter, momentum, saddle, noise, adagrad, restarts)
}


def demonstration(name: str) -> Picture:
    """The demonstration of that name."""
    if name not in DEMONSTRATIONS:
        raise refusal("story", name, f"one of {', '.join(DEMONSTRATIONS)}, all")
    return DEMONSTRATIONS[name]()


def _sgd(
    surface: Surface, steps: int, name: str, lr: float, beta: float = 0.0, settings: str = "", **more: Any
) -> Trajectory:
    settings = settings or f"lr {lr:.3g}" + f", β {beta:g}" * bool(beta)
    return descend(
        surface, lambda w: SGD(w, lr=lr, momentum=beta), steps, name=name, settings=settings, **more
    )


def _crossings(trajectory: Trajectory) -> int:
    """How often a trajectory crosses y = 0."""
    return int((np.diff(np.sign(trajectory.points[:, 1])) != 0).sum())
