"""A rule's limit, worked out from its `update`, against the rule itself run on plain numbers; own rules; refusals."""

from __future__ import annotations

import math
import runpy
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import schuss.numpy
import schuss.torch
from schuss.compile.formula import formula
from schuss.curvature import stability_limit
from schuss.rules import (
    ASGD,
    SGD,
    TABLE,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    NAdam,
    RAdam,
    RMSprop,
    Rule,
    maximum,
    minimum,
    number,
    row_of,
    sqrt,
    where,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
ADOPT = runpy.run_path(str(EXAMPLES / "adopt.py"))["ADOPT"]
# So near to 1 that no size changes within a run.
STILL = 1 - 1e-13


@dataclass(frozen=True, kw_only=True)
class Averaged(Rule):
    """w ← w − η m̂ with m an average of gradients, with L2 decay under another name, and no size."""

    lr: float = number(0.1, low=0)
    beta: float = number(0.9, low=0, below=1)
    pull: float = number(0.0, low=0)
    state = ("m",)

    def coefficients(self, step):
        return dict(pull=self.pull, beta=self.beta, gain=1 - self.beta, lr=self.lr / (1 - self.beta**step))

    @staticmethod
    def update(w, g, m, pull, beta, gain, lr):
        slope = g + pull * w
        m = beta * m + gain * slope
        return w - lr * m, m


@dataclass(frozen=True, kw_only=True)
class Late(Rule):
    """The step is one gradient late: the roots of z² − z + η h leave the unit circle as a pair, at h = 1 / η."""

    lr: float = number(0.1, low=0)
    state = ("last",)

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, last, lr):
        return w - lr * last, g


@dataclass(frozen=True, kw_only=True)
class TwoPoints(Rule):
    """Heavy ball that remembers the last weight instead of a velocity."""

    rate: float = number(0.1, low=0)
    momentum: float = number(0.9, low=0)
    state = ("before",)

    def coefficients(self, step):
        return dict(rate=self.rate, momentum=self.momentum)

    @staticmethod
    def update(w, g, before, rate, momentum):
        return w + momentum * (w - before) - rate * g, w


@dataclass(frozen=True, kw_only=True)
class Sized(Rule):
    """RMSProp under other names: the new size is no slot's name, the decay no `l2`, and no bounds are declared."""

    lr: float = number(0.1, low=0)
    share: float = number(0.9, low=0, high=1)
    pull: float = number(0.0, low=0)
    state = ("q",)

    def coefficients(self, step):
        return dict(lr=self.lr, share=self.share, rest=1 - self.share, pull=self.pull)

    @staticmethod
    def update(w, g, q, lr, share, rest, pull):
        slope = pull * w + g
        new = share * q + rest * slope * slope
        return w - lr * slope / sqrt(new), new


@dataclass(frozen=True, kw_only=True)
class LateSized(Rule):
    """A gradient, in units of its size, moves the weight one step later."""

    lr: float = number(0.1, low=0)
    state = ("last", "v")

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, last, v, lr):
        return w - lr * last / sqrt(v), g, v + g * g


# Rule, the step whose coefficients count, and the state there: sizes, and what else is not linear in the gradient.
CASES = {
    "SGD": (SGD(lr=0.1, weight_decay=0.3), 5, {}),
    "SGD decoupled": (SGD(lr=0.1, weight_decay=3.0, decoupled_weight_decay=True), 5, {}),
    "SGD momentum": (SGD(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.2), 5, {}),
    "SGD nesterov": (SGD(lr=0.1, momentum=0.9, nesterov=True, lr_inside_velocity=True), 5, {}),
    "Adagrad": (Adagrad(lr=0.1, lr_decay=0.1, weight_decay=0.2), 3, {"s": 0.3}),
    "Adadelta": (Adadelta(lr=0.7, rho=1.0, weight_decay=0.1), 3, {"v": 0.3, "u": 0.02}),
    "RMSprop": (RMSprop(lr=0.1, alpha=1.0, weight_decay=0.2), 3, {"v": 0.3}),
    "RMSprop momentum": (RMSprop(lr=0.1, alpha=1.0, momentum=0.7, eps_position="inside"), 3, {"v": 0.3}),
    "RMSprop centered": (RMSprop(lr=0.1, alpha=1.0, centered=True), 3, {"v": 0.3, "a": 0.4}),
    "RMSprop both": (
        RMSprop(lr=0.1, alpha=1.0, centered=True, momentum=0.5, lr_inside_velocity=True),
        3,
        {"v": 0.3, "a": -0.4},
    ),
    "Adam": (Adam(lr=0.1, weight_decay=0.2, beta2=STILL), 4, {"v": 3e-13}),
    "Adam amsgrad": (Adam(lr=0.1, amsgrad=True, beta2=STILL), 4, {"v": 3e-13, "p": 5e-13}),
    "AdamW": (AdamW(lr=0.1, weight_decay=2.0, beta2=STILL, eps_position="inside"), 4, {"v": 3e-13}),
    "NAdam": (NAdam(lr=0.1, weight_decay=0.2, beta2=STILL), 2, {"v": 3e-13, "product": 0.2}),
    "RAdam": (RAdam(lr=0.1, beta2=STILL), 2, {"v": 3e-13}),
    "RAdam rectified": (RAdam(lr=0.1, beta2=1 - 1e-6), 2000, {"v": 3e-4}),
    "Adamax": (Adamax(lr=0.1, weight_decay=0.2, beta2=STILL, eps=0.0), 4, {"u": 0.3}),
    "ASGD": (ASGD(lr=0.1, lambd=0.5, weight_decay=0.2), 4, {"x": 0.1, "eta": 0.08, "mu": 0.5}),
    "Averaged": (Averaged(lr=0.1, pull=0.5), 3, {}),
    "Late": (Late(), 3, {}),
    "TwoPoints": (TwoPoints(momentum=0.6), 3, {}),
    "LateSized": (LateSized(), 3, {"v": 0.3}),
    "Sized": (Sized(share=1.0, pull=0.3), 3, {"q": 0.3}),
    "ADOPT": (ADOPT(lr=0.1, beta2=STILL), 4, {"v": 0.3}),
    "ADOPT built in": (schuss.rules.ADOPT(lr=0.1, weight_decay=0.2, beta2=STILL), 4, {"v": 0.3}),
    "ADOPT unclipped": (
        schuss.rules.ADOPT(lr=0.1, weight_decay=2.0, decoupled_weight_decay=True, clip=False, beta2=STILL),
        4,
        {"v": 0.3},
    ),
    "Adan": (Adan(lr=0.1, weight_decay=0.2, beta3=STILL), 4, {"n": 3e-13}),
    "Adan without prox": (Adan(lr=0.1, weight_decay=2.0, no_prox=True, beta3=STILL), 4, {"n": 3e-13}),
    "AdaBelief": (AdaBelief(lr=0.1, weight_decay=2.0, beta2=STILL, eps=1e-24), 4, {"s": 3e-13}),
    "AdaBelief coupled": (
        AdaBelief(lr=0.1, weight_decay=0.2, decoupled_weight_decay=False, eps_position="once", beta2=STILL),
        4,
        {"s": 3e-13},
    ),
    "AdEMAMix": (AdEMAMix(lr=0.1, weight_decay=0.2, beta2=STILL), 4, {"v": 3e-13}),
    "AdEMAMix warming up": (
        AdEMAMix(lr=0.1, beta2=STILL, beta3_warmup=10, alpha_warmup=10),
        4,
        {"v": 3e-13},
    ),
}


def in_torch(rule, step, state):
    """An optimizer of torch in this state, for one weight in float64."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    values = {name: getattr(rule, name) for name in (field.name for field in fields(rule))}
    values = {n: v for n, v in values.items() if not any(n in parts for parts in rule.tuples.values())}
    values |= {name: tuple(getattr(rule, part) for part in parts) for name, parts in rule.tuples.items()}
    optimizer = schuss.torch.optimizer(type(rule))([weight], **values)
    row = row_of(type(rule))
    tensors = {row.names[name]: torch.tensor([value], dtype=torch.float64) for name, value in state.items()}
    tensors |= {
        row.names[name]: torch.zeros(1, dtype=torch.float64) for name in rule.slots if name not in state
    }
    optimizer.state[weight] = tensors | {"step": torch.tensor(float(step))}
    return optimizer


def growth(rule, step, state, h, moving, steps=4000):
    """By how much w has grown after many steps on ½ h w² with the coefficients of one step; state stands still."""
    scalars = {name: state[name] for name in rule.scalars}
    if "product" in scalars:  # of NAdam: the product before this step, so that it is `state` after it
        scalars["product"] /= rule.coefficients(step, product=1.0)["product"]
    values = rule.coefficients(step, **scalars)
    values = {name: value for name, value in values.items() if name not in rule.scalars}
    update = getattr(rule, f"update_{rule.variant}" if rule.variant else "update")
    first = w = 1e-120
    slots = [0.0 if name in moving else state[name] for name in rule.slots]
    sizes = [0.0]
    for k in range(steps):
        w, *slots = update(w, h * w, *slots, **values)
        sizes.append(abs(w))
        if not abs(w) < 1e-60 or (k % 500 == 499 and max(sizes[-20:]) < 1e-140):
            break
    return max(sizes[-20:]) / first


@pytest.mark.parametrize("name", CASES)
def test_the_rule_itself_shrinks_w_just_below_the_limit_and_grows_it_just_above(name):
    rule, step, state = CASES[name]
    limit = stability_limit(in_torch(rule, step, state))
    (p,) = limit.preconditioner
    edge = float(limit) * float(p) - limit.methods[0].l2
    moving = set(rule.slots) - state.keys()
    assert growth(rule, step, state, 0.99 * edge, moving) < 1
    assert growth(rule, step, state, 1.01 * edge, moving) > 1


def test_every_rule_of_the_table_and_each_variant_has_a_case_or_a_refusal():
    done = {(type(rule).__name__, rule.variant) for rule, *_ in CASES.values()}
    refused = dict.fromkeys(("Lion", "Rprop"), "is not linear in small gradients. It uses only the sign")
    for name, row in TABLE.items():
        if formula(row.rule).passes:
            refused[name] = (
                f"is not .* by itself. '{name}' measures whole tensors, so it has no limit for one"
            )
        elif row.rule.has_evaluated():
            refused[name] = (
                "is not .* the same limit. The average that it evaluates takes less of each new step"
            )
    missing = {
        (row.name, v) for row in TABLE.values() for v in row.rule.variants if row.name not in refused
    } - done
    assert missing == {("AdamW", "amsgrad")}  # which is Adam's
    for name, words in refused.items():
        shape = (1, 1) if formula(TABLE[name].rule).of_matrices else (1,)
        optimizer = getattr(schuss.torch, name)([torch.zeros(shape, requires_grad=True)])
        with pytest.raises(ValueError, match=f"'{name}' {words}"):
            stability_limit(optimizer)


def of(rule, **options):
    return stability_limit(schuss.torch.optimizer(rule)([torch.zeros(3, requires_grad=True)], **options))


def test_own_rules_have_the_limits_of_theory():
    assert float(of(Late)) == pytest.approx(10, rel=1e-12)
    assert float(of(TwoPoints, momentum=0.6)) == pytest.approx(2 * 1.6 / 0.1, rel=1e-12)
    averaged = of(Averaged, pull=0.5)
    assert float(averaged) == pytest.approx(2 * 1.9 / (0.1 * 0.1), rel=1e-12)
    assert averaged.methods[0].l2 == 0.5
    assert of(Averaged).largest_lr(380.0) == pytest.approx(0.1, rel=1e-12)
    assert averaged.preconditioner == (1.0,)
    assert float(of(Sized)) == pytest.approx(20, rel=1e-12)
    assert of(Sized).preconditioner is None
    assert float(of(ADOPT, lr=0.1)) == pytest.approx(380, rel=1e-12)
    # With momentum_decay 0 NAdam's momentum stays at half of beta1.
    half = stability_limit(
        torch.optim.NAdam([torch.zeros(1, requires_grad=True)], lr=0.1, momentum_decay=0.0)
    )
    assert float(half) == pytest.approx(2 * 1.9 / (0.1 * (0.45 * 0.1 + 0.55 * 1.9)), rel=1e-12)
    assert float(of(RMSprop, lr=0.1, centered=True)) == pytest.approx(20, rel=1e-12)
    # ASGD's rate is state that starts from lr.
    w = torch.ones(1, requires_grad=True)
    optimizer = schuss.torch.ASGD([w], lr=0.1, lambd=0.5)
    w.grad = torch.zeros(1)
    optimizer.step()
    limit, eta = stability_limit(optimizer), float(optimizer.state[w]["eta"])
    assert limit.largest_lr(7.0) == pytest.approx(2 / (7 + 0.5) * 0.1 / eta, rel=1e-9)
    # Without a field of the name lr there is no learning rate to speak of.
    assert math.isnan(of(TwoPoints).largest_lr(3.0))


def test_an_own_rule_is_read_as_the_built_in_one_that_it_equals():
    """RMSProp under other names, with sizes of many scales: the same limit, P and L2 decay, in torch and in NumPy."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 64, generator=generator, dtype=torch.float64) * torch.logspace(-6, 6, 64)
    found = []
    for rule, options in (
        (Sized, {"share": 0.9, "pull": 0.3}),
        (RMSprop, {"alpha": 0.9, "weight_decay": 0.3, "eps": 0}),
    ):
        w = torch.zeros(64, dtype=torch.float64, requires_grad=True)
        ours, theirs = (
            schuss.torch.optimizer(rule)([w], lr=0.1, **options),
            schuss.numpy.optimizer(rule)(lr=0.1, **options),
        )
        arrays = {"w": w.detach().numpy().copy()}
        for gradient in gradients:
            w.grad = gradient.clone()
            ours.step()
            theirs.update(arrays, {"w": gradient.numpy()})
        found += [stability_limit(ours), stability_limit(theirs)]
    for limit in found[1:]:
        assert float(limit) == pytest.approx(float(found[0]), rel=1e-12)
        torch.testing.assert_close(limit.preconditioner[0], found[0].preconditioner[0], rtol=1e-12, atol=0)
        assert limit.methods[0].l2 == pytest.approx(0.3)


def test_adopts_first_step_moves_nothing_so_its_preconditioner_is_not_known():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = schuss.torch.optimizer(ADOPT)([w], lr=0.1)
    for known in (False, True):
        w.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        optimizer.step()
        limit = stability_limit(optimizer)
        assert float(limit) == pytest.approx(380, rel=1e-12)
        assert (limit.preconditioner is not None) is known
    torch.testing.assert_close(limit.preconditioner[0], w.new_tensor([3.0, 4.0]), rtol=1e-3, atol=0)


@dataclass(frozen=True, kw_only=True)
class Cautious(Rule):
    """Moves only where momentum and gradient agree: not the sum of what each does."""

    lr: float = number(0.1, low=0)
    state = ("m",)

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, m, lr):
        m = 0.9 * m + 0.1 * g
        return w - lr * where(m * g > 0, m, 0.0), m


@dataclass(frozen=True, kw_only=True)
class Split(Rule):
    """A momentum whose memory depends on a size."""

    lr: float = number(0.1, low=0)
    state = ("m", "v")

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, m, v, lr):
        v = 0.9 * v + 0.1 * g * g
        m = v / (1 + v) * m + g
        return w - lr * m, m, v


@dataclass(frozen=True, kw_only=True)
class Drifting(Rule):
    """Moves without a gradient."""

    lr: float = number(0.1, low=0)

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, lr):
        return (w - lr * (g + 1),)


@dataclass(frozen=True, kw_only=True)
class Uphill(Rule):
    """Climbs."""

    lr: float = number(0.1, low=0)
    clip: float = number(1.0, low=0)

    def coefficients(self, step):
        return dict(lr=self.lr, clip=self.clip)

    @staticmethod
    def update(w, g, lr, clip):
        return (w + lr * maximum(-clip, minimum(clip, g)),)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            Cautious,
            "'Cautious' is not linear in small gradients. A stability limit holds for steps in proportion",
        ),
        (Split, "'Split' is not a method whose state only scales its steps. Its momentum or decay differs"),
        (Drifting, "'Drifting' is not at rest without a gradient. Its weights move even at a minimum"),
        (Uphill, "'Uphill' is not stable at any curvature. Its steps grow however small the curvature is"),
    ],
)
def test_own_rules_without_a_limit_are_refused_in_words(rule, said):
    with pytest.raises(ValueError, match=said):
        of(rule)
    with pytest.raises(ValueError, match=said):
        stability_limit(schuss.numpy.optimizer(rule)())


def test_an_optimizer_of_another_library_is_not_taken_by_its_name():
    class Adam(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

    with pytest.raises(
        ValueError, match=r"'Adam' is not of Schuss, or of torch.optim and one of SGD, Adagrad"
    ):
        stability_limit(Adam([torch.zeros(1, requires_grad=True)]))


def test_the_sharpness_of_a_numpy_optimizer_says_what_it_needs():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(
        ValueError, match=r"SGD is an optimizer of schuss.numpy.*train the model with schuss.torch.SGD"
    ):
        stability_limit(schuss.numpy.SGD()).sharpness(model, lambda m, b: m(b).sum(), torch.ones(1, 2))


def test_the_largest_lr_is_the_one_to_set_also_where_the_rate_falls():
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adagrad([w], lr=0.1, lr_decay=0.5)
    for _ in range(4):
        w.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    best = stability_limit(optimizer).largest_lr(7.0)
    optimizer.param_groups[0]["lr"] = best
    assert stability_limit(optimizer).limit == pytest.approx(7.0, rel=1e-12)
