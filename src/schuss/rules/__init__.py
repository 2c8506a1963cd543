"""The rules, and the one table that the docs, the APIs and the tests use.

A row says how PyTorch knows a rule: which arguments it gives its optimizer, in which order, and what it calls
the state. Everything else about an optimizer is in its rule. A new rule is a file here and a row below.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from schuss.rules.adabelief import AdaBelief
from schuss.rules.adadelta import Adadelta
from schuss.rules.adafactor import Adafactor
from schuss.rules.adagrad import Adagrad
from schuss.rules.adam import Adam
from schuss.rules.adamax import Adamax
from schuss.rules.adamw import AdamW
from schuss.rules.adan import Adan
from schuss.rules.ademamix import AdEMAMix
from schuss.rules.adopt import ADOPT
from schuss.rules.asgd import ASGD
from schuss.rules.lamb import LAMB
from schuss.rules.lars import LARS
from schuss.rules.lion import Lion
from schuss.rules.mars import MARS
from schuss.rules.muon import Muon
from schuss.rules.nadam import NAdam
from schuss.rules.radam import RAdam
from schuss.rules.rmsprop import RMSprop
from schuss.rules.rprop import Rprop
from schuss.rules.rule import (
    Rule,
    choice,
    column_mean,
    columns,
    exp,
    log,
    machine_epsilon,
    maximum,
    mean,
    minimum,
    norm,
    number,
    option,
    orthogonal,
    root_mean_square,
    row_mean,
    rows,
    sign,
    sqrt,
    total,
    where,
)
from schuss.rules.schedulefree import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from schuss.rules.sgd import SGD

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "MARS",
    "SGD",
    "TABLE",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Row",
    "Rprop",
    "Rule",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "choice",
    "column_mean",
    "columns",
    "exp",
    "log",
    "machine_epsilon",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "number",
    "option",
    "orthogonal",
    "root_mean_square",
    "row_mean",
    "row_of",
    "rows",
    "sign",
    "sqrt",
    "total",
    "where",
]

# How torch.optim chooses an implementation.
_SWITCHES = "foreach capturable differentiable fused"


@dataclass(frozen=True)
class Row:
    """How PyTorch knows a rule.

    `arguments` stand in torch.optim's order, `|` where they become keyword-only; `names` is what torch.optim calls
    the state; `counts_steps` whether it stores a `step` too; `sparse` what PyTorch's optimizer for sparse
    gradients sets otherwise.
    """

    rule: type[Rule]
    arguments: str
    names: dict[str, str]
    counts_steps: bool = True
    sparse: dict[str, object] = field(default_factory=dict[str, object])
    state_at_construction: bool = False

    @property
    def name(self) -> str:
        """The optimizer's name: that of its rule."""
        return self.rule.__name__


_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}
_ITERATES = {"z": "z", "weight_sum": "weight_sum", "fastest": "lr_max"}

TABLE: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            SGD,
            "lr momentum dampening weight_decay nesterov | maximize foreach differentiable fused",
            {"v": "momentum_buffer"},
            counts_steps=False,
        ),
        Row(
            Adagrad,
            "lr lr_decay weight_decay initial_accumulator_value eps foreach | maximize differentiable fused",
            {"s": "sum"},
            state_at_construction=True,
        ),
        Row(
            Adadelta,
            "lr rho eps weight_decay foreach | capturable maximize differentiable",
            {"v": "square_avg", "u": "acc_delta"},
        ),
        Row(
            RMSprop,
            "lr alpha eps weight_decay momentum centered capturable foreach maximize differentiable |",
            {"v": "square_avg", "b": "momentum_buffer", "a": "grad_avg"},
        ),
        Row(
            Adam,
            "lr betas eps weight_decay amsgrad | "
            "foreach maximize capturable differentiable fused decoupled_weight_decay",
            _MOMENTS | {"p": "max_exp_avg_sq"},
            sparse={"eps_position": "uncorrected"},
        ),
        Row(
            AdamW,
            "lr betas eps weight_decay amsgrad | maximize foreach capturable differentiable fused",
            _MOMENTS | {"p": "max_exp_avg_sq"},
        ),
        Row(
            NAdam,
            "lr betas eps weight_decay momentum_decay decoupled_weight_decay | "
            "foreach maximize capturable differentiable",
            _MOMENTS | {"product": "mu_product"},
        ),
        Row(
            RAdam,
            "lr betas eps weight_decay decoupled_weight_decay | foreach maximize capturable differentiable",
            _MOMENTS,
        ),
        Row(
            Adamax,
            "lr betas eps weight_decay foreach | maximize differentiable capturable",
            {"m": "exp_avg", "u": "exp_inf"},
        ),
        Row(
            Rprop,
            "lr etas step_sizes | capturable foreach maximize differentiable",
            {"h": "prev", "d": "step_size"},
        ),
        Row(
            ASGD,
            "lr lambd alpha t0 weight_decay foreach maximize differentiable capturable |",
            {"x": "ax", "eta": "eta", "mu": "mu"},
        ),
        Row(
            Lion,
            "lr betas weight_decay | maximize foreach capturable differentiable fused",
            {"m": "exp_avg"},
            counts_steps=False,
        ),
        Row(
            LARS,
            f"lr momentum weight_decay trust_coefficient eps | maximize {_SWITCHES}",
            {"v": "momentum_buffer"},
        ),
        Row(LAMB, f"lr betas eps weight_decay | maximize {_SWITCHES}", _MOMENTS),
        Row(MARS, f"lr betas gamma eps weight_decay | maximize {_SWITCHES}", _MOMENTS | {"h": "last_grad"}),
        Row(
            ScheduleFreeSGD,
            f"lr momentum weight_decay warmup_steps r weight_lr_power | maximize {_SWITCHES}",
            _ITERATES,
        ),
        Row(
            ScheduleFreeAdamW,
            f"lr betas eps weight_decay warmup_steps r weight_lr_power | maximize {_SWITCHES}",
            _ITERATES | {"v": "exp_avg_sq"},
        ),
        Row(
            ScheduleFreeRAdam,
            f"lr betas eps weight_decay r weight_lr_power silent_sgd_phase | maximize {_SWITCHES}",
            _ITERATES | {"v": "exp_avg_sq"},
        ),
        Row(
            Adan,
            "lr betas eps weight_decay | no_prox maximize foreach capturable differentiable fused",
            {"m": "exp_avg", "d": "exp_avg_diff", "n": "exp_avg_sq", "h": "pre_grad"},
        ),
        Row(
            AdaBelief,
            "lr betas eps weight_decay | decoupled_weight_decay maximize foreach capturable differentiable fused",
            {"m": "exp_avg", "s": "exp_avg_var"},
        ),
        Row(
            ADOPT,
            "lr betas eps | weight_decay decoupled_weight_decay maximize foreach capturable differentiable fused",
            _MOMENTS,
        ),
        Row(
            Adafactor,
            "lr beta2_decay eps d weight_decay | foreach maximize",
            {"v": "variance", "r": "row_var", "c": "col_var"},
        ),
        Row(
            AdEMAMix,
            "lr betas alpha beta3_warmup alpha_warmup eps weight_decay | "
            "maximize foreach capturable differentiable fused",
            {"m1": "exp_avg_fast", "m2": "exp_avg_slow", "v": "exp_avg_sq"},
        ),
        Row(
            Muon,
            "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn | "
            f"maximize {_SWITCHES}",
            {"b": "momentum_buffer"},
            counts_steps=False,
        ),
    )
}


def row_of(rule: type[Rule]) -> Row:
    """The table's row of a rule; of a rule that is not in the table, the row that follows from the rule itself.

    Arguments then stand in the order of its fields, and its state goes by the rule's own letters or `state_names`.

    >>> row_of(AdamW) is TABLE["AdamW"]
    True
    """
    known = TABLE.get(rule.__name__)
    if known is not None and known.rule is rule:
        return known
    tuple_of = {part: name for name, parts in rule.tuples.items() for part in parts}
    arguments = dict.fromkeys(tuple_of.get(f.name, f.name) for f in fields(rule))
    remembered = dict.fromkeys([*(slot for slots in rule.variants.values() for slot in slots), *rule.scalars])
    names = {name: rule.state_names.get(name, name) for name in remembered}
    return Row(rule, f"{' '.join(arguments)} | maximize {_SWITCHES}", names)
