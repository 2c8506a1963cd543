"""Groups with a rule of their own: one optimizer, one step, one checkpoint, one norm."""

import copy
import io
import pickle

import pytest
import torch

import schuss.torch
from schuss.lab.files import load_name
from schuss.rules import AdamW
from schuss.schedules import Linear

# The optimizer's own rule, and those of two more groups with hyperparameters of their own.
SETS = [
    (
        "SGD",
        dict(lr=0.1, momentum=0.9),
        [("AdamW", dict(lr=0.01)), ("NAdam", dict(lr=0.02, betas=(0.8, 0.9)))],
    ),
    ("AdamW", dict(lr=0.01), [("SGD", dict(lr=0.1)), ("ASGD", dict(lr=0.05, t0=2))]),
    (
        "Lion",
        dict(lr=0.01),
        [("Adagrad", dict(lr=0.1)), ("RMSprop", dict(lr=0.01, momentum=0.9, centered=True))],
    ),
    ("NAdam", dict(lr=0.01), [("Lion", dict(lr=0.01, maximize=True)), ("Rprop", dict(lr=0.01))]),
]


def weights(count=3, dtype=torch.float32):
    return [torch.nn.Parameter(torch.linspace(-1, 1, 70 + k).to(dtype)) for k in range(count)]


def grouped(own, options, others, params, **more):
    first, *rest = params
    groups = [{"params": [first]}]
    groups += [{"params": [w], "rule": rule, **given} for w, (rule, given) in zip(rest, others, strict=True)]
    return getattr(schuss.torch, own)(groups, **options, **more)


def give(params, step):
    for k, w in enumerate(params):
        i = torch.arange(w.numel(), dtype=torch.float64)
        w.grad = ((1.5 + torch.sin(1.7 * i + step + k)) * torch.where(i % 3 == 0, -1.0, 1.0)).to(w.dtype)


def train(optimizers, params, steps, first=0):
    for step in range(first, first + steps):
        give(params, step)
        for optimizer in optimizers:
            optimizer.step()


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("own", "options", "others"), SETS, ids=[one[0] for one in SETS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_group_moves_as_an_optimizer_of_its_own_would(own, options, others, dtype):
    ours, theirs = weights(dtype=dtype), weights(dtype=dtype)
    together = grouped(own, options, others, ours)
    apart = [getattr(schuss.torch, own)(theirs[:1], **options)]
    apart += [
        getattr(schuss.torch, rule)([w], **given) for w, (rule, given) in zip(theirs[1:], others, strict=True)
    ]
    train([together], ours, 5)
    train(apart, theirs, 5)
    assert same(ours, theirs)


@pytest.mark.parametrize(("own", "options", "others"), SETS, ids=[one[0] for one in SETS])
def test_one_checkpoint_goes_on_bit_for_bit(own, options, others):
    never, stopped = weights(), weights()
    train([grouped(own, options, others, never)], never, 6)
    first = grouped(own, options, others, stopped)
    train([first], stopped, 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = grouped(own, options, others, stopped)
    again.load_state_dict(torch.load(file, weights_only=True))
    train([again], stopped, 3, first=3)
    assert same(never, stopped)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"]
)
def test_copies_keep_the_rules(copied):
    own, options, others = SETS[0]
    ours = weights()
    optimizer = grouped(own, options, others, ours)
    train([optimizer], ours, 2)
    other = copied(optimizer)
    theirs = [w for group in other.param_groups for w in group["params"]]
    train([optimizer], ours, 3, first=2)
    train([other], theirs, 3, first=2)
    assert same(ours, theirs)


def test_one_norm_and_one_decision_for_all():
    own, options, others = SETS[0]
    ours, theirs = weights(), weights()
    clipped = grouped(own, options, others, ours, max_norm=0.5, skip_nonfinite=True)
    plain = grouped(own, options, others, theirs)
    give(ours, 0)
    give(theirs, 0)
    whole = torch.linalg.vector_norm(torch.cat([w.grad.double() for w in theirs]))
    for w in theirs:
        w.grad = (w.grad.double() * (0.5 / (whole + 1e-6))).float()
    clipped.step()
    plain.step()
    assert clipped.gradient_norm == pytest.approx(float(whole), rel=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    before = [w.detach().clone() for w in ours]
    ours[2].grad[3] = torch.inf
    clipped.step()
    assert clipped.skipped == 1
    assert same(ours, before)


def test_hyperparameters_start_from_the_rule_and_options_from_the_optimizer():
    params = weights()
    optimizer = schuss.torch.SGD(
        [{"params": params[:1]}, {"params": params[1:], "rule": "AdamW", "betas": (0.8, 0.9)}],
        lr=0.5,
        momentum=0.9,
        ema_decay=0.99,
        foreach=False,
    )
    group = optimizer.param_groups[1]
    assert (group["lr"], group["betas"], group["weight_decay"], group["ema_decay"]) == (
        1e-3,
        (0.8, 0.9),
        0.01,
        0.99,
    )
    assert "momentum" not in group
    assert "rule" not in optimizer.param_groups[0]
    assert group["foreach"] is False
    train([optimizer], params, 2)
    assert all("average" in optimizer.state[w] for w in params)


def test_a_schedule_of_one_group_and_a_rate_of_another():
    ours, theirs = weights(2), weights(2)
    rate = Linear(0.1, 0.0, steps=4)
    optimizer = schuss.torch.SGD(
        [{"params": ours[:1]}, {"params": ours[1:], "rule": "Lion", "lr": rate}], lr=0.5
    )
    apart = [schuss.torch.SGD(theirs[:1], lr=0.5), schuss.torch.Lion(theirs[1:], lr=rate)]
    train([optimizer], ours, 4)
    train(apart, theirs, 4)
    assert same(ours, theirs)


def test_a_rule_of_ones_own_and_one_that_joins_later():
    adopt = load_name("examples/adopt.py", "ADOPT")[0]
    ours, theirs = weights(), weights()
    optimizer = schuss.torch.AdamW(
        [{"params": ours[:1]}, {"params": ours[1:2], "rule": adopt, "lr": 0.1}], lr=0.01
    )
    apart = [schuss.torch.AdamW(theirs[:1], lr=0.01), schuss.torch.optimizer(adopt)(theirs[1:2], lr=0.1)]
    train([optimizer], ours[:2], 2)
    train(apart, theirs[:2], 2)
    optimizer.add_param_group({"params": ours[2:], "rule": "NAdam"})
    apart.append(schuss.torch.NAdam(theirs[2:]))
    train([optimizer], ours, 3, first=2)
    train(apart, theirs, 3, first=2)
    assert same(ours, theirs)
    assert [group.get("rule") for group in optimizer.param_groups] == [None, "ADOPT", "NAdam"]


def test_the_optimizers_own_rule_may_be_named():
    for rule in ("AdamW", AdamW):
        optimizer = schuss.torch.AdamW([{"params": weights(), "rule": rule}])
        assert "rule" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"rule": "Adamw"}, r"rule='Adamw' is not one of SGD, .* Did you mean AdamW\?"),
        ({"rule": 3}, "3 is not a rule. A rule is a class"),
        (
            {"rule": "AdamW", "beta": (0.9, 0.9)},
            r"has 'beta', which AdamW does not take. Did you mean 'betas'\?",
        ),
        ({"rule": "AdamW", "betas": (0.9, 1.0)}, r"beta2=1\.0 is not in \[0, 1\)"),
        ({"rule": "AdamW", "max_norm": 1.0}, "max_norm belongs to the whole optimizer"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_and_leaves_nothing(group, said):
    params = weights()
    optimizer = schuss.torch.SGD(params[:1], lr=0.1)
    with pytest.raises(ValueError, match=said):
        optimizer.add_param_group({"params": params[1:], **group})
    assert len(optimizer.param_groups) == 1
    train([optimizer], params[:1], 1)


def test_a_checkpoint_of_other_rules_is_refused():
    own, options, others = SETS[0]
    params = weights()
    optimizer = grouped(own, options, others, params)
    train([optimizer], params, 1)
    saved = optimizer.state_dict()
    plain = schuss.torch.SGD([{"params": [w]} for w in params], **options)
    with pytest.raises(
        ValueError, match=r"\[1\] is moved by AdamW, this optimizer's by the optimizer's own rule\. Build"
    ):
        plain.load_state_dict(saved)
    with pytest.raises(ValueError, match=r"moved by the optimizer's own rule, this optimizer's by AdamW"):
        optimizer.load_state_dict(plain.state_dict())


def test_two_rules_of_one_name_are_refused():
    class AdamW(schuss.rules.AdamW):
        pass

    optimizer = schuss.torch.SGD(weights(1), lr=0.1)
    optimizer.add_param_group({"params": weights(1), "rule": "AdamW"})
    with pytest.raises(ValueError, match="Two different rules of this optimizer are called 'AdamW'"):
        optimizer.add_param_group({"params": weights(1), "rule": AdamW})
