"""Points of a search space: scrambled Sobol, one sequence for each dimension's name, shared by all entries.

Two entries that both search `lr` try the same quantiles of their own ranges, in the same order, so neither is
luckier. More trials keep the ones before. Source: A. Owen, "Scrambling Sobol' and Niederreiter–Xing points",
J. Complexity 14 (1998); the sequence is PyTorch's.
"""

import hashlib
from collections.abc import Iterable, Mapping
from math import exp, log

from schuss.errors import refusal, whole

Range = tuple[float, float, bool]  # low, high, log-uniform

# The first coordinates of a Sobol sequence are its best; the names that nearly every space has, own them.
COMMON = ("lr", "1 - beta1", "weight_decay", "momentum", "1 - beta2", "eps", "1 - momentum", "warmup")
COORDINATES = 64


def coordinates(names: Iterable[str]) -> dict[str, int]:
    """Return the Sobol coordinate of each name: fixed for the common ones, by the name's hash for others.

    It depends on nothing but the name, except that two uncommon names of one space never share a coordinate.

    >>> coordinates(["lr", "weight_decay"])
    {'lr': 0, 'weight_decay': 2}
    """
    found: dict[str, int] = {}
    spare, others = COORDINATES - len(COMMON), sorted(set(names) - set(COMMON))
    if len(others) > spare:
        raise refusal("dimensions", len(others), f"at most {spare}", "Search fewer at once.")
    for name in others:
        at = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % spare
        while len(COMMON) + at in found.values():
            at = (at + 1) % spare
        found[name] = len(COMMON) + at
    return {name: COMMON.index(name) if name in COMMON else found[name] for name in names}


def sample(space: Mapping[str, Range], trials: int, *, seed: int = 0) -> list[dict[str, float]]:
    """Return `trials` points of the space, `{name: (low, high, log-uniform)}`, as dicts by name.

    >>> few = sample({"lr": (1e-4, 1e-1, True), "momentum": (0.8, 1.0, False)}, 3)
    >>> few == sample({"momentum": (0.8, 1.0, False), "lr": (1e-4, 1e-1, True)}, 8)[:3]
    True
    """
    from torch import float64
    from torch.quasirandom import SobolEngine  # its scrambling keeps the prefix for every number of trials

    whole("trials", trials)
    for name, (low, high, logarithmic) in space.items():
        if not (low <= high and (low > 0 or not logarithmic)):
            allowed = "low ≤ high, and above 0 where it is log-uniform"
            raise refusal(name, (low, high, logarithmic), allowed, "Give (low, high, log-uniform).")
    column = coordinates(space)
    engine = SobolEngine(COORDINATES, scramble=True, seed=seed)
    rows: list[list[float]] = engine.draw(trials, dtype=float64).tolist()
    return [{name: _stretch(row[column[name]], *space[name]) for name in sorted(space)} for row in rows]


def _stretch(u: float, low: float, high: float, logarithmic: bool) -> float:
    value = exp(log(low) + u * (log(high) - log(low))) if logarithmic else low + u * (high - low)
    return min(max(value, low), high)  # exp(log(x)) may round out of the range
