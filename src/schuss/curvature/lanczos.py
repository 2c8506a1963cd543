r"""Both ends of a symmetric matrix's spectrum by block Lanczos, restarted thickly, orthogonalised in full.

The basis Q (rows) grows a block at a time: W = H·(last block), made orthogonal to all of Q twice, is the next
block. The coefficients T = Q H Qᵀ are measured, not assumed tridiagonal, and kept in float64; products of
rows are summed in float64 whatever the rows are. For a symmetric H the coefficients of a new block with the
basis are known before: those of the basis with the block. How far they differ says how symmetric H is.

When memory for rows is full, the basis is replaced by the Ritz vectors nearest the wanted ends and the last
block. A block that loses rank (an invariant subspace is found) is refilled with random directions, which is
how further copies of a repeated eigenvalue come in.

A block of b rows meets up to b copies of an eigenvalue, at b times the products for the same polynomial
degree; one row alone would meet just one. With `confirm` a narrower block is made good by probes: once the
wanted ends have converged, they are kept and the iteration starts again from random directions orthogonal to
them. A copy that was missed comes up and takes its place; a probe whose next values settle without changing
the ends says that none is missing.

Sources: Golub and Underwood 1977 (block); Wu and Simon 2000 (thick restart); Parlett 1998, chapter 13 (why in
full).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Apply = Callable[[Tensor, Tensor], None]
CHUNK = 1 << 15
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
    `coordinates` (m × m) are the Ritz vectors in the rows of `basis`; `exhausted` says that the basis spans
    the whole space, so the values are all eigenvalues; `converged` that the wanted ones are within tolerance;
    `confirmed` that among them no copy of a repeated eigenvalue is missing. `asymmetry` is the largest |qᵢᵀH qⱼ −
    qⱼᵀH qᵢ| that was met, relative to the largest coefficient. Beyond `SYMMETRIC` the residuals are no smaller than
    it, nothing is converged or confirmed, and a warning has said so.
    """

    values: Array
    residuals: Array
    coordinates: Array
    basis: Tensor
    products: int
    exhausted: bool
    converged: bool
    confirmed: bool
    asymmetry: float = 0.0

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
    restart: bool = True,
    confirm: bool = False,
) -> Ritz:
    """The `low` smallest and `high` largest eigenvalues of the operator `apply(rows, out)`.

    `basis` (rows × n) is the memory to work in, at least low + high + 2·block rows unless it has room for the
    whole space; its first row may hold a start vector (any row that is 0 is drawn at random). Stops when the
    wanted residuals are ≤ tolerance × the largest |θ| (with `confirm`, and a probe has found no further
    copy), when `budget` products are spent, or, without `restart`, when the memory is full.
    """
    space = Krylov(apply, basis, block, generator)
    next_look = 0
    before: Array | None = None  # the ends when the running probe began
    while True:
        space.grow()
        if progress is not None:
            progress(min(space.products, budget), budget)
        complete, spent = space.size == 0, space.products + space.size > budget
        if not (space.full or space.m >= next_look or spent):
            continue
        seen, ends = space.look(), wanted(space.m, low, high)
        # A residual of 0 proves an eigenvalue, not that it is an end: a basis of more than those can tell.
        enough = complete or space.m >= min(basis.shape[1], low + high + block)
        converged = enough and bool((seen.residuals[ends] <= tolerance * seen.largest).all())
        confirmed = complete or block >= max(low, high)
        if before is not None and converged and not confirmed and _settled(seen, low, high, tolerance):
            confirmed = bool((np.abs(seen.values[ends] - before) <= 2 * tolerance * seen.largest).all())
            before = None
        if complete or spent or (space.full and not restart) or (converged and (confirmed or not confirm)):
            break
        if converged and before is None:
            before = seen.values[ends]
            space.probe(seen, ends)
        elif space.full:
            space.restart(seen, _kept(space.m, low, high, len(basis) - 2 * block))
        next_look = space.m + max(space.m // 8, 1)
    symmetric = is_symmetric(space.asymmetry)
    return Ritz(
        values=seen.values,
        residuals=seen.residuals if symmetric else np.maximum(seen.residuals, space.asymmetry * seen.largest),
        coordinates=seen.coordinates,
        basis=basis,
        products=space.products,
        exhausted=space.m == basis.shape[1],
        converged=symmetric and (converged or complete),
        confirmed=symmetric and confirmed,
        asymmetry=space.asymmetry,
    )


def _settled(seen: _Look, low: int, high: int, tolerance: float) -> bool:
    """Whether the values next to the wanted ends are told from them, so that no copy hides in a mixture.

    A direction that mixes a missed copy of λ with an eigenvalue a gap away, in the shares p and 1 − p, has a
    residual of √(p / (1 − p)) times its own distance from λ. A hundredth of that distance bounds p by 1e-4.
    """
    values, m = seen.values, len(seen.values)
    if m < low + high + 2:
        return False
    near = [(low, low - 1)] if low else []
    near += [(m - high - 1, m - high)] if high else []
    small = tolerance * seen.largest
    return all(seen.residuals[i] <= max(small, abs(values[i] - values[end]) / 100) for i, end in near)


def _kept(m: int, low: int, high: int, room: int) -> list[int]:
    """What survives a restart: the wanted ends and, beside them, up to a third of what room is left."""
    extra = max((min(room, m) - low - high) // 3, 0)
    at_low = extra // 2 if low and high else extra if low else 0
    return wanted(m, low + at_low, high + extra - at_low)


@dataclass(frozen=True, eq=False)
class _Look:
    """The Ritz pairs of a space, and how far they are from being eigenpairs.

    `ahead` and `behind` are the parts of their residuals along the next block and along what probes gave up.
    """

    values: Array
    residuals: Array
    coordinates: Array
    ahead: Array
    behind: Array

    @property
    def largest(self) -> float:
        """The largest |θ|."""
        return float(np.abs(self.values).max())


class Krylov:
    """Orthonormal rows in one block of memory, and the coefficients of an operator in the first `m` of them.

    The `size` rows after those are the next block; 0 once the rows span the whole space.
    """

    def __init__(self, apply: Apply, basis: Tensor, block: int, generator: torch.Generator) -> None:
        """Work in `basis`; random directions come from `generator`."""
        self.apply, self.basis, self.block, self.generator = apply, basis, block, generator
        self.m, self.size, self.products, self.asymmetry, self.scale = (
            0,
            min(block, basis.shape[1]),
            0,
            0.0,
            1.0,
        )
        self.projected = np.zeros((len(basis), len(basis)))
        self.coupling = np.zeros((0, 0))  # (next block)ᵀ H (last block)
        self.linked: Array | None = None  # (next block)ᵀ H (basis), as the residuals of the basis tell it
        self.forgotten = np.zeros((0, len(basis)))  # residuals along directions that probes gave up
        self.orthonormalise(0, self.size, self.scale)

    @property
    def full(self) -> bool:
        """Whether there is no room for another block and its products."""
        return self.size == 0 or self.m + 2 * self.size > len(self.basis)

    def grow(self) -> None:
        """Take the next block into the space, and find the one after it."""
        (rows, n), m, size = self.basis.shape, self.m, self.size
        stop = m + size
        products = self.basis[stop : stop + size] if stop + size <= rows else self.basis.new_empty(size, n)
        self.apply(self.basis[m:stop], products)
        self.products += size
        coefficients = self.remove(products, stop)
        self.projected[:stop, m:stop] = coefficients
        self.projected[m:stop, :stop] = coefficients.T
        self.scale = float(np.abs(self.projected[:stop, :stop]).max())
        self._compare(coefficients[:m], coefficients[m:])
        self.m, self.size = stop, min(self.block, n - stop)
        self.coupling = np.zeros((0, size))
        if self.size:
            self.coupling = self.orthonormalise(stop, self.size, self.scale, products)
        self.linked = np.hstack([np.zeros((self.size, m)), self.coupling])

    def _compare(self, before: Array, own: Array) -> None:
        """How far the coefficients of a new block are from those of a symmetric matrix."""
        lopsided = float(np.abs(own - own.T).max())
        if self.linked is not None:
            lopsided = max(lopsided, float(np.abs(before.T - self.linked).max()))
        self.asymmetry = max(self.asymmetry, lopsided / self.scale if self.scale else 0.0)

    def look(self) -> _Look:
        """The Ritz pairs of the space so far."""
        values, coordinates = eigh(self.projected[: self.m, : self.m])
        ahead = self.coupling @ coordinates[self.m - self.coupling.shape[1] :]
        behind = self.forgotten[:, : self.m] @ coordinates
        distance = np.linalg.norm(ahead, axis=0) + np.abs(behind).sum(axis=0)
        rounding = 10 * torch.finfo(self.basis.dtype).eps * np.abs(values).max()
        return _Look(values, np.hypot(distance, rounding), coordinates, ahead, behind)

    def restart(self, seen: _Look, kept: list[int]) -> None:
        """Replace the basis by the Ritz vectors `kept`; go on from the next block."""
        end = self.m
        self._replace(seen, kept, seen.behind)
        for i in range(self.size):
            self.basis[self.m + i] = self.basis[end + i]
        self.linked = seen.ahead[:, kept]

    def probe(self, seen: _Look, kept: list[int]) -> None:
        """Replace the basis by the Ritz vectors `kept`; go on from random directions orthogonal to them."""
        self._replace(seen, kept, np.vstack([seen.behind, seen.ahead]))
        self.basis[self.m : self.m + self.size] = 0
        self.orthonormalise(self.m, self.size, self.scale)
        self.linked = None

    def _replace(self, seen: _Look, kept: list[int], behind: Array) -> None:
        """The basis becomes Ritz vectors, with `behind` as the residuals along what is given up."""
        combine(seen.coordinates[:, kept].T, self.basis[: self.m], self.basis[: len(kept)])
        self.m = m = len(kept)
        self.forgotten = np.zeros((len(behind), len(self.basis)))
        self.forgotten[:, :m] = behind[:, kept]
        self.projected[:] = 0
        self.projected[range(m), range(m)] = seen.values[kept]

    def remove(self, rows: Tensor, m: int) -> Array:
        """Make `rows` orthogonal to the first m of the basis, twice; returns what was removed."""
        basis, total = self.basis[:m], np.zeros((m, len(rows)))
        for _ in range(2):
            coefficients = inner(basis, rows)
            rows.addmm_(torch.from_numpy(coefficients.T.copy()).to(rows), basis, alpha=-1)
            total += coefficients
        return total

    def orthonormalise(self, m: int, size: int, scale: float, rows: Tensor | None = None) -> Array:
        """Make the next `size` basis rows orthonormal, from `rows` or in place; R with rowsᵀ = Qᵀ R.

        A row with nothing new in it (norm at rounding level of `scale`) is replaced by a random direction, at
        R = 0.
        """
        given = self.basis[m : m + size] if rows is None else rows
        triangle = np.zeros((size, len(given)))
        found = 0
        floor = 50 * torch.finfo(self.basis.dtype).eps * scale
        for column in range(len(given)):
            if found == size:
                break
            row = given[column : column + 1]
            if found:
                triangle[:found, column] = self._project(row, m, m + found)[:, 0]
            norm = float(np.sqrt(inner(row, row)[0, 0]))
            if norm > floor:
                target = self.basis[m + found]
                target.copy_(row[0])
                target /= norm
                triangle[found, column] = norm
                if rows is not None:
                    self._tidy(m + found)
                found += 1
        while found < size:
            fresh = self.basis[m + found]
            fresh.normal_(generator=self.generator)
            self._tidy(m + found)
            self._tidy(m + found)
            found += 1
        return triangle

    def _project(self, row: Tensor, start: int, stop: int) -> Array:
        total = np.zeros((stop - start, 1))
        for _ in range(2):
            coefficients = inner(self.basis[start:stop], row)
            row.addmm_(torch.from_numpy(coefficients.T.copy()).to(row), self.basis[start:stop], alpha=-1)
            total += coefficients
        return total

    def _tidy(self, m: int) -> None:
        """Once more orthogonal to all rows before, and of unit length: rounding left by a small remainder."""
        row = self.basis[m : m + 1]
        if m:
            row.addmm_(
                torch.from_numpy(inner(self.basis[:m], row).T.copy()).to(row), self.basis[:m], alpha=-1
            )
        row /= float(np.sqrt(inner(row, row)[0, 0]))
