"""A rule in a file of one's own, `examples/adopt.py`, does all that the built-in rules do."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import schuss
import schuss.numpy
import schuss.torch
from schuss.cli.check import command as check_command
from schuss.cli.race import command as race_command
from schuss.lab.entries import find
from schuss.lab.files import load_name
from schuss.rules import number
from schuss.schedules import Cosine

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "adopt.py"


@pytest.fixture(scope="module")
def adopt():
    return load_name(FILE, "ADOPT")[0]


@pytest.fixture(scope="module")
def digits():
    """The handwritten-digits example: data, weights, loss with gradients."""
    names = ("load_data", "initial_params", "loss_and_grads")
    return [load_name(ROOT / "examples" / "digits_by_hand.py", name)[0] for name in names]


class Paper:
    """Algorithm 1 line by line, in float64."""

    def __init__(self, params, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6):
        self.t, self.options = 0, (lr, beta1, beta2, eps)
        self.m, self.v = ({key: np.zeros_like(w) for key, w in params.items()} for _ in range(2))

    def update(self, params, grads):
        lr, beta1, beta2, eps = self.options
        for key, g in grads.items():
            if self.t == 0:
                self.v[key] = g**2
                continue
            limit = self.t**0.25
            u = np.clip(g / np.maximum(np.sqrt(self.v[key]), eps), -limit, limit)
            self.m[key] = beta1 * self.m[key] + (1 - beta1) * u
            params[key] -= lr * self.m[key]
            self.v[key] = beta2 * self.v[key] + (1 - beta2) * g**2
        self.t += 1


def test_three_epochs_of_digits_are_the_papers_in_both_apis(adopt, digits):
    load_data, initial_params, loss_and_grads = digits
    X, y, _, _ = load_data()
    params = initial_params()
    expected, tensors = copy.deepcopy(params), {k: torch.from_numpy(w.copy()) for k, w in params.items()}
    ours = schuss.numpy.optimizer(adopt)()
    theirs = schuss.torch.optimizer(adopt)([w.requires_grad_() for w in tensors.values()])
    paper = Paper(expected)
    for _ in range(3):
        for X_batch, y_batch in schuss.numpy.minibatches(X, y, batch_size=32):
            ours.update(params, loss_and_grads(params, X_batch, y_batch)[1])
            paper.update(expected, loss_and_grads(expected, X_batch, y_batch)[1])
            arrays = {key: w.detach().numpy() for key, w in tensors.items()}
            for key, g in loss_and_grads(arrays, X_batch, y_batch)[1].items():
                tensors[key].grad = torch.from_numpy(g)
            theirs.step()
    assert loss_and_grads(params, X, y)[0] < loss_and_grads(initial_params(), X, y)[0] / 2
    for key in params:
        np.testing.assert_allclose(params[key], expected[key], rtol=0, atol=1e-12)
        np.testing.assert_allclose(tensors[key].detach().numpy(), expected[key], rtol=0, atol=1e-12)


def test_arguments_state_and_checkpoints_follow_from_the_rule(adopt):
    cls = schuss.torch.optimizer(adopt)
    w = torch.ones(3, requires_grad=True)
    optimizer = cls([w], 0.1, (0.5, 0.9), max_norm=1.0, ema_decay=0.9, fused=True)
    for _ in range(3):
        w.grad = torch.tensor([1.0, -2.0, 3.0])
        optimizer.step()
    state = optimizer.state_dict()
    assert set(state["state"][0]) == {"m", "v", "step", "average"}
    assert state["param_groups"][0]["betas"] == (0.5, 0.9)
    for other in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(other) is cls
        assert torch.equal(other.state_dict()["state"][0]["m"], state["state"][0]["m"])
    with pytest.raises(
        ValueError, match=r"betas=0\.9 is not a pair of numbers\. Try betas=\(0\.9, 0\.9999\)\."
    ):
        cls([w], betas=0.9)
    with pytest.raises(
        TypeError, match=r"ADOPT: .*'momentum'.*It takes params, then lr, betas, eps, maximize"
    ):
        cls([w], momentum=0.9)
    numpy = schuss.numpy.optimizer(adopt)(lr=Cosine(0.1, steps=10))
    assert numpy.lr == pytest.approx(0.1)
    assert numpy.betas == (0.9, 0.9999)
    fixed = schuss.numpy.optimizer(adopt)(lr=0.1)
    params = {"w": np.ones(2)}
    fixed.update(params, {"w": np.ones(2)})
    for other in (pickle.loads(pickle.dumps(fixed)), copy.deepcopy(fixed)):
        mine = copy.deepcopy(params)
        other.update(mine, {"w": np.ones(2)})
        assert mine["w"] == pytest.approx([0.99, 0.99])


def test_a_tuple_may_have_three_members(adopt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FILE.read_text().replace('("beta1", "beta2")}', '("beta1", "beta2", "beta3")}')
    text = text.replace("    eps: float", "    beta3: float = number(0.99, low=0, below=1)\n    eps: float")
    Path("three.py").write_text(text)
    three = load_name("three.py", "ADOPT")[0]
    w = torch.ones(1, requires_grad=True)
    optimizer = schuss.torch.optimizer(three)([w], betas=[0.9, 0.99, 0.999])
    assert optimizer._hyperparameters.rule(optimizer.param_groups[0]).beta3 == 0.999
    assert schuss.numpy.optimizer(three)().betas == (0.9, 0.9999, 0.99)
    with pytest.raises(ValueError, match=r"betas=\(0\.9, 0\.99\) is not a triple of numbers"):
        schuss.numpy.optimizer(three)(betas=(0.9, 0.99))


def test_state_goes_by_the_names_that_the_rule_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = FILE.read_text().replace(
        'state = ("m", "v")', 'state = ("m", "v")\n    state_names = {"m": "exp_avg"}'
    )
    Path("named.py").write_text(text)
    w = torch.ones(1, requires_grad=True)
    optimizer = schuss.torch.optimizer(load_name("named.py", "ADOPT")[0])([w])
    w.grad = torch.ones(1)
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"exp_avg", "v", "step"}


def test_minimize_takes_a_rule(adopt):
    found = schuss.minimize(
        lambda x: (x[0] - 1) ** 2 + 9 * x[1] ** 2, [0.0, 2.0], method=adopt, options={"lr": 0.05}
    )
    assert found.success
    assert found.method == "ADOPT"
    np.testing.assert_allclose(found.x, [1, 0], atol=1e-7)


def test_the_search_space_is_the_rules_or_follows_from_its_defaults(adopt, tmp_path, monkeypatch):
    entry = find(f"{FILE}:ADOPT")
    assert entry.space["lr"][0] < 1e-3 < entry.space["lr"][1]
    assert set(entry.space) == {"lr", "1 - beta1"}
    assert entry.arguments({"lr": 0.1, "1 - beta1": 0.25}) == {"lr": 0.1, "betas": (0.75, 0.9999)}
    monkeypatch.chdir(tmp_path)
    text = FILE.read_text().replace(
        'state = ("m", "v")', 'state = ("m", "v")\n    space = {"lr": (1e-3, 1e-1)}'
    )
    Path("spaced.py").write_text(text)
    assert find("spaced.py:ADOPT").space == {"lr": (1e-3, 1e-1, True)}


def test_a_process_without_the_file_can_run_it(tmp_path, monkeypatch):
    """By value: the rule travels with its text."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "gone.py"
    place.write_text(FILE.read_text())
    packed = tmp_path / "entry.pickle"
    packed.write_bytes(cloudpickle.dumps(find("gone.py:ADOPT")))
    place.unlink()
    code = (
        "import pickle, sys, torch; entry = pickle.load(open(sys.argv[1], 'rb'));"
        "w = torch.ones(2, requires_grad=True);"
        "optimizer = entry.build([w], {'lr': 0.1}); w.grad = torch.ones(2); optimizer.step(); optimizer.step();"
        "print(w.tolist()[0] < 1, type(optimizer).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(packed)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "ADOPT"], done.stderr


def test_it_is_raced_from_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        race_command,
        ["quadratic", "--trials", "1", "--entries", "sgd", "--entry", f"{FILE}:ADOPT", "--out", "race"],
    )
    assert result.exit_code == 0, result.output
    assert "ADOPT" in (tmp_path / "race" / "report.html").read_text()


def test_check_holds_it_to_all_that_the_built_in_rules_are_held_to():
    result = CliRunner().invoke(check_command, [f"{FILE}:ADOPT"])
    assert result.exit_code == 0, result.output
    for part in (
        "CPU kernel, float16",
        "NumPy API",
        "NaN and infinity",
        "save, load, continue",
        "GPU kernel",
    ):
        assert part in result.output
    assert "17 of 17 hold" in result.output


def test_check_sees_a_rule_that_is_not_what_it_says(tmp_path, monkeypatch):
    """A rule whose coefficients do not come from the step alone goes on wrongly, and fails there."""
    monkeypatch.chdir(tmp_path)
    text = FILE.read_text().replace(
        "    def coefficients(self, step):", "    calls = []\n\n    def coefficients(self, step):"
    )
    text = text.replace(
        "        lr, b1, b2 = ",
        "        self.calls.append(step)\n        step = len(self.calls)\n        lr, b1, b2 = ",
    )
    Path("moody.py").write_text(text)
    result = CliRunner().invoke(check_command, ["moody.py:ADOPT"])
    assert result.exit_code == 1
    assert "fails" in result.output


@pytest.mark.parametrize(("name", "said"), [("adm", "Built in: SGD"), ("no.py:Mine", "no.py is not a file")])
def test_check_says_what_it_cannot_find(name, said):
    result = CliRunner().invoke(check_command, [name])
    assert result.exit_code == 2
    assert said in result.output


def test_check_says_a_mistake_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(
        FILE.read_text().replace("g / where(size > 0, size, 1)", "g / size if size else g")
    )
    result = CliRunner().invoke(check_command, ["bad.py:ADOPT"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: bad.py:34: ADOPT: ")
    assert "where(condition, yes, no)" in result.output
    assert number(1.0)  # what a rule's file imports is public
