"""The curvature of a race's winner, beside its verdict."""

import json

import pytest

from schuss.lab.diagnose.section import curvature_of
from schuss.lab.entries import find
from schuss.lab.racing.budget import Budget
from schuss.lab.racing.race import race
from schuss.lab.schedules import schedule
from schuss.lab.tasks import load


def test_a_quadratic_at_twice_its_limit_and_at_half():
    task = load("quadratic:kappa=10,dim=4")
    for share, words in ((0.5, "well below the limit"), (1.1, "at the edge of stability")):
        found = curvature_of(task, find("sgd"), "quadratic", {"lr": share * 2.0}, steps=8)
        for look in found["looks"]:
            assert look["dial"] == pytest.approx(share, rel=1e-8)
        assert words in found["text"]
    assert found["conditioning"]["value"] == pytest.approx(10, rel=1e-8)
    json.dumps(found, allow_nan=False)


def test_a_race_carries_the_reason_and_is_the_same_whoever_ran_it(tmp_path):
    asked = {"entries": ["sgd", "adam"], "budget": Budget(1, 1, 1, 2), "diagnose": True}
    first = race("diabetes", out=tmp_path / "a", workers=1, **asked)
    again = race("diabetes", out=tmp_path / "b", workers=2, **asked)
    section = first.data["tasks"][0]["curvature"]
    assert section["entry"] == first.best()["entry"]
    assert section["conditioning"]["value"] > 10
    assert [noise["step"] for noise in section["noise"]] == [0, section["steps"]]
    assert {each["topic"] for each in section["seconds"]["advice"]} <= {"batch size"}
    assert first.numbers() == again.numbers()
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "Curvature along the winner" in page
    assert section["text"].split(".")[0] in page
    assert first.data["command"].endswith(" --diagnose")
    plain = race("diabetes", out=tmp_path / "a", workers=1, **asked | {"diagnose": False})
    assert "curvature" not in plain.data["tasks"][0]


def test_the_winners_schedule_is_followed():
    """Sharpness 1: the limit at each look is 2 over the rate of the step just taken."""
    task = load("quadratic:kappa=10,dim=4")
    horizon = task.total_steps()
    found = curvature_of(task, find("sgd"), "quadratic", {"lr": 1.0}, steps=8, schedule="warmup+linear")
    plan = schedule("warmup+linear", 1.0, horizon)
    for look in found["looks"]:
        assert look["limit"] == pytest.approx(2 / plan(max(look["step"] - 1, 0)), rel=1e-12)
    assert found["schedule"] == "warmup+linear"
    assert "under warmup+linear" in found["text"]
    assert (
        "--schedules warmup+linear"
        in next(a for a in found["advice"] if a["topic"] == "learning rate")["command"]
    )


@pytest.mark.parametrize("name", ["newton-cg", "lbfgs", "gauss-newton"])
def test_a_method_that_steps_by_curvature_has_no_limit_and_that_is_said(name):
    found = curvature_of(load("diabetes"), find(name), "diabetes", {"lr": 1.0}, steps=4)
    assert [look["dial"] for look in found["looks"]] == [None] * len(found["looks"])
    assert all(look["largest"] > look["smallest"] > 0 for look in found["looks"])
    assert "has no stability limit" in found["missing"]["stability"]
    assert "its lr is a fraction of its own step" in found["missing"]["learning rates"]
    assert found["conditioning"]["value"] == pytest.approx(466.5, rel=0.01)
    json.dumps(found, allow_nan=False)


def test_a_race_won_by_curvature_or_under_a_schedule_has_its_section(tmp_path):
    asked = {"budget": Budget(1, 1, 1, 2), "diagnose": True, "workers": 1}
    won = race("diabetes", entries=["lbfgs"], out=tmp_path / "a", **asked)
    assert "has no stability limit" in won.data["tasks"][0]["curvature"]["missing"]["stability"]
    planned = race("diabetes", entries=["sgd"], schedules=["cosine"], out=tmp_path / "b", **asked)
    section = planned.data["tasks"][0]["curvature"]
    assert section["schedule"] == "cosine"
    limits = [look["limit"] for look in section["looks"]]
    assert limits == sorted(limits)
    assert limits[-1] > 100 * limits[0]
    assert "under the schedule cosine" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
