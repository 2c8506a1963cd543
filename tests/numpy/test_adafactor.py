"""Adafactor for dicts of arrays: the float64 reference's path, in any memory layout, and its checkpoints."""

from dataclasses import dataclass

import numpy as np
import pytest

from schuss.compile import source
from schuss.compile.reference import Reference
from schuss.numpy import Adafactor, optimizer
from schuss.rules import Adafactor as Page
from schuss.rules import Rule, column_mean, norm, number, row_mean, sqrt, total

SHAPES = {"a": (5,), "b": (), "c": (7, 3), "d": (2, 3, 4), "e": (4, 3, 3, 2), "f": (60, 700)}


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def arrays(layout=np.ascontiguousarray):
    return {
        key: layout(noise(shape, k)) if shape else noise((), k)
        for k, (key, shape) in enumerate(SHAPES.items())
    }


def strided(array):
    found = np.full([2 * n for n in array.shape], np.nan)[tuple(slice(None, None, 2) for _ in array.shape)]
    found[...] = array
    return found


def gradients(step):
    return {key: noise(shape, 100 * step + k) for k, (key, shape) in enumerate(SHAPES.items())}


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, strided])
def test_any_layout_is_the_reference(layout):
    options = dict(lr=0.3, weight_decay=0.1)
    params = {k: np.asarray(v) for k, v in arrays(layout).items()}
    references = {k: Reference(Page(**options), v) for k, v in params.items()}
    subject = Adafactor(**options)
    for step in range(5):
        grads = gradients(step)
        subject.update(params, {k: layout(g) if g.ndim else g for k, g in grads.items()})
        for key, reference in references.items():
            np.testing.assert_allclose(params[key], reference.step(grads[key]), rtol=1e-12, atol=1e-13)
    state = subject.state_dict()
    assert {key: state[key].shape for key in ("a/v", "c/r", "c/c", "e/r", "e/c")} == {
        "a/v": (5,),
        "c/r": (7, 1),
        "c/c": (1, 3),
        "e/r": (4, 3, 3, 1),
        "e/c": (4, 3, 1, 2),
    }


@pytest.mark.parametrize("state_dtype", [None, "int8", "bfloat16"])
def test_rows_and_columns_are_in_float32(state_dtype):
    params = {"w": noise((80, 60)).astype(np.float32)}
    subject = Adafactor(lr=0.1, state_dtype=state_dtype)
    for step in range(3):
        subject.update(params, {"w": noise((80, 60), step).astype(np.float32)})
    state = subject.state_dict()
    assert (state["w/r"].dtype, state["w/c"].dtype) == (np.float32, np.float32)
    assert state["w/r"].shape == (80, 1)


def test_save_load_continue(tmp_path):
    whole, first = arrays(), arrays()
    one, saved = Adafactor(lr=0.1, ema_decay=0.9), Adafactor(lr=0.1, ema_decay=0.9)
    for step in range(6):
        one.update(whole, gradients(step))
    for step in range(3):
        saved.update(first, gradients(step))
    saved.save(tmp_path / "state.npz")
    loaded = Adafactor(lr=0.1, ema_decay=0.9)
    loaded.load(tmp_path / "state.npz")
    for step in range(3, 6):
        loaded.update(first, gradients(step))
    for key in SHAPES:
        np.testing.assert_array_equal(whole[key], first[key])


def test_state_without_an_average_tells_the_shape_of_its_array():
    params = {"w": noise((4, 3))}
    saved = Adafactor()
    saved.update(params, {"w": noise((4, 3))})
    state = saved.state_dict()
    for other in (np.ones((5, 3)), np.ones((4, 2)), np.ones(4)):
        loaded = Adafactor()
        loaded.load_state_dict(state)
        with pytest.raises(ValueError, match=r"but its state \(4, 3\)"):
            loaded.update({"w": other}, {"w": other})
    del state["w/c"], state["entries"]
    with pytest.raises(ValueError, match="no 'w/c'"):
        Adafactor().load_state_dict(state)


def test_complex_arrays_and_gradients_of_rows_are_refused():
    for shape in ((3, 2), (3,)):
        params = {"r": np.ones(2), "w": np.ones(shape, complex)}
        with pytest.raises(
            ValueError, match=r"params\['w'\] is complex128, but Adafactor takes means over rows"
        ):
            Adafactor().update(params, {"r": np.ones(2), "w": np.ones(shape, complex)})
        np.testing.assert_array_equal(params["r"], np.ones(2))
    with pytest.raises(RuntimeError, match="Adafactor measures whole tensors"):
        Adafactor().update({"w": np.ones((3, 2))}, {"w": (np.array([1]), np.ones((1, 2)))})


@dataclass(frozen=True, kw_only=True)
class Scaled(Rule):
    """Momentum in units of what its row and column have: all ways in which means follow from each other."""

    lr: float = number(0.1, low=0)
    state = ("m", "r", "c")
    shapes = {"r": "row", "c": "column"}

    def coefficients(self, step):
        return dict(lr=self.lr, decay=0.9, gain=0.1, first=float(step == 1))

    def initial(self):
        return {"c": 2.0}

    @staticmethod
    def update(w, g, m, r, c, lr, decay, gain, first):
        m = decay * m + gain * g
        r = decay * r + gain * row_mean(abs(m)) * norm(w)
        c = decay * c + gain * sqrt(column_mean(m * m / (r + 1.0)) + first)
        centre = column_mean(r) * row_mean(c * c)
        w = w - lr * m * centre / (r * c + 0.1 + total(g * g)) - 1e-3 * row_mean(w - column_mean(w))
        return w, m, r, c


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 4), (1, 5), (5, 1), (700, 300), (3, 40_000)], ids=str)
def test_a_rule_of_ones_own_takes_the_words(shape):
    params, reference = {"w": noise(shape)}, Reference(Scaled(), noise(shape))
    subject = optimizer(Scaled)(ema_decay=0.5)
    for step in range(3):
        grads = {"w": noise(shape, step + 1)}
        subject.update(params, grads)
        np.testing.assert_allclose(params["w"], reference.step(grads["w"]), rtol=1e-11, atol=1e-12)
    state = subject.state_dict()
    for name, expected in zip(("m", "r", "c"), reference.state, strict=True):
        np.testing.assert_allclose(state[f"w/{name}"], expected, rtol=1e-11, atol=1e-12)


def test_a_vector_has_no_rows():
    params = {"w": np.ones(3)}
    with pytest.raises(
        ValueError, match="Scaled takes means over rows and columns, and a weight with 1 axes has none"
    ):
        optimizer(Scaled)().update(params, {"w": np.ones(3)})
    np.testing.assert_array_equal(params["w"], np.ones(3))


def test_its_kernel_is_shown_and_a_gpus_is_not():
    assert "row_mean" in source(Scaled)
    with pytest.raises(
        ValueError, match="Scaled takes means over rows and columns, for which there is no GPU kernel"
    ):
        source(Scaled, "gpu")
