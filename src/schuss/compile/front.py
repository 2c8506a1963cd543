"""What the fronts share: a constructor made from a row of the table, hyperparameters that may be schedules, and what a
rule means for gradients of some rows only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from inspect import Parameter
from typing import Any, cast

from schuss.compile.formula import formula
from schuss.rules import PAIRS, Row, Rule

# How torch.optim chooses an implementation. There is one here, so these change nothing.
SWITCHES: Mapping[str, Any] = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def parameters(row: Row, switches: Mapping[str, Any]) -> dict[str, Parameter]:
    """A constructor's parameters: torch.optim's in its order, then the page's own and `maximize` by keyword.

    Of torch.optim's switches, those in `switches` are taken, with these defaults.
    """
    defaults: dict[str, Any] = {f.name: f.default for f in fields(row.rule)} | {"maximize": False}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    found: dict[str, Parameter] = {}
    for name in row.arguments.split():
        if name == "|":
            kind = Parameter.KEYWORD_ONLY
        elif name in SWITCHES:
            if name in switches:
                found[name] = Parameter(name, kind, default=switches[name])
        else:
            parts = PAIRS.get(name)
            default = tuple(defaults.pop(one) for one in parts) if parts else defaults.pop(name)
            found[name] = Parameter(name, kind, default=default)
    return found | {n: Parameter(n, Parameter.KEYWORD_ONLY, default=value) for n, value in defaults.items()}


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the finished steps; of a pair, whether either member is."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, cast(tuple[Any, ...], value))))


def at(value: Any, finished: int) -> Any:
    """A hyperparameter after `finished` steps: what its schedule says, if it has one; of a pair, each on its own."""
    if isinstance(value, tuple):
        return tuple(at(one, finished) for one in cast(tuple[Any, ...], value))
    return plain_number(value(finished)) if callable(value) else value


def plain_number(value: Any) -> Any:
    """Python's own number, from a tensor or array of one too; of a pair, each member."""
    if isinstance(value, tuple | list):
        return tuple(map(plain_number, cast(tuple[Any, ...], value)))
    if hasattr(value, "item"):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    return value


@functools.lru_cache(maxsize=1024)
def for_sparse(rule: Rule, conventions: tuple[tuple[str, Any], ...]) -> Rule:
    """The rule for gradients of some rows: PyTorch's `conventions` for them, where nothing else was asked for.

    Raises `RuntimeError` if the rule would need the untouched rows.
    """
    defaults = {f.name: f.default for f in fields(rule)}
    rule = replace(rule, **{k: v for k, v in conventions if getattr(rule, k) == defaults[k]})
    first = {name: rule.initial().get(name, 0.0) for name in rule.scalars}
    if "l2" in formula(rule).coefficients and rule.coefficients(1, **first)["l2"]:
        raise RuntimeError(
            f"weight_decay={getattr(rule, 'weight_decay', None)!r} (L2) is not possible with sparse gradients: it "
            "would need every row, and only touched rows move. Set weight_decay=0, or use a decoupled one, which "
            "touched rows alone then feel."
        )
    return rule
