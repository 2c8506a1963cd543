"""The options that every optimizer takes by keyword: defaults, domains, types and meanings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from schuss.compile.formula import Formula, formula
from schuss.compile.launch import Terms
from schuss.core.schedules import at, plain_number
from schuss.core.storage import STATE_DTYPES, dtype_name
from schuss.errors import refusal
from schuss.rules.rule import Rule, choice, number, option

Schedule = Callable[[int], float]
Number = float | Schedule


class _Option(NamedTuple):
    default: Any
    kind: Any
    meaning: str
    field: Any = None  # its domain, as a rule writes the domain of a hyperparameter


_OWN = {
    "rounding": _Option(
        "nearest",
        Literal["nearest", "stochastic"],
        "of 16-bit weights: 'nearest' or 'stochastic' (unbiased)",
        choice("nearest", "stochastic"),
    ),
    "compensated": _Option(
        False,
        bool,
        "add a Kahan compensation term to 16-bit weights: 16 bits more per weight",
        option(False),
    ),
    "state_dtype": _Option(
        None,
        Any,
        "of new state: None (float32 for 16-bit weights, else the weight's own), 'float64', 'float32', "
        "'bfloat16' or 'int8' (block-wise quantized); state that holds weights (Schedule-Free's z) keeps "
        "at least 32 bits",
        choice(*STATE_DTYPES),
    ),
    "ema_decay": _Option(
        None,
        Number | None,
        "None, or in [0, 1]: store a running average of the weights; see averaged",
        number(0.0, low=0, high=1, advice="Try 0.999: an average over about 1000 steps."),
    ),
    "cautious": _Option(
        False,
        bool,
        "leave out of each change what goes against the negative gradient, and scale up the rest",
        option(False),
    ),
    "max_update": _Option(
        None,
        float | None,
        "None, or > 0: the largest root mean square of a tensor's change, in units of lr (update clipping)",
        number(1.0, above=0, advice="Try 1.0, as in Adafactor."),
    ),
    "max_norm": _Option(
        None,
        float | None,
        "None, or > 0: scale all gradients down to this norm together",
        number(1.0, above=0),
    ),
    "skip_nonfinite": _Option(
        False,
        bool,
        "leave out a step whose gradients are not all finite, and count it in skipped",
        option(False),
    ),
    "seed": _Option(0, int, "from which the random bits of stochastic rounding follow"),
}
# How torch.optim chooses an implementation. There is one here, so these change nothing.
_SWITCHES = {
    "foreach": _Option(
        None, bool | None, "taken as torch.optim takes it; changes nothing: there is one implementation"
    ),
    "fused": _Option(
        None,
        bool | None,
        "the same; True leaves GradScaler's scale to the step, as torch's fused optimizers do",
    ),
    "capturable": _Option(False, bool, "let a step on a GPU be captured in a CUDA graph", option(False)),
    "differentiable": _Option(False, bool, "only False: autograd cannot see through a compiled step"),
}
KNOWN: Mapping[str, _Option] = {
    **_OWN,
    **_SWITCHES,
    "maximize": _Option(False, bool, "maximize instead of minimize", option(False)),
    "process_group": _Option(
        None,
        Any,
        "the ranks between which plain weights are divided: max_norm and skip_nonfinite count them all",
    ),
}
OPTIONS: Mapping[str, Any] = {name: one.default for name, one in _OWN.items()}
SWITCHES: Mapping[str, Any] = {name: one.default for name, one in _SWITCHES.items()}
# Those that are the whole optimizer's; the others are a group's.
WHOLE = ("max_norm", "skip_nonfinite", "seed")
# A group's options that choose its kernel by what they are; `ema_decay` and `max_update` do by whether they are there.
kernel_options = itemgetter("rounding", "compensated", "cautious")
_DOMAINS = {name: one.field.metadata["domain"] for name, one in KNOWN.items() if one.field is not None}


def _refused(name: str, value: Any) -> ValueError:
    absent = "None or " if KNOWN[name].default is None and name != "ema_decay" else ""
    return refusal(name, value, f"{absent}{_DOMAINS[name]}", _DOMAINS[name].advice)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options outside their domains, or that contradict each other. Schedules are asked when they are due."""
    for name, domain in _DOMAINS.items():
        value = options.get(name, KNOWN[name].default)
        if value is None and KNOWN[name].default is None:
            continue
        if name == "ema_decay":
            if callable(value):
                continue
            value = plain_number(value)
        if name == "max_norm" and value == math.inf:  # which limits nothing, but asks for the norm
            continue
        if not domain.holds(dtype_name(value) if name == "state_dtype" else value):
            raise _refused(name, value)
    if options.get("compensated") and options["rounding"] == "stochastic":
        raise ValueError(
            "compensated=True stores the rounding error, so stochastic rounding has nothing to do. Choose one of "
            "compensated=True and rounding='stochastic'."
        )
    seed = options.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise refusal("seed", seed, "a whole number")


def ema_weight(decay: Any, finished: int) -> float:
    """How much of the weight enters its running average at the step after `finished` ones; 1 without an average."""
    if decay is None:
        return 1.0
    decay = plain_number(at(decay, finished))
    if not _DOMAINS["ema_decay"].holds(decay):
        raise _refused("ema_decay", decay)
    return 1 - decay


_made = functools.lru_cache(maxsize=8)(Terms)  # the same for step after step, unless gradients are clipped


def step_options(group: Mapping[str, Any], finished: int, scale: float, seed: int) -> Terms:
    """The options of a group's step after `finished` ones, with gradients multiplied by `scale`."""
    ema = ema_weight(group["ema_decay"], finished)
    return _made(-scale if group["maximize"] else scale, ema, seed, group["max_update"])


def formula_of(rule: Rule, group: Mapping[str, Any]) -> Formula:
    """The formula of a group's rule with its options; refuses options that have no meaning for this rule."""
    cautious, max_update = group["cautious"], group["max_update"]
    if cautious or max_update is not None:
        _check_change(rule, f"cautious={cautious}" if cautious else f"max_update={max_update!r}", max_update)
    averaged, limited = group["ema_decay"] is not None, max_update is not None
    return formula(rule, averaged, cautious=cautious, limited=limited)


def _check_change(rule: Rule, given: str, max_update: float | None) -> None:
    """Refuse to hold back the change of a rule for whose change that means nothing."""
    name = type(rule).__name__
    if rule.has_evaluated():
        raise ValueError(
            f"{given} is not possible with {name}: its weights lie between two others, one of them an average, and "
            "would lie elsewhere if their change alone were held back. Leave the option out, or try AdamW with it."
        )
    if max_update is not None and not hasattr(rule, "lr"):
        raise ValueError(
            f"max_update={max_update!r} is in units of lr, which {name} does not have. Leave it out, or give the rule "
            "a hyperparameter lr."
        )
