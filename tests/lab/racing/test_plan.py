import itertools

import pytest
import torch

from schuss.lab import Budget, Entry
from schuss.lab.racing.plan import Contestant, Plan, cross, renamed

BUDGET = Budget(8, finalists=2, confirm_seeds=2, report_seeds=3)


def contestant(name="sgd", low=1e-3, high=1e-1):
    entry = Entry(name=name, optimizer=torch.optim.SGD, space={"lr": (low, high, True)})
    return Contestant(name, entry, "constant", 8, entry.space)


def result(metric, status="finished", start=1.0):
    curve = {"metric": [start, metric], "validation_loss": [start, metric]}
    return {"status": status, "curve": curve}


def play(plan, metric, stop_after=None):
    """Answer every stage with what `metric(run)` says; returns the stages."""
    results, stages = {}, []
    talk = plan.stages()
    stage = next(talk)
    while True:
        stages.append(stage)
        for run in stage.runs:
            results.setdefault(run.id, metric(run))
        try:
            stage = talk.send(dict(reversed(results.items())))  # the order of completion must not matter
        except StopIteration:
            return stages


def make(contestants, budget=BUDGET, best="min"):
    return Plan("fingerprint", best, contestants, budget, budget.seeds(0))


def bowl(centre):
    """A metric that is best at this learning rate, the same on every seed."""
    return lambda run: result(abs(torch.tensor(run.configuration.parameters["lr"] / centre).log10().item()))


def test_stages_seeds_and_counts():
    plan = make([contestant("a"), contestant("b")])
    stages = play(plan, bowl(1e-2))
    assert [(stage.name, len(stage.runs)) for stage in stages] == [
        ("tune", 16),
        ("confirm", 8),
        ("report", 6),
    ]
    seeds = [{run.seed for run in stage.runs} for stage in stages]
    assert seeds == [{0}, {1, 2}, {3, 4, 5}]
    assert all(not (a & b) for a, b in itertools.combinations(seeds, 2))
    assert plan.complete
    assert len({run.id for run in plan.runs}) == len(plan.runs) == 30


def test_the_best_of_tuning_are_confirmed_and_the_best_of_those_is_chosen():
    plan = make([contestant()])

    def metric(run):
        if run.stage == "tune":
            return bowl(1e-2)(run)
        return result(float(run.configuration.index))  # on fresh seeds the order is another

    play(plan, metric)
    distance = {
        c.index: abs(torch.tensor(c.parameters["lr"] / 1e-2).log10().item())
        for c in plan.configurations["sgd"]
    }
    finalists = sorted(distance, key=distance.get)[:2]
    assert [c.index for c in plan.finalists["sgd"]] == finalists
    assert plan.chosen["sgd"].index == min(finalists)


def test_accuracy_is_better_when_larger():
    plan = make([contestant()], best="max")
    play(plan, lambda run: result(-bowl(1e-2)(run)["curve"]["metric"][-1]))
    assert 3e-3 < plan.chosen["sgd"].parameters["lr"] < 3e-2


@pytest.mark.parametrize(
    ("centre", "side", "low", "high"), [(1e-3, "low", 1e-4, 1e-1), (1e-1, "high", 1e-3, 1.0)]
)
def test_a_best_rate_at_the_edge_widens_it_and_gives_everyone_as_many_trials(centre, side, low, high):
    edgy, calm = contestant("edgy"), contestant("calm")
    plan = make([edgy, calm])

    def metric(run):
        return bowl(centre if run.contestant is edgy else 1e-2)(run)

    stages = play(plan, metric)
    assert [stage.name for stage in stages] == ["tune", "tune", "confirm", "report"]
    assert plan.widened == {"edgy": [f"lr {side}"]}
    assert len(plan.configurations["edgy"]) == len(plan.configurations["calm"]) == 12
    extra = [c.parameters["lr"] for c in plan.configurations["edgy"][8:]]
    assert all(low <= lr <= 1e-3 or 1e-1 <= lr <= high for lr in extra)
    assert plan.space(edgy)["lr"] == pytest.approx((low, high, True))
    assert plan.space(calm)["lr"] == (1e-3, 1e-1, True)


def test_what_is_still_at_the_edge_is_called_limited():
    plan = make([contestant()])
    play(plan, bowl(1e-9))
    assert plan.limited == {"sgd": ["lr"]}


def test_more_trials_keep_the_ones_before():
    few, many = (
        make([contestant()]),
        make([contestant()], Budget(16, finalists=2, confirm_seeds=2, report_seeds=3)),
    )
    first, second = play(few, bowl(1e-2))[0], play(many, bowl(1e-2))[0]
    assert {run.id for run in first.runs} < {run.id for run in second.runs}


def test_a_run_is_named_by_all_it_depends_on():
    plan = make([contestant("a")])
    base = play(plan, bowl(1e-2))[0].runs[0].id
    other_task = (
        play(Plan("other", "min", [contestant("a")], BUDGET, BUDGET.seeds(0)), bowl(1e-2))[0].runs[0].id
    )
    other_name = play(make([contestant("b")]), bowl(1e-2))[0].runs[0].id
    other_seed = (
        play(Plan("fingerprint", "min", [contestant("a")], BUDGET, BUDGET.seeds(1)), bowl(1e-2))[0].runs[0].id
    )
    assert len({base, other_task, other_name, other_seed}) == 4
    assert play(make([contestant("a")]), bowl(1e-2))[0].runs[0].id == base


def test_diverged_runs_count_with_their_start_and_crashed_ones_never_win():
    plan = make([contestant()])

    def metric(run):
        index = run.configuration.index
        if index == 0:
            return result(0.0, status="crashed")
        if index == 1:
            return result(0.0, status="diverged")
        return result(0.5 + index / 100)

    play(plan, metric)
    assert plan.chosen["sgd"].index == 2


def test_an_entry_that_never_finishes_is_not_confirmed():
    plan = make([contestant("a"), contestant("b")])
    stages = play(
        plan, lambda run: result(0.1, status="diverged" if run.contestant.name == "a" else "finished")
    )
    assert {run.contestant.name for stage in stages[2:] for run in stage.runs} == {"b"}
    assert plan.complete
    assert list(plan.chosen) == ["b"]


def test_names_tell_contestants_apart():
    entries = renamed([contestant("adam").entry, contestant("adam").entry])
    assert [entry.name for entry in entries] == ["adam", "adam (2)"]
    spaces = {(entry.name, size): entry.space for entry in entries for size in (1, 32)}
    names = [c.name for c in cross(entries[:1], ["constant", "cosine"], [1, 32], spaces)]
    assert names == [
        "adam + constant, batch 1",
        "adam + constant, batch 32",
        "adam + cosine, batch 1",
        "adam + cosine, batch 32",
    ]
    assert [c.name for c in cross(entries, ["constant"], [1], spaces)] == ["adam", "adam (2)"]


@pytest.mark.parametrize("field", ["trials", "finalists", "confirm_seeds", "report_seeds"])
def test_a_budget_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 is not an integer ≥ 1"):
        Budget(**{"trials": 1} | {field: 0})
