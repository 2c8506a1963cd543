"""What holds for every schedule, from the one table of them."""

import copy
import math
import pickle

import numpy as np
import pytest

import schuss.schedules
from schuss.schedules import Schedule


def names():
    return {name: getattr(schuss.schedules, name) for name in schuss.schedules.__all__}


def some_steps(schedule):
    horizon = 700 if math.isinf(schedule.length) else schedule.length + 50
    return sorted(
        {*np.linspace(0, horizon, 80).astype(int).tolist(), *(int(n) for n in schedule.corners(horizon))}
    )


def test_first_and_last_value_are_exact(row):
    schedule, first, last = row
    assert schedule(0) == first
    if last is None:
        assert schedule.length == math.inf
    else:
        assert schedule(schedule.length) == last


def test_flat_after_its_end(row):
    schedule, _, last = row
    if last is not None:
        after = [schedule(schedule.length + more) for more in (0.5, 1, 7, 10**9)]
        assert after == [last] * 4


def test_a_number_gives_a_python_float(schedule):
    for n in (0, 3, 3.5, np.int64(3), np.float32(3), np.array(3)[()]):
        assert type(schedule(n)) is float


def test_the_step_is_all_there_is(schedule):
    steps = some_steps(schedule)
    forwards = [schedule(n) for n in steps]
    assert [schedule(n) for n in reversed(steps)] == forwards[::-1]


def test_repr_makes_it_again(schedule):
    again = eval(repr(schedule), names())
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [again(n) for n in some_steps(schedule)] == [schedule(n) for n in some_steps(schedule)]


def test_pickle_and_copies(schedule):
    schedule(3)  # what it may have remembered travels too
    for again in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):
        assert again == schedule
        assert again(7) == schedule(7)


def test_frozen(schedule):
    with pytest.raises(AttributeError):
        schedule.steps = 3


@pytest.mark.parametrize("step", [-1, -1e-9, math.nan, math.inf])
def test_no_value_before_the_start(schedule, step):
    with pytest.raises(ValueError, match=r"n=\S+ is not a finite count of finished steps, 0 or more"):
        schedule(step)


@pytest.mark.parametrize("steps", [[1, 2], np.arange(3), "3", None])
def test_only_numbers(schedule, steps):
    with pytest.raises(TypeError, match="is not a number of finished steps"):
        schedule(steps)


def test_corners_are_in_order_and_within(schedule):
    horizon = min(schedule.length, 500)
    corners = schedule.corners(horizon)
    assert corners == sorted(set(corners))
    assert corners[0] == 0
    assert corners[-1] <= horizon


def test_every_public_schedule_is_in_the_table(table):
    public = {name for name, kind in names().items() if kind is not Schedule}
    assert public == {name for name in public if any(f"{name}(" in repr(row[0]) for row in table)}
