"""A schedule as a torch `LRScheduler`, and reduce-on-plateau, on torch.optim's own optimizers."""

import copy
import gc
import io
import math
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as peers

import schuss.torch
from schuss.schedules import Constant, Cosine, CosineRestarts, Linear, Warmup
from schuss.torch.scheduler import Plateau, Scheduler

PLAN = Warmup(5, 0.1).then(Cosine(0.1, 1e-3, steps=40))


def weights(count=1):
    return [torch.zeros(3, requires_grad=True) for _ in range(count)]


def sgd(**options):
    return torch.optim.SGD(weights(), lr=7.0, **options)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def train(optimizer, scheduler, steps):
    """Take steps; return the lr that was in force at each."""
    used = []
    for _ in range(steps):
        optimizer.zero_grad()
        sum((w**2).sum() for group in optimizer.param_groups for w in group["params"]).backward()
        used += rates(optimizer)
        optimizer.step()
        scheduler.step()
    return used


def saved(*objects):
    """State dicts, through a file that only plain data passes."""
    buffer = io.BytesIO()
    torch.save([one.state_dict() for one in objects], buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_every_step_is_taken_with_its_lr(kind):
    optimizer = kind(weights(), lr=7.0)
    scheduler = Scheduler(optimizer, PLAN)
    assert isinstance(scheduler, peers.LRScheduler)
    assert train(optimizer, scheduler, 60) == [PLAN(n) for n in range(60)]
    assert scheduler.last_epoch == 60
    assert scheduler.get_last_lr() == rates(optimizer) == [PLAN(60)]


@given(done=st.integers(0, 50), order=st.sampled_from(["optimizer", "scheduler", "loaded optimizer"]))
def test_resumed_at_any_step(done, order):
    before = torch.optim.SGD(weights(), lr=7.0, momentum=0.9)
    scheduler = Scheduler(before, PLAN)
    train(before, scheduler, done)
    optimizer_state, scheduler_state = saved(before, scheduler)

    after = torch.optim.SGD(weights(), lr=3.0, momentum=0.9)
    if order == "loaded optimizer":
        after.load_state_dict(optimizer_state)
        resumed = Scheduler(after, PLAN)
        resumed.load_state_dict(scheduler_state)
    else:
        resumed = Scheduler(after, PLAN)
        loads = [(after, optimizer_state), (resumed, scheduler_state)]
        for target, state in loads if order == "optimizer" else loads[::-1]:
            target.load_state_dict(state)
    assert train(after, resumed, 10) == [PLAN(n) for n in range(done, done + 10)]


@pytest.mark.parametrize(
    "loaded", ["both", "the other way round", "the scheduler alone", "the optimizer alone"]
)
def test_a_longer_horizon_on_resume_just_works(loaded):
    short, long = Cosine(0.1, steps=20), Cosine(0.1, steps=200)
    before = sgd()
    train(before, scheduler := Scheduler(before, short), 15)
    optimizer_state, scheduler_state = saved(before, scheduler)
    assert scheduler_state["schedules"] == ["Cosine(0.1, steps=20)"]

    after = sgd()
    resumed = Scheduler(after, long)
    if loaded in ("both", "the optimizer alone"):
        after.load_state_dict(optimizer_state)
    if loaded != "the optimizer alone":
        resumed.load_state_dict(scheduler_state)
    if loaded == "the other way round":
        after.load_state_dict(optimizer_state)
    assert train(after, resumed, 10) == [long(n) for n in range(15, 25)]


def test_a_second_phase_in_the_same_process_starts_at_its_own_beginning():
    optimizer = sgd()
    first = Scheduler(optimizer, Constant(0.3))
    train(optimizer, first, 10)
    second = Scheduler(optimizer, PLAN)
    assert train(optimizer, second, 3) == [PLAN(0), PLAN(1), PLAN(2)]
    optimizer.load_state_dict(optimizer.state_dict())  # the first one no longer has a say
    assert rates(optimizer) == [PLAN(3)]


def test_last_epoch_decides_where_to_start():
    optimizer = sgd()
    assert Scheduler(optimizer, PLAN, last_epoch=9).last_epoch == 10
    assert rates(optimizer) == [PLAN(10)]
    loaded = sgd()
    loaded.load_state_dict(optimizer.state_dict())
    Scheduler(loaded, PLAN, last_epoch=-1)
    assert rates(loaded) == [PLAN(0)]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, schuss.torch.AdamW])
def test_the_schedules_step_is_in_no_group(kind):
    before, after = kind(weights()), kind(weights())
    train(before, scheduler := Scheduler(before, PLAN), 3)
    state, _ = saved(before, scheduler)
    assert state["finished_steps"] == 3
    theirs = torch.optim.AdamW(weights())
    for optimizer in (before, after, theirs):
        optimizer.load_state_dict(state)
        assert "finished_steps" not in optimizer.param_groups[0]


def test_a_scheduler_built_after_our_optimizer_was_loaded_goes_on():
    before, after = (schuss.torch.AdamW(weights(), lr=7.0) for _ in range(2))
    train(before, scheduler := Scheduler(before, PLAN), 12)
    after.load_state_dict(saved(before, scheduler)[0])
    resumed = Scheduler(after, PLAN)
    assert train(after, resumed, 10) == [PLAN(n) for n in range(12, 22)]
    assert Scheduler(after, PLAN).last_epoch == 0  # a second phase


@pytest.mark.parametrize("built", ["before", "after"])
def test_a_step_that_is_not_known_is_said_once(built):
    """torch.optim keeps nothing for a scheduler that is built later, nor do distributed checkpoints."""
    before, after = sgd(), sgd()
    train(before, scheduler := Scheduler(before, PLAN), 12)
    state, _ = saved(before, scheduler)
    if built == "before":
        del state["finished_steps"]
        scheduler = Scheduler(after, PLAN)
        after.load_state_dict(state)
    else:
        after.load_state_dict(state)
        scheduler = Scheduler(after, PLAN)
    with pytest.warns(UserWarning, match="has begun at step 0. Load the scheduler's state too") as caught:
        train(after, scheduler, 3)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    chosen = sgd()
    chosen.load_state_dict(state)
    assert train(chosen, Scheduler(chosen, PLAN, last_epoch=-1), 1) == [PLAN(0)]


def test_earlier_checkpoints_have_the_step_in_their_groups():
    optimizer = sgd()
    state = optimizer.state_dict()
    state["param_groups"][0]["finished_steps"] = 9
    optimizer.load_state_dict(state)
    assert Scheduler(optimizer, PLAN).last_epoch == 9
    assert "finished_steps" not in optimizer.param_groups[0]


def test_no_warning_whatever_the_order():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = sgd()
        scheduler = Scheduler(optimizer, PLAN)
        scheduler.step()  # the optimizer's step was skipped, as loss scaling does
        optimizer.step()
        scheduler.step()
        scheduler.step(30)
        assert scheduler.get_lr() == [PLAN(30)]


def test_the_optimizer_is_not_wrapped():
    optimizer = sgd()
    Scheduler(optimizer, PLAN)
    assert "step" not in vars(optimizer)


def test_one_schedule_for_each_group():
    first, second = weights(2)
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 3.0}], lr=7.0)
    plans = [PLAN, Linear(1.0, steps=30)]
    scheduler = Scheduler(optimizer, plans)
    for n in range(40):
        assert rates(optimizer) == [plan(n) for plan in plans]
        scheduler.step()
    assert scheduler.state_dict()["schedules"] == [repr(plan) for plan in plans]


def test_groups_added_later():
    optimizer = sgd()
    scheduler = Scheduler(optimizer, PLAN)
    optimizer.add_param_group({"params": weights()})
    scheduler.step()
    assert rates(optimizer) == [PLAN(1)] * 2

    optimizer = sgd()
    scheduler = Scheduler(optimizer, [PLAN])
    optimizer.add_param_group({"params": weights()})
    with pytest.raises(ValueError, match=r"1 schedules do not fit 2 parameter groups.*append the new"):
        scheduler.step()
    scheduler.schedules.append(Constant(0.5))
    scheduler.step()
    assert rates(optimizer)[1] == 0.5


def test_a_tensor_lr_keeps_its_memory():
    optimizer = torch.optim.Adam(weights(), lr=torch.tensor(7.0, dtype=torch.float64))
    lr = optimizer.param_groups[0]["lr"]
    scheduler = Scheduler(optimizer, PLAN)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == PLAN(1)


def test_inside_torchs_own_compositions():
    optimizer = sgd()
    first = Scheduler(optimizer, Linear(1.0, 0.5, steps=5))
    second = Scheduler(optimizer, Cosine(0.5, steps=20))
    both = peers.SequentialLR(optimizer, [first, second], milestones=[5])
    expected = Linear(1.0, 0.5, steps=5).then(Cosine(0.5, steps=20))
    for n in range(30):
        assert rates(optimizer) == [expected(n)]
        optimizer.step()
        both.step()


def test_any_function_of_the_step_will_do():
    optimizer = sgd()
    scheduler = Scheduler(optimizer, lambda n: 1 / (n + 1))
    scheduler.step()
    assert rates(optimizer) == [0.5]


def test_a_scheduler_that_is_dropped_does_not_live_on():
    optimizer = sgd()
    gone = weakref.ref(Scheduler(optimizer, PLAN))
    gc.collect()
    assert gone() is None
    copy.deepcopy(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert rates(optimizer) == [PLAN(0)]


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"Cosine is not an Optimizer. The optimizer comes first."):
        Scheduler(Cosine(1, steps=3), sgd())
    with pytest.raises(TypeError, match=r"schedule=0.1 is not callable. Try Constant\(0.1\)."):
        Scheduler(sgd(), [0.1])
    with pytest.raises(ValueError, match="2 schedules do not fit 1 parameter groups"):
        Scheduler(sgd(), [PLAN, PLAN])


METRICS = [
    1.0,
    0.9,
    0.95,
    0.95,
    0.91,
    0.9,
    0.89,
    0.89,
    0.889999,
    0.9,
    0.5,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    float("nan"),
    0.7,
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 1, "factor": 0.5},
        {"patience": 0, "cooldown": 2, "factor": 0.3},
        {"patience": 1, "threshold": 0.05, "threshold_mode": "abs", "min_lr": 0.5},
        {"patience": 1, "mode": "max", "threshold": 0.02},
    ],
    ids=repr,
)
def test_plateau_is_torchs(options):
    ours, theirs = sgd(), sgd()
    plateau, peer = Plateau(ours, **options), peers.ReduceLROnPlateau(theirs, eps=0, **options)
    for metric in METRICS * 2:
        plateau.step(metric)
        peer.step(metric)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12)
        assert plateau.get_last_lr() == rates(ours)
    assert rates(ours) != [7.0]


@given(cut=st.integers(0, len(METRICS)))
def test_plateau_resumes_anywhere(cut):
    options = {"patience": 1, "cooldown": 1, "factor": 0.5}
    whole, before, after = sgd(), sgd(), torch.optim.SGD(weights(), lr=3.0)
    uninterrupted, first = Plateau(whole, **options), Plateau(before, **options)
    for metric in METRICS:
        uninterrupted.step(metric)
    for metric in METRICS[:cut]:
        first.step(metric)
    optimizer_state, plateau_state = saved(before, first)
    after.load_state_dict(optimizer_state)
    second = Plateau(after, **options)
    assert rates(after) == rates(before)
    second.load_state_dict(plateau_state)
    for metric in METRICS[cut:]:
        second.step(metric)
    assert rates(after) == rates(whole)
    assert second.state_dict() == uninterrupted.state_dict()


def test_plateau_asks_for_improvement_of_negative_metrics():
    plateau = Plateau(sgd(), patience=0, threshold=0.1)
    for metric in (-1.0, -1.05):
        plateau.step(metric)
    assert plateau.get_last_lr() == pytest.approx([0.7])


def test_plateau_takes_in_groups_added_later():
    optimizer = sgd()
    plateau = Plateau(optimizer, patience=0, factor=0.5)
    for metric in (1.0, 1.0):
        plateau.step(metric)
    optimizer.add_param_group({"params": weights(), "lr": 4.0})
    plateau.step(1.0)
    assert rates(optimizer) == [7.0 / 4, 2.0]


def test_plateau_never_lifts_an_lr_to_its_floor():
    optimizer = sgd()
    plateau = Plateau(optimizer, patience=0, min_lr=10.0)
    plateau.step(1.0)
    plateau.step(1.0)
    assert rates(optimizer) == [7.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "low"}, "mode='low' is not one of min, max."),
        ({"threshold_mode": "x"}, "threshold_mode='x' is not one of rel, abs."),
        ({"factor": 1.0}, r"factor=1.0 is not in \(0, 1\)."),
        ({"patience": -1}, "patience=-1 is not a finite number, 0 or more."),
        ({"min_lr": float("nan")}, "min_lr=nan is not a finite number, 0 or more."),
    ],
)
def test_plateau_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Plateau(sgd(), **options)


def test_cyclic_annealing_within_an_epoch():
    optimizer = sgd()
    scheduler = Scheduler(optimizer, CosineRestarts(0.2, cycles=4, epochs=1, steps_per_epoch=20))
    used = train(optimizer, scheduler, 20)
    assert [n for n, lr in enumerate(used) if lr == 0.2] == [0, 5, 10, 15]


def test_plateau_is_a_reduce_lr_on_plateau():
    """Frameworks ask so, and then give it a metric; none calls it once a batch without one."""
    optimizer = sgd()
    plateau = Plateau(optimizer, patience=1, cooldown=3)
    assert isinstance(plateau, peers.ReduceLROnPlateau)
    peer = peers.ReduceLROnPlateau(sgd(), patience=1, cooldown=3)
    for metric in METRICS:
        plateau.step(metric)
        peer.step(metric)
        assert (plateau.num_bad_epochs, plateau.cooldown_counter, plateau.in_cooldown) == (
            peer.num_bad_epochs,
            peer.cooldown_counter,
            peer.in_cooldown,
        )


def test_plateau_multiplies_the_lr_that_stands():
    ours, theirs = sgd(), sgd()
    plateau, peer = (
        Plateau(ours, patience=1, factor=0.5),
        peers.ReduceLROnPlateau(theirs, patience=1, factor=0.5),
    )
    for k, metric in enumerate(METRICS):
        if k in (2, 9):
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 3.0 + k
        plateau.step(metric)
        peer.step(metric)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_second_scheduler_is_named_once(ours_first):
    optimizer = sgd()
    pair = [Scheduler(optimizer, Linear(1.0, steps=10)), peers.LambdaLR(optimizer, lambda n: 0.25)]
    movers = [optimizer, *(pair if ours_first else pair[::-1])]
    with pytest.warns(
        UserWarning, match=r"a second scheduler writes it too\. The one whose step\(\) comes last"
    ) as said:
        step(movers, 6)
    assert len(said) == 1
    assert rates(optimizer) == [7.0 * 0.25 if ours_first else pytest.approx(0.4)]


def step(movers, times):
    for _ in range(times):
        for one in movers:
            one.step()


def test_an_lr_set_by_hand_once_is_not_a_second_scheduler():
    optimizer = sgd()
    scheduler = Scheduler(optimizer, Linear(1.0, steps=10))
    for n in range(6):
        if n % 2:
            optimizer.param_groups[0]["lr"] = 5.0
        step([optimizer, scheduler], 1)
    assert rates(optimizer) == [pytest.approx(0.4)]


def resumed(optimizer, state):
    Scheduler(optimizer, Constant(0.1, steps=9)).load_state_dict(state)


def plateau(optimizer, **changes):
    one = Plateau(optimizer)
    one.load_state_dict(one.state_dict() | changes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: Scheduler(o, Warmup(5)), r"schedule=Warmup\(5\) is not a schedule of values"),
        (
            lambda o: Scheduler(o, 0.1),
            r"schedule=0.1 is not a schedule or a list of them. Try Constant\(0.1\)",
        ),
        (lambda o: Plateau(o, factor="x"), r"factor='x' is not in \(0, 1\)"),
        (lambda o: Plateau(o, patience=None), "patience=None is not a finite number"),
        (lambda o: Plateau(o).step("x"), "metrics='x' is not a number"),
        (lambda o: resumed(o, {}), r"no 'last_epoch'. Was it made by Scheduler.state_dict\(\)\?"),
        (lambda o: resumed(o, None), "The checkpoint is of type NoneType, not a dict"),
        (lambda o: resumed(o, {"last_epoch": "x"}), "The checkpoint's 'last_epoch'='x' is not a count"),
        (lambda o: resumed(o, {"last_epoch": math.nan}), "The checkpoint's 'last_epoch'=nan is not a count"),
        (lambda o: resumed(o, {"last_epoch": -5}), "The checkpoint's 'last_epoch'=-5 is not a count"),
        (lambda o: plateau(o, bad_steps=-1), "The checkpoint's 'bad_steps'=-1 is not a count"),
        (lambda o: plateau(o, best="x"), "The checkpoint's 'best'='x' is not a finite number or None"),
        (
            lambda o: plateau(o, base_lrs=[1, 2]),
            r"'base_lrs'=\[1, 2\] is not a list of 1 rates, one per group",
        ),
        (lambda o: plateau(o, base_lrs=["x"]), "The checkpoint's 'base_lrs'='x' is not finite numbers"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_words(make, words):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises((TypeError, ValueError), match=words):
        make(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1
