from click.testing import CliRunner

from schuss.cli.doctor import command
from schuss.lab import doctor


def test_the_table_has_truth_measured_and_verdict():
    found = CliRunner().invoke(command, ["--only", "limits,processors"])
    assert found.exit_code == 0, found.output
    assert "Stability limits × lr" in found.output
    assert "heavy ball" in found.output
    assert "10 of 10 known values hold" in found.output


def test_a_failure_is_the_exit_code(monkeypatch):
    wrong = lambda: iter([doctor.Finding("two and two", "4", "5", "fails")])  # noqa: E731
    monkeypatch.setitem(doctor.PARTS, "noise", wrong)
    found = CliRunner().invoke(command, ["--only", "noise"])
    assert found.exit_code == 1
    assert "Gradient noise scale, two and two: known value 4, measured 5." in found.output
    assert "0 of 1 known values hold" in found.output


def test_an_unknown_part_is_a_clear_error():
    found = CliRunner().invoke(command, ["--only", "luck"])
    assert found.exit_code == 2
    assert "part='luck' is not one of rates" in found.output
