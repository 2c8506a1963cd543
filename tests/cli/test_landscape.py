import pytest
from click.testing import CliRunner

from schuss.cli.landscape import command


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_a_function_is_drawn(tmp_path):
    out = tmp_path / "new" / "page.html"
    found = run("quadratic:kappa=20", "--optimizers", "sgd,adam", "--steps", 20, "--out", out)
    assert found.exit_code == 0, found.output
    assert "adam" in found.output
    assert "ncontours" not in out.read_text(encoding="utf-8")[:1000]
    assert "quadratic:kappa=20" in out.read_text(encoding="utf-8")


def test_a_demonstration_has_its_measured_sentence(tmp_path):
    found = run("--story", "jitter", "--out", tmp_path / "page.html")
    assert found.exit_code == 0, found.output
    assert "crossed the valley" in found.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give a function, or --story NAME"),
        (("beale", "--story", "saddle"), "Give a function, or --story"),
        (("hill",), "landscape='hill' is not one of rosenbrock"),
        (("beale", "--optimizers", "sgd,wonder"), "entry='wonder' is not one of"),
        (("beale", "--start", "1"), "'1' is not 2 numbers"),
        (("beale", "--at", "1,1"), "belong to --model"),
        (("--model",), "Give a function, or --story"),
        (("--model", "--story", "saddle"), "no trajectories: leave out --story"),
        (("digits",), "landscape='digits' is not one of rosenbrock"),
        (("rosenbrock", "--model", "--at", "1,1"), "try another --at"),
        (("rosenbrock", "--model", "--at", "a,b"), "'a,b' is not 2 numbers"),
        (("rosenbrock", "--model", "--at", "nan,0"), "finite"),
        (("rosenbrock", "--model", "--at", "1e200,0"), "finite"),
        (("rosenbrock", "--model", "--optimizers", "adam"), "no trajectories: leave out --optimizers"),
        (("--story", "saddle", "--steps", "9"), "settings of their own: leave out --steps"),
        (
            ("rosenbrock", "--model", "--at", "0,0.5", "--radius", "1e300"),
            "radius=1e+300 is not small enough",
        ),
        (("--story", "luck"), "story='luck' is not one of"),
    ],
)
def test_mistakes_are_clear_errors(arguments, message, tmp_path):
    found = run(*arguments, "--out", tmp_path / "page.html")
    assert found.exit_code != 0
    assert message in found.output
    assert not (tmp_path / "page.html").exists()


def test_the_taylor_model_is_drawn(tmp_path):
    found = run("rosenbrock", "--model", "--at", "0,0.5", "--out", tmp_path / "m.html")
    assert found.exit_code == 0, found.output
    words = found.output.replace("\n", " ")
    assert "trust region" in words
    assert "predicted decrease" in words
    assert "The quadratic model of rosenbrock" in (tmp_path / "m.html").read_text(encoding="utf-8")
