"""Every example runs as a user runs it; and what the examples work out by hand is right."""

import functools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@functools.cache
def output(example):
    """Run an example as a script, with warnings as errors, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "error", str(example)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints_something(example):
    assert output(example).strip()


@pytest.fixture(scope="module")
def digits():
    """The names that the digits example defines, without its training."""
    return runpy.run_path(str(ROOT / "examples" / "digits_by_hand.py"))


def test_every_form_of_descent_recognises_digits():
    rows = re.findall(
        r"^(.+?) +(SGD|Adam) +\S+ +\d+ +(\d+) +([\d.]+)%$",
        output(ROOT / "examples" / "digits_by_hand.py"),
        re.MULTILINE,
    )
    updates = {(form, optimizer): int(number) for form, optimizer, number, _ in rows}
    for optimizer in ("SGD", "Adam"):
        assert updates["full batch", optimizer] == 300
        assert updates["one example", optimizer] == 5 * 1437
        assert updates["mini-batches of 32", optimizer] == 20 * 45
    assert len(rows) == 6
    # Guessing gives 10 %; these six, 95.6 % to 98.9 %. The margin is for other machines' rounding.
    assert all(float(share) > 93 for *_, share in rows), rows


@pytest.mark.parametrize("examples", [1, 7])
def test_backpropagation_by_hand_agrees_with_finite_differences(digits, examples):
    X, y, _, _ = digits["load_data"]()
    X, y = X[:examples], y[:examples]
    params = digits["initial_params"](hidden=5, seed=1)
    for name in ("b1", "b2"):
        params[name] += np.random.default_rng(2).normal(size=params[name].shape)
    loss_and_grads = digits["loss_and_grads"]
    _, grads = loss_and_grads(params, X, y)
    assert grads.keys() == params.keys()
    for name, weights in params.items():
        assert grads[name].shape == weights.shape
        numeric = np.empty_like(weights)
        for place in np.ndindex(weights.shape):
            there = weights[place]
            weights[place] = there + 1e-5
            above, _ = loss_and_grads(params, X, y)
            weights[place] = there - 1e-5
            below, _ = loss_and_grads(params, X, y)
            weights[place] = there
            numeric[place] = (above - below) / 2e-5
        # The error of a central difference: third derivative · 1e-10, and rounding, 1e-16 / 1e-5.
        np.testing.assert_allclose(grads[name], numeric, atol=1e-8)


def test_the_split_shares_no_image(digits):
    X, y, X_valid, y_valid = digits["load_data"]()
    assert (len(X), len(y), len(X_valid), len(y_valid)) == (1437, 1437, 360, 360)
    assert 0 <= X.min() <= X.max() <= 1
    assert not {row.tobytes() for row in X} & {row.tobytes() for row in X_valid}
