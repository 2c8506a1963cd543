"""Several schedules as one: boundaries, units, resuming. Properties over whole domains."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schuss.schedules
from schuss.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    Linear,
    OneCycle,
    Polynomial,
    StepDecay,
    Warmup,
)

lengths = st.integers(1, 50)
values = st.floats(1e-6, 10)
ending = st.one_of(
    st.builds(lambda a, n: Constant(a, steps=n), values, lengths),
    st.builds(lambda a, b, n: Linear(a, b, steps=n), values, values, lengths),
    st.builds(lambda a, b, n: Cosine(a, b, steps=n), values, values, lengths),
    st.builds(
        lambda a, b, p, n: Polynomial(a, b, power=p, steps=n), values, values, st.floats(0.3, 4), lengths
    ),
    st.builds(lambda a, b, n: Exponential(a, b, steps=n), values, values, lengths),
    st.builds(lambda a, c, n: CosineRestarts(a, cycles=c, steps=n), values, st.integers(1, 5), lengths),
    st.builds(
        lambda a, r, k, n: StepDecay(a, rate=r, every=k, steps=n), values, st.floats(0.1, 1), lengths, lengths
    ),
)
composed = st.recursive(
    ending,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a.then(b), inner, inner),
        st.builds(lambda a, f: a * f, inner, st.floats(-3, 3)),
        st.builds(lambda a, n: a.shifted(n), inner, st.integers(-20, 20)),
        st.builds(lambda a, n: a.until(n), inner, lengths),
        st.builds(lambda a, n: a.in_epochs(n), inner, st.integers(1, 9)),
    ),
    max_leaves=4,
)


@given(ending, ending)
def test_no_step_twice_none_skipped(first, second):
    both = first.then(second)
    assert both.length == first.length + second.length
    expected = [first(n) for n in range(first.length)] + [second(n) for n in range(second.length + 3)]
    assert [both(n) for n in range(both.length + 3)] == expected


@given(st.integers(0, 50), st.floats(0, 1), ending)
def test_a_warmup_rises_to_the_next_schedules_first_value(steps, fraction, following):
    schedule = Warmup(steps, fraction).then(following)
    for n in range(steps):
        assert schedule(n) == pytest.approx((fraction + (1 - fraction) * n / steps) * following(0), rel=1e-12)
    assert [schedule(steps + n) for n in range(60)] == [following(n) for n in range(60)]


@given(ending)
def test_a_changed_warmup_still_rises_to_what_follows(following):
    top = following(0)
    assert Warmup(5).shifted(3).then(following)(4) == pytest.approx(top / 5)
    assert Warmup(5).until(9).then(following)(7) == top
    assert Warmup(5).in_epochs(2).then(following)(5) == pytest.approx(top / 2)
    assert Constant(0, steps=2).then(Warmup(5)).then(following)(3) == pytest.approx(top / 5)
    assert (Warmup(5) * 0.7).then(following)(1) == pytest.approx(0.14)  # its height was said


@given(ending, ending, ending)
def test_then_is_associative(a, b, c):
    left, right = a.then(b).then(c), a.then(b.then(c))
    assert [left(n) for n in range(160)] == [right(n) for n in range(160)]


@given(composed, st.integers(0, 200))
def test_resumed_at_any_step(schedule, n):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule == copy.deepcopy(schedule) == eval(repr(schedule), vars(schuss.schedules))
    assert [again(k) for k in range(n, n + 20)] == [schedule(k) for k in range(n, n + 20)]


@given(composed)
def test_flat_from_its_length_on(schedule):
    assert {schedule(schedule.length + n) for n in (0, 1, 2.5, 1000)} == {schedule(schedule.length)}


@given(composed, st.floats(-5, 5))
def test_times_a_constant(schedule, factor):
    assert [(factor * schedule)(n) for n in range(30)] == [factor * schedule(n) for n in range(30)]


@given(composed, st.integers(0, 30))
def test_shifted_there_and_back(schedule, by):
    later = schedule.shifted(by)
    assert [later(n) for n in range(by)] == [schedule(0)] * by
    assert [later(n + by) for n in range(30)] == [schedule(n) for n in range(30)]
    assert [schedule.shifted(-by)(n) for n in range(30)] == [schedule(n + by) for n in range(30)]


@given(composed, lengths)
def test_cut_to_a_horizon(schedule, horizon):
    cut = schedule.until(horizon)
    assert cut.length == horizon
    assert [cut(n) for n in range(horizon + 5)] == [schedule(min(n, horizon)) for n in range(horizon + 5)]


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_longer_horizon_changes_no_value_of_a_stable_phase(first, more):
    short, long = (Warmup(5).then(Constant(1e-3, steps=n)) for n in (first, first + more))
    assert [short(n) for n in range(first + 5)] == [long(n) for n in range(first + 5)]


@pytest.mark.parametrize(
    ("in_epochs", "in_steps"),
    [
        (Cosine(0.1, epochs=90, steps_per_epoch=390), Cosine(0.1, steps=35_100)),
        (StepDecay(0.1, every=30, steps_per_epoch=390), StepDecay(0.1, every=11_700)),
        (
            StepDecay(0.1, milestones=(30, 60), epochs=90, steps_per_epoch=10),
            StepDecay(0.1, milestones=(300, 600), steps=900),
        ),
        (Exponential(0.1, rate=0.9, steps_per_epoch=50), Exponential(0.1, rate=0.9, every=50)),
        (CosineRestarts(1, period=0.07, steps_per_epoch=100), CosineRestarts(1, period=7)),
        (Warmup(epochs=5, steps_per_epoch=20), Warmup(100)),
        (Warmup(5, steps_per_epoch=20), Warmup(100)),
    ],
    ids=repr,
)
def test_epochs_are_a_unit(in_epochs, in_steps):
    assert in_epochs == in_steps
    assert repr(in_epochs) == repr(in_steps)


def test_epochs_of_a_composition_are_said_once():
    in_epochs = Warmup(5).then(Cosine(0.1, steps=85)).in_epochs(390)
    in_steps = Warmup(5 * 390).then(Cosine(0.1, steps=85 * 390))
    steps = range(0, 36_000, 7)
    np.testing.assert_allclose(
        [in_epochs(n) for n in steps], [in_steps(n) for n in steps], rtol=1e-12, atol=1e-15
    )
    assert in_epochs(5 * 390) == 0.1
    assert in_epochs(90 * 390) == 0


def test_corners_name_the_boundaries():
    schedule = Warmup(500).then(Cosine(3e-4, steps=9500)).then(Constant(1e-5))
    assert schedule.corners(20_000) == [0, 500, 10_000]
    assert (schedule * 2).shifted(10).until(600).corners(1000) == [0, 10, 510, 600]
    assert CosineRestarts(1, period=10, multiplier=2).corners(80) == [0, 10, 30, 70]
    assert Warmup(500).then(CosineRestarts(1, period=10, multiplier=2)).shifted(9).corners(400) == [0, 9]
    assert OneCycle(1, steps=100).corners(20) == [0]
    assert len(Cyclic(1, period=2).corners(1e12)) < 30_000
    assert StepDecay(1, every=30).in_epochs(2).corners(130) == [0, 60, 120]
