"""What a report says of results that are made up, so that what is true of them is known."""

from math import nan

import numpy as np
import pytest
import torch
from tests.lab.made_up import Contestant
from tests.lab.made_up import raced as made_up_race

from schuss.lab import Budget, Entry
from schuss.lab.racing.assemble import metric_bounds, task_report

NOISE = np.array([-1.0, 1.0, -0.5, 0.5, 0.2, -0.2, 0.8, -0.8, 0.1, -0.1])


def result(value, test=nan):
    steps = list(range(5))
    metric = [0.1, *(4 * [value])]
    loss = [1.0, 0.5, 0.4, 0.3, 0.2]
    curve = dict.fromkeys(("steps", "examples", "gradients"), steps) | {"metric": metric}
    curve |= dict.fromkeys(("train_loss", "validation_loss"), loss) | dict.fromkeys(
        ("lr", "effective_rate"), 5 * [0.1]
    )
    return {
        "status": "finished",
        "curve": curve,
        "test": {"loss": 0.2, "metric": test},
        "divergence": None,
        "error": None,
        "seconds": 1.0,
    }


def raced(make_task, validation, test=None, *, trials=5, **changes):
    """A race whose entries have these metrics on the reporting seeds, on validation and on test."""
    seeds = len(next(iter(validation.values())))
    budget = Budget(trials, finalists=1, confirm_seeds=1, report_seeds=seeds)
    space = {"lr": (1e-3, 1e-1, True)}
    contestants = [
        Contestant(name, Entry(name=name, optimizer=torch.optim.SGD, space=space), "constant", 28, space)
        for name in validation
    ]
    task = make_task(**{"metric_name": "accuracy", "best": "max"} | changes)
    first = budget.seeds(0)["report"][0]

    def made_up(run):
        if run.stage == "report":
            name, at = run.contestant.name, run.seed - first
            return result(validation[name][at], (test or validation)[name][at])
        # the middle of the range is the best learning rate, so that nothing is widened
        return result(0.9 - 0.01 * abs(np.log10(run.configuration.parameters["lr"]) + 2))

    return made_up_race(task, contestants, budget, made_up)


def verdict(line, *given, **changes):
    return task_report(raced(line, *given, **changes))["verdict"]


GOOD = {"good": 0.9 + 0.001 * NOISE, "bad": 0.8 + 0.001 * NOISE[::-1], "worse": 0.7 + 0.001 * NOISE}


def test_a_clear_lead_is_decided_and_says_over_what(line):
    found = verdict(line, GOOD)
    assert (found["kind"], found["headline"], found["winner"]) == ("better", "Decided", "good")
    assert "adjusted for all pairs of 3 entries" in found["text"]
    assert found["notes"] == [
        "The intervals are over 10 training seeds on one validation split, at settings found in 5 trials per entry. "
        "They do not cover another split, nor better tuning."
    ]
    assert all(c["test_agrees"] for c in found["comparisons"])
    assert found["comparisons"][0]["test"]["mean"] == pytest.approx(0.1)


def test_a_lead_that_the_test_split_reverses_is_not_called_decided(line):
    test = GOOD | {"bad": 0.95 + 0.001 * NOISE}
    found = verdict(line, GOOD, test)
    assert (found["kind"], found["headline"]) == ("unsure", "Not decided: the test split disagrees")
    assert {c["other"]: c["test_agrees"] for c in found["comparisons"]} == {"bad": False, "worse": True}
    assert found["comparisons"][0]["verdict"] == "better"  # on validation it is
    assert (
        "On the test split bad (by 0.05) is better than good: its lead is not confirmed there."
        in found["notes"]
    )


def test_losses_on_test_have_their_own_sign(line):
    losses = {"good": 1 + 0.001 * NOISE, "bad": 2 + 0.001 * NOISE}
    found = verdict(
        line, losses, {"good": losses["bad"], "bad": losses["good"]}, metric_name="loss", best="min"
    )
    assert found["winner"] == "good"
    assert found["comparisons"][0]["test"]["mean"] == pytest.approx(-1)
    assert found["comparisons"][0]["test_agrees"] is False


@pytest.mark.parametrize(("trials", "decided"), [(2, False), (4, False), (5, True)])
def test_few_trials_decide_nothing(line, trials, decided):
    found = verdict(line, GOOD, trials=trials)
    assert (found["headline"] == "Decided") == decided
    assert any("compares the luck of tuning" in note for note in found["notes"]) != decided


def test_a_tie_says_why_one_is_taken_and_what_more_seeds_would_show(line):
    found = verdict(line, {"a": 0.9 + 0.01 * NOISE, "b": 0.897 + 0.012 * NOISE[::-1]})
    assert found["headline"] == "A tie"
    assert "Take a: of these entries it needs the fewest gradients to reach the target." in found["text"]
    seeds = found["comparisons"][0]["seeds_needed"]
    assert found["comparisons"][0]["settles_as"] == "equal"
    assert (
        f"If the gap between a and b is as large as it looks, about {seeds} further seeds would show, 4 times in 5, "
        "that it is too small to count."
    ) in found["text"]


def test_nobody_is_cheapest_where_nobody_reached_the_target(line):
    found = verdict(line, {"a": 0.2 + 0.01 * NOISE, "b": 0.199 + 0.01 * NOISE[::-1]})
    assert "Take a: none of these entries reached the target, so none is cheaper." in found["text"]


def test_rows_follow_the_means_and_an_odd_order_is_explained(line):
    scores = {"noisy": 0.8 + 0.06 * NOISE[::-1], "lead": 0.815 + 0.01 * NOISE, "quiet": 0.802 + 0.009 * NOISE}
    report = task_report(raced(line, scores))
    rows = report["ranking"]
    assert [(row["rank"], row["tied"], row["entry"]) for row in rows] == [
        (1, True, "lead"),
        (2, False, "quiet"),
        (1, True, "noisy"),
    ]
    assert [row["metric"]["mean"] for row in rows] == sorted(
        (r["metric"]["mean"] for r in rows), reverse=True
    )
    assert report["verdict"]["notes"][-1] == (
        "noisy has rank 1 although quiet did better on average. Its seeds differ more, so noisy cannot be told "
        "apart from the leader, and they can."
    )


def test_ties_behind_the_leader_are_marked(line):
    scores = {"good": 0.9 + 0.001 * NOISE, "bad": 0.8 + 0.01 * NOISE, "also": 0.801 + 0.01 * NOISE[::-1]}
    rows = task_report(raced(line, scores))["ranking"]
    assert [(row["rank"], row["tied"]) for row in rows] == [(1, False), (2, True), (2, True)]


def test_intervals_stay_where_the_metric_can_be(line):
    saturated = {"a": np.where(NOISE > 0.7, 0.9963, 1.0), "b": np.where(NOISE < -0.7, 0.9, 1.0)}
    report = task_report(raced(line, saturated))
    assert report["metric"]["bounds"] == [0.0, 1.0]
    for row in report["ranking"]:
        assert row["metric"]["low"] <= row["metric"]["median"] <= row["metric"]["high"] <= 1
        assert row["metric"]["coverage"] >= 0.95
    for curve in report["budget_curves"].values():
        assert all(x is None or x <= 1 for x in curve["high"])
    per_cent = raced(line, {"a": 100 * saturated["a"], "b": 100 * saturated["b"]})
    assert metric_bounds(per_cent) == [None, None]


def test_three_seeds_have_no_interval_of_their_own(line):
    row = task_report(raced(line, {"a": NOISE[:3]}))["ranking"][0]
    assert (row["metric"]["low"], row["metric"]["high"], row["metric"]["coverage"]) == (None, None, None)
    assert row["metric"]["mean"] == pytest.approx(NOISE[:3].mean())
