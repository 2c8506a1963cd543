"""The curvature of a race's winner, beside its verdict."""

import json

import pytest

from schuss.lab.diagnose.section import curvature_of
from schuss.lab.entries import find
from schuss.lab.protocol.budget import Budget
from schuss.lab.protocol.race import race
from schuss.lab.tasks import load


def test_a_quadratic_at_twice_its_limit_and_at_half():
    task = load("quadratic:kappa=10,dim=4")
    for share, words in ((0.5, "with room to spare"), (1.1, "at the edge of stability")):
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
    assert "Curvature under the winner" in page
    assert section["text"].split(".")[0] in page
    assert first.data["command"].endswith(" --diagnose")
    plain = race("diabetes", out=tmp_path / "a", workers=1, **asked | {"diagnose": False})
    assert "curvature" not in plain.data["tasks"][0]
