"""What a constructor takes for one rule, how its class shows that, and the rule that the values make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import Parameter, Signature, signature
from operator import itemgetter
from typing import Any, ClassVar, Literal, Self, cast

from schuss.compile.formula import Formula, formula
from schuss.compile.grammar import check
from schuss.core.checkpoint import Check
from schuss.core.options import KNOWN, OPTIONS, SWITCHES, Number
from schuss.errors import closest
from schuss.rules import TABLE, Row, Rule, row_of

# How alike a group's key and one of ours must be to be taken for a slip: `max_momentum` and `momentum` are not (0.8).
_MISSPELLED = 0.85
_BOTH = Parameter.POSITIONAL_OR_KEYWORD


def _parameters(row: Row, switches: Mapping[str, Any]) -> dict[str, Parameter]:
    """A constructor's parameters: torch.optim's in its order, then the rule's own, `maximize` and options by keyword.

    Of torch.optim's switches, those in `switches` are taken, with these defaults.
    """
    defaults: dict[str, Any] = {f.name: f.default for f in fields(row.rule)} | {"maximize": False, **OPTIONS}
    first, _, then = row.arguments.partition("|")
    given: dict[str, Any] = {}
    for name in f"{first} {then}".split():
        if name in SWITCHES:
            given |= {name: switches[name]} if name in switches else {}
        else:
            parts = row.rule.tuples.get(name)
            given[name] = tuple(defaults.pop(one) for one in parts) if parts else defaults.pop(name)
    if "capturable" in switches:  # which is more than a switch here: any step can be captured in a CUDA graph
        defaults["capturable"] = switches["capturable"]
    positional = first.split()
    return {
        name: Parameter(
            name,
            _BOTH if name in positional else Parameter.KEYWORD_ONLY,
            default=default,
            annotation=_type(row, name),
        )
        for name, default in (given | {n: value for n, value in defaults.items() if n not in given}).items()
    }


def _type(row: Row, name: str) -> Any:
    """The type of a constructor's argument."""
    if name in KNOWN:
        return KNOWN[name].kind
    if name in row.rule.tuples:
        parts = [_type(row, part) for part in row.rule.tuples[name]]
        return tuple[(*parts,)]  # type: ignore[misc]  # made as the program runs
    domain = next(f.metadata["domain"] for f in fields(row.rule) if f.name == name)
    if domain.kind is bool:
        return bool
    if domain.choices:
        return Literal[domain.choices]
    return Number | None if domain.optional else Number


def _table_rows(rule: type[Rule]) -> dict[str, tuple[str, str]]:
    """The units and the meaning of each hyperparameter, from the table in the rule's docstring."""
    found: dict[str, tuple[str, str]] = {}
    for cls in reversed(rule.__mro__):
        for line in (cls.__dict__.get("__doc__") or "").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) >= 5 and cells[0].startswith("`"):
                found[cells[0].strip("`")] = cells[2], cells[-1]
    return found


def _class_doc(kind: Kind) -> str:
    """An optimizer's docstring: the rule's own without its example, then default, domain, meaning of arguments."""
    row = kind.row
    domains, rows = {f.name: f.metadata["domain"] for f in fields(row.rule)}, _table_rows(row.rule)

    def one(name: str) -> str:
        units, meaning = rows.get(name, ("", ""))
        units = "" if units in ("", "none") else f", {units}"
        return f"{domains[name]}{units}{': ' if meaning else ''}{meaning}"

    lines = [inspect.cleandoc((row.rule.__doc__ or "").split(">>>")[0]), "", "Arguments:"]
    lines += [f"    {name}: {text}" for name, text in kind.first.items()]
    for name, parameter in kind.parameters.items():
        lines.append(f"    {name} = {parameter.default!r}")
        if name in row.rule.tuples:
            lines += [f"        {part}: {one(part)}" for part in row.rule.tuples[name]]
        else:
            lines.append(f"        {one(name) if name in domains else KNOWN[name].meaning}")
    return "\n".join(lines)


_COUNTED = {2: "a pair", 3: "a triple", 4: "a quadruple"}


def own_names(row: Row, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters by the rule's own names, from a constructor's, in which some stand together in a tuple."""
    found: dict[str, Any] = {}
    for name, value in chosen.items():
        parts = row.rule.tuples.get(name)
        if parts is None:
            found[name] = value
        elif isinstance(value, Sequence) and len(cast(Sequence[Any], value)) == len(parts):
            found |= zip(parts, cast(Sequence[Any], value), strict=True)
        else:
            defaults = {f.name: f.default for f in fields(row.rule)}
            usual = tuple(defaults[part] for part in parts)
            kind = _COUNTED.get(len(parts), f"a tuple of {len(parts)}")
            raise ValueError(f"{name}={value!r} is not {kind} of numbers. Try {name}={usual}.")
    return found


class Kind:
    """One rule under an API: the arguments it takes, the names of its state, and the checks of its checkpoints.

    `switches` are torch.optim's that it takes, with their defaults; `first` the arguments before the hyperparameters,
    with what each is; `more` arguments of the API's own. `parameters` are all arguments but the first; `names` the
    hyperparameters among them, each with the rule's own names for it, and `values` takes their values, in that order,
    out of a dict.
    """

    def __init__(
        self,
        row: Row,
        check: Check,
        switches: Mapping[str, Any],
        first: Mapping[str, str],
        *more: Parameter,
    ) -> None:
        self.row, self.check, self.first = row, check, first
        self.parameters = _parameters(row, switches) | {one.name: one for one in more}
        takes = [*(Parameter(name, _BOTH) for name in first), *self.parameters.values()]
        self.takes = Signature(takes)
        fields_of, tuples = {f.name for f in fields(row.rule)}, row.rule.tuples
        self.names = tuple((n, tuples.get(n, (n,))) for n in self.parameters if n in fields_of or n in tuples)
        names = [n for n, _ in self.names]
        # itemgetter gives the bare value of a single name, and refuses to have none.
        self.values: Callable[[Mapping[str, Any]], tuple[Any, ...]] = (
            itemgetter(*names) if len(names) > 1 else lambda chosen: tuple(chosen[n] for n in names)
        )
        self.sparse = tuple(row.sparse.items())
        self.slot_names = set(row.names.values()) - {row.names[scalar] for scalar in row.rule.scalars}
        # What of a weight's state is there all or not at all: its count, scalars, and the slots of every variant.
        variants = list(row.rule.variants.values())
        always = [slot for slot in variants[0] if all(slot in variant for variant in variants)]
        self.together = [row.names[name] for name in (*always, *row.rule.scalars)]
        self.together += ["step"] if row.counts_steps else []
        # The hyperparameters that every checkpoint has: torch's numbers, not its switches.
        theirs = set(row.arguments.split())
        self.needed = [n for n in names if n in theirs and self.parameters[n].default is not False]

    def rule(self, values: Sequence[Any]) -> Rule:
        """The rule with these values of its hyperparameters."""
        return self.row.rule(
            **own_names(self.row, {name: one for (name, _), one in zip(self.names, values, strict=True)})
        )

    def changed(self, rule: Rule, old: Sequence[Any], values: Sequence[Any]) -> Rule | None:
        """A rule with other numbers, if that is all that changed: a new rate at every step costs little."""
        numbers: dict[str, float] = {}
        for (name, parts), value, before in zip(self.names, values, old, strict=True):
            if value != before:
                if type(value) is not float or len(parts) != 1:
                    return None
                numbers[name] = value
        return rule.changed(**numbers)

    def bound(self, name: str, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of the constructor of class `name`, with defaults; `TypeError` names all that it takes."""
        try:
            found = self.takes.bind(*args, **kwargs)
        except TypeError as problem:
            listed = ", then ".join(filter(None, (", ".join(self.first), ", ".join(self.parameters))))
            raise TypeError(f"{name}: {problem}. It takes {listed}.") from None
        found.apply_defaults()
        return dict(found.arguments)

    def defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a group of another optimizer starts from: this rule's own defaults, and that optimizer's options."""
        shared = {*OPTIONS, *SWITCHES, "maximize"} & options.keys()
        return {
            name: options[name] if name in shared else parameter.default
            for name, parameter in self.parameters.items()
            if name != "process_group"
        }

    def check_spelling(self, group: Mapping[str, Any]) -> None:
        """Refuse a key that is nearly one of this rule's: it would change nothing, in silence.

        Other keys may be there: schedulers and frameworks keep theirs in groups (`initial_lr`, `max_momentum`, `name`).
        """
        own = {part: name for name, parts in self.names for part in parts} | {n: n for n in self.parameters}
        for key in group.keys() - self.parameters.keys() - {"params", "step", "schedules", "rule"}:
            near = closest(key, own, _MISSPELLED)
            if near is not None:
                raise ValueError(
                    f"A parameter group has {key!r}, which {self.row.name} does not take. "
                    f"Did you mean {own[near]!r}?"
                )


class OfRule:
    """A class of optimizers for one row of the table of rules: what it takes, and how it is made and pickled.

    An API says with `kind_of` what a row is under it, and in which `package` the table's classes stand.
    """

    row: ClassVar[Row]
    kind: ClassVar[Kind]
    kind_of: ClassVar[Callable[[Row], Kind]]
    package: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_init = cls.__dict__.get("__init__")
        if own_init is not None:
            shown = signature(own_init)
            cls.__signature__ = shown.replace(parameters=list(shown.parameters.values())[1:])
        if "row" in cls.__dict__:
            kind = cls.kind = cls.kind_of(cls.row)
            cls.__doc__ = _class_doc(kind)
            if own_init is None:
                cls.__signature__ = kind.takes
                _show_arguments(cls, kind)

    @classmethod
    @functools.cache
    def of_rule(cls, rule: type[Rule]) -> type[Self]:
        """The class of a rule: of the table's in the API's package, of others where the rule stands."""
        check(rule)
        row = row_of(rule)
        here = cls.package if TABLE.get(row.name) is row else rule.__module__
        return cast(type[Self], type(row.name, (cls,), {"row": row, "__module__": here}))

    @classmethod
    def arguments(cls) -> Mapping[str, Parameter]:
        """What the constructor takes of hyperparameters and options: default, kind and type of each by name."""
        return cls.kind.parameters

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls, base = type(self), type(self).__bases__[0]
        own = "row" in cls.__dict__ and TABLE.get(self.row.name) is not self.row
        if own and cls is cast(type[OfRule], base).of_rule(self.row.rule):  # which stands in no module
            return _again, (base, self.row.rule), self.__getstate__()
        return super().__reduce_ex__(protocol)


def _again(base: type[OfRule], rule: type[Rule]) -> OfRule:
    cls = base.of_rule(rule)
    return cls.__new__(cls)


def _show_arguments(cls: Any, kind: Kind) -> None:
    """Give a class a constructor that shows its arguments."""
    construct = cls.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)

    init.__name__, init.__doc__ = "__init__", construct.__doc__
    parameters = [Parameter("self", _BOTH), *kind.takes.parameters.values()]
    init.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    cls.__init__ = init


@functools.lru_cache(maxsize=1024)
def for_sparse(rule: Rule, conventions: tuple[tuple[str, Any], ...], one: Formula) -> Rule:
    """The rule for gradients of some rows: PyTorch's `conventions` for them, where nothing else was asked for.

    `one` is its formula with options. Raises `RuntimeError` if it would need the untouched rows.
    """
    if one.restrained and not formula(rule).passes:
        option = "cautious=True" if one.cautious else "max_update"
        raise RuntimeError(
            f"{option} measures whole tensors, of which a sparse gradient has only some rows. Give dense gradients "
            "(nn.Embedding(..., sparse=False)), or these weights a group without it."
        )
    if one.passes:
        raise RuntimeError(
            f"{type(rule).__name__} measures whole tensors, of which a sparse gradient has only some rows. Give dense "
            "gradients (nn.Embedding(..., sparse=False)), or these weights a group with another rule."
        )
    defaults = {f.name: f.default for f in fields(rule)}
    rule = replace(rule, **{k: v for k, v in conventions if getattr(rule, k) == defaults[k]})
    first = {name: rule.initial().get(name, 0.0) for name in rule.scalars}
    if "l2" in formula(rule).coefficients and rule.coefficients(1, **first)["l2"]:
        raise RuntimeError(
            f"weight_decay={getattr(rule, 'weight_decay', None)!r} (L2) is not possible with sparse gradients: it "
            "would need every row, and only touched rows move. Set weight_decay=0, or use a decoupled one, which "
            "changes touched rows only."
        )
    return rule
