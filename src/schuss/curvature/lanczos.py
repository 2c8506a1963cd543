r"""Both ends of a symmetric matrix's spectrum by block Lanczos, restarted thickly, orthogonalised in full.

The basis Q (rows) grows a block at a time: W = H·(last block), made orthogonal to all of Q twice, is the next
block. The coefficients T = Q H Qᵀ are measured, not assumed tridiagonal, in float64 whatever the rows are. For a
symmetric H the coefficients of a new block with the basis are those of the basis with the block: how far they
differ says how symmetric H is. When memory for rows is full, the basis is replaced by the Ritz vectors nearest the
wanted ends and the last block. A block that loses rank (an invariant subspace is found) is refilled with random
directions, which is how further copies of a repeated eigenvalue come in.

A block of b rows meets up to b copies of an eigenvalue, at b times the products for the same polynomial
degree. A narrower block is made good by probes: once the wanted ends have converged, they stay and the iteration
starts again from random directions orthogonal to them. A copy that was missed comes up and takes its place; a
probe whose next values settle without changing the ends says that none is missing.

Sources: Golub and Underwood 1977 (block); Wu and Simon 2000 (thick restart); Parlett 1998, chapter 13 (why in
full).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Apply = Callable[[Tensor], Tensor]
"""An operator: the products of some rows, as rows that may be written to."""

CHUNK = 2**15
"""Columns that are raised to float64 at a time."""

SYMMETRIC = 2e-3
"""An asymmetry of the coefficients up to this, relative, may be rounding: low precision, differences of gradients."""


def inner(a: Tensor, b: Tensor) -> Array:
    """All inner products of rows, a bᵀ, summed in float64 without float64 copies of the rows."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], CHUNK):
        columns = slice(start, start + CHUNK)
        total += a[:, columns].double() @ b[:, columns].double().T
    return total.cpu().numpy()


def combine(coefficients: Array, rows: Tensor, out: Tensor) -> None:
    """out ← coefficients @ rows, in chunks, so that `out` may be the head of `rows`."""
    matrix = torch.from_numpy(np.ascontiguousarray(coefficients)).to(rows.device)
    for start in range(0, rows.shape[1], CHUNK):
        columns = slice(start, start + CHUNK)
        out[:, columns] = (matrix @ rows[:, columns].double()).to(rows.dtype)


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of the symmetric part, on the threads torch may use."""
    values, vectors = torch.linalg.eigh(torch.from_numpy((matrix + matrix.T) / 2))
    return values.numpy(), vectors.numpy()


@dataclass
class Ritz:
    """What a Krylov space knows of a matrix.

    `values` are ascending, with `residuals` ‖H y − θ y‖, never below rounding.
    `coordinates` (m × m) are the Ritz vectors in the rows of `basis`. `converged` says that the wanted values are
    within tolerance, `confirmed` that among them no copy of a repeated eigenvalue is missing. `asymmetry` is the
    largest |qᵢᵀH qⱼ − qⱼᵀH qᵢ| that was met, relative to the largest coefficient. Beyond `SYMMETRIC` the residuals
    are no smaller than it, nothing is converged or confirmed, and a warning has said so. `upcoming` and `dropped`
    are the parts of the residuals along the next block and along what probes gave up.
    """

    values: Array
    residuals: Array
    coordinates: Array
    basis: Tensor
    upcoming: Array
    dropped: Array
    products: int
    asymmetry: float
    converged: bool = False
    confirmed: bool = False

    @property
    def largest(self) -> float:
        """The largest |θ|."""
        return float(np.abs(self.values).max())

    def vectors(self, which: list[int]) -> Tensor:
        """The Ritz vectors of the given indices, as rows of unit length."""
        out = self.basis.new_empty(len(which), self.basis.shape[1])
        combine(self.coordinates[:, which].T, self.basis[: len(self.values)], out)
        return out


def is_symmetric(asymmetry: float) -> bool:
    """Whether coefficients may be those of a symmetric matrix; a warning says where they are not."""
    if asymmetry <= SYMMETRIC:
        return True
    warnings.warn(
        f"The matrix-vector products are not those of a symmetric matrix: uᵀHv and vᵀHu differ by {asymmetry:.1%} of "
        "the largest, so eigenvalues may be wrong by that much. Likely causes: a loss that holds part of itself "
        "constant (detach, buffers that move: try model.eval()), a wrong second derivative, or low precision "
        "(autocast: measure without it).",
        stacklevel=4,
    )
    return False


def wanted(size: int, low: int, high: int) -> list[int]:
    """The indices of the `low` first and `high` last of `size`, without repetition, ascending."""
    return sorted(set(range(min(low, size))) | set(range(max(size - high, 0), size)))


def lanczos(
    apply: Apply,
    basis: Tensor,
    *,
    block: int,
    low: int,
    high: int,
    tolerance: float,
    budget: int,
    generator: torch.Generator,
    progress: Callable[[int, int], object] | None = None,
) -> Ritz:
    """The `low` smallest and `high` largest eigenvalues of the operator `apply(rows)`.

    `basis` (rows × n) is the memory to work in, at least low + high + 2·block rows unless it has room for the
    whole space; its first row may hold a start vector (any row that is 0 is drawn at random). Stops when the
    wanted residuals are ≤ tolerance × the largest |θ| and no copy is missing, or when `budget` products are spent.
    """
    space = Krylov(apply, basis, block, generator)
    next_check = 0
    before: Array | None = None  # the ends when the running probe began
    while True:
        space.grow()
        if progress is not None:
            progress(min(space.products, budget), budget)
        complete, spent = space.size == 0, space.products + space.size > budget
        if not (space.full or space.m >= next_check or spent):
            continue
        found, ends = space.ritz(), wanted(space.m, low, high)
        # A residual of 0 proves an eigenvalue, not that it is an end: a basis of more than those can tell.
        enough = complete or space.m >= min(basis.shape[1], low + high + block)
        converged = enough and bool((found.residuals[ends] <= tolerance * found.largest).all())
        confirmed = complete or block >= max(low, high)
        if before is not None and converged and not confirmed and _settled(found, low, high, tolerance):
            confirmed = bool((np.abs(found.values[ends] - before) <= 2 * tolerance * found.largest).all())
            before = None
        if complete or spent or (converged and confirmed):
            break
        if converged and before is None:
            before = found.values[ends]
            space.probe(found, ends)
        elif space.full:
            # The wanted ends survive a restart and, next to them, up to a third of what memory is left.
            extra = max((min(len(basis) - 2 * block, space.m) - low - high) // 3, 0)
            at_low = extra // 2 if low and high else extra if low else 0
            space.restart(found, wanted(space.m, low + at_low, high + extra - at_low))
        next_check = space.m + max(space.m // 8, 1)
    symmetric = is_symmetric(space.asymmetry)
    least = 0.0 if symmetric else space.asymmetry * found.largest
    return replace(
        found,
        residuals=np.maximum(found.residuals, least),
        converged=symmetric and (converged or complete),
        confirmed=symmetric and confirmed,
    )


def _settled(found: Ritz, low: int, high: int, tolerance: float) -> bool:
    """Whether the values next to the wanted ends are told from them, so that no copy hides in a mixture.

    A direction that mixes a missed copy of λ with an eigenvalue a gap away, in the fractions p and 1 − p, has a
    residual of √(p / (1 − p)) times its own distance from λ. A hundredth of that distance bounds p by 1e-4.
    """
    values, m = found.values, len(found.values)
    if m < low + high + 2:
        return False
    near = [(low, low - 1)] if low else []
    near += [(m - high - 1, m - high)] if high else []
    small = tolerance * found.largest
    return all(found.residuals[i] <= max(small, abs(values[i] - values[end]) / 100) for i, end in near)


class Krylov:
    """Orthonormal rows in one block of memory, and the coefficients of an operator in the first `m` of them.

    The `size` rows after those are the next block; 0 once the rows span the whole space.
    """

    def __init__(self, apply: Apply, basis: Tensor, block: int, generator: torch.Generator) -> None:
        """Work in `basis`; random directions come from `generator`."""
        self.apply, self.basis, self.block, self.generator = apply, basis, block, generator
        self.m, self.size = 0, min(block, basis.shape[1])
        self.products, self.asymmetry, self.scale = 0, 0.0, 1.0
        self.projected = np.zeros((len(basis), len(basis)))
        self.coupling = np.zeros((0, 0))  # (next block)ᵀ H (last block)
        self.linked: Array | None = None  # (next block)ᵀ H (basis), as the residuals of the basis tell it
        self.dropped = np.zeros((0, len(basis)))  # residuals along directions that probes gave up
        self._orthonormalise()

    @property
    def full(self) -> bool:
        """Whether there is no memory for another block and its products."""
        return self.size == 0 or self.m + 2 * self.size > len(self.basis)

    def grow(self) -> None:
        """Take the next block into the space, and find the one after it."""
        m, size = self.m, self.size
        stop = m + size
        products = self.apply(self.basis[m:stop])
        if stop + size <= len(self.basis):
            products = self.basis[stop : stop + size].copy_(products)
        self.products += size
        coefficients = self._remove(products, 0, stop)
        self.projected[:stop, m:stop] = coefficients
        self.projected[m:stop, :stop] = coefficients.T
        self.scale = float(np.abs(self.projected[:stop, :stop]).max())
        own = coefficients[m:]
        lopsided = float(np.abs(own - own.T).max())
        if self.linked is not None:
            lopsided = max(lopsided, float(np.abs(coefficients[:m].T - self.linked).max()))
        self.asymmetry = max(self.asymmetry, lopsided / self.scale if self.scale else 0.0)
        self.m, self.size = stop, min(self.block, self.basis.shape[1] - stop)
        self.coupling = self._orthonormalise(products) if self.size else np.zeros((0, size))
        self.linked = np.hstack([np.zeros((self.size, m)), self.coupling])

    def ritz(self) -> Ritz:
        """The Ritz pairs of the space so far."""
        values, coordinates = eigh(self.projected[: self.m, : self.m])
        upcoming = self.coupling @ coordinates[self.m - self.coupling.shape[1] :]
        dropped = self.dropped[:, : self.m] @ coordinates
        distance = np.linalg.norm(upcoming, axis=0) + np.abs(dropped).sum(axis=0)
        rounding = 10 * torch.finfo(self.basis.dtype).eps * np.abs(values).max()
        residuals = np.hypot(distance, rounding)
        return Ritz(
            values, residuals, coordinates, self.basis, upcoming, dropped, self.products, self.asymmetry
        )

    def restart(self, found: Ritz, chosen: list[int]) -> None:
        """Replace the basis by the `chosen` Ritz vectors; go on from the next block."""
        end = self.m
        self._replace(found, chosen, found.dropped)
        for i in range(self.size):
            self.basis[self.m + i] = self.basis[end + i]
        self.linked = found.upcoming[:, chosen]

    def probe(self, found: Ritz, chosen: list[int]) -> None:
        """Replace the basis by the `chosen` Ritz vectors; go on from random directions orthogonal to them."""
        self._replace(found, chosen, np.vstack([found.dropped, found.upcoming]))
        self.basis[self.m : self.m + self.size] = 0
        self._orthonormalise()
        self.linked = None

    def _replace(self, found: Ritz, chosen: list[int], dropped: Array) -> None:
        """The basis becomes Ritz vectors, with `dropped` as the residuals along what is given up."""
        combine(found.coordinates[:, chosen].T, self.basis[: self.m], self.basis[: len(chosen)])
        self.m = m = len(chosen)
        self.dropped = np.zeros((len(dropped), len(self.basis)))
        self.dropped[:, :m] = dropped[:, chosen]
        self.projected[:] = 0
        self.projected[range(m), range(m)] = found.values[chosen]

    def _remove(self, rows: Tensor, start: int, stop: int, passes: int = 2) -> Array:
        """Make `rows` orthogonal to some of the basis; returns what was removed."""
        basis, total = self.basis[start:stop], np.zeros((stop - start, len(rows)))
        for _ in range(passes):
            coefficients = inner(basis, rows)
            rows.addmm_(torch.from_numpy(coefficients.T.copy()).to(rows), basis, alpha=-1)
            total += coefficients
        return total

    def _orthonormalise(self, rows: Tensor | None = None) -> Array:
        """Make the next block orthonormal, from `rows` or in place; R with rowsᵀ = Qᵀ R.

        A row with nothing new in it (norm at rounding level) is replaced by a random direction, at R = 0.
        """
        m, size = self.m, self.size
        given = self.basis[m : m + size] if rows is None else rows
        triangle = np.zeros((size, len(given)))
        found = 0
        floor = 50 * torch.finfo(self.basis.dtype).eps * self.scale
        for column in range(len(given)):
            if found == size:
                break
            row = given[column : column + 1]
            if found:
                triangle[:found, column] = self._remove(row, m, m + found)[:, 0]
            norm = float(np.sqrt(inner(row, row)[0, 0]))
            if norm > floor:
                target = self.basis[m + found]
                target.copy_(row[0])
                target /= norm
                triangle[found, column] = norm
                if rows is not None:
                    self._tidy(m + found)
                found += 1
        for fresh in range(m + found, m + size):
            self.basis[fresh].normal_(generator=self.generator)
            self._tidy(fresh)
            self._tidy(fresh)
        return triangle

    def _tidy(self, m: int) -> None:
        """Once more orthogonal to all rows before, and of unit length: rounding left by a small remainder."""
        row = self.basis[m : m + 1]
        if m:
            self._remove(row, 0, m, passes=1)
        row /= float(np.sqrt(inner(row, row)[0, 0]))
