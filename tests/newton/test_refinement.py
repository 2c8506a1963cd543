"""The accurate residual against exact fractions."""

from fractions import Fraction

import pytest
import torch

from schuss.newton import refinement


@pytest.mark.parametrize("d", [1, 2, 7, 40])
@pytest.mark.parametrize("block", [1, 2**18])
def test_the_residual_is_as_good_as_twice_the_digits(d, block, monkeypatch):
    monkeypatch.setattr(refinement, "BLOCK", block)
    random = torch.Generator().manual_seed(d)
    scales = torch.logspace(-8, 8, d, dtype=torch.float64)
    matrix = torch.randn(d, d, dtype=torch.float64, generator=random) * scales
    x = torch.randn(d, dtype=torch.float64, generator=random) / scales
    right = matrix @ x  # so that all leading digits cancel
    exact = [
        Fraction(b) - sum(Fraction(m) * Fraction(v) for m, v in zip(row, x.tolist(), strict=True))
        for row, b in zip(matrix.tolist(), right.tolist(), strict=True)
    ]
    found = refinement.residual(matrix, x, right)
    size = float((matrix.abs() @ x.abs()).max())
    for mine, true in zip(found.tolist(), exact, strict=True):
        assert abs(mine - float(true)) <= 1e-15 * abs(float(true)) + d * 1e-31 * size
