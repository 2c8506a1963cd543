import math
from functools import partial

import pytest
import schedulefree
import torch
from torch import nn

import schuss.torch
from schuss.lab.entries import ENTRIES, find
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task
from schuss.lab.training.run import cadence
from schuss.lab.training.train import train


def built(name, **parameters):
    entry = find(name)
    return partial(entry.build, parameters=dict(entry.usual) | parameters)


def a_line(**changes):
    x = torch.linspace(-1, 1, 200).unsqueeze(1)
    given = {
        "name": "line",
        "model": lambda: nn.Linear(1, 1),
        "train": (x, 2 * x),
        "batch_size": 20,
        "epochs": 9,
    }
    given["loss"] = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    return Task(**given | changes)


def bare(outcome):
    return [vars(point) for point in outcome.curve]


def test_a_run_repeats_exactly_and_another_seed_differs():
    task = load("digits")
    first, second = (train(task, built("adam"), 5) for _ in range(2))
    assert str(bare(first)) == str(bare(second))
    assert bare(train(task, built("adam"), 6))[-1] != bare(first)[-1]


def test_all_entries_start_from_the_same_weights():
    task = a_line()
    starts = {
        train(task, built(name), 1).curve[0].validation_loss for name in ENTRIES if name != "gauss-newton"
    }
    assert len(starts) == 1


def test_gradient_descent_on_a_line_is_gradient_descent():
    """By hand: full batch, mean squared error of w x + b against 2 x, no shuffling matters."""
    task = a_line(batch_size=1000, epochs=5)
    outcome = train(task, built("sgd", lr=0.3), 0)
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 200)[task.rows("train").index].double()
    held = torch.linspace(-1, 1, 200)[task.rows("validation").index].double()
    # The starting weights are whatever the seed gives; two evaluations determine them, the rest must follow.
    from schuss.lab.seeds import seed_everything, stable_seed

    seed_everything(stable_seed("weights", 0))
    model = nn.Linear(1, 1)
    w, b = model.weight.item(), model.bias.item()
    for point in outcome.curve:
        assert point.validation_loss == pytest.approx(
            ((w * held + b - 2 * held) ** 2).mean().item(), rel=1e-4
        )
        error = w * x + b - 2 * x
        w, b = w - 0.3 * 2 * (error * x).mean().item(), b - 0.3 * 2 * error.mean().item()
    assert outcome.last.steps == outcome.last.gradients == 5
    assert outcome.last.examples == 5 * 140
    assert outcome.last.effective_rate == pytest.approx(0.3, rel=1e-4)


def test_counts_and_cadence():
    outcome = train(a_line(epochs=30), built("sgd"), 0)
    assert len(outcome.curve) == 31
    assert outcome.last.steps == 210
    assert outcome.last.examples == 4200
    assert [point.steps for point in outcome.curve[1:]] == cadence(210)


def test_closure_calls_are_counted_and_use_up_the_horizon():
    outcome = train(a_line(), partial(torch.optim.LBFGS, lr=1.0, max_iter=4), 0)
    assert outcome.last.gradients > outcome.last.steps
    assert outcome.last.gradients >= a_line().total_steps()
    assert outcome.last.validation_loss < 1e-6


def test_schedule_free_is_measured_on_its_average():
    """Not on the weights that it trains, which are worse here: loss, metric and test, at every evaluation."""
    task, kept = a_line(metric=lambda model, batch: (model(batch[0]) - batch[1]).abs().mean()), []

    def make(weights):
        kept[:] = [list(weights)]
        kept.append(schuss.torch.ScheduleFreeAdamW(kept[0], lr=0.5, betas=(0.5, 0.9)))
        return kept[1]

    outcome = train(task, make, 0, open_test=True)
    x, y = task.train
    w, b = kept[0]

    def measured(split):
        rows = task.rows(split).index
        error = (x[rows] @ w.T + b - y[rows]).detach().double()
        return error.square().mean().item(), error.abs().mean().item()

    last, trained = outcome.last, measured("validation")
    with kept[1].averaged():
        assert (last.validation_loss, last.metric) == pytest.approx(measured("validation"), rel=1e-5)
        assert outcome.test == pytest.approx(measured("test"), rel=1e-5)
    assert (last.validation_loss, last.metric) != pytest.approx(trained, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("schedulefreesgd", schedulefree.SGDScheduleFree),
        ("schedulefreeadamw", schedulefree.AdamWScheduleFree),
        ("schedulefreeradam", schedulefree.RAdamScheduleFree),
    ],
)
def test_a_schedule_free_entry_reports_what_its_authors_evaluate(name, theirs):
    """Their optimizers put the average in place by themselves, where they are switched."""
    task, lr = a_line(), 0.3
    found, expected = (train(task, make, 3) for make in (built(name, lr=lr), partial(theirs, lr=lr)))
    curve, other = ([(p.train_loss, p.metric) for p in one.curve] for one in (found, expected))
    assert found.last.validation_loss < 0.9 * found.curve[0].validation_loss
    assert curve == [pytest.approx(point, rel=1e-3) for point in other]


def test_the_test_split_is_opened_only_when_asked(monkeypatch):
    task, opened = a_line(), []
    monkeypatch.setattr(
        Task,
        "batches",
        lambda self, name, limit=None, own=Task.batches: opened.append(name) or own(self, name, limit),
    )
    assert train(task, built("sgd"), 0).test is None
    assert "test" not in opened
    assert train(task, built("sgd"), 0, open_test=True).test is not None
    assert opened.count("test") == 1


def test_a_loss_that_is_not_finite_ends_the_run_as_a_result():
    outcome = train(a_line(epochs=50), built("sgd", lr=1e8), 0, open_test=True)
    assert outcome.status == "diverged"
    assert outcome.reason == "the loss was not finite"
    assert outcome.diverged_at < 350
    assert outcome.test is None


def test_a_loss_above_its_start_for_a_fifth_of_the_horizon_ends_the_run():
    task = load("digits")
    outcome = train(task, built("sgd", lr=30.0), 0)
    assert outcome.status == "diverged"
    assert outcome.reason == "the loss stayed above its start for a fifth of the horizon"
    assert 0.2 * 800 <= outcome.diverged_at < 800


def test_dropout_draws_the_same_whatever_the_optimizer_draws():
    def noisy():
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    losses = [train(a_line(model=noisy), built("sgd", lr=0.0), 0).last.validation_loss for _ in range(2)]
    assert losses[0] == losses[1]
    assert math.isfinite(losses[0])


@pytest.mark.parametrize(
    "loss",
    [lambda model, batch: model(batch[0]), lambda model, batch: 1.0, lambda model, batch: torch.tensor(1.0)],
)
def test_a_loss_that_cannot_be_trained_on_says_so(loss):
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        train(a_line(loss=loss), built("sgd"), 0)
