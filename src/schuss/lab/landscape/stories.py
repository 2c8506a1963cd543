"""Demonstrations of why optimizers differ; each measures its claim on the trajectories that it draws.

Sources: Goh 2017 (momentum in a valley); Dauphin et al. 2014 (saddles); Duchi, Hazan and Singer 2011
(AdaGrad); Loshchilov and Hutter 2017 (warm restarts).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from schuss.errors import refusal
from schuss.lab.landscape.scene import Scene, ground
from schuss.lab.landscape.surfaces import Surface, surface
from schuss.lab.landscape.trails import Slope, Trail, walk
from schuss.schedules import Cosine, CosineRestarts
from schuss.torch import SGD, Adagrad, Adam, RMSprop

KAPPA = 50.0
LR = 0.1


def jitter() -> Scene:
    """A step that is nearly too long for the steep direction and far too short for the flat one."""
    valley, lr, steps = surface(f"quadratic:kappa={KAPPA:g}"), 1.9 / KAPPA, 40
    trails = tuple(
        walk(valley, lambda w, rate=rate: SGD(w, lr=rate), steps, name=name, settings=f"lr {rate:.3g}")
        for name, rate in (("sgd near its limit", lr), ("sgd at a fifth of it", lr / 5))
    )
    wild = trails[0]
    turns = int((np.diff(np.sign(wild.places[:, 1])) != 0).sum())
    moved = np.abs(np.diff(wild.places, axis=0)).sum(axis=0)
    return ground(
        valley,
        trails,
        id="jitter",
        title="Jitter in a narrow valley",
        lede=f"The curvature across the valley is {KAPPA:g} times that along it. A learning rate that is stable across "
        f"(below 2/{KAPPA:g}) makes slow progress along.",
        found=f"At lr {lr:.3g}, 95 % of the stability limit, {turns} of {steps} steps crossed the valley, and "
        f"{moved[1] / moved.sum():.0%} of the distance moved was across it. {_left(wild, 0)} of the distance along it "
        f"remains. At a fifth of that rate nothing jitters, and {_left(trails[1], 0)} remains.",
        how="The learning rates follow from the formula; they are not searched.",
    )


def momentum() -> Scene:
    """Averaging the gradient cancels what alternates and adds up what agrees."""
    valley, steps, beta, rate = surface(f"quadratic:kappa={KAPPA:g}"), 60, 0.9, 1.9 / KAPPA
    trails = (
        walk(valley, lambda w: SGD(w, lr=rate), steps, name="sgd", settings=f"lr {rate:.3g}"),
        walk(
            valley,
            lambda w: SGD(w, lr=(1 - beta) * rate, momentum=beta),
            steps,
            name="momentum",
            settings=f"lr {(1 - beta) * rate:.3g}, β {beta:g}",
        ),
    )
    turns = [int((np.diff(np.sign(trail.places[:, 1])) != 0).sum()) for trail in trails]
    across = [float(np.abs(np.diff(trail.places[:, 1])).sum()) for trail in trails]
    slow, fast = (trail.values[-1] / trail.values[0] for trail in trails)
    root = math.sqrt(KAPPA)
    lr, best = 4 / (root + 1) ** 2, ((root - 1) / (root + 1)) ** 2
    tuned = walk(valley, lambda w: SGD(w, lr=lr, momentum=best), steps)
    wide, left = float(np.abs(tuned.places[:, 1]).max()), tuned.values[-1] / tuned.values[0]
    start = abs(float(trails[0].places[0, 1]))
    return ground(
        valley,
        trails,
        id="momentum",
        title="Momentum damps the jitter",
        lede=f"The same valley. With β {beta:g} a gradient counts in every later step, 1/(1 − β) = "
        f"{1 / (1 - beta):.0f} times in sum. So the learning rate is a tenth of that without momentum. "
        "Gradients that alternate cancel, gradients that agree add up.",
        found=f"In {steps} steps plain descent crosses the valley {turns[0]} times and moves {across[0]:.2g} across "
        f"it; momentum does so {turns[1]} times and moves {across[1]:.2g}. The fractions of the height that remain are "
        f"{slow:.2g} and {fast:.2g}. Not every momentum damps: at the settings that are fastest in theory "
        f"(lr {lr:.2g}, β {best:.2g}) it first swings to {wide / start:.2g} times the start's distance, and "
        f"{left:.1g} remains.",
        how="The settings follow from formulas: 95 % of the stability limit 2/L; the same times 1 − β. Fastest in "
        "theory are lr 4/(√L + √μ)² and β ((√κ − 1)/(√κ + 1))².",
    )


def saddle() -> Scene:
    """At a saddle the gradient is zero: what starts exactly on its ridge stays."""
    ground_, steps, noise = surface("saddle"), 150, 1e-3
    draw = torch.Generator().manual_seed(0)

    def shaken(w: Tensor, n: int) -> Tensor:
        x, y = w
        return torch.stack([x, y**3 - y]) + noise * torch.randn(2, dtype=w.dtype, generator=draw)

    def step(
        name: str, build: Callable[[list[Tensor]], Optimizer], y: float, slope: Slope | None = None
    ) -> Trail:
        settings = f"lr {LR:g}, from (1, {y:g})"
        return walk(ground_, build, steps, name=name, settings=settings, start=(1.0, y), slope=slope)

    trails = (
        step("sgd on the ridge", lambda w: SGD(w, lr=LR), 0.0),
        step("sgd with noise", lambda w: SGD(w, lr=LR), 0.0, slope=shaken),
        step("sgd", lambda w: SGD(w, lr=LR), 1e-3),
        step("momentum", lambda w: SGD(w, lr=LR, momentum=0.9), 1e-3),
        step("adam", lambda w: Adam(w, lr=LR), 1e-3),
    )
    left = [(trail.name, trail.first_below(-0.2)) for trail in trails]
    steps_by_name = "; ".join(f"{name}: {'never' if at is None else f'step {at}'}" for name, at in left)
    return ground(
        ground_,
        trails,
        id="saddle",
        title="Escaping a saddle",
        lede="There are two minima at (0, ±1) and a saddle between them at (0, 0). From the ridge y = 0 the gradient "
        "leads straight to the saddle. An offset of a thousandth from the ridge, or noise of that size, grows by a "
        "factor of 1 + lr per step and leads out.",
        found=f"Escaped the saddle (four fifths of the descent) – {steps_by_name}.",
        how=f"All at lr {LR:g}. The noise is Gaussian of size {noise:g} in each direction, seed 0.",
    )


def noise() -> Scene:
    """The gradient of a few examples points somewhere near the gradient of all."""
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(256, 2, dtype=torch.float64, generator=draw) * torch.tensor(
        [1.0, 1.5], dtype=torch.float64
    )
    y = X @ torch.tensor([1.0, -0.5], dtype=torch.float64) + torch.randn(
        256, dtype=torch.float64, generator=draw
    )
    best = torch.linalg.lstsq(X, y).solution

    def value(w: Tensor) -> Tensor:
        return (X @ w - y).square().mean() / 2

    left = float(value(best))
    bowl = Surface(
        "least squares on 256 examples",
        value,
        start=(-0.6, 0.9),
        window=(-1.0, 1.8, -1.3, 1.2),
        minima=((float(best[0]), float(best[1])),),
        lowest=left,
    )
    steps, lr = 400, 0.02

    def batches(size: int, seed: int) -> Callable[[Tensor, int], Tensor]:
        picks = torch.randint(256, (steps, size), generator=torch.Generator().manual_seed(seed))
        return lambda w, n: X[picks[n]].T @ (X[picks[n]] @ w - y[picks[n]]) / size

    trails = (
        *(
            walk(
                bowl,
                lambda w: SGD(w, lr=lr),
                steps,
                name=f"batch {size}",
                settings=f"lr {lr:g}",
                slope=batches(size, size),
            )
            for size in (1, 16)
        ),
        walk(bowl, lambda w: SGD(w, lr=lr), steps, name="all 256", settings=f"lr {lr:g}"),
    )
    hover = [float((trail.values[steps // 2 :] - left).mean()) for trail in trails]
    return ground(
        bowl,
        trails,
        id="noise",
        title="Noise of small batches",
        lede="All three use the same learning rate on the same data. With every example the trajectory is a smooth "
        "curve. With a few examples it wanders, and in the end it hovers at a height that depends on the learning rate "
        "and the batch size.",
        found=f"Mean height above the minimum in the last {steps // 2} steps: batch 1 {hover[0]:.2g}, batch 16 "
        f"{hover[1]:.2g} ({hover[0] / hover[1]:.0f} times less; theory says about 16), all examples {hover[2]:.1g}.",
        how=f"All at lr {lr:g}. Batches are sampled with replacement, seeds fixed.",
    )


def adagrad() -> Scene:
    """A sum of squares never forgets, so the rate can only fall."""
    ground_, steps, first = surface("beale"), 600, 0.05

    def rate(key: str) -> Callable[[Optimizer], float]:
        def watched(optimizer: Optimizer) -> float:
            group = optimizer.param_groups[0]
            square = optimizer.state[group["params"][0]][key]
            return float((group["lr"] / (square.sqrt() + group["eps"])).mean())

        return watched

    trails = (
        walk(
            ground_,
            lambda w: Adagrad(w, lr=first),
            steps,
            name="adagrad",
            settings=f"lr {first:g}",
            watch=rate("sum"),
        ),
        walk(
            ground_,
            lambda w: RMSprop(w, lr=first * math.sqrt(1 - 0.99)),
            steps,
            name="rmsprop",
            settings=f"lr {first * math.sqrt(1 - 0.99):.3g}, α 0.99",
            watch=rate("square_avg"),
        ),
    )
    a, r = (trail.seen for trail in trails)
    target = np.array(ground_.minima[0])
    whole = float(np.linalg.norm(trails[0].places[0] - target))
    gone = [1 - float(np.linalg.norm(trail.places[-1] - target)) / whole for trail in trails]
    return ground(
        ground_,
        trails,
        id="adagrad",
        title="AdaGrad stalls",
        lede="Both divide by the size of past gradients, and take the same first step. AdaGrad divides by the root of "
        "their sum of squares, which can only grow. RMSprop divides by the root of an average that forgets: once the "
        "steep wall is behind it, its effective rate recovers.",
        found=f"Effective rate, first step to last: AdaGrad {a[0]:.2g} to {a[-1]:.2g}, RMSprop {r[0]:.2g} to "
        f"{r[-1]:.2g}. After {steps} steps AdaGrad has covered {gone[0]:.0%} of the distance to the minimum and is at "
        f"height {trails[0].values[-1]:.2g}; RMSprop has covered {gone[1]:.0%} and is at {trails[1].values[-1]:.2g}.",
        how="RMSprop's rate is AdaGrad's times √(1 − α), which makes the first steps equal.",
        watched="effective rate",
        watching="The learning rate over the square root of the sum, or average, of squared gradients: the "
        "mean of the two weights",
        logarithmic=True,
    )


def restarts() -> Scene:
    """A restart raises the learning rate, leaves this minimum, and descends into the next."""
    depth, wave, steps, cycles, peak = 0.5, 4.0, 240, 4, 0.7

    def value(w: Tensor) -> Tensor:
        return 0.04 * (w * w).sum() + depth * (1 - torch.cos(wave * w)).sum()

    box = Surface(
        "a bowl of small bowls",
        value,
        start=(-3.3, 2.9),
        window=(-4.2, 4.2, -4.2, 4.2),
        minima=((0.0, 0.0),),
        lowest=0.0,
    )
    sharp = depth * wave**2 + 0.08
    plans = (
        ("cosine once", Cosine(peak, 0.0, steps=steps)),
        ("with restarts", CosineRestarts(peak, 0.0, cycles=cycles, steps=steps)),
    )
    trails = tuple(
        walk(
            box,
            lambda w: SGD(w, lr=peak),
            steps,
            name=name,
            settings=f"lr {peak:g} to 0",
            schedule=plan,
            watch=lambda optimizer: float(optimizer.param_groups[0]["lr"]),
        )
        for name, plan in plans
    )
    spacing = 2 * math.pi / wave
    rests = [
        tuple(np.round(trails[1].places[k * steps // cycles] / spacing).astype(int))
        for k in range(1, cycles + 1)
    ]
    once = tuple(np.round(trails[0].places[-1] / spacing).astype(int))
    heights = [float(trails[1].values[k * steps // cycles]) for k in range(1, cycles + 1)]
    return ground(
        box,
        trails,
        id="restarts",
        title="Warm restarts jump out of a minimum",
        lede=f"Every small bowl has sharpness about {sharp:.3g}, so learning rates above 2/{sharp:.3g} = "
        f"{2 / sharp:.2g} are unstable in it. Each restart raises the rate to {peak:g}, leaves the bowl, and settles "
        "in a bowl as the rate falls.",
        found=f"The {cycles} cycles ended in {len(set(rests))} different bowls, at heights "
        f"{', '.join(f'{h:.2g}' for h in heights)}. A single cosine ended in one, at "
        f"{float(trails[0].values[-1]):.2g}{', one of those' if once in rests else ''}.",
        how=f"Plain gradient descent without noise. Both learning rates start at {peak:g} and end at 0 after {steps} "
        "steps.",
        watched="learning rate",
        watching="The learning rate of each step",
        marks=tuple(
            (float(x), float(y), str(k + 1))
            for k, (x, y) in enumerate(trails[1].places[steps // cycles :: steps // cycles])
        ),
        marked="a number: where that cycle of the restarts ended",
    )


STORIES: dict[str, Callable[[], Scene]] = {
    "jitter": jitter,
    "momentum": momentum,
    "saddle": saddle,
    "noise": noise,
    "adagrad": adagrad,
    "restarts": restarts,
}


def story(name: str) -> Scene:
    """The scene of that name."""
    if name not in STORIES:
        raise refusal("story", name, f"one of {', '.join(STORIES)}, all")
    return STORIES[name]()


def _left(trail: Trail, axis: int) -> str:
    return f"{abs(trail.places[-1, axis] / trail.places[0, axis]):.0%}"
