import math

import pytest
from click.testing import CliRunner

from schuss.cli.range import command


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_the_terminal_shows_each_sweep_and_the_page_is_there(tmp_path):
    out = tmp_path / "new" / "rates.html"
    ends = ("--lowest", 1e-3, "--highest", 100)
    found = run(
        "diabetes", "--optimizer", "sgd", "--steps", 40, "--sweeps", 2, *ends, "--seed", 1, "--out", out
    )
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert "sgd on diabetes: loss by learning rate" in words
    assert "0.001 to 100" in words
    assert "The loss falls from lr" in words
    assert "does not measure stability" in words
    page = out.read_text(encoding="utf-8")
    assert "Learning rates of sgd on diabetes" in page
    assert page.count("loss, sweep ") == 2
    # A regression whose curvature is 4 at most is left at a rate above 2/4, so both sweeps blow up.
    assert "it did not" not in page


def test_the_steepest_rate_of_a_quadratic_is_where_theory_says():
    """½ h w² in steps of a growing rate: the loss falls by (1 − lr h)² a step, all of it at lr = 1/h."""
    from schuss.lab.entries import find
    from schuss.lab.ranges import range_test_of
    from schuss.lab.tasks import load

    found = range_test_of(load("quadratic:kappa=1,dim=2"), find("sgd"), steps=50, sweeps=1)
    losses = found.losses[0]
    known = [math.isfinite(loss) for loss in losses]
    assert sum(known) == known.index(False) >= 45  # in the end it blows up, and stays so
    for rate, before, after in zip(found.rates, losses, losses[1 : sum(known)], strict=False):
        assert after == pytest.approx(before * (1 - rate) ** 2, rel=1e-9, abs=1e-300)
    assert 0.02 < found.suggestion < 1
    assert found.rates[0] == pytest.approx(0.002)
    assert found.rates[-1] == pytest.approx(50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nope",), "task='nope' is not one of"),
        (("diabetes", "--optimizer", "wonder"), "entry='wonder' is not one of"),
        (("diabetes", "--optimizer", "lbfgs"), "The lr of a second-order method is a fraction"),
        (("diabetes", "--lowest", "1", "--highest", "0.1"), "highest=0.1 is not a finite number > lowest=1"),
        (("diabetes", "--steps", "3"), "3 is not in the range"),
    ],
)
def test_mistakes_are_clear_errors(arguments, message, tmp_path):
    found = run(*arguments, "--out", tmp_path / "rates.html")
    assert found.exit_code != 0
    assert message in found.output
    assert not (tmp_path / "rates.html").exists()
