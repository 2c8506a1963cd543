"""The rules of one optimizer's groups."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from schuss.compile.grammar import check
from schuss.core.arguments import Kind
from schuss.core.checkpoint import Arrays, Check
from schuss.core.options import SWITCHES
from schuss.core.storage import NARROW, dtype_name
from schuss.errors import unknown
from schuss.rules import TABLE, Row, Rule, row_of

Tensor = torch.Tensor

_FIRST = {"params": "tensors, (name, tensor) pairs, or dicts of groups"}
_PROCESS_GROUP = inspect.Parameter(
    "process_group", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any
)


class _Tensors(Arrays):
    def number(self, value: Any) -> int | float | None:
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 and value.device.type != "meta" else None
        elif hasattr(value, "item") and math.prod(value.shape) == 1:
            value = value.item()
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def shape(self, value: Any) -> tuple[int, ...] | None:
        return tuple(value.shape) if isinstance(value, Tensor) and value.layout == torch.strided else None

    def dtype(self, value: Any) -> str:
        return dtype_name(value.dtype)

    def real(self, value: Any) -> Any:
        own = value.to_local() if hasattr(value, "to_local") else value  # of a DTensor this process's part
        own = own.detach()
        own = torch.view_as_real(own.resolve_conj()) if own.is_complex() else own
        return own if own.numel() and own.device.type != "meta" else None


READ = _Tensors()


def _check_of(row: Row) -> Check:
    return Check(
        row.rule,
        row.names,
        row.counts_steps,
        READ,
        lambda key, part: f"{part!r} of weight {key}",
        NARROW,
    )


@functools.cache
def kind_of(rule: type[Rule]) -> Kind:
    """A rule under PyTorch; `RuleError` if it cannot be compiled as it is written."""
    check(rule)
    return of_row(row_of(rule))


def of_row(row: Row) -> Kind:
    """What a row of the table is under PyTorch."""
    return Kind(row, _check_of(row), SWITCHES, _FIRST, _PROCESS_GROUP)


class Kinds:
    """The rules that an optimizer's groups are moved by: its own, and those that groups name with `rule`."""

    def __init__(self, own: Kind, others: Iterable[type[Rule]] = ()) -> None:
        self.own = own
        self.others: dict[str, Kind] = {rule.__name__: kind_of(rule) for rule in others}

    def of(self, group: Mapping[str, Any]) -> Kind:
        """The rule of a group."""
        name = group.get("rule")
        return self.own if name is None else self.others[name]

    def add(self, given: Any) -> Kind:
        """The rule that a new group gives as `rule`: a name in the table, or a rule's class."""
        if given is None:
            return self.own
        if isinstance(given, str):
            if given == self.own.row.name:
                return self.own
            if given not in self.others and given not in TABLE:
                raise unknown("rule", given, TABLE, "Or give the class of a rule of your own.")
            kind = self.others.get(given) or kind_of(TABLE[given].rule)
        else:
            kind = self.own if given is self.own.row.rule else kind_of(given)
        name = kind.row.name
        if kind is self.own:
            return kind
        if name == self.own.row.name or self.others.get(name, kind) is not kind:
            raise ValueError(
                f"Two different rules of this optimizer are called {name!r}, and a checkpoint tells them apart by "
                "name. Rename one."
            )
        self.others[name] = kind
        return kind

    def rules(self) -> list[type[Rule]]:
        """The rules other than the optimizer's own."""
        return [kind.row.rule for kind in self.others.values()]

    @property
    def scalars(self) -> int:
        """How many numbers a tensor's rule remembers of it as a whole, at most."""
        return max(len(kind.row.rule.scalars) for kind in (self.own, *self.others.values()))
