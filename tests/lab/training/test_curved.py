"""Methods that step by curvature in a race: the whole split, every product paid for, no step past the horizon."""

from functools import partial

import pytest
import torch

from schuss.lab.entries import DEFAULT, ENTRIES, find
from schuss.lab.racing.budget import Budget
from schuss.lab.racing.race import race
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task
from schuss.lab.training.curved import CurvedRun, check_applies
from schuss.lab.training.run import cadence
from schuss.lab.training.train import train

CURVED = [name for name, entry in ENTRIES.items() if entry.kind == "curvature"]


def built(name, **parameters):
    entry = find(name)
    return partial(entry.build, parameters=dict(entry.usual) | parameters)


def started(task, name, **parameters):
    return CurvedRun(task, built(name, **parameters), 0, None, None, torch.device("cpu"))


@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
def test_the_logistic_optimum_is_scipys(name):
    """40 epochs are 40 full gradients, whatever they are spent on."""
    task = load("breast_cancer")
    outcome = train(task, built(name), 3)
    assert outcome.status == "finished"
    assert outcome.last.train_loss == pytest.approx(task.optimum, abs=1e-8 if name == "lbfgs" else 1e-3)
    assert outcome.last.gradients == task.total_steps()
    assert outcome.last.examples == task.total_steps() * task.batch_size


def test_gauss_newton_solves_least_squares():
    task = load("diabetes")
    assert train(task, built("gauss-newton"), 3).last.train_loss == pytest.approx(task.optimum, abs=1e-10)


@pytest.mark.parametrize("name", ["lbfgs", "newton-cg"])
def test_every_evaluation_and_product_is_paid_for(name):
    task = load("breast_cancer")
    run = started(task, name)
    calls, told, function = 0, 0, run.function

    def counted():
        nonlocal calls
        calls += 1
        return function()

    run.function = counted
    paid, whole = 0.0, len(task.rows("train")) / task.batch_size
    for _ in range(2):
        run.step(watch=False)
        paid += run.method.report.gradient_equivalents * whole
        told += run.method.report.closures
    assert calls == told > 0
    assert run.spent == pytest.approx(paid)
    assert (name == "newton-cg") == (run.method.report.products > 0)


@pytest.mark.parametrize("name", CURVED)
def test_evaluating_back_costs_the_method_nothing(name):
    """A step goes on from the last one's evaluation, whether or not the curve was drawn in between."""
    task = load("digits")
    quiet, looked = started(task, name), started(task, name)
    for _ in range(2):
        quiet.step(watch=False)
        looked.step(watch=False)
        looked.evaluate_before(1)
    quiet.step(watch=False)
    looked.step(watch=False)
    assert looked.method.report == quiet.method.report
    assert looked.spent == quiet.spent
    for w, other in zip(looked.model.parameters(), quiet.model.parameters(), strict=True):
        assert torch.equal(w, other)


def test_a_step_that_costs_more_than_is_left_is_taken_back():
    task = load("breast_cancer")
    run = started(task, "newton-cg")
    run.spent = run.total - 1.5 * run.unit
    before = [w.detach().clone() for w in run.model.parameters()]
    run.step(watch=False)
    assert run.method.report.accepted
    assert run.gradients == run.total
    for w, old in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(w, old)


def test_evaluations_stand_where_everyones_do():
    task = load("breast_cancer")
    for name in ("newton-cg", "lbfgs"):
        curve = train(task, built(name), 0).curve
        assert [point.gradients for point in curve] == [0, *cadence(task.total_steps())]
        losses = [point.train_loss for point in curve]
        assert losses == sorted(losses, reverse=True)


def test_a_nonfinite_loss_is_a_divergence_not_an_error():
    task = Task(
        name="broken",
        model=lambda: torch.nn.Linear(1, 1),
        loss=lambda model, batch: model(batch[0]).square().mean() + float("nan"),
        train=(torch.ones(100, 1),),
        epochs=5,
    )
    assert train(task, built("lbfgs"), 0).status == "diverged"


def test_where_they_do_not_apply_the_words_say_why():
    with pytest.raises(ValueError, match="needs Task\\(outputs=") as said:
        check_applies(load("breast_cancer"), [find("gauss-newton")])
    assert "gauss-newton" in str(said.value)
    wrong = Task(
        name="wrong",
        model=lambda: torch.nn.Linear(1, 1),
        loss=lambda model, batch: model(batch[0]).square().mean(),
        outputs=lambda model, batch: model(batch[0]),
        train=(torch.ones(100, 1),),
        epochs=5,
    )
    with pytest.raises(ValueError, match="Half the sum of squared residuals"):
        check_applies(wrong, [find("gauss-newton")])


def test_a_race_against_adam(tmp_path):
    report = race(
        "breast_cancer", ["lbfgs", "adam"], Budget(2, 1, 1, 2), rank_by="gradients", out=tmp_path, workers=1
    )
    task = report.task()
    assert not task["crashed"]
    losses = {row["entry"]: row["train_loss"]["mean"] for row in task["ranking"]}
    assert losses["lbfgs"] == pytest.approx(task["optimum"], abs=1e-4)  # weight decay is not searched here
    spaces = {entry["name"]: entry for entry in task["entries"]}
    assert spaces["lbfgs"]["space"]["lr"] == {"low": 0.5, "high": 1.0, "log": False}
    assert not spaces["lbfgs"]["widened"]
    assert "lr" not in spaces["lbfgs"]["space_limited"]
    pasted = next(each["code"] for each in task["settings"] if each["entry"] == "lbfgs")
    assert pasted.startswith("from schuss.torch import LBFGS")
    exec(pasted, {"model": torch.nn.Linear(1, 1)})


def test_they_are_offered_but_not_raced_unless_named():
    assert CURVED == ["newton-cg", "lbfgs", "gauss-newton"]
    assert not set(CURVED) & set(DEFAULT)
