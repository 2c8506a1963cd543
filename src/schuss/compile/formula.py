"""A page's `update` as material for a backend: its source, its names, and the same code over another vocabulary."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schuss.compile.grammar import AVERAGE, RENEWED, check, text_of
from schuss.compile.passes import Passes
from schuss.compile.restraint import LARGEST, restrained
from schuss.rules.rule import VOCABULARY, WHOLE_TENSOR, Rule

__all__ = ["AVERAGE", "RENEWED", "Formula", "formula"]


@dataclass(frozen=True)
class Formula:
    """One variant of a page: how a weight moves, and the names of what it takes.

    If `averaged`, the weight's running average moves along: one more slot, and one more coefficient. If `cautious` or
    `limited`, the change is held back as in `restraint`; a limit is one more coefficient.
    """

    rule: type[Rule]
    variant: str
    function: Callable[..., tuple[Any, ...]]
    page_slots: tuple[str, ...]
    page_coefficients: tuple[str, ...]
    averaged: bool = False
    cautious: bool = False
    limited: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The options that change the formula, by name."""
        return tuple(name for name in ("cautious", "limited", "averaged") if getattr(self, name))

    @property
    def name(self) -> str:
        """The page's name, the variant's, and those of the options."""
        return "_".join(filter(None, (self.rule.__name__.lower(), self.variant, *self.options)))

    @property
    def title(self) -> str:
        """The same for people."""
        more = ", ".join(filter(None, (self.variant, *self.options)))
        return f"{self.rule.__name__} ({more})" if more else self.rule.__name__

    @functools.cached_property
    def slots(self) -> tuple[str, ...]:
        """What is remembered of each weight, by name."""
        return (*self.page_slots, AVERAGE) if self.averaged else self.page_slots

    @functools.cached_property
    def coefficients(self) -> tuple[str, ...]:
        """The scalars of a step, by name."""
        return (*self.own_coefficients, RENEWED) if self.averaged else self.own_coefficients

    @property
    def own_coefficients(self) -> tuple[str, ...]:
        """Those that `update` takes: of the page, and the largest change where it is limited."""
        return (*self.page_coefficients, LARGEST) if self.limited else self.page_coefficients

    @functools.cached_property
    def pick(self) -> Callable[[Mapping[str, float]], tuple[float, ...]]:
        """The page's own scalars, from what it says by name."""
        names = self.page_coefficients
        if len(names) > 1:
            return operator.itemgetter(*names)
        return lambda values: tuple(values[name] for name in names)

    def values(
        self, rule: Rule, values: Mapping[str, float], max_update: float | None = None
    ) -> tuple[float, ...]:
        """The scalars that `update` takes at a step of `rule`, which gives the page's own by name."""
        if not self.limited:
            return self.pick(values)
        assert max_update is not None
        return (*self.pick(values), max_update * rule.lr)  # type: ignore[attr-defined]

    def source(self) -> str:
        """The text of `update`, as it stands on the page; where options hold its change back, with their lines."""
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        text = "\n".join(line for line in text_of(self.function).splitlines() if not line.startswith("@"))
        return restrained(text, self.cautious, self.limited) if self.restrained else text

    @property
    def restrained(self) -> bool:
        """Whether an option holds the change back."""
        return self.cautious or self.limited

    @functools.cached_property
    def code(self) -> types.CodeType:
        """The code of `update`."""
        if not self.restrained:
            return self.function.__code__
        scope: dict[str, Any] = {}
        exec(self.source(), scope)
        return scope["update"].__code__

    def words(self) -> tuple[str, ...]:
        """The words of the vocabulary that the formula uses."""
        used = {node.id for node in ast.walk(ast.parse(self.source())) if isinstance(node, ast.Name)}
        return tuple(word for word in VOCABULARY if word in used)

    @functools.cached_property
    def passes(self) -> Passes | None:
        """How the update is cut where it needs whole tensors; None if it does not."""
        shaped = any(slot in self.rule.shapes for slot in self.page_slots)
        if not shaped and not any(word in WHOLE_TENSOR for word in self.words()):
            return None
        return Passes(self.source(), self.page_slots, self.rule.shapes)

    @functools.cached_property
    def of_matrices(self) -> bool:
        """Whether the update needs products of matrices."""
        return self.passes is not None and bool(self.passes.matrices)

    def for_axes(self, rule: Rule, dimensions: int) -> Formula:
        """The same of `rule` for weights with so many axes."""
        options = {"cautious": self.cautious, "limited": self.limited}
        return formula(rule, self.averaged, **options, dimensions=dimensions)

    @property
    def by_shape(self) -> bool:
        """Whether the update needs to know which elements are of one row or column, or how many of these there are."""
        words = self.passes.words if self.passes else ()
        shaped = any(word.word in ("rows", "columns") for word in words)
        return shaped or self.of_rows or self.of_matrices

    @functools.cached_property
    def of_rows(self) -> bool:
        """Whether the update tells rows and columns of the weight apart."""
        return self.passes is not None and self.passes.of_rows

    def with_average(self, measured: tuple[str, ...] = ()) -> str:
        """The text of `moved`: the page's `update`, which may take what was measured, and the average's."""
        arguments = ", ".join(("w", "g", *self.slots, *self.coefficients, *measured))
        page = ", ".join(("w", "g", *self.page_slots, *self.own_coefficients, *measured))
        new = ", ".join(("w", *self.page_slots))
        return (
            f"def moved({arguments}):\n"
            f"    {new}{'' if self.page_slots else ','} = update({page})\n"
            f"    return {new}, {AVERAGE} + {RENEWED} * (w - {AVERAGE})"
        )

    def bind(self, vocabulary: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
        """The same code, with the page's words meaning what `vocabulary` says."""
        scope = {**self.function.__globals__, **{word: vocabulary[word] for word in self.words()}}
        update = types.FunctionType(self.code, scope, self.function.__name__)
        if not self.averaged:
            return update
        both: dict[str, Any] = {"update": update}
        exec(self.with_average(), both)
        return both["moved"]


@functools.cache
def _formula(rule: type[Rule], variant: str, averaged: bool, cautious: bool, limited: bool) -> Formula:
    check(rule)
    function = getattr(rule, f"update_{variant}" if variant else "update")
    slots = rule.variants[variant]
    names = tuple(inspect.signature(function).parameters)
    return Formula(rule, variant, function, slots, names[2 + len(slots) :], averaged, cautious, limited)


def formula(
    rule: Rule | type[Rule],
    averaged: bool = False,
    *,
    cautious: bool = False,
    limited: bool = False,
    dimensions: int | None = None,
) -> Formula:
    """The formula of a rule: of the variant that an instance chooses, of the plain one for a class.

    If `averaged`, with the running average of the weights: `average ← average + renewed · (w − average)`. If `cautious`
    or `limited`, with these options of the change: see `restraint`. With `dimensions`, the one for weights with so many
    axes; `ValueError` if it has none for them.
    """
    if isinstance(rule, type):
        check(rule)
        rule = rule()
    variant = rule.variant if dimensions is None else rule.variant_of(dimensions)
    found = _formula(type(rule), variant, averaged, cautious, limited)
    if dimensions is not None and dimensions < 2 and found.of_rows:
        raise ValueError(
            f"{type(rule).__name__} takes means over rows and columns, and a weight with {dimensions} axes has none. "
            "Give it a variant for these weights, and say so in variant_of(dimensions)."
        )
    return found
