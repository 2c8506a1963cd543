import shlex

from click.testing import CliRunner

from schuss.cli.diagnose import command
from schuss.cli.race import command as race


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_the_terminal_says_what_to_try_and_the_page_is_there(tmp_path):
    out = tmp_path / "why.html"
    found = run("quadratic:kappa=50,dim=4", "--optimizer", "momentum", "--steps", 8, "--out", out)
    assert found.exit_code == 0, found.output
    assert "optimizer: momentum" in found.output
    assert "Spread of the curvature 50" in found.output
    assert "Diagnosis of quadratic-50" in out.read_text(encoding="utf-8")
    # Every option of the races that it names is one that the race has.
    options = {name for option in race.params for name in option.opts}
    for line in found.output.splitlines():
        if "To overturn it: " in line:
            words = shlex.split(line.split(": ", 1)[1])
            assert {word for word in words if word.startswith("--")} <= options


def test_an_unknown_task_is_a_clear_error(tmp_path):
    found = run("nope", "--out", tmp_path / "why.html")
    assert found.exit_code == 1
    assert "task='nope' is not one of" in found.output
