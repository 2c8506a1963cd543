"""What is said of an optimizer's cost is what its kernels and its state are."""

from dataclasses import dataclass

import numpy as np
import pytest

import schuss.numpy
from schuss.compile.facts import facts, markdown, table
from schuss.rules import TABLE, Rule, orthogonal


@dataclass(frozen=True, kw_only=True)
class Sourceless(Rule):
    """A rule of matrices, in a module that names no source."""

    state = ("m",)
    iterations = ((1.5, -0.5, 0.0),)

    def coefficients(self, step):
        return dict(lr=0.1)

    @staticmethod
    def update(w, g, m, lr):
        m = m + g
        w = w - lr * orthogonal(m)
        return w, m


def test_a_rule_of_matrices_without_a_source():
    assert facts(Sourceless).cells() == ("matrix", "4", "2", "")


@pytest.mark.parametrize("name", ["SGD", "Lion", "Adam"])
def test_state_is_as_large_as_it_is(name):
    optimizer, params = getattr(schuss.numpy, name)(), {"w": np.ones(10, np.float32)}
    optimizer.update(params, {"w": np.ones(10, np.float32)})
    held = sum(value.nbytes for key, value in optimizer.state_dict().items() if value.shape == (10,))
    assert held == 10 * facts(TABLE[name].rule).state[0]


def test_every_optimizer_has_a_row_and_a_source():
    rows = table({name: row.rule for name, row in TABLE.items()})[1:]
    assert [row[0] for row in rows] == list(TABLE)
    assert all(row[-1][-4:].isdigit() for row in rows)
    assert markdown({"LAMB": TABLE["LAMB"].rule}).splitlines()[2:] == [
        "| LAMB | whole tensor | 8 | 2 | You and others 2020 |"
    ]
