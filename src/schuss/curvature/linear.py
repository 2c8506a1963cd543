r"""What a rule does to a weight near a minimum, read off its own `update`: a linear iteration, and its stability limit.

On ½ h w² the gradient is h w. State is of two kinds. The *momenta* M move with w: they are the fewest slots for which
w = 0, M = 0 stays where it is without a gradient, and moves linearly near it. All other slots, second moments for one,
are *frozen*: where `update` works out the new number of such a slot, it goes on with the present one. So runs of
`update` from one small unit of w, g and M each give the matrix exactly:

    (w, M) ← (A + h b e_wᵀ) (w, M)          L2 decay λ adds to h: A is taken where g + λ w = 0

Its characteristic polynomial is a(z) − h c(z), with a(z) = det(z − A) and c(z) = e_wᵀ adj(z − A) b. A root can cross
the unit circle only where a(z) / c(z) is real for some |z| = 1, that is at z = ±1 or at a root of

    a(z) c(1/z) − a(1/z) c(z)

Between two such h the number of roots outside does not change, so one test inside each interval finds the largest
stable h. For gradient descent it is 2 / η, for heavy ball 2 (1 + μ) / η, for Adam 2 (1 + β₁) / ((1 − β₁) η).

From weight to weight frozen state may change c(z) by a factor 1 / P and nothing else: P is the preconditioner, which
the first move after a single gradient shows. A rule for which that is not so is refused.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from schuss.compile.formula import Formula, formula
from schuss.compile.reference import WORDS
from schuss.errors import refusal
from schuss.rules import Rule

Array = np.ndarray[Any, Any]

# Small enough for its square to vanish next to every size, exact in floating point.
_SMALL = 2.0**-300
# A size next to which ε vanishes, so that the limit can be stated without it.
_LARGE = 2.0**200
# After so many steps what dies out with time has died out. Two of them: a rate that still falls is seen to differ.
_LATE = 10**15, 10**16
_MOST_REPEATS = 20_000


class _Number(NDArrayOperatorsMixin):
    """An array on its way through an `update`.

    Operations are numbered as in `results`; the results of those in `frozen` are replaced.
    """

    def __init__(
        self, value: Any, results: list[Any], frozen: Mapping[int, Any], index: int | None = None
    ) -> None:
        self.value, self.results, self.frozen, self.index = value, results, frozen, index

    def __array_function__(self, function: Any, types: Any, given: Any, keywords: Any) -> _Number:
        index = len(self.results)
        plain = (value.value if isinstance(value, _Number) else value for value in given)
        self.results.append(self.frozen[index] if index in self.frozen else function(*plain))
        return _Number(self.results[index], self.results, self.frozen, index)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *given: Any) -> _Number:
        return self.__array_function__(ufunc, (), given, {})


@dataclass(frozen=True)
class _Update:
    """The `update` of a rule of this name, with the coefficients of one step."""

    name: str
    formula: Formula
    coefficients: tuple[float, ...]

    def run(self, w: Any, g: Any, slots: Mapping[str, Any], frozen: Mapping[int, Any]) -> dict[str, _Number]:
        """The new slots by name, and the new w by none."""
        names = self.formula.slots
        results: list[Any] = []
        given = (w, g, *(slots[name] for name in names), *self.coefficients)
        numbers = (_Number(np.asarray(value, np.float64), results, frozen) for value in given)
        with np.errstate(all="ignore"):
            new = self.formula.bind(WORDS)(*numbers)
        found = (value if isinstance(value, _Number) else _Number(value, results, frozen) for value in new)
        return dict(zip(("", *names), found, strict=True))

    def freeze(
        self, momenta: tuple[str, ...], slots: Mapping[str, Any]
    ) -> tuple[dict[int, Any], dict[str, Any]]:
        """What to hold still, by operation and by name."""
        numbers = {name: slots[name] for name in self.formula.slots if name not in momenta}
        operations = _operations(self.formula)
        return {operations[name]: x for name, x in numbers.items() if name in operations}, numbers

    @functools.cached_property
    def slots(self) -> dict[str, Array]:
        """Numbers of each slot for several weights: all sizes `_LARGE`, then 16 times that, then of many kinds.

        A size is a slot to which a gradient and its opposite do the same.
        """
        zeros = dict.fromkeys(self.formula.slots, 0.0)
        up, down = (self.run(0.0, sign * 0.37, zeros, {}) for sign in (1, -1))
        found: dict[str, Array] = {}
        for k, name in enumerate(zeros):
            values = np.geomspace(2.0**-20, 2.0**20, 7)[np.arange(7) * (k + 2) % 7] * (1 + k / 8)
            even = np.array_equal(up[name].value, down[name].value, equal_nan=True)
            ends = [_LARGE, 16 * _LARGE] if even else [0.0, 0.0]
            found[name] = np.concatenate([ends, values if even else values * 2.0**-40])
        return found

    def responses(
        self, momenta: tuple[str, ...], start: Array | None = None, l2: float = 0.0
    ) -> tuple[Array, _Number]:
        """The new (w, M), in rows, for each start (w, g, M) in the rows of `start` times `_SMALL`, and each weight.

        Without `start` for none of all, then for a unit of each. Also the new w by itself.
        """
        if start is None:
            start = np.eye(3 + len(momenta), 2 + len(momenta), k=-1)
        frozen, numbers = self.freeze(momenta, self.slots)
        count = len(next(iter(numbers.values()), np.zeros(1)))
        columns = np.broadcast_to((start * _SMALL).T[:, :, None], (start.shape[1], len(start), count))
        w, g, *rest = columns
        new = self.run(w, g - l2 * w, numbers | dict(zip(momenta, rest, strict=True)), frozen)
        found = [np.broadcast_to(new[name].value, w.shape) for name in ("", *momenta)]
        return np.stack(found, axis=1) / _SMALL, new[""]


@functools.cache
def _operations(one: Formula) -> dict[str, int]:
    """Which operation gives the new number of each slot, where one does: `update` is a straight line."""
    update = _Update("", one, (1.0,) * len(one.coefficients))
    new = update.run(1.0, 1.0, dict.fromkeys(one.slots, 1.0), {})
    return {name: new[name].index for name in one.slots if new[name].index is not None}  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Iteration:
    """The linear iteration of a rule with these coefficients.

    `edge` is the largest stable h + λ where all sizes are `_LARGE`, `reference` what the first move is there.
    `power`: scaling all sizes by x scales `edge` by x to this power. `adaptive`: frozen state changes the steps.
    `decay` is what w is multiplied by where there is no gradient.
    """

    update: _Update
    momenta: tuple[str, ...]
    l2: float
    decay: float
    edge: float
    power: float
    adaptive: bool
    moves: int
    reference: float
    polynomials: tuple[Array, Array]

    @property
    def limit(self) -> float:
        """The largest stable h + λ where all sizes are 1 and ε is 0."""
        return self.edge / _LARGE**self.power

    @property
    def frozen(self) -> tuple[str, ...]:
        """The slots whose numbers matter."""
        return tuple(name for name in self.update.formula.slots if name not in self.momenta)

    def scale(self, slots: Mapping[str, Array]) -> Array:
        """The largest stable h + λ over `edge`, for each number of this state."""
        frozen, numbers = self.update.freeze(self.momenta, slots)
        w, g, momenta = 0.0, _SMALL, dict.fromkeys(self.momenta, 0.0)
        for _ in range(self.moves):
            new = self.update.run(w, g, numbers | momenta, frozen)
            w, momenta = new[""].value, {name: new[name].value for name in self.momenta}
            g = -self.l2 * w
        with np.errstate(all="ignore"):
            return np.asarray(self.reference / (w / _SMALL))


def _check_kind(name: str, rule: Rule, one: Formula) -> None:
    """Refuse a rule of which the step of one weight, at one time, does not tell the limit."""
    if one.passes:
        advice = (
            f"{name!r} measures whole tensors, so it has no limit for one weight. Measure the curvature itself with "
            "extreme_eigenvalues."
        )
        raise refusal("optimizer", name, "a method that moves each weight by itself", advice)
    if rule.has_evaluated():
        advice = (
            "The average that it evaluates takes less of each new step, so its limit is another at every step. Measure "
            "the curvature itself with extreme_eigenvalues."
        )
        raise refusal("optimizer", name, "a method whose steps all have the same limit", advice)


def _momenta(update: _Update) -> tuple[str, ...]:
    """The fewest slots with which (w, M) is at rest at 0 without a gradient, and moves linearly near it."""
    advice = "Its weights move even at a minimum."
    problem = refusal("optimizer", update.name, "at rest without a gradient", advice)
    for count in range(len(update.formula.slots) + 1):
        for names in itertools.combinations(update.formula.slots, count):
            rest = update.responses(names, np.zeros((1, 2 + count)))[0]
            if not np.nan_to_num(rest).any() and not np.isnan(rest).all():
                found = _nonlinear(update, names)
                if found is None:
                    return names
                problem = found
    raise problem


def _l2(new: _Number) -> float:
    """What the weight is multiplied by where it is first added to the gradient; the step itself is no decay."""
    for result in new.results[: new.index]:
        if np.ndim(result) == 2 and result.dtype == np.float64 and len(result) > 2 and not result[0].any():
            with np.errstate(all="ignore"):
                ratio = result[1] / result[2]
            if np.isfinite(ratio).all() and ratio.all():
                return float(ratio[0]) if ratio[0] > 0 and np.ptp(ratio) == 0 else 0.0
    return 0.0


def _polynomials(matrix: Array, entry: Array) -> tuple[Array, Array]:
    """The coefficients of a(z) = det(z − A) and c(z) = e_wᵀ adj(z − A) b (Faddeev and Le Verrier)."""
    size = len(matrix)
    a, c, adjoint = [1.0], [0.0], np.eye(size)
    for k in range(1, size + 1):
        c.append(float(adjoint[0] @ entry))
        adjoint = matrix @ adjoint
        a.append(float(-np.trace(adjoint) / k))
        adjoint = adjoint + a[-1] * np.eye(size)
    return np.array(a), np.array(c)


def _largest_stable(a: Array, c: Array) -> float:
    """Up to which h all roots of a(z) − h c(z) lie inside the unit circle; 0 if for no h > 0."""
    turned = np.convolve(a, c[::-1]) - np.convolve(a[::-1], c)
    circle = [z / abs(z) for z in np.roots(turned) if abs(abs(z) - 1) < 1e-4 and z.imag > 1e-6]
    points = np.array([1.0, -1.0, *circle])
    with np.errstate(all="ignore"):
        crossings = (np.polyval(a, points) / np.polyval(c, points)).real
    edges = sorted({float(h) for h in crossings if 0 < h < math.inf})
    if not edges:
        return math.inf if _inside(a, c, 1 / abs(c).max()) else 0.0
    inner = [edges[0] / 2, *(math.sqrt(x * y) for x, y in itertools.pairwise(edges)), 2 * edges[-1]]
    limit = 0.0
    for h, edge in zip(inner, [*edges, math.inf], strict=True):
        if _inside(a, c, h):
            limit = edge
        elif limit:
            break
    return limit


def _inside(a: Array, c: Array, h: float) -> bool:
    return bool((abs(np.roots(a - h * c)) < 1).all())


def _edge(name: str, matrix: Array, a: Array, c: Array) -> float:
    """The largest stable h, or why there is none."""
    radius = float(abs(np.linalg.eigvals(matrix[1:, 1:])).max()) if len(matrix) > 1 else 0.0
    moves, lost = bool(c.any()), 1 - float(matrix[0, 0])
    if radius > 1 or (radius == 1 and moves):
        raise refusal("momentum", radius, "in [0, 1)", "From 1 on no curvature is stable.")
    if lost > 2 or (lost == 2 and moves):
        advice = (
            "Decay alone multiplies weights by 1 − lr × weight_decay at every step: no curvature is stable."
        )
        raise refusal("lr × weight_decay", lost, "below 2", advice)
    limit = _largest_stable(a, c) if moves else math.inf
    if not limit:
        advice = "Its steps grow however small the curvature is."
        raise refusal("optimizer", name, "stable at any curvature", advice)
    return limit


def iteration(rule: Rule, values: Mapping[str, float]) -> Iteration:
    """The linear iteration of a rule with the coefficients `values`; `ValueError` says why there is none."""
    one, name = formula(rule), type(rule).__name__
    _check_kind(name, rule, one)
    update = _Update(name, one, tuple(float(value) for value in one.pick(values)))
    momenta = _momenta(update)
    l2 = _l2(update.responses(momenta)[1])
    found = update.responses(momenta, l2=l2)[0]
    entries = found[2]  # how a gradient of 1 enters (w, M), for each weight
    matrices = np.delete(found[1:], 1, axis=0).swapaxes(0, 1)
    moves = [entries[0]]
    now = entries
    for _ in range(2 * len(entries)):
        with np.errstate(all="ignore"):
            now = np.einsum("ijn,jn->in", matrices, now)
        moves.append(now[0])
    first = next((k for k, move in enumerate(moves) if move[0]), 0)
    _check_factors(name, np.array(moves), first)
    first_two = (0, min(1, entries.shape[1] - 1))
    polynomials = [_polynomials(matrices[:, :, k], entries[:, k]) for k in first_two]
    edges = [_edge(name, matrices[:, :, 0], a, c) for a, c in polynomials]
    finite = 0 < edges[0] < math.inf
    return Iteration(
        update=update,
        momenta=momenta,
        l2=l2,
        decay=float(matrices[0, 0, 0]),
        edge=edges[0],
        power=round(math.log2(edges[1] / edges[0]) / 4, 9) if finite else 0.0,
        adaptive=bool((moves[first] != moves[first][0]).any()),
        moves=first + 1,
        reference=float(moves[first][0]),
        polynomials=polynomials[0],
    )


def _nonlinear(update: _Update, momenta: tuple[str, ...]) -> ValueError | None:
    """The refusal of a rule whose step is not the sum of what small w, g and M do each."""
    parts = update.responses(momenta)[0][1:]
    size = np.array([1.0, -0.6, 0.35, 1.7, -0.8, 0.45, 1.3, -0.25])[np.arange(len(parts)) % 8]
    mixed = np.array(list(itertools.product((1, -1), repeat=len(parts)))) * size
    mixed = np.vstack([mixed, 2 * mixed])
    whole = update.responses(momenta, mixed)[0]
    with np.errstate(all="ignore"):
        expected = np.einsum("sc,cin->sin", mixed, parts)
        most = np.einsum("sc,cin->sin", abs(mixed), abs(parts))
        known = np.isfinite(most)
        if (abs(whole - expected) <= 1e-9 * most)[known].all():
            return None
    fixed = abs(parts[1])[np.isfinite(parts[1])].max(initial=0) > _LARGE
    advice = (
        "It uses only the sign of the gradient: its steps have a fixed size, whatever the curvature."
        if fixed
        else "A stability limit holds for steps in proportion to the gradient. Measure the curvature itself with "
        "extreme_eigenvalues."
    )
    return refusal("optimizer", update.name, "linear in small gradients", advice)


def _check_factors(name: str, moves: Array, first: int) -> None:
    """Refuse a rule whose frozen state changes more than the length of its steps."""
    with np.errstate(all="ignore"):
        ratio = moves / moves[first]
        known = np.isfinite(ratio).all(axis=0) & (moves[first] != 0)
    if not np.allclose(ratio[:, known], ratio[:, :1], rtol=1e-7, atol=1e-9) and known[0]:
        advice = (
            "Its momentum or decay differs from weight to weight, so no single limit holds. Measure the curvature "
            "itself with extreme_eigenvalues."
        )
        raise refusal("optimizer", name, "a method whose state only scales its steps", advice)


@functools.lru_cache(maxsize=256)
def present(rule: Rule, step: int, scalars: tuple[tuple[str, float], ...]) -> Iteration:
    """The iteration with the coefficients of step `step`, after which the tensor's own scalars are `scalars`.

    Before the first step, that with which it will be taken.
    """
    given = dict(scalars)
    if given and step:
        # The step began with other scalars, from which these follow where they depend on them.
        low, high = (rule.coefficients(step, **dict.fromkeys(given, x)) for x in (0.0, 1.0))
        span = {name: high[name] - low[name] for name in given}
        given |= {name: (given[name] - low[name]) / width for name, width in span.items() if width}
    return iteration(rule, rule.coefficients(step or 1, **given))


@functools.lru_cache(maxsize=256)
def settled(rule: Rule) -> Iteration | None:
    """The iteration in the limit of many steps; None for a rule that has none, as where the rate goes on falling."""
    first = rule.initial()
    scalars = {name: first.get(name, 0.0) for name in rule.scalars}
    found: list[Iteration] = []
    for step in _LATE:
        try:
            values = rule.coefficients(step, **scalars)
            for _ in range(_MOST_REPEATS if scalars else 0):
                last = values
                values = rule.coefficients(step, **{name: last[name] for name in rule.scalars})
                if formula(rule).pick(last) == formula(rule).pick(values):
                    break
            found.append(iteration(rule, values))
        except (ArithmeticError, ValueError):
            return None
        scalars = {name: values[name] for name in rule.scalars}
    one, other = found
    pairs = zip(one.polynomials, other.polynomials, strict=True)
    same = one.momenta == other.momenta and all(np.allclose(x, y, rtol=1e-9, atol=0) for x, y in pairs)
    return one if same else None
