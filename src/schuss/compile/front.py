"""What the fronts share: a constructor made from a row of the table, hyperparameters that may be schedules, how weights
and state are kept, and what a rule means for gradients of some rows only.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import Parameter, Signature, signature
from operator import itemgetter
from typing import Any, Literal, cast

from schuss.compile.formula import formula
from schuss.errors import refusal
from schuss.rules import Row, Rule

# How torch.optim chooses an implementation. There is one here, so these change nothing.
SWITCHES: Mapping[str, Any] = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}

# What every optimizer can do beside its page, by keyword.
OPTIONS: Mapping[str, Any] = {
    "rounding": "nearest",
    "compensated": False,
    "state_dtype": None,
    "ema_decay": None,
    "max_norm": None,
    "skip_nonfinite": False,
    "seed": 0,
}
# Those that are the whole optimizer's; the others are a group's.
WHOLE = ("max_norm", "skip_nonfinite", "seed")
# A tensor with fewer weights keeps its state in float32 where int8 is asked for: it would save next to nothing.
SMALL = 4096
STATE_DTYPES = ("float64", "float32", "bfloat16", "int8")
NARROW = ("bfloat16", "float16")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options outside their domains, or that contradict each other. Schedules are asked when they are due."""
    if options["rounding"] not in ("nearest", "stochastic"):
        raise refusal("rounding", options["rounding"], "'nearest' or 'stochastic'")
    for name in ("compensated", "skip_nonfinite", "maximize"):
        if not isinstance(options.get(name, False), bool):
            raise refusal(name, options[name], "True or False")
    if options["compensated"] and options["rounding"] == "stochastic":
        raise ValueError(
            "compensated=True stores the rounding error, so stochastic rounding has nothing to do. Choose one of "
            "compensated=True and rounding='stochastic'."
        )
    if options["state_dtype"] is not None and dtype_name(options["state_dtype"]) not in STATE_DTYPES:
        allowed = f"None or one of {', '.join(map(repr, STATE_DTYPES))}"
        raise refusal("state_dtype", options["state_dtype"], allowed)
    decay, norm, seed = options["ema_decay"], options["max_norm"], options["seed"]
    if decay is not None and not callable(decay):
        check_decay(decay)
    if norm is not None and not (_is_number(norm) and norm > 0):
        raise refusal("max_norm", norm, "None or a number > 0")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise refusal("seed", seed, "a whole number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_decay(decay: Any) -> float:
    """The decay of the weights' average, if it is one."""
    decay = plain_number(decay)
    if not (_is_number(decay) and 0 <= decay <= 1):
        raise refusal("ema_decay", decay, "in [0, 1]", "Try 0.999: an average over about 1000 steps.")
    return float(decay)


def renewed(decay: Any, finished: int) -> float:
    """The part of the weights' average, if there is one, that the step after `finished` ones renews."""
    return 1.0 if decay is None else 1 - check_decay(at(decay, finished))


def dtype_name(dtype: Any) -> str:
    """A dtype's name: of torch's, NumPy's, or a word."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).removeprefix("torch.")


def weight_storage(dtype: str, rounding: str, compensated: bool) -> str:
    """How weights of this dtype are kept. In 32 bits or more nothing is rounded by chance or compensated."""
    if dtype not in NARROW:
        return dtype
    return (
        f"{dtype} compensated"
        if compensated
        else f"{dtype} stochastic"
        if rounding == "stochastic"
        else dtype
    )


def slot_storage(dtype: str) -> str:
    """How a slot whose array is of this dtype is kept: in 16 bits by chance, or a slow average would never move."""
    return f"{dtype} stochastic" if dtype in NARROW else dtype


def slot_dtype(weight: str, state_dtype: Any, length: int) -> str:
    """The dtype of a new slot, for weights of dtype `weight`: at least float32, unless something else is asked for."""
    if state_dtype is None:
        return "float32" if weight in NARROW else weight
    asked = dtype_name(state_dtype)
    return "float32" if asked == "int8" and length < SMALL else asked


def parameters(row: Row, switches: Mapping[str, Any]) -> dict[str, Parameter]:
    """A constructor's parameters: torch.optim's in its order, then the page's own, `maximize` and `OPTIONS` by keyword.

    Of torch.optim's switches, those in `switches` are taken, with these defaults.
    """
    defaults: dict[str, Any] = {f.name: f.default for f in fields(row.rule)} | {"maximize": False, **OPTIONS}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    found: dict[str, Parameter] = {}
    for name in row.arguments.split():
        if name == "|":
            kind = Parameter.KEYWORD_ONLY
        elif name in SWITCHES:
            if name in switches:
                found[name] = Parameter(name, kind, default=switches[name])
        else:
            parts = row.rule.tuples.get(name)
            default = tuple(defaults.pop(one) for one in parts) if parts else defaults.pop(name)
            found[name] = Parameter(name, kind, default=default)
    if "capturable" in switches:  # which is more than a switch here: any step can be captured in a CUDA graph
        defaults.setdefault("capturable", switches["capturable"])
    found |= {
        n: Parameter(n, Parameter.KEYWORD_ONLY, default=value)
        for n, value in defaults.items()
        if n not in found
    }
    return {name: one.replace(annotation=_kind(row, name)) for name, one in found.items()}


Schedule = Callable[[int], float]
Number = float | Schedule
_KINDS: dict[str, Any] = {
    "rounding": Literal["nearest", "stochastic"],
    "compensated": bool,
    "state_dtype": Any,
    "ema_decay": Number | None,
    "max_norm": float | None,
    "skip_nonfinite": bool,
    "seed": int,
    "maximize": bool,
    "foreach": bool | None,
    "fused": bool | None,
    "capturable": bool,
    "differentiable": bool,
}


def _kind(row: Row, name: str) -> Any:
    """The type of a constructor's argument."""
    if name in _KINDS:
        return _KINDS[name]
    if name in row.rule.tuples:
        return tuple[(Number,) * len(row.rule.tuples[name])]  # type: ignore[misc]  # made as the program runs
    return _domain_kind(next(f.metadata["domain"] for f in fields(row.rule) if f.name == name))


def _domain_kind(domain: Any) -> Any:
    if domain.kind is bool:
        return bool
    return Literal[domain.choices] if domain.choices else Number


_OPTION_HELP = {
    "maximize": "maximize instead of minimize",
    "rounding": "of 16-bit weights: 'nearest' or 'stochastic' (unbiased)",
    "compensated": "add a Kahan compensation term to 16-bit weights: 16 bits more per weight",
    "state_dtype": "of new state: None (float32 for 16-bit weights, else the weight's own), 'float64', 'float32', "
    "'bfloat16' or 'int8' (block-wise quantized)",
    "ema_decay": "None, or in [0, 1]: store a running average of the weights; see averaged",
    "max_norm": "None, or > 0: scale all gradients down to this norm together",
    "skip_nonfinite": "leave out a step whose gradients are not all finite, and count it in skipped",
    "seed": "from which the random bits of stochastic rounding follow",
    "capturable": "let a step on a GPU be captured in a CUDA graph",
    "foreach": "taken as torch.optim takes it; changes nothing: there is one implementation",
    "fused": "the same; True leaves GradScaler's scale to the step, as torch's fused optimizers do",
    "process_group": "the ranks between which plain weights are divided: max_norm and skip_nonfinite count them all",
    "differentiable": "only False: autograd cannot see through a compiled step",
}


def _table_rows(rule: type[Rule]) -> dict[str, tuple[str, str]]:
    """The units and the meaning of each hyperparameter, from the table in the rule's docstring."""
    found: dict[str, tuple[str, str]] = {}
    for cls in reversed(rule.__mro__):
        for line in (cls.__dict__.get("__doc__") or "").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) >= 5 and cells[0].startswith("`"):
                found[cells[0].strip("`")] = cells[2], cells[-1]
    return found


def class_doc(row: Row, known: Mapping[str, Parameter], first: Sequence[str]) -> str:
    """An optimizer's docstring: the rule's own, without its example, and the arguments of the constructor.

    `first` says what the arguments before the hyperparameters are.
    """
    rule = inspect.cleandoc((row.rule.__doc__ or "").split(">>>")[0])
    return "\n".join([rule, "", "Arguments:", *(f"    {line}" for line in first), documented(row, known)])


def documented(row: Row, known: Mapping[str, Parameter]) -> str:
    """The arguments of a constructor for its docstring: default, domain, units and meaning of each."""
    domains, told = {f.name: f.metadata["domain"] for f in fields(row.rule)}, _table_rows(row.rule)

    def one(name: str) -> str:
        units, meaning = told.get(name, ("", ""))
        units = "" if units in ("", "none") else f", {units}"
        return f"{domains[name]}{units}{': ' if meaning else ''}{meaning}"

    lines: list[str] = []
    for name, parameter in known.items():
        if name in row.rule.tuples:
            lines.append(f"    {name} = {parameter.default!r}")
            lines += [f"        {part}: {one(part)}" for part in row.rule.tuples[name]]
        else:
            lines.append(f"    {name} = {parameter.default!r}")
            lines.append(f"        {one(name) if name in domains else _OPTION_HELP.get(name, '')}")
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


class Arguments:
    """What a constructor takes for one rule, and the rule that their values make.

    `parameters` are all of them; `names` the hyperparameters among them, each with the rule's own names for it.
    `values` takes the hyperparameters' values, in that order, out of a dict.
    """

    def __init__(self, row: Row, switches: Mapping[str, Any], *more: Parameter) -> None:
        self.row = row
        self.parameters = parameters(row, switches) | {one.name: one for one in more}
        own, tuples = {f.name for f in fields(row.rule)}, row.rule.tuples
        self.names = tuple((n, tuples.get(n, (n,))) for n in self.parameters if n in own or n in tuples)
        names = [n for n, _ in self.names]
        # itemgetter gives the bare value of a single name, and refuses to have none.
        self.values: Callable[[Mapping[str, Any]], tuple[Any, ...]] = (
            itemgetter(*names) if len(names) > 1 else lambda chosen: tuple(chosen[n] for n in names)
        )

    def rule(self, values: Sequence[Any]) -> Rule:
        """The rule with these values of its hyperparameters."""
        chosen = {name: value for (name, _), value in zip(self.names, values, strict=True)}
        return self.row.rule(**own_names(self.row, chosen))

    def changed(self, rule: Rule, old: Sequence[Any], values: Sequence[Any]) -> Rule | None:
        """A rule with other numbers, if that is all that changed: a new rate at every step costs little."""
        numbers: dict[str, float] = {}
        for (name, parts), value, before in zip(self.names, values, old, strict=True):
            if value != before:
                if type(value) is not float or len(parts) != 1:
                    return None
                numbers[name] = value
        return rule.changed(**numbers)


def own_signature(cls: type) -> Signature | None:
    """The signature of a class that has a constructor of its own; None if it has not."""
    if "__init__" not in cls.__dict__:
        return None
    found = signature(cls.__dict__["__init__"])
    return found.replace(parameters=list(found.parameters.values())[1:])


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter is a function of the finished steps; of a pair, whether either member is."""
    return callable(value) or (isinstance(value, tuple) and any(map(callable, cast(tuple[Any, ...], value))))


def check_schedule(name: str, schedule: Any) -> None:
    """Refuse a warm-up that leads to nothing: it is a factor that rises to 1, and a rate of 1 is seldom meant."""
    for one in cast(tuple[Any, ...], schedule) if isinstance(schedule, tuple) else (schedule,):
        if getattr(one, "open_ended", False) is True:
            raise refusal(
                name,
                one,
                "a schedule of values: it ends in a warm-up, which alone is a factor that rises to 1",
                f"Say what it rises to: {one!r} * 0.001, or {one!r}.then(Cosine(0.001, steps=1000)).",
            )


def at(value: Any, finished: int) -> Any:
    """A hyperparameter after `finished` steps: what its schedule says, if it has one; of a pair, each on its own."""
    if isinstance(value, tuple):
        return tuple(at(one, finished) for one in cast(tuple[Any, ...], value))
    if not callable(value):
        return value
    number = plain_number(value(finished))
    if callable(number):  # a class of schedules, for one, makes a schedule of the step
        raise ValueError(f"The schedule {value!r} gave {number!r} at n={finished}, which is no number.")
    return number


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
    if formula(rule).passes:
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
