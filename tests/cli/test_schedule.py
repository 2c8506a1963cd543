"""`schuss schedule`."""

import re

import pytest
from click.testing import CliRunner

from schuss.cli.schedule import command
from schuss.schedules import Cosine, Warmup


@pytest.fixture
def schuss(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *arguments: CliRunner().invoke(command, arguments)


def rows(output):
    """The cells of the table, by step."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    return {step.replace(",", ""): values for step, *values in cells}


def test_landmarks(schuss):
    result = schuss("warmup 500, cosine 9500 to 1e-5", "--peak", "3e-4")
    assert result.exit_code == 0
    schedule = Warmup(500).then(Cosine(3e-4, 1e-5, steps=9500))
    shown = rows(result.output)
    assert set(shown) == {"0", "250", "500", "5250", "10000"}
    assert {n: [f"{schedule(int(n)):.6g}"] for n in shown} == shown


def test_plot_has_the_shape_of_the_curve(schuss):
    picture = [line.split("┤")[1] for line in schuss("linear 100").output.splitlines() if "┤" in line]
    leftmost = [min((k for k, dot in enumerate(line) if dot > "\u2800"), default=None) for line in picture]
    assert len(picture) == 14
    assert leftmost == sorted(leftmost)
    assert leftmost[0] == 0
    assert leftmost[-1] > 70
    assert max(len(line) for line in schuss("linear 100").output.splitlines()) <= 100


def test_several_at_once_over_the_longest(schuss):
    result = schuss("cosine 100", "linear 50", "constant", "--peak", "0.5")
    assert rows(result.output)["100"] == ["0", "0", "0.5"]


def test_epochs(schuss):
    result = schuss("warmup 5, cosine 85", "--peak", "0.1", "--steps-per-epoch", "390")
    assert {"0", "1950", "35100"} <= set(rows(result.output))
    assert rows(result.output)["1950"] == ["0.1"]


def test_many_restarts_are_cut_short(schuss):
    result = schuss("restarts period 10", "--steps", "1000")
    assert "…" in rows(result.output)
    assert len(rows(result.output)) == 17


def test_html_stands_alone(schuss, tmp_path):
    path = tmp_path / "picture.html"
    result = schuss("cosine 100", "step every 30 rate 0.5", "--html", str(path))
    assert result.exit_code == 0
    assert str(path) in result.output
    page = path.read_text(encoding="utf-8")
    assert "step every 30 rate 0.5" in page
    assert not re.findall(r"<script[^>]+src=", page)


def test_html_is_a_page_like_the_others(schuss, tmp_path):
    path = tmp_path / "picture.html"
    assert schuss("cosine 100", "step every 30 rate 0.5", "--html", str(path)).exit_code == 0
    page = path.read_text("utf-8")
    for mark in ("--accent:", 'id="theme"', '<section id="repeat"', "cosine 100", "Content-Security-Policy"):
        assert mark in page
    assert page.count("<tr>") > 5  # the table of landmarks


def test_html_where_nothing_can_be_written(schuss, tmp_path):
    (tmp_path / "file").touch()
    result = schuss("cosine 100", "--html", str(tmp_path / "file" / "picture.html"))
    assert result.exit_code == 1
    assert "picture.html" in result.output


def test_a_wrong_word(schuss):
    result = schuss("warmup 500, cosin 9500")
    assert result.exit_code == 2
    assert "'cosin' is not a schedule. Did you mean cosine?" in result.output
    line, carets = result.output.splitlines()[-2:]
    assert line[carets.index("^") : carets.rindex("^") + 1] == "cosin"


def test_without_an_end(schuss):
    result = schuss("constant")
    assert result.exit_code == 2
    assert "Say how many steps to show: --steps 1000." in result.output
    assert schuss("constant", "--steps", "10").exit_code == 0


@pytest.mark.parametrize("options", [("--steps", "0"), ("--steps-per-epoch", "-1"), ("--peak", "nan")])
def test_bad_options(schuss, options):
    assert schuss("cosine 100", *options).exit_code == 2


def test_help_has_examples_that_run(schuss):
    text = schuss("--help").output
    examples = re.findall(r"schuss schedule (.*)", text)
    assert len(examples) == 4
    import shlex

    for example in examples:
        words = shlex.split(example)
        assert schuss(*(words[: words.index("--html")] if "--html" in words else words)).exit_code == 0
