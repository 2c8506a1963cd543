"""The options of every rule that hold back its change of a weight, as further lines of its `update`.

The weight is new = old + change. `cautious` leaves out what goes against −g and scales the rest up; with a limit,
the root mean square of the change over a tensor is at most `largest`:

    w = keep * w - step * m         kept = keep * w
                                    change = -(step * m)
                                    agrees = where((change < 0) & (g > 0) | (change > 0) & (g < 0), 1, 0)
                                    change = change * agrees
                                    factor = 1 / maximum(mean(agrees), 0.001)
                                    length = factor * root_mean_square(change)
                                    factor = factor · largest / length where length > largest
                                    w = kept + factor * change

The lines stand where the weight gets its last value: whatever is worked out of the new weight later (an average)
is of this one. Terms that are the old weight times coefficients are decay, which is no part of the change. They are
read off the text, so that a small change is not what is left of the difference of two large numbers.

Sources: Liang, Chen, Liu and Liu 2024, Cautious Optimizers, arXiv:2411.16085, Algorithm 1 (the scale here is timm's:
1 / max(mean, 0.001), not n / (n mean + 1)); Shazeer and Stern 2018, Adafactor, arXiv:1804.04235, section 6 (update
clipping, as optax.clip_by_block_rms before the learning rate; StableAdamW measures g / √v instead of the change).
"""

from __future__ import annotations

import ast

from schuss.rules.rule import VOCABULARY

__all__ = ["LARGEST", "restrained"]

# The coefficient that says how large a change may be.
LARGEST = "largest_change"
# The least part of a tensor that the scale of a cautious change is of.
_LEAST = 0.001


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _assigned(statement: ast.stmt) -> set[str]:
    return (
        {name for one in statement.targets for name in _names(one)}
        if isinstance(statement, ast.Assign)
        else set()
    )


class _Update:
    """The statements of an `update`, with its weight's last value in an assignment of its own."""

    def __init__(self, text: str) -> None:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        self.arguments = [one.arg for one in function.args.args]
        start = 1 if ast.get_docstring(function) else 0
        *self.body, last = function.body[start:]
        assert isinstance(last, ast.Return)
        assert isinstance(last.value, ast.Tuple)
        self.taken = _names(function) | {*self.arguments, *VOCABULARY}
        weight, *self.state = last.value.elts
        self.target = weight.id if isinstance(weight, ast.Name) else ""
        at = [k for k, one in enumerate(self.body) if self.target in _assigned(one)]
        if not at:
            self.target = self.free("moved")
            self.body.append(ast.Assign([ast.Name(self.target)], weight, lineno=0))
            at = [len(self.body) - 1]
        self.last = at[-1]

    def free(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def split(self) -> tuple[str, str]:
        """The weight's last value as two texts: what is kept of the old weight, and the change."""
        statement = self.body[self.last]
        assert isinstance(statement, ast.Assign)
        terms = _terms(statement.value) if isinstance(statement.targets[0], ast.Name) else []
        before = self.body[: self.last]
        only_decays = all(
            isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name) and self._is_old(one.value)
            for one in before
            if "w" in _assigned(one)
        )
        if only_decays:
            kept = [term for term in terms if self._is_old(term[1])]
            change = [term for term in terms if term not in kept]
            if kept and change:
                return _sum(kept), _sum(change)
        return "", ""

    def _is_old(self, node: ast.expr) -> bool:
        """Whether this is w, or w times coefficients."""
        match node:
            case ast.Name(id=name):
                return name == "w"
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                one, other = (left, right) if self._is_old(left) else (right, left)
                return self._is_old(one) and self._is_constant(other)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return self._is_old(left) and self._is_constant(right)
            case _:
                return False

    def _is_constant(self, node: ast.expr) -> bool:
        """Whether this is of coefficients alone."""
        slots = len(self.state)
        changed = {name for one in self.body for name in _assigned(one)}
        return _names(node) <= {*self.arguments[2 + slots :]} - changed


def _terms(node: ast.expr, sign: str = "+") -> list[tuple[str, ast.expr]]:
    """The terms of a sum, each with its sign, as far as they are written one after the other."""
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            return [*_terms(left, sign), ("-" if isinstance(op, ast.Sub) else "+", right)]
        case _:
            return [(sign, node)]


def _sum(terms: list[tuple[str, ast.expr]]) -> str:
    first, *others = (f"{sign} ({ast.unparse(term)})" for sign, term in terms)
    return " ".join((first.removeprefix("+ "), *others))


def restrained(text: str, cautious: bool, limited: bool) -> str:
    """The text of an `update` that holds its change back; with a limit it takes one more coefficient, `LARGEST`.

    >>> print(restrained("def update(w, g, keep, lr):\\n    return (keep * w - lr * g,)", False, True))
    def update(w, g, keep, lr, largest_change):
        kept = keep * w
        change = -(lr * g)
        length = root_mean_square(change)
        over = length > largest_change
        factor = where(over, largest_change / where(over, length, 1.0), 1.0)
        moved = kept + factor * change
        return (moved,)
    """
    update = _Update(text)
    gradient, old, kept, change, agrees, factor, length, over, largest = map(
        update.free, ("gradient", "old", "kept", "change", "agrees", "factor", "length", "over", LARGEST)
    )
    of_old, of_change = update.split()
    before, after = update.body[: update.last], update.body[update.last + 1 :]
    lines = [f"{gradient} = g"] if cautious else []
    if of_change:
        lines += [*map(ast.unparse, before), f"{kept} = {of_old}", f"{change} = {of_change}"]
    else:
        moved = ast.unparse(update.body[update.last])
        lines += [f"{old} = w", *map(ast.unparse, before), moved, f"{kept} = {old}"]
        lines.append(f"{change} = {update.target} - {old}")
    if cautious:
        down, up = f"({change} < 0.0) & ({gradient} > 0.0)", f"({change} > 0.0) & ({gradient} < 0.0)"
        lines += [
            f"{agrees} = where({down} | {up}, 1.0, 0.0)",
            f"{change} = {change} * {agrees}",
            f"{factor} = 1.0 / maximum(mean({agrees}), {_LEAST})",
        ]
    if limited:
        scale, one = (f"{factor} * ", factor) if cautious else ("", "1.0")
        lines += [
            f"{length} = {scale}root_mean_square({change})",
            f"{over} = {length} > {largest}",
            f"{factor} = where({over}, {scale}{largest} / where({over}, {length}, 1.0), {one})",
        ]
    lines += [f"{update.target} = {kept} + {factor} * {change}", *map(ast.unparse, after)]
    arguments = ", ".join((*update.arguments, *([largest] if limited else [])))
    result = ", ".join((update.target, *map(ast.unparse, update.state)))
    lines.append(f"return ({result}{'' if update.state else ','})")
    made = ast.parse("\n".join((f"def update({arguments}):", *(f"    {line}" for line in lines))))
    return ast.unparse(made)
