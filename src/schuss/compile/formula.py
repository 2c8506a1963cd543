"""A page's `update` as material for a backend: its source, its names, and the same code over another vocabulary."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schuss.rules.rule import VOCABULARY, Rule


@dataclass(frozen=True)
class Formula:
    """One variant of a page: how a weight moves, and the names of what it takes."""

    rule: type[Rule]
    variant: str
    function: Callable[..., tuple[Any, ...]]
    slots: tuple[str, ...]
    coefficients: tuple[str, ...]

    @property
    def name(self) -> str:
        """The page's name, and the variant's."""
        return "_".join(filter(None, (self.rule.__name__.lower(), self.variant)))

    def source(self) -> str:
        """The text of `update`, as it stands on the page."""
        lines = textwrap.dedent(inspect.getsource(self.function)).splitlines()
        return "\n".join(line for line in lines if not line.startswith("@"))

    def words(self) -> tuple[str, ...]:
        """The words of the vocabulary that the formula uses."""
        used = {node.id for node in ast.walk(ast.parse(self.source())) if isinstance(node, ast.Name)}
        return tuple(word for word in VOCABULARY if word in used)

    def bind(self, vocabulary: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
        """The same code, with the page's words meaning what `vocabulary` says."""
        scope = {**self.function.__globals__, **{word: vocabulary[word] for word in self.words()}}
        return types.FunctionType(self.function.__code__, scope, self.function.__name__)


@functools.cache
def _formula(rule: type[Rule], variant: str) -> Formula:
    function = getattr(rule, f"update_{variant}" if variant else "update")
    names = tuple(inspect.signature(function).parameters)
    slots = rule.variants[variant]
    expected = ("w", "g", *slots)
    if names[: len(expected)] != expected:
        raise TypeError(
            f"{function.__qualname__} takes {', '.join(names)}; a page's update takes "
            f"{', '.join(expected)}, then its coefficients by name."
        )
    return Formula(rule, variant, function, slots, names[len(expected) :])


def formula(rule: Rule | type[Rule]) -> Formula:
    """The formula of a rule: of the variant that an instance chooses, of the plain one for a class."""
    if isinstance(rule, type):
        rule = rule()
    return _formula(type(rule), rule.variant)
