"""What both APIs promise: hyperparameters, schedules, averages, clipping, skipping, storage and checkpoints."""

import math
import re

import numpy as np
import pytest
from tests.apis import NumPy, Torch

from schuss.compile.storage import BLOCK

LARGE = 4096 + 3 * BLOCK + 7

pytestmark = pytest.mark.parametrize("api", [Torch, NumPy])


def noise(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same(one, other):
    """The same weights and state, bit for bit."""
    assert one.state().keys() == other.state().keys()
    for key, value in one.state().items():
        assert value.dtype == other.state()[key].dtype, key
        np.testing.assert_array_equal(value, other.state()[key], err_msg=str(key))
    for a, b in zip(one.weights(), other.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Hyperparameters and options outside their domains

REFUSED = [
    ("SGD", dict(lr=-0.1), "lr=-0.1 is not a finite number ≥ 0."),
    ("SGD", dict(lr=float("nan")), "lr=nan is not a finite number ≥ 0."),
    ("SGD", dict(lr=float("inf")), "lr=inf is not a finite number ≥ 0."),
    ("SGD", dict(lr="0.1"), "lr='0.1' is not a finite number ≥ 0."),
    ("SGD", dict(lr=None), "lr=None is not a finite number ≥ 0."),
    ("SGD", dict(lr=np.array(-1.0)), "lr=-1.0 is not a finite number ≥ 0."),
    ("SGD", dict(lr=np.ones(2)), "lr=[1.0, 1.0] is not a finite number ≥ 0."),
    ("SGD", dict(lr=lambda n: -1), "lr=-1 is not a finite number ≥ 0."),
    ("SGD", dict(lr=lambda n: None), "lr=None is not a finite number ≥ 0."),
    ("SGD", dict(momentum=-0.5), "momentum=-0.5 is not a finite number ≥ 0."),
    ("SGD", dict(nesterov=True), "nesterov=True needs momentum > 0 and dampening = 0"),
    ("SGD", dict(momentum=0.9, dampening=0.5, nesterov=True), "Try momentum=0.9, dampening=0."),
    ("SGD", dict(nesterov=1), "nesterov=1 is not True or False."),
    ("SGD", dict(weight_decay=-1), "weight_decay=-1 is not a finite number ≥ 0."),
    ("SGD", dict(maximize=1), "maximize=1 is not True or False"),
    ("Adagrad", dict(lr_decay=-1), "lr_decay=-1 is not a finite number ≥ 0."),
    (
        "Adagrad",
        dict(initial_accumulator_value=-1),
        "initial_accumulator_value=-1 is not a finite number ≥ 0.",
    ),
    ("Adagrad", dict(eps=-1e-3), "eps=-0.001 is not a finite number ≥ 0."),
    ("Adagrad", dict(eps_position="under"), "eps_position='under' is not one of 'outside', 'inside'."),
    ("Adadelta", dict(rho=1.5), "rho=1.5 is not in [0, 1]. It is the weight of the past."),
    ("RMSprop", dict(alpha=-0.1), "alpha=-0.1 is not in [0, 1]. It is the weight of the past."),
    ("RMSprop", dict(momentum=-0.1), "momentum=-0.1 is not a finite number ≥ 0."),
    ("Adam", dict(betas=(1.0, 0.9)), "beta1=1.0 is not in [0, 1). With 1 the average would never learn."),
    ("Adam", dict(betas=(0.9, 1.0)), "beta2=1.0 is not in [0, 1). With 1 the average would never learn."),
    ("Adam", dict(betas=(-0.1, 0.9)), "beta1=-0.1 is not in [0, 1)."),
    ("Adam", dict(betas=0.9), "betas=0.9 is not a pair of numbers. Try betas=(0.9, 0.999)."),
    ("Adam", dict(betas=(0.9,)), "betas=(0.9,) is not a pair of numbers."),
    ("Adam", dict(betas=(0.9, 0.99, 0.999)), "is not a pair of numbers. Try betas=(0.9, 0.999)."),
    ("Adam", dict(eps=-1), "eps=-1 is not a finite number ≥ 0."),
    ("Adam", dict(amsgrad="yes"), "amsgrad='yes' is not True or False."),
    (
        "Adam",
        dict(eps_position="beside"),
        "eps_position='beside' is not one of 'outside', 'inside', 'uncorrected'",
    ),
    ("AdamW", dict(betas=(0.9, float("nan"))), "beta2=nan is not in [0, 1)."),
    ("NAdam", dict(momentum_decay=-1), "momentum_decay=-1 is not a finite number ≥ 0."),
    ("RAdam", dict(betas=(0.9, 1)), "beta2=1 is not in [0, 1)."),
    (
        "Adamax",
        dict(betas=(0.9, 1)),
        "beta2=1 is not in [0, 1). With 1 the first gradient would rule for ever.",
    ),
    ("Rprop", dict(etas=(1.5, 1.2)), "eta_minus=1.5 is not in (0, 1)."),
    ("Rprop", dict(etas=(0.5, 0.9)), "eta_plus=0.9 is not a finite number > 1."),
    ("Rprop", dict(step_sizes=(1.0, 0.5)), "step_size_min=1.0 is more than step_size_max=0.5."),
    ("ASGD", dict(lambd=float("inf")), "lambd=inf is not a finite number ≥ 0."),
    (
        "ASGD",
        dict(lambd=-1e-4),
        "lambd=-0.0001 is not a finite number ≥ 0. Below 0 the rate would grow without bound.",
    ),
    ("Lion", dict(betas=(0.9, 1.0)), "beta2=1.0 is not in [0, 1)."),
    ("AdamW", dict(rounding="up"), "rounding='up' is not one of 'nearest', 'stochastic'"),
    ("AdamW", dict(compensated=1), "compensated=1 is not True or False"),
    (
        "AdamW",
        dict(compensated=True, rounding="stochastic"),
        "Choose one of compensated=True and rounding='stochastic'",
    ),
    (
        "AdamW",
        dict(state_dtype="int4"),
        "state_dtype='int4' is not None or one of 'float64', 'float32', 'bfloat16', 'int8'",
    ),
    ("AdamW", dict(state_dtype="float16"), "state_dtype='float16' is not None or one of"),
    ("AdamW", dict(state_dtype=int), "is not None or one of 'float64'"),
    ("AdamW", dict(ema_decay=1.5), "ema_decay=1.5 is not in [0, 1]. Try 0.999"),
    ("AdamW", dict(max_norm=0), "max_norm=0 is not None or a finite number > 0"),
    ("AdamW", dict(max_norm=lambda n: 1.0), "is not None or a finite number > 0"),
    ("AdamW", dict(skip_nonfinite="yes"), "skip_nonfinite='yes' is not True or False"),
    ("AdamW", dict(seed=0.5), "seed=0.5 is not a whole number"),
]


@pytest.mark.parametrize(("name", "options", "text"), REFUSED)
def test_what_is_outside_its_domain_is_refused_at_once_and_later(api, name, options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        api(name, [np.ones(3)], **options)
    *before, (key, value) = options.items()
    subject = api(name, [np.ones(3)], **dict(before))
    shown = repr(subject.optimizer)
    with pytest.raises(ValueError, match=re.escape(text)):
        subject.refused_later(key, value)
    assert repr(subject.optimizer) == shown
    subject.step(np.ones(3))
    twin = api(name, [np.ones(3)], **dict(before))
    twin.step(np.ones(3))
    assert_same(subject, twin)


# Schedules


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(lr=lambda n: 0.1 - 0.15 * n), "lr=-0.04999999999999999 is not a finite number ≥ 0"),
        (dict(ema_decay=lambda n: 0.9 + 0.2 * n), "ema_decay=1.1 is not in [0, 1]. Try 0.999"),
        (dict(ema_decay=lambda n: None if n else 0.5), "ema_decay=None is not in [0, 1]"),
    ],
    ids=["lr", "ema_decay", "no number"],
)
def test_a_schedule_that_leaves_its_domain_moves_nothing(api, options, text):
    subject = api("Adam", [np.ones(2), np.ones(3)], **options)
    subject.step(np.ones(2), np.ones(3))
    weights, state = subject.weights(), subject.state()
    with pytest.raises(ValueError, match=re.escape(text)):
        subject.step(np.ones(2), np.ones(3))
    for was, now in zip(weights, subject.weights(), strict=True):
        np.testing.assert_array_equal(now, was)
    for key, value in subject.state().items():
        np.testing.assert_array_equal(value, state[key])


def test_a_schedule_is_asked_with_the_finished_steps_and_shows_the_next(api):
    asked = []

    def rate(n):
        asked.append(n)
        return 0.5 / (1 + n)

    subject = api("SGD", [np.zeros(1)], lr=rate)
    for n in range(4):
        assert subject.shown("lr") == 0.5 / (1 + n)
        subject.step(np.ones(1))
    np.testing.assert_allclose(subject.weights()[0], -0.5 * (1 + 1 / 2 + 1 / 3 + 1 / 4), rtol=1e-15)
    assert subject.shown("lr") == 0.1
    assert set(asked) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("maximize", [False, True])
def test_maximize_climbs(api, plain, maximize):
    one = api(plain.name, [noise(5)], maximize=maximize)
    other = api(plain.name, [noise(5)])
    for seed in range(3):
        g = noise(5, seed=seed)
        one.step(g)
        other.step(-g if maximize else g)
    assert_same(one, other)


# Averaged weights


def test_averages_follow_their_recursion_and_a_weight_that_joins_late_starts_its_own(api):
    subject = api("SGD", [np.zeros(3), np.zeros(3)], lr=1.0, ema_decay=0.5)
    for step in range(3):
        subject.step(np.ones(3), np.ones(3) if step == 2 else None)
    one, two = subject.averages()
    assert one.tolist() == [-2.25] * 3  # −1, −1.5, −2.25
    assert two.tolist() == [-1.0] * 3
    assert [w.tolist() for w in subject.weights()] == [[-3.0] * 3, [-1.0] * 3]


def test_an_average_with_a_schedule_of_the_finished_steps(api):
    """1 − 1/t gives the plain mean of all weights so far."""
    subject, path = api("SGD", [np.zeros(4)], lr=0.1, ema_decay=lambda n: 1 - 1 / (n + 1)), []
    for seed in range(6):
        subject.step(noise(4, seed=seed))
        path.append(subject.weights()[0])
    np.testing.assert_allclose(subject.averages()[0], np.mean(path, axis=0), rtol=1e-12, atol=1e-14)


def test_a_decay_can_be_changed_and_an_average_that_missed_steps_is_begun_anew(api):
    """Adam with β₁ = 0 and a steady gradient moves by lr."""
    subject = api("Adam", [np.zeros(1)], lr=1.0, betas=(0.0, 0.9), eps=0.0, ema_decay=0.5)
    for _ in range(2):
        subject.step(np.ones(1))  # weights −1, −2: average −1, then −1.5
    subject.change("ema_decay", 0.75)
    subject.step(np.ones(1))  # −3
    assert subject.values(0, "average") == pytest.approx(-1.875, rel=1e-12)
    subject.change("ema_decay", None)
    subject.step(np.ones(1))  # −4
    assert subject.values(0, "average") is None
    subject.change("ema_decay", 0.5)
    subject.step(np.ones(1))  # −5, from an average of −4
    assert subject.values(0, "average") == pytest.approx(-4.5, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "own"), [("SGD", {}), ("SGD", {"momentum": 0.5}), ("Adam", {"betas": (0.0, 0.9), "eps": 0.0})]
)
def test_an_average_asked_for_later_begins_with_the_weights_before_the_step(api, name, own):
    """Whether the rule has state or not, and after loading too."""
    for loaded in (False, True):
        subject = api(name, [np.full(2, 4.0)], lr=1.0, **own)
        for _ in range(2):
            subject.step(np.ones(2))
        if loaded:
            saved, subject = subject.saved(), subject.again()
            subject.load(saved)
        (before,) = subject.weights()
        subject.change("ema_decay", 0.75)
        subject.step(np.ones(2))
        (after,) = subject.weights()
        np.testing.assert_allclose(subject.averages()[0], 0.75 * before + 0.25 * after, rtol=1e-12)


def test_touched_rows_alone_renew_their_average(api):
    subject = api("SGD", [np.zeros((5, 2))], lr=1.0, ema_decay=0.5)
    for row in (1, 1, 3):
        subject.step((np.array([row]), np.ones((1, 2))))
    assert subject.averages()[0][:, 0].tolist() == [0.0, -1.5, 0.0, -0.5, 0.0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, ZeroDivisionError])
def test_the_weights_come_back_whatever_happens(api, error):
    subject = api("NAdam", [np.ones(3), np.ones(2, np.float16)], lr=0.1, ema_decay=0.9)
    for _ in range(3):
        subject.step(np.ones(3), np.ones(2))
    before, state, inside = subject.weights(), subject.state(), []

    def evaluate():
        inside.extend(subject.weights())
        raise error

    with pytest.raises(error), subject.averaged():
        evaluate()
    for was, average, now in zip(before, inside, subject.weights(), strict=True):
        assert (average != was).all()
        np.testing.assert_array_equal(now, was)
    for key, value in subject.state().items():
        np.testing.assert_array_equal(value, state[key])
    subject.step(np.ones(3), np.ones(2))
    assert (subject.weights()[0] < before[0]).all()


def test_steps_and_blocks_inside_a_block_are_refused(api):
    subject = api("Adam", [np.ones(3)], lr=0.1, ema_decay=0.5)
    for _ in range(2):
        subject.step(np.ones(3))
    before = subject.weights()[0]
    with subject.averaged():
        inside = subject.weights()[0]
        with pytest.raises(RuntimeError, match=r"averaged.*would be taken from the averaged weights"):
            subject.step(np.ones(3))
        with pytest.raises(RuntimeError, match=r"inside another|are in place already"), subject.averaged():
            pass
        np.testing.assert_array_equal(subject.weights()[0], inside)
    assert (inside != before).all()
    np.testing.assert_array_equal(subject.weights()[0], before)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.complex64], ids=str)
def test_schedule_free_evaluates_an_average_of_the_iterates_z(api, dtype):
    """By hand: x is the average of all z, weighted by the squared rates, which are 1, 2 and 3 thirds."""
    start = noise(30, seed=4).astype(dtype)
    subject = api("ScheduleFreeSGD", [start, start], lr=0.3, momentum=0.8, warmup_steps=3, ema_decay=0.5)
    z, x, weights = start.astype(np.complex128), 0.0, 0.0
    np.testing.assert_array_equal(subject.averages()[0], start)
    for step in (1, 2, 3):
        g = noise(30, seed=step).astype(dtype)
        subject.step(g, None)
        z = z - 0.1 * step * g
        x, weights = x + step**2 * z, weights + step**2
    own = subject.weights()
    found, untouched = subject.averages()
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, x / weights, rtol=0, atol=20 * eps)
    assert (found != own[0]).any()
    np.testing.assert_array_equal(untouched, start)
    np.testing.assert_array_equal(subject.weights(), own)


@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16", "float32", "float64", None])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=str)
def test_state_that_holds_weights_has_at_least_32_bits(api, dtype, state_dtype):
    make = {"lr": 0.01, "state_dtype": state_dtype}
    subject = api("ScheduleFreeAdamW", [noise(LARGE, dtype=dtype)], **make)
    for seed in (1, 2):
        subject.step(noise(LARGE, seed=seed, dtype=dtype))
    wide = np.promote_types(dtype, np.float32)
    asked = {"int8": np.int8, "bfloat16": np.uint16, None: wide}
    z = subject.values(0, "z")
    assert z.dtype == np.dtype(wide if state_dtype in asked else state_dtype)
    assert subject.values(0, "v").dtype == np.dtype(asked.get(state_dtype, state_dtype))
    again = subject.again()
    again.load(subject.saved())
    np.testing.assert_array_equal(again.values(0, "z"), z)
    np.testing.assert_array_equal(again.averages(), subject.averages())
    again.step(noise(LARGE, dtype=dtype))
    # What was stored in few bits, as weights of 16 bits are by others, is wide from then on.
    for narrow, stored in (("bfloat16", np.uint16), ("int8", np.int8)):
        if state_dtype is None:
            other = subject.again(state_dtype=narrow)
            other.load(subject.saved())
            assert other.values(0, "z").dtype == wide
            assert other.values(0, "v").dtype == stored


def test_without_a_decay_there_is_no_average(api):
    subject = api("SGD", [np.ones(3)])
    subject.step(np.ones(3))
    with pytest.raises(ValueError, match=r"Try SGD\(.*ema_decay=0.999"), subject.averaged():
        pass


def test_sixteen_bit_weights_have_an_average_in_32(api):
    start = noise(40, dtype=np.float16)
    narrow = api("Adam", [start], lr=1e-4, ema_decay=0.99, compensated=True)
    wide = api("Adam", [start.astype(np.float32)], lr=1e-4, ema_decay=0.99)
    for seed in range(30):
        g = noise(40, seed=seed, dtype=np.float16)
        narrow.step(g)
        wide.step(g.astype(np.float32))
    found, expected = narrow.values(0, "average"), wide.values(0, "average")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=30 * 2.0**-22 * np.abs(expected).max())


# Clipping and skipping


def dense(gradient, shape):
    if gradient is None:
        return np.zeros(shape)
    if isinstance(gradient, tuple):
        total = np.zeros(shape, gradient[1].dtype)
        np.add.at(total, gradient[0], gradient[1])
        return total
    return gradient


def scaled(gradient, by):
    if isinstance(gradient, tuple):
        return gradient[0], gradient[1] * by
    return None if gradient is None else gradient * by


@pytest.mark.parametrize("maximize", [False, True])
def test_clipping_equals_that_by_hand(api, plain, maximize):
    if plain.name == "Rprop" and maximize:
        maximize = False  # torch.optim's own climbs another way
    starts = [
        noise(5, 2, dtype=np.float64),
        np.asfortranarray(noise(60, 50, dtype=np.float64)),
        noise(4, dtype=np.float64) + (0 if plain.rule.shapes else 1j),
        noise(9, 3, dtype=np.float64),
        noise(2, dtype=np.float64),
    ]
    subject = api(plain.name, starts, maximize=maximize, max_norm=1.5)
    twin = api(plain.name, starts, maximize=maximize)
    for k, size in enumerate((1.0, 1e-3, 1e100, 1e-6)):
        g = [scaled(noise(*w.shape, seed=k + 10, dtype=np.float64) * (1 + 0 * w), size) for w in starts]
        if not plain.sparse_refusal:
            g[3] = (np.array([1, 7, 1]), size * noise(3, 3, seed=k, dtype=np.float64))
        g[4] = None
        before = [np.array(dense(one, w.shape)) for one, w in zip(g, starts, strict=True)]
        subject.step(*g)
        expected = math.sqrt(sum(float((np.abs(one / size) ** 2).sum()) for one in before)) * size
        assert subject.optimizer.gradient_norm == pytest.approx(expected, rel=1e-12, abs=0)
        clip = min(1.0, 1.5 / (expected + 1e-6))
        assert (clip == 1) == (size < 1e-2)
        twin.step(*[scaled(one, clip) for one in g])
        for one, other in zip(subject.weights(), twin.weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
        for was, one, w in zip(before, g, starts, strict=True):
            np.testing.assert_array_equal(dense(one, w.shape), was)


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e-30, 1.0, 1e30, 1e160, 1e200])
def test_the_norm_neither_overflows_nor_underflows(api, size):
    starts = [np.ones(3), np.ones((4, 2)), np.ones(2, complex), np.zeros(1000)]
    subject = api("SGD", starts, lr=1.0, max_norm=math.inf, skip_nonfinite=True)
    rows = np.array([2]), np.array([[2.0, 4.0]]) * size
    large = np.zeros(1000)
    large[700:] = size * math.sqrt(400 / 300)
    subject.step(np.array([1.0, 2.0, 0.0]) * size, rows, np.array([10j, 10.0]) * size, large)
    assert subject.optimizer.gradient_norm == pytest.approx(25.0 * size, rel=1e-14, abs=0)
    assert subject.optimizer.skipped == 0
    np.testing.assert_allclose(subject.weights()[3], -large, rtol=1e-12, atol=0)


def test_the_norm_is_read_only_where_it_is_asked_for(api):
    subject, g = api("SGD", [np.zeros(2)], lr=1.0), np.array([3.0, 4.0])
    subject.step(g)
    assert subject.optimizer.gradient_norm is None
    subject.change("max_norm", 2.5)
    subject.step(g)
    assert subject.optimizer.gradient_norm == 5.0
    np.testing.assert_allclose(subject.weights()[0], [-4.5, -6.0], rtol=1e-6)
    subject.change("max_norm", None)
    subject.step(g)
    assert subject.optimizer.gradient_norm is None
    np.testing.assert_allclose(subject.weights()[0], [-7.5, -10.0], rtol=1e-6)


BAD = [np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_a_step_with_a_bad_gradient_changes_nothing(api, plain, bad, max_norm):
    """And the training goes on as if it had not been: state, counts, average, random bits and schedules too."""
    options = dict(lr=lambda n: 0.1 / (1 + n), max_norm=max_norm, skip_nonfinite=True, ema_decay=0.9)
    options |= dict(rounding="stochastic", state_dtype="int8")
    starts = [noise(LARGE, dtype=np.float16), noise(5, dtype=np.float64), noise(60, 8)]
    subject, twin = (api(plain.name, starts, **options) for _ in range(2))
    for k in range(3):
        rows = np.random.default_rng(k).permutation(60)[:5], noise(5, 8, seed=k)
        last = noise(60, 8, seed=k) if plain.sparse_refusal else rows
        g = [noise(LARGE, seed=k, dtype=np.float16), noise(5, seed=k, dtype=np.float64), last]
        values = np.array(last if plain.sparse_refusal else rows[1])
        poisoned = [np.array(g[0]), np.array(g[1]), values if plain.sparse_refusal else (rows[0], values)]
        (poisoned[0], poisoned[1], values)[k].flat[-1] = bad
        weights, state, rate = subject.weights(), subject.state(), subject.shown("lr")
        with np.errstate(invalid="ignore"):
            subject.step(*poisoned)
        assert subject.optimizer.skipped == k + 1
        assert not math.isfinite(subject.optimizer.gradient_norm)
        assert subject.shown("lr") == rate
        for was, now in zip(weights, subject.weights(), strict=True):
            np.testing.assert_array_equal(now, was)
        for key, value in state.items():
            np.testing.assert_array_equal(subject.state()[key], value)
        subject.step(*g)
        twin.step(*g)
        assert_same(subject, twin)
    assert (subject.optimizer.skipped, twin.optimizer.skipped) == (3, 0)
    other = subject.again()
    other.load(subject.saved())
    assert other.optimizer.skipped == 3


def test_without_the_option_a_nan_goes_where_it_is(api):
    subject = api("SGD", [np.ones(3)], lr=1.0)
    subject.step(np.array([1.0, np.nan, 1.0]))
    assert np.isnan(subject.weights()[0]).tolist() == [False, True, False]
    assert subject.optimizer.skipped == 0


def test_large_finite_gradients_are_not_skipped(api):
    subject = api("SGD", [np.zeros(2)], lr=1e-200, skip_nonfinite=True)
    subject.step(np.array([1e200, 1e-200]))
    assert subject.optimizer.skipped == 0
    np.testing.assert_allclose(subject.weights()[0], [-1, 0], atol=1e-15)


# How numbers are kept


def test_stochastic_rounding_is_unbiased_and_rounding_to_nearest_is_not(api):
    step = 2.0**-11 / 8  # an eighth of the half-way to the next float16 below
    found = {}
    for rounding in ("nearest", "stochastic"):
        subject = api("SGD", [np.ones(4096, np.float16)], lr=step, rounding=rounding)
        for _ in range(100):
            subject.step(np.ones(4096))
        found[rounding] = subject.weights()[0].astype(float).mean()
    assert found["nearest"] == 1.0
    # A step's rounding has a standard deviation below half a spacing, 2⁻¹²; a hundred of them, over 4096 weights.
    assert abs(found["stochastic"] - (1 - 100 * step)) < 5 * 2.0**-12 * math.sqrt(100 / 4096)


def test_seeds_differ_and_repeat(api):
    def run(seed):
        subject = api("SGD", [np.ones(100, np.float16)], lr=1e-4, rounding="stochastic", seed=seed)
        for _ in range(3):
            subject.step(np.ones(100))
        return subject.weights()[0]

    np.testing.assert_array_equal(run(3), run(3))
    assert (run(3) != run(4)).any()


def test_a_seed_can_be_changed_between_steps(api):
    def run(first, then):
        subject = api("SGD", [np.ones(300, np.float16)], lr=1e-4, rounding="stochastic", seed=first)
        subject.step(np.zeros(300))
        subject.change("seed", then)
        subject.step(np.ones(300))
        return subject.weights()[0]

    np.testing.assert_array_equal(run(0, 4), run(4, 4))
    assert (run(0, 4) != run(0, 0)).any()


def test_rounding_can_be_changed_between_steps(api):
    subject = api("SGD", [np.ones(200, np.float16)], lr=1e-4)
    subject.step(np.ones(200))
    assert (subject.weights()[0] == 1).all()
    subject.change("rounding", "stochastic")
    subject.step(np.ones(200))
    assert 0 < (subject.weights()[0] < 1).mean() < 1


def test_compensated_weights_follow_those_of_float32(api):
    start = noise(1200, seed=3, dtype=np.float16)
    wide, narrow, plain = (
        api("NAdam", [start.astype(np.float32)], lr=1e-4),
        api("NAdam", [start], lr=1e-4, compensated=True),
        api("NAdam", [start], lr=1e-4),
    )
    for seed in range(200):
        for subject in (wide, narrow, plain):
            subject.step(noise(1200, seed=seed, dtype=np.float16))
    true, mine, other = (subject.weights()[0].astype(np.float32) for subject in (wide, narrow, plain))
    # Half a spacing of float16 for what is shown, and what 200 roundings to 22 bits add up to.
    spacing = np.spacing(np.abs(narrow.weights()[0])).astype(np.float32)
    assert (np.abs(mine - true) <= spacing / 2 + 200 * 2.0**-22 * np.abs(true)).all()
    assert np.abs(mine - true).mean() < np.abs(other - true).mean() / 2


# By state_dtype: of float64 weights, large and small, float16, complex, and with gradients of rows; uint16 is bfloat16
STORED = {
    None: ("float64", "float64", "float32", "complex128", "float32"),
    "float32": ("float32", "float32", "float32", "complex128", "float32"),
    "float64": ("float64", "float64", "float64", "complex128", "float64"),
    "bfloat16": ("uint16", "uint16", "uint16", "complex128", "uint16"),
    "int8": ("int8", "float32", "int8", "complex128", "float32"),
}


def of_all_kinds(api, **options):
    starts = [
        noise(4096, dtype=np.float64),
        noise(4095, dtype=np.float64),
        noise(LARGE, dtype=np.float16),
        noise(5000, dtype=np.float64) + 1j,
        noise(600, 8),
    ]
    return api("NAdam", starts, lr=0.1, **options)


def stepped(subject, seed=0):
    g = [noise(*w.shape, seed=seed + 20, dtype=np.float64) * (1 + 0 * w) for w in subject.starts]
    g[4] = np.array([3, 7, 599]), noise(3, 8, seed=seed)
    subject.step(*g)
    return g


def stored(subject, slot):
    return tuple(subject.values(k, slot).dtype.name for k in range(5))


@pytest.mark.parametrize("state_dtype", STORED)
def test_state_is_kept_in_the_dtype_that_is_asked_for(api, state_dtype):
    subject = of_all_kinds(api, state_dtype=state_dtype)
    stepped(subject)
    assert stored(subject, "m") == stored(subject, "v") == STORED[state_dtype]
    scales = {key for key in subject.state() if key[1].endswith("_scale")}
    assert scales == ({(k, f"{s}_scale") for k in (0, 2) for s in "mv"} if state_dtype == "int8" else set())
    if scales:
        assert subject.values(2, "m_scale").shape == (-(-LARGE // BLOCK),)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (None, "int8"),
        ("int8", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "int8"),
        ("int8", "float64"),
    ],
)
def test_a_loaded_state_takes_the_dtype_that_is_asked_for(api, first, then):
    one = of_all_kinds(api, state_dtype=first)
    stepped(one)
    other, wide = one.again(state_dtype=then), one.again(state_dtype="float64")
    for subject in (other, wide):
        subject.load(one.saved())
    assert stored(other, "m")[:4] == stored(other, "v")[:4] == STORED[then][:4]
    back = one.again(state_dtype="float64")
    back.load(other.saved())
    coarse = {"int8": 1 / 16, "bfloat16": 1 / 256}.get(then, 1e-7)
    for slot in "mv":  # a block's least levels lie lower than one in 2¹⁴ of its largest number
        was, now = wide.values(0, slot), back.values(0, slot)
        np.testing.assert_allclose(now, was, rtol=coarse, atol=np.abs(was).max() * 2.0**-15)
    stepped(other, 1)
    assert all(np.isfinite(w).all() for w in other.weights())


def test_state_is_not_cast_where_no_dtype_was_asked_for(api):
    one = of_all_kinds(api, state_dtype="int8")
    stepped(one)
    other = one.again(state_dtype=None)
    other.load(one.saved())
    stepped(other)
    stepped(one)
    assert_same(one, other)


def test_state_in_blocks_becomes_float32_when_rows_come_alone(api):
    subject = api("NAdam", [np.zeros((1000, 5))], lr=0.1, state_dtype="int8")
    subject.step(np.ones((1000, 5)))
    assert subject.values(0, "m").dtype == np.int8
    before = subject.again(state_dtype="float32")
    before.load(subject.saved())
    expected = before.values(0, "m")
    subject.step((np.array([3]), np.ones((1, 5))))
    found = subject.values(0, "m")
    assert found.dtype == np.float32
    assert subject.values(0, "m_scale") is None
    others = np.arange(1000) != 3
    np.testing.assert_array_equal(found[others], expected[others])
    np.testing.assert_allclose(found[3], 0.9 * expected[3] + 0.1, rtol=1e-6)


def test_what_an_option_kept_goes_with_it(api):
    subject = api("SGD", [np.ones(5, np.float16)], lr=1e-3, compensated=True, ema_decay=0.5)
    subject.step(np.ones(5))
    assert {slot for _, slot in subject.state()} >= {"rest", "average"}
    subject.change("compensated", False)
    subject.change("ema_decay", None)
    subject.step(np.ones(5))
    assert not {slot for _, slot in subject.state()} & {"rest", "average"}


# Checkpoints

PATHS = {
    "nothing": {},
    "averaged": dict(ema_decay=lambda n: n / (n + 2)),
    "clipped": dict(max_norm=0.5, skip_nonfinite=True),
    "stochastic": dict(rounding="stochastic", seed=5),
    "compensated": dict(compensated=True),
    "float64": dict(state_dtype="float64"),
    "bfloat16": dict(state_dtype="bfloat16", rounding="stochastic", seed=6),
    "compensated-int8": dict(compensated=True, state_dtype="int8"),
    "all": dict(
        state_dtype="int8", rounding="stochastic", ema_decay=0.9, max_norm=0.5, skip_nonfinite=True, seed=1
    ),
}


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_save_load_continue_equals_uninterrupted(api, sample, options):
    starts = [noise(LARGE, dtype=np.float16), noise(7, 8), noise(3, dtype=np.float64), noise(600, 8)]
    straight, interrupted = (api(sample.name, starts, lr=0.01, **options) for _ in range(2))
    for k in range(6):
        rows = np.random.default_rng(k).permutation(600)[:5], noise(5, 8, seed=k)
        g = [noise(LARGE, seed=k, dtype=np.float16), noise(7, 8, seed=k), noise(3, seed=k), rows]
        g[2] = g[2] if k > 1 else None
        if k == 1 and "skip_nonfinite" in options:
            g[0][9] = np.nan
        straight.step(*g)
        if k in (2, 5):
            saved = interrupted.saved()
            interrupted = interrupted.again()
            interrupted.load(saved)
        interrupted.step(*g)
    assert_same(straight, interrupted)
    assert straight.optimizer.skipped == interrupted.optimizer.skipped == ("skip_nonfinite" in options)
    if "ema_decay" in options:
        for a, b in zip(straight.averages(), interrupted.averages(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_options_that_differ_from_the_checkpoints_begin_where_it_ends(api):
    plain = api("Adam", [noise(40), noise(40, dtype=np.float16)], lr=0.01)
    for seed in range(2):
        plain.step(noise(40, seed=seed), noise(40, seed=seed))
    subject = plain.again(ema_decay=0.5, compensated=True)
    subject.load(plain.saved())
    before = subject.weights()
    subject.step(noise(40, seed=2), noise(40, seed=2))
    after = subject.weights()
    np.testing.assert_allclose(subject.values(0, "average"), (before[0] + after[0]) / 2, rtol=1e-6, atol=1e-7)
    assert subject.values(1, "rest").any()
    plain = subject.again(ema_decay=None, compensated=False)
    plain.load(subject.saved())
    plain.step(noise(40), noise(40))
    # What the weight has moved without is not right any more.
    assert not {slot for _, slot in plain.state()} & {"rest", "average"}
