"""Schedules said in words."""

import pytest

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
    Schedule,
    StepDecay,
    Warmup,
    WarmupStableDecay,
)
from schuss.schedules.words import SCHEDULES, WordError, parse

P = 3e-4


@pytest.mark.parametrize(
    ("words", "schedule"),
    [
        ("warmup 500, cosine 9500 to 1e-5", Warmup(500).then(Cosine(P, 1e-5, steps=9500))),
        ("warmup 5 from 0.1 then linear 1e3", Warmup(5, 0.1).then(Linear(P, steps=1000))),
        ("hold 10, linear 5 to 1e-4, cosine 5", None),
        ("constant", Constant(P)),
        ("Linear 10 from 1 to 0.5", Linear(1, 0.5, steps=10)),
        ("restarts period 100 multiplier 2", CosineRestarts(P, period=100, multiplier=2)),
        ("cosine-restarts 100 cycles 4 shrink 0.5", CosineRestarts(P, cycles=4, steps=100, shrink=0.5)),
        ("step rate 0.1 every 30", StepDecay(P, rate=0.1, every=30)),
        ("step milestones 30 80 rate 0.2", StepDecay(P, rate=0.2, milestones=(30, 80))),
        ("exponential rate 0.99", Exponential(P, rate=0.99)),
        ("exponential 100 from 1e-7 to 1", Exponential(1e-7, 1, steps=100)),
        ("polynomial 100 power 2", Polynomial(P, power=2, steps=100)),
        ("inverse-sqrt warmup 4000", InverseSqrt(P, warmup=4000)),
        ("onecycle 100 from 1e-5 to 1e-6", OneCycle(P, 1e-6, start=1e-5, steps=100)),
        ("cyclic period 20 from 1e-4 to 1e-2", Cyclic(1e-4, 1e-2, period=20)),
        (
            "wsd 100 warmup 5 decay 20 shape sqrt",
            WarmupStableDecay(P, warmup=5, decay=20, shape="sqrt", steps=100),
        ),
    ],
)
def test_words(words, schedule):
    if schedule is None:  # each phase starts where the one before ended
        schedule = Constant(P, steps=10).then(Linear(P, 1e-4, steps=5)).then(Cosine(1e-4, steps=5))
    assert parse(words, peak=P) == schedule


@pytest.mark.parametrize(
    ("line", "pointed_at", "problem"),
    [
        (
            "warmup 500, cosin 9500",
            "cosin",
            "'cosin' is not a schedule. Did you mean cosine?\nKnown: constant, cosine,",
        ),
        (
            "cosine 100 too 3",
            "too",
            "'too' is not a word of cosine. Did you mean to?\nKnown: from, steps, to",
        ),
        ("linear ten", "ten", "'ten' is not a word of linear."),
        ("linear 10 to low", "low", "'low' is not a number."),
        ("cosine 10 to", " ", "A value is missing after 'to'."),
        ("cosine 10 to 1 to 2", "to", "'to' is said twice."),
        ("cosine 10, , linear 3", ",", "A schedule is missing before ','."),
        ("cosine 10,", " ", "A schedule is missing here."),
        ("", " ", "A schedule is missing here."),
        ("constant, linear 3", "constant", "'constant' never ends, and something follows."),
        ("warmup 5, cosine", "cosine", "Cosine needs its length."),
        ("cosine -5", "cosine -5", "steps=-5 is not a finite number > 0."),
        ("warmup 5, linear nan", "linear nan", "steps=nan is not a finite number > 0."),
        (
            "wsd 100 shape round",
            "wsd 100 shape round",
            "shape='round' is not one of 'linear', 'cosine', 'sqrt'.",
        ),
    ],
)
def test_a_wrong_word_is_pointed_at(line, pointed_at, problem):
    with pytest.raises(WordError) as caught:
        parse(line)
    message = str(caught.value)
    assert problem in message
    *_, shown, carets = message.split("\n")
    assert shown[2:] == line
    marked = (shown + " " * 9)[carets.index("^") : carets.rindex("^") + 1]
    assert marked == pointed_at


def test_every_schedule_has_a_word():
    import schuss.schedules

    public = {name.lower() for name in schuss.schedules.__all__} - {Schedule.__name__.lower()}
    assert set(SCHEDULES) == public
