"""`race --schedules` and `schuss schedule` mean the same by one word."""

import pytest

import schuss.schedules
from schuss.lab.schedules import check, names, schedule
from schuss.schedules import words


@pytest.mark.parametrize("name", names())
def test_a_name_is_the_schedule_of_that_name(name):
    assert type(schedule(name, 0.1, 100)) is words.schedule_of(name)


@pytest.mark.parametrize("word", [*words.SCHEDULES, *words.SHORT])
def test_every_word_of_schuss_schedule_is_understood(word):
    if words.schedule_of(word) is schuss.schedules.Warmup:  # stands before another
        return
    assert type(schedule(word, 0.1, 100)) is words.schedule_of(word)
    assert check(f"warmup+{word}") == f"warmup+{check(word)}"


def test_cyclic_is_a_triangle_and_restarts_are_of_a_cosine():
    assert check("triangle") == "cyclic"
    assert check("cosine-restarts") == "restarts"
    assert schedule("cyclic", 1.0, 100)(0) == pytest.approx(0.1)
    assert schedule("restarts", 1.0, 100)(25) == 1.0


def test_no_schedule_of_that_name():
    with pytest.raises(ValueError, match=r"schedule='cosin' is not one of .* Did you mean cosine"):
        check("cosin")
    with pytest.raises(ValueError, match="warmup"):
        check("warmup")
