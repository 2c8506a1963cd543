"""What a linear system still lacks, as if computed in twice the digits.

Sources: Dekker, Numer. Math. 18 (1971), for exact products; Ogita, Rump & Oishi, "Accurate sum and dot product",
SIAM J. Sci. Comput. 26 (2005), algorithm 5.3 (Dot2).
"""

from __future__ import annotations

import torch
from torch import Tensor

SPLIT = 2.0**27 + 1
BLOCK = 2**18  # numbers at a time, so that d² is not needed again


def residual(matrix: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """Return right − matrix x in float64, with an error of one rounding and not of one for each product.

    Refinement by such a residual solves an ill-conditioned system to the digits that the matrix itself has.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> residual((1 + 2.0**-30) * one[:, None], (1 - 2.0**-30) * one, one) * 2.0**60
    tensor([1.], dtype=torch.float64)
    """
    rows = max(1, BLOCK // max(len(x), 1))
    parts = zip(matrix.split(rows), right.split(rows), strict=True)
    return torch.cat([_block(part, x, side) for part, side in parts])


def _block(matrix: Tensor, x: Tensor, right: Tensor) -> Tensor:
    product = -matrix * x
    (a, b), (c, d) = _halves(-matrix), _halves(x)
    lost = (b * d - (((product - a * c) - b * c) - a * d)).sum(1)
    terms = torch.cat([product, right[:, None]], dim=1)
    while terms.shape[1] > 1:
        if terms.shape[1] % 2:
            terms = torch.nn.functional.pad(terms, (0, 1))
        p, q = terms[:, ::2], terms[:, 1::2]
        terms = p + q
        back = terms - p
        lost = lost + ((p - (terms - back)) + (q - back)).sum(1)
    return terms[:, 0] + lost


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    """a = high + low with 26 bits each, so that products of halves are exact."""
    high = SPLIT * a - (SPLIT * a - a)
    return high, a - high
