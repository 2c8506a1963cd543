"""The examination: what it finds is true, and what is wrong it finds."""

from dataclasses import replace

import pytest
import torch

import schuss.torch
from schuss.lab.doctor import PARTS, examine
from schuss.lab.doctor import steps as checks
from schuss.rules import SGD, TABLE


@pytest.mark.parametrize("part", ["rates", "limits", "noise", "sparse", "threads", "processors", "gpu"])
def test_everything_holds_here(part):
    found = [finding for _, finding in examine([part])]
    assert found
    assert not [finding for finding in found if finding.verdict == "fails"]


def test_curvature_holds_and_names_its_numbers():
    found = {f.about.strip(): f for _, f in examine(["curvature"])}
    assert {f.verdict for f in found.values()} == {"holds"}
    assert found["its multiplicity"].measured == "9"
    assert found["its zeros"].measured == "91"


@pytest.mark.parametrize("dtype", checks.DTYPES.values(), ids=str)
def test_kernels_stay_within_rounding(dtype):
    assert 0 < checks.deviation(TABLE["SGD"], {"momentum": 0.9}, dtype) <= checks.ALLOWED


def test_a_wrong_optimizer_fails(monkeypatch):
    class Hasty(schuss.torch.SGD):
        """Steps a thousandth too far."""

        row = replace(TABLE["SGD"])

        def __init__(self, params, lr=1e-3, **options):
            super().__init__(params, lr=1.001 * lr, **options)

    real = schuss.torch.optimizer
    monkeypatch.setattr(schuss.torch, "optimizer", lambda rule: Hasty if rule is SGD else real(rule))
    assert checks.deviation(TABLE["SGD"], {"lr": 0.1}, torch.float32) > checks.ALLOWED
    verdicts = {f.about.split(",")[0]: f.verdict for f in checks.sparse_rows()}
    assert verdicts["SGD"] == "fails"
    assert verdicts["Lion"] == "holds"


def test_nan_is_infinitely_wrong(monkeypatch):
    monkeypatch.setattr(checks, "gradient", lambda size, step: torch.full((size,), torch.nan).double())
    assert checks.deviation(TABLE["SGD"], {}, torch.float64) == float("inf")


def test_a_check_that_breaks_is_a_failure(monkeypatch):
    def broken():
        raise RuntimeError("no luck")
        yield

    monkeypatch.setitem(PARTS, "noise", broken)
    ((part, finding),) = examine(["noise"])
    assert part == "noise"
    assert finding.verdict == "fails"
    assert "no luck" in finding.measured


def test_a_cold_folder_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("SCHUSS_CACHE_DIR", str(tmp_path))
    found = [finding for _, finding in examine(["cache"])]
    assert [finding.verdict for finding in found] == ["holds", "holds", "note"]
    assert "cold" in found[-1].measured
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_fails(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCHUSS_CACHE_DIR", str(tmp_path / "file" / "inside"))
    with pytest.warns(RuntimeWarning, match="cannot be stored"):
        found = [finding for _, finding in examine(["cache"])]
    assert found[0].verdict == "fails"


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="part='luck' is not one of rates"):
        list(examine(["luck"]))
    with pytest.raises(ValueError, match="dtype='int8' is not one of float32"):
        list(examine(["kernels"], ("int8",)))
