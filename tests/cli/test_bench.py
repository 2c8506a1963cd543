"""`schuss bench`: its words and its exits."""

import json

import pytest
from click.testing import CliRunner

from schuss.bench import jobs
from schuss.bench.report import Timing, load
from schuss.bench.sizes import SECTIONS, Sizes, gpt2, mlp
from schuss.cli import bench

TINY = Sizes(
    rounds=2,
    short_rounds=2,
    least=0.0,
    processes=1,
    large=gpt2(layers=1, width=4, vocabulary=7, context=3),
    mlp=mlp(3, 4, 2),
    add=64,
)


def run(*arguments):
    return CliRunner().invoke(bench.command, arguments)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "QUICK", TINY)


def test_help_has_examples():
    said = run("--help").output
    assert "schuss bench --quick --only gpt2" in said
    for section in SECTIONS:
        assert f"\n  {section}" in said or f" {section} " in said


@pytest.mark.usefixtures("tiny")
def test_a_run_is_shown_stored_and_shown_again(tmp_path):
    file = tmp_path / "here.json"
    first = run("--quick", "--only", "gpt2", "--json", str(file), "--threads", "1")
    assert first.exit_code == 0, first.output
    assert "One step, float32: GPT-2 shapes (16 tensors" in first.output
    assert "AdamW" in first.output
    stored = load(file)
    assert stored.machine["threads"] == 1
    assert stored.settings == {"quick": True, "only": ["gpt2"]}
    again = run("--from", str(file))
    assert again.stdout == first.stdout
    assert "| optimizer | schuss | GB/s |" in run("--from", str(file), "--markdown").output


@pytest.mark.usefixtures("tiny")
def test_an_interruption_shows_and_stores_what_is_done(tmp_path, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    done = jobs.Job("mlp", "first", lambda: [Timing("mlp", "small MLP", "AdamW", "schuss", (1e-5,))])
    monkeypatch.setattr(
        jobs, "jobs", lambda sizes, only: [done, jobs.Job("mlp", "second", interrupted), done]
    )
    ended = run("--quick", "--json", str(tmp_path / "a.json"))
    assert ended.exit_code == 130
    assert "10.0 µs" in ended.output
    assert "Interrupted" in ended.output
    assert len(json.loads((tmp_path / "a.json").read_text())["timings"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "gpt3"], "'gpt3' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
        (["--from", "/nowhere/a.json"], "does not exist"),
        (["--json", "/nowhere/a.json"], "there is no folder /nowhere"),
    ],
)
def test_bad_input(arguments, words):
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert words in ended.output


def test_a_file_that_is_no_report(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    ended = run("--from", str(tmp_path / "a.json"))
    assert ended.exit_code == 1
    assert "is not what `schuss bench --json` writes" in ended.output
