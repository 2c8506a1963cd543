"""Adafactor of matrices: the paper's, mistakes in it, and gradients whose fourth powers leave float32."""

import importlib.util
import inspect

import numpy as np
import pytest

from schuss.compile.reference import Reference
from schuss.rules import Adafactor

SHAPES = [(3, 4), (2, 2, 3), (6, 1), (1, 6), (2, 1, 3, 2)]


def path(rule, start, gradients):
    reference = Reference(rule, start)
    return np.array([reference.step(g) for g in gradients])


def problem(decades, shape, seed=0):
    size = int(np.prod(shape))
    start = np.random.default_rng(seed).choice([0.0, 1.0, -1e3, 1e-3, 0.3], size)
    return start.reshape(shape), decades(7, size, seed, -6, 6).reshape(7, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_matrix_moves_as_the_paper_has_it(shape, cases_of, paper, decades, close):
    start, gradients = problem(decades, shape)
    for case in cases_of("Adafactor"):
        expected = paper("Adafactor", case.rule, start, gradients)
        close(path(case.rule, start, gradients), expected, 1e-12)


MUTATIONS = [
    ("r = decay * r + gain * row_mean(g * g)", "r = decay * r + gain * row_mean(abs(g))"),
    ("r = decay * r + gain * row_mean(g * g)", "r = gain * r + decay * row_mean(g * g)"),
    ("gain * column_mean(g * g)", "gain * mean(g * g)"),
    ("r / maximum(column_mean(r), least)", "r"),
    ("r / maximum(column_mean(r), least)", "r / maximum(mean(r), least)"),  # of all matrices together
    ("r / maximum(column_mean(r), least)", "r / (column_mean(r) + least)"),
    ("v = r / maximum(column_mean(r), least) * c", "v = r * c / maximum(row_mean(c), least) + 1e-3 * r"),
    ("u = g / maximum(sqrt(v), least)\n        length", "u = g / maximum(v, least)\n        length"),
]


@pytest.mark.parametrize(("words", "mistake"), MUTATIONS)
def test_a_mistake_is_caught(words, mistake, cases_of, paper, decades, close, tmp_path):
    text = inspect.getsource(inspect.getmodule(Adafactor))
    before, found, after = text.rpartition(words)  # the last one is the matrix's
    assert found
    place = tmp_path / "mutant_adafactor_of_matrices.py"
    place.write_text(before + mistake + after, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(place.stem, place)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(importlib.sys.modules, place.stem, module)
        spec.loader.exec_module(module)
    start, gradients = problem(decades, (2, 2, 3))
    caught = False
    for case in cases_of("Adafactor"):
        expected = paper("Adafactor", case.rule, start, gradients)
        try:
            close(path(module.Adafactor(**vars(case.rule)), start, gradients), expected, 1e-12)
        except AssertionError:
            caught = True
    assert caught
