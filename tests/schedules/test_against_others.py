"""The same numbers as torch, optax and the textbook formulas, wherever they define the same thing."""

import math
import warnings

import numpy as np
import optax
import pytest
import torch
from torch.optim import lr_scheduler as peers

from schuss.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Polynomial,
    StepDecay,
    Warmup,
    WarmupStableDecay,
)


def torch_values(make, steps, lr):
    """The lr that torch's scheduler has put in force before each of the steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return values


def assert_same(schedule, values):
    np.testing.assert_allclose([schedule(n) for n in range(len(values))], values, rtol=1e-12, atol=1e-12)


TORCH = {
    "StepLR": (StepDecay(0.1, rate=0.3, every=7), lambda o: peers.StepLR(o, 7, gamma=0.3), 60),
    "MultiStepLR": (
        StepDecay(0.1, rate=0.3, milestones=(3, 10, 11)),
        lambda o: peers.MultiStepLR(o, [3, 10, 11], gamma=0.3),
        20,
    ),
    "ExponentialLR": (Exponential(0.1, rate=0.97), lambda o: peers.ExponentialLR(o, 0.97), 100),
    "LinearLR": (
        Linear(0.1 / 3, 0.1 * 0.7, steps=13),
        lambda o: peers.LinearLR(o, start_factor=1 / 3, end_factor=0.7, total_iters=13),
        30,
    ),
    "PolynomialLR": (
        Polynomial(0.1, power=1.7, steps=20),
        lambda o: peers.PolynomialLR(o, total_iters=20, power=1.7),
        30,
    ),
    "ConstantLR": (Constant(0.1), lambda o: peers.ConstantLR(o, factor=1.0), 9),
    # torch climbs again after T_max, so it is compared up to there.
    "CosineAnnealingLR": (
        Cosine(0.1, 0.003, steps=50),
        lambda o: peers.CosineAnnealingLR(o, 50, eta_min=0.003),
        51,
    ),
    "CosineAnnealingWarmRestarts": (
        CosineRestarts(0.1, 0.003, period=7),
        lambda o: peers.CosineAnnealingWarmRestarts(o, 7, eta_min=0.003),
        80,
    ),
    "CosineAnnealingWarmRestarts, longer and longer": (
        CosineRestarts(0.1, 0.003, period=7, multiplier=3),
        lambda o: peers.CosineAnnealingWarmRestarts(o, 7, T_mult=3, eta_min=0.003),
        400,
    ),
    # torch places the peak and the end one step early, and raises after the end.
    "OneCycleLR": (
        OneCycle(0.1, 0.1 / 25 / 1e4, steps=99, warmup=29),
        lambda o: peers.OneCycleLR(o, 0.1, total_steps=100),
        100,
    ),
    "OneCycleLR, linear": (
        OneCycle(0.1, 1e-3, start=0.01, steps=39, warmup=9, shape="linear"),
        lambda o: peers.OneCycleLR(
            o,
            0.1,
            total_steps=40,
            pct_start=0.25,
            anneal_strategy="linear",
            div_factor=10,
            final_div_factor=10,
        ),
        40,
    ),
    "OneCycleLR, three phases": (
        Cosine(0.004, 0.1, steps=24).then(Cosine(0.1, 0.004, steps=24)).then(Cosine(0.004, 4e-7, steps=51)),
        lambda o: peers.OneCycleLR(o, 0.1, total_steps=100, pct_start=0.25, three_phase=True),
        100,
    ),
    "CyclicLR": (
        Cyclic(0.01, 0.1, period=25, turn_after=10),
        lambda o: peers.CyclicLR(o, 0.01, 0.1, step_size_up=10, step_size_down=15),
        120,
    ),
    "CyclicLR, triangular2": (
        Cyclic(0.01, 0.1, period=20, shrink=0.5),
        lambda o: peers.CyclicLR(o, 0.01, 0.1, step_size_up=10, mode="triangular2"),
        120,
    ),
    "CyclicLR, exp_range": (
        Cyclic(0.01, 0.1, period=20, rate=0.99),
        lambda o: peers.CyclicLR(o, 0.01, 0.1, step_size_up=10, mode="exp_range", gamma=0.99),
        120,
    ),
    "SequentialLR": (
        Warmup(5, 0.2).then(Cosine(0.1, steps=30)),
        lambda o: peers.SequentialLR(
            o,
            [peers.LinearLR(o, start_factor=0.2, total_iters=5), peers.CosineAnnealingLR(o, 30)],
            milestones=[5],
        ),
        36,
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch(name):
    schedule, make, steps = TORCH[name]
    assert_same(schedule, torch_values(make, steps, lr=0.1))


@pytest.fixture(scope="module")
def x64():
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


OPTAX = {
    "constant": (Constant(0.1), lambda: optax.constant_schedule(0.1)),
    "linear": (Linear(0.1, 0.02, steps=30), lambda: optax.linear_schedule(0.1, 0.02, 30)),
    "cosine": (Cosine(0.1, 0.1 * 0.05, steps=30), lambda: optax.cosine_decay_schedule(0.1, 30, alpha=0.05)),
    "polynomial": (
        Polynomial(0.1, 0.02, power=2, steps=30),
        lambda: optax.polynomial_schedule(0.1, 0.02, 2, 30),
    ),
    "polynomial, begun later": (
        Polynomial(0.1, 0.02, power=2, steps=30).shifted(9),
        lambda: optax.polynomial_schedule(0.1, 0.02, 2, 30, transition_begin=9),
    ),
    "exponential": (
        Exponential(0.1, 0.02, rate=0.5, every=10),
        lambda: optax.exponential_decay(0.1, 10, 0.5, end_value=0.02),
    ),
    "exponential, staircase": (
        StepDecay(0.1, rate=0.5, every=10),
        lambda: optax.exponential_decay(0.1, 10, 0.5, staircase=True),
    ),
    "piecewise constant": (
        StepDecay(0.1, rate=0.5, milestones=(10, 20)),
        lambda: optax.piecewise_constant_schedule(0.1, {10: 0.5, 20: 0.5}),
    ),
    "warm-up and cosine": (
        Warmup(10, 0.1).then(Cosine(0.1, 0.001, steps=30)),
        lambda: optax.warmup_cosine_decay_schedule(0.01, 0.1, 10, 40, 0.001),
    ),
    "one cycle": (
        OneCycle(0.1, 0.1 / 25e4, steps=50),
        lambda: optax.cosine_onecycle_schedule(50, 0.1),
    ),
    "restarts": (
        CosineRestarts(0.1, 0, period=10, multiplier=2, shrink=0.5, cycles=3),
        lambda: optax.sgdr_schedule(
            [
                {"init_value": peak, "peak_value": peak, "warmup_steps": 0, "decay_steps": steps}
                for peak, steps in ((0.1, 10), (0.05, 20), (0.025, 40))
            ]
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name, x64):
    schedule, make = OPTAX[name]
    theirs = make()
    assert_same(schedule, [float(theirs(np.float64(n))) for n in range(75)])


def test_step_decay_of_the_notes():
    schedule = StepDecay(0.1, rate=0.1, every=30)
    assert_same(schedule, [0.1 * (0.1 ** (epoch // 30)) for epoch in range(200)])


def test_cosine_annealing_of_the_notes():
    low, high, total = 1e-5, 1e-3, 90
    schedule = Cosine(high, low, steps=total)
    assert_same(
        schedule, [low + 0.5 * (high - low) * (1 + np.cos(e / total * np.pi)) for e in range(total + 1)]
    )


def test_warmup_of_the_notes():
    schedule = Warmup(5).then(Constant(0.4))
    assert_same(schedule, [0.4 * (epoch / 5) if epoch < 5 else 0.4 for epoch in range(12)])


def test_linear_decay_to_zero_over_all_steps():
    assert_same(Linear(0.4, steps=50), [0.4 * (50 - n) / 50 for n in range(51)] + [0.0] * 5)


def test_snapshot_ensembles():
    total, cycles = 300, 6
    schedule = CosineRestarts(0.2, cycles=cycles, steps=total)
    paper = [
        0.1 * (math.cos(math.pi * (t % (total // cycles)) / (total // cycles)) + 1) for t in range(total)
    ]
    assert_same(schedule, [*paper, 0.0, 0.0])


def test_several_cycles_in_one_epoch():
    schedule = CosineRestarts(0.2, cycles=5, epochs=1, steps_per_epoch=100)
    assert [n for n in range(101) if schedule(n) == 0.2] == [0, 20, 40, 60, 80]


def test_noam():
    width, warmup = 512, 400
    schedule = InverseSqrt((width * warmup) ** -0.5, warmup=warmup).shifted(-1)
    assert_same(schedule, [width**-0.5 * min(t**-0.5, t * warmup**-1.5) for t in range(1, 2000)])


def test_noam_is_a_warmup_and_a_root():
    assert_same(
        InverseSqrt(1e-3, warmup=40),
        [Warmup(40).then(InverseSqrt(1e-3, timescale=40))(n) for n in range(300)],
    )


def test_warmup_stable_decay_is_three_schedules():
    pieces = Warmup(10).then(Constant(0.3, steps=70)).then(Linear(0.3, 0.1, steps=20))
    assert_same(WarmupStableDecay(0.3, 0.1, warmup=10, decay=20, steps=100), [pieces(n) for n in range(120)])


def test_one_minus_sqrt_cooldown():
    schedule = WarmupStableDecay(0.3, warmup=0, decay=20, shape="sqrt", steps=100)
    assert_same(schedule, [0.3] * 80 + [0.3 * (1 - math.sqrt(n / 20)) for n in range(21)])


def test_range_test_is_a_straight_line_in_the_logarithm():
    schedule = Exponential(1e-7, 1, steps=700)
    assert_same(lambda n: math.log10(schedule(n)), [-7 + n / 100 for n in range(701)])


def test_a_restart_is_never_late():
    """The cycle is found by a logarithm, and log(1000) / log(10) is rounded to below 3."""
    for multiplier in (2, 3, 5, 7, 10):
        schedule = CosineRestarts(1.0, period=1, multiplier=multiplier)
        for cycle in range(1, 9):
            begin = (multiplier**cycle - 1) // (multiplier - 1)
            assert schedule(begin) == 1.0
            assert schedule(math.nextafter(begin, 0)) < 1e-9


def test_defaults_that_depend_on_the_horizon():
    assert WarmupStableDecay(1, steps=1000).corners(1000) == [0, 50, 900, 1000]
    assert OneCycle(1, steps=1000).corners(1000) == [0, 300, 1000]
