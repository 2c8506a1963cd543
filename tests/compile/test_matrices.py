"""Orthogonal matrices from products alone: against published ranges, and against the SVD."""

import numpy as np
import pytest
import torch

from schuss.compile.matrices import POLYNOMIALS, orthogonal, polynomials, range_of

# What singular values from 1e-3 and from 1e-2 on become, as published to four digits.
RANGES = {
    "quintic": ((0.4705, 1.2024), (0.6818, 1.1344)),
    "quintic5": ((0.4750, 1.1450), (0.9778, 1.0318)),
    "polar_express": ((0.8589, 1.1411), (0.8589, 1.1411)),
    "quintic8": ((1.0000, 1.0005), (1.0000, 1.0005)),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_singular_values_become_what_was_published(name):
    for low, expected in zip((1e-3, 1e-2), RANGES[name], strict=True):
        assert tuple(round(x, 4) for x in range_of(POLYNOMIALS[name], low)) == expected


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy], ids=["NumPy", "torch"])
@pytest.mark.parametrize(
    "shape", [(4, 6), (6, 4), (5, 5), (3, 40), (40, 3), (1, 7), (7, 1), (3, 4, 9), (2, 12, 3)]
)
@pytest.mark.parametrize("name", POLYNOMIALS)
def test_each_singular_value_goes_through_the_polynomials(name, shape, library):
    """In float64, in the short form and in Gram's: U p(Σ) Vᵀ, with p by plain arithmetic."""
    matrices = np.random.default_rng(0).standard_normal(shape)
    found = np.asarray(orthogonal(library(matrices), POLYNOMIALS[name]))
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    values = values / np.linalg.norm(matrices, axis=(-2, -1))[..., None]
    for a, b, c in POLYNOMIALS[name]:
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose(found, left * values[..., None, :] @ right, rtol=1e-9, atol=1e-9)


def test_many_iterations_end_at_the_polar_factor():
    matrix = np.random.default_rng(1).standard_normal((6, 9))
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    newton = ((1.5, -0.5, 0.0),) * 40
    np.testing.assert_allclose(orthogonal(matrix, newton), left @ right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_a_matrix_of_any_size(scale):
    matrix = scale * np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    for given in (
        orthogonal(matrix, POLYNOMIALS["quintic"]),
        orthogonal(torch.from_numpy(matrix), POLYNOMIALS["quintic"]),
    ):
        found = np.asarray(given)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 2
        assert (np.abs(found).max() > 0.5) == (scale > 1)


def test_steps_and_names():
    assert polynomials("quintic", 7) == POLYNOMIALS["quintic"][:1] * 7
    assert polynomials("polar_express", 2) == POLYNOMIALS["polar_express"][:2]
    with pytest.raises(ValueError, match="polynomials='cubic' is not one of 'quintic', "):
        polynomials("cubic")
