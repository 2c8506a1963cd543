"""What one rule is under an API, and the constructor that a class for it shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from schuss.compile.checkpoint import Check
from schuss.compile.front import OPTIONS, SWITCHES, Arguments, class_doc, own_signature
from schuss.errors import closest
from schuss.rules import Row

# How alike a group's key and one of ours must be to be taken for a slip: `max_momentum` and `momentum` are not (0.8).
MISSPELLED = 0.85


class Kind:
    """One rule under an API: the arguments it takes, the names of its state, and the checks of its checkpoints.

    `switches` are torch.optim's that it takes, with their defaults; `more` arguments of the API's own.
    """

    def __init__(self, row: Row, check: Check, switches: Mapping[str, Any], *more: inspect.Parameter) -> None:
        self.row, self.check = row, check
        self.arguments = Arguments(row, switches, *more)
        self.sparse = tuple(row.sparse.items())
        scalars = {row.names[scalar] for scalar in row.rule.scalars}
        self.slot_names = set(row.names.values()) - scalars
        # What of a weight's state is there all or not at all: its count, scalars, and the slots of every variant.
        variants = list(row.rule.variants.values())
        always = [slot for slot in variants[0] if all(slot in variant for variant in variants)]
        self.together = [row.names[name] for name in (*always, *row.rule.scalars)]
        self.together += ["step"] if row.counts_steps else []
        # The hyperparameters that every checkpoint has: torch's numbers, not its switches.
        theirs, parameters = set(row.arguments.split()), self.arguments.parameters
        own = [name for name, _ in self.arguments.names if name in theirs]
        self.needed = [name for name in own if parameters[name].default is not False]
        self.takes = inspect.Signature(list(parameters.values()))

    def defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a group of another optimizer starts from: this rule's own defaults, and that optimizer's options."""
        shared = {*OPTIONS, *SWITCHES, "maximize"}
        return {
            name: options[name] if name in shared and name in options else parameter.default
            for name, parameter in self.arguments.parameters.items()
            if name != "process_group"
        }

    def check_spelling(self, group: Mapping[str, Any]) -> None:
        """Refuse a key that is nearly one of this rule's: it would change nothing, in silence.

        Other keys may be there: schedulers and frameworks keep theirs in groups (`initial_lr`, `max_momentum`, `name`).
        """
        parameters = self.arguments.parameters
        parts = {part: name for name, parts in self.arguments.names for part in parts}
        own = parts | {name: name for name in parameters}
        for key in group.keys() - parameters.keys() - {"params", "step", "schedules", "rule"}:
            near = closest(key, own, MISSPELLED)
            if near is not None:
                raise ValueError(
                    f"A parameter group has {key!r}, which {self.row.name} does not take. "
                    f"Did you mean {own[near]!r}?"
                )


def show_arguments(
    cls: Any, kind: Kind | None, construct: Callable[..., None], first: Mapping[str, str]
) -> None:
    """Give a class the signature and docstring of its rule, and a constructor that shows them.

    `kind` is None for a subclass with the rule of its parent: a constructor of its own then shows itself. `first` are
    the arguments before the hyperparameters, with what each is.
    """
    shown = own_signature(cls)
    if kind is None:
        if shown is not None:
            cls.__signature__ = shown
        return
    both = inspect.Parameter.POSITIONAL_OR_KEYWORD
    takes = [inspect.Parameter(name, both) for name in first] + list(kind.arguments.parameters.values())
    kind.takes = inspect.Signature(takes)
    cls.__signature__ = shown or kind.takes
    cls.__doc__ = class_doc(
        kind.row, kind.arguments.parameters, [f"{n}: {text}" for n, text in first.items()]
    )
    if shown is None:

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            construct(self, *args, **kwargs)

        init.__name__, init.__doc__ = "__init__", construct.__doc__
        init.__signature__ = inspect.Signature([inspect.Parameter("self", both), *takes])  # type: ignore[attr-defined]
        cls.__init__ = init


def bound(cls: Any, kind: Kind, args: Any, kwargs: Any) -> dict[str, Any]:
    """A constructor's arguments by name, with defaults; `TypeError` names all that it takes."""
    try:
        found = kind.takes.bind(*args, **kwargs)
    except TypeError as problem:
        first = [n for n in kind.takes.parameters if n not in kind.arguments.parameters]
        listed = ", then ".join(filter(None, (", ".join(first), ", ".join(kind.arguments.parameters))))
        raise TypeError(f"{cls.__name__}: {problem}. It takes {listed}.") from None
    found.apply_defaults()
    return dict(found.arguments)
