"""Bad input: what was given, what is allowed, what to try; and nothing half done."""

import copy
import inspect
import re
from dataclasses import dataclass

import pytest
import torch

import schuss.numpy
import schuss.torch
from schuss.rules import Row, Rule
from schuss.rules.rule import number, sign
from schuss.schedules import Constant, Warmup


def weight(*shape):
    return torch.ones(*shape or (3,), requires_grad=True)


def test_a_rate_in_a_tensor_has_the_same_domain():
    with pytest.raises(ValueError, match=re.escape("lr=-1.0 is not a finite number ≥ 0.")):
        schuss.torch.SGD([weight()], lr=torch.tensor(-1.0))


def test_impossible_hyperparameters_at_a_step_move_nothing():
    """A group made impossible after construction stops the step of every group, before it starts."""
    weights = [weight(), weight()]
    optimizer = schuss.torch.Adam([{"params": [w]} for w in weights])
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    kept = [w.detach().clone() for w in weights], copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[1]["betas"] = (0.9, 1.0)
    with pytest.raises(ValueError, match=r"beta2=1\.0 is not in \[0, 1\)"):
        optimizer.step()
    assert all(map(torch.equal, weights, kept[0]))
    torch.testing.assert_close(optimizer.state_dict()["state"], kept[1]["state"], rtol=0, atol=0)


WEIGHTS = [
    ([], ValueError, "empty parameter list"),
    (weight(), TypeError, "iterable"),
    ([torch.ones(3, dtype=torch.int64)], ValueError, "params[0] is of torch.int64, which has no gradients."),
    ([weight(), torch.ones(3) > 0], ValueError, "params[1] is of torch.bool, which has no gradients."),
    ([weight() * 2], ValueError, "non-leaf"),
    ([3.0], TypeError, "can only optimize Tensors"),
    ([{"lr": 0.1}], ValueError, "but no 'params'"),
]


@pytest.mark.parametrize(("params", "error", "text"), WEIGHTS)
def test_impossible_weights(params, error, text):
    with pytest.raises(error, match=re.escape(text)):
        schuss.torch.Adam(params)


def test_a_weight_given_twice():
    one = weight(2, 3)
    with pytest.raises(ValueError, match=re.escape("params[2], of shape (2, 3), is given twice")):
        schuss.torch.SGD([one, weight(), one])
    with pytest.raises(ValueError, match="more than one parameter group"):
        schuss.torch.SGD([{"params": [one]}, {"params": [one]}])


def test_a_set_has_no_order():
    with pytest.raises(TypeError, match="ordered"):
        schuss.torch.SGD([{"params": {weight()}}])


def test_an_unknown_option():
    with pytest.raises(TypeError, match=r"Adam: .*'beta1'.* It takes params, then lr, betas, eps"):
        schuss.torch.Adam([weight()], beta1=0.9)


def test_keywords_only_as_in_torch():
    with pytest.raises(TypeError, match="too many positional"):
        schuss.torch.AdamW([weight()], 1e-3, (0.9, 0.99), 1e-8, 0.01, False, True)


def test_no_weights_given():
    with pytest.raises(TypeError, match="missing a required argument: 'params'"):
        schuss.torch.AdamW()


def test_a_step_is_not_differentiable():
    with pytest.raises(
        ValueError, match=r"differentiable=True is not possible.*Use torch\.optim\.Adam for that"
    ):
        schuss.torch.Adam([weight()], differentiable=True)


def test_an_added_group_that_is_no_group():
    optimizer = schuss.torch.SGD([weight()])
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([weight()])


def test_a_sparse_refusal_text():
    one = weight(4, 2)
    one.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (4, 2), check_invariants=True)
    with pytest.raises(
        RuntimeError, match=re.escape("weight_decay=0.5 (L2) is not possible with sparse gradients")
    ):
        schuss.torch.SGD([one], weight_decay=0.5).step()


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta state")
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_other_sparse_layouts_are_refused_or_right(layout):
    """Compressed gradients are no way of autograd's: they may be refused, but not misread."""
    one = weight(4, 4)
    dense = torch.arange(16.0).reshape(4, 4)
    compressed = torch.sparse_compressed_tensor(
        torch.arange(0, 17, 4),
        torch.arange(4).repeat(4),
        dense.reshape(-1) if layout == "csr" else dense.T.reshape(-1),
        (4, 4),
        layout=getattr(torch, f"sparse_{layout}"),
        check_invariants=True,
    )
    before = one.detach().clone()
    optimizer = schuss.torch.SGD([one], lr=1.0)
    try:
        one.grad = compressed
        optimizer.step()
    except (RuntimeError, TypeError, ValueError):
        assert torch.equal(one, before)
    else:
        torch.testing.assert_close(one.detach(), 1 - dense)


def test_a_checkpoint_of_another_optimizer_without_state_is_told_by_its_groups():
    saved = schuss.torch.SGD([weight()]).state_dict()
    optimizer = schuss.torch.Adam([weight()], lr=0.5)
    with pytest.raises(ValueError, match=r"have no 'betas', 'eps', which Adam needs.*another optimizer's"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(lr=-1.0), "lr=-1.0 is not a finite number"),
        (dict(lr=lambda n: -1.0), "lr=-1.0 is not a finite number"),
        (dict(betas=(0.9, 1.0)), r"beta2=1.0 is not in \[0, 1\)"),
        (dict(maximize="yes"), "maximize='yes' is not True or False"),
        (dict(seed=3), "seed=3 is of one parameter group"),
        (dict(param_names=["w"]), "with/without names"),
    ],
    ids=["lr", "schedule", "betas", "maximize", "seed", "names"],
)
def test_a_group_that_is_refused_leaves_nothing(given, words):
    one = weight()
    optimizer = schuss.torch.AdamW([one], lr=lambda n: 0.1)
    group, before = {"params": [weight()], **given}, copy.deepcopy(optimizer.state_dict())
    inside, kept = derived(optimizer), dict(group)
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group(group)
    assert optimizer.state_dict() == before
    assert len(optimizer.param_groups) == 1
    assert group == kept
    assert derived(optimizer) == inside
    one.grad = torch.ones_like(one)
    optimizer.step()


def derived(optimizer):
    hyperparameters = optimizer._hyperparameters
    return dict(hyperparameters.rules), dict(hyperparameters.shown), dict(optimizer.defaults)


def test_what_chooses_an_implementation_is_taken_by_every_optimizer(plain):
    for name in ("foreach", "fused", "capturable"):
        if name in plain.row.arguments.split():
            plain.ours([weight()], **{name: True})
    lion = schuss.torch.Lion([weight()], foreach=True, fused=True, differentiable=False)
    assert (lion.defaults["foreach"], lion.defaults["fused"]) == (True, True)
    with pytest.raises(ValueError, match="differentiable=True is not possible"):
        schuss.torch.Lion([weight()], differentiable=True)


def test_a_subclass_with_a_constructor_of_its_own_shows_it():
    class Mine(schuss.torch.AdamW):
        def __init__(self, model, rate=0.1):
            super().__init__(model.parameters(), lr=rate)

    class Plain(schuss.torch.AdamW):
        pass

    assert str(inspect.signature(Mine)) == "(model, rate=0.1)"
    assert Mine(torch.nn.Linear(2, 2)).param_groups[0]["lr"] == 0.1
    assert inspect.signature(Plain) == inspect.signature(schuss.torch.AdamW)

    class Array(schuss.numpy.AdamW):
        def __init__(self, rate=0.1):
            super().__init__(lr=rate)

    assert str(inspect.signature(Array)) == "(rate=0.1)"
    assert Array().lr == 0.1


SILENT = {
    "a warm-up alone": (dict(lr=Warmup(5)), "lr=Warmup.5. is not a schedule .*Warmup.5. [*] 0.001"),
    "a hold and a warm-up": (
        dict(lr=Constant(0.1, steps=3).then(Warmup(5)).in_epochs(2)),
        "ends in a warm-up",
    ),
    "a class of schedules": (dict(lr=Warmup), "no number"),
    "maximize": (dict(maximize="yes"), "maximize='yes' is not True or False"),
    "capturable": (dict(capturable="no"), "capturable='no' is not True or False"),
}


@pytest.mark.parametrize("slip", SILENT)
def test_what_would_silently_mean_something_else_is_refused(slip):
    given, words = SILENT[slip]
    with pytest.raises(ValueError, match=words):
        schuss.torch.AdamW([weight()], **given)


@pytest.mark.parametrize(
    "schedule", [Warmup(5) * 0.1, Warmup(5).then(Constant(0.1)), Warmup(2).then(Warmup(3)) * 0.1]
)
def test_a_warmup_that_says_what_it_rises_to_is_taken(schedule):
    assert schuss.torch.AdamW([weight()], lr=schedule).param_groups[0]["lr"] == schedule(0)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("weigth_decay", "weight_decay"),
        ("Lr", "lr"),
        ("beta", "betas"),
        ("beta1", "betas"),
        ("state_dtyp", "state_dtype"),
        ("weightdecay", "weight_decay"),
    ],
)
def test_a_misspelled_key_of_a_group_is_named(key, meant):
    with pytest.raises(ValueError, match=f"{key!r}, which AdamW does not take. Did you mean {meant!r}?"):
        schuss.torch.AdamW([{"params": [weight()], key: 0}])


@pytest.mark.parametrize("name", sorted(schuss.torch.TABLE))
def test_keys_that_schedulers_and_frameworks_put_into_groups_are_taken(name):
    theirs = [
        *(
            "lr_scale",
            "name",
            "group_name",
            "initial_lr",
            "param_names",
            "use_fallback",
            "layer_id",
            "swa_lr",
        ),
        *("max_lr", "min_lr", "max_momentum", "base_momentum", "use_muon", "lr_mult", "wd_mult", "is_expert"),
        *("finished_steps", "momentum_buffer", "fix_decay"),
    ]
    matrix = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = getattr(schuss.torch, name)([{"params": [matrix], **dict.fromkeys(theirs, 1)}])
    assert all(optimizer.param_groups[0][key] == 1 for key in theirs if key != "param_names")


@pytest.mark.parametrize("scale", [0.0, float("nan"), -1.0])
def test_a_loss_scale_that_cannot_be_undone_is_refused_before_anything_moves(scale):
    one = weight()
    one.grad = torch.ones(3)
    optimizer = schuss.torch.SGD([one], lr=0.1)
    optimizer.grad_scale = torch.tensor(scale)
    with pytest.raises(ValueError, match=r"grad_scale=.* is not a finite number > 0"):
        optimizer.step()
    assert torch.equal(one, torch.ones(3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.nn.Linear(2, 2), r"params is a model, a Linear. Try SGD\(model.parameters\(\)\)"),
        (None, "params=None is not weights"),
        ([{"params": None}], "params=None is not a list of weights"),
    ],
)
def test_what_is_given_for_weights_and_is_none(given, words):
    with pytest.raises(TypeError, match=words):
        schuss.torch.SGD(given)


GROUPS = {
    "no model": (("x", 0.1), {}, "model='x' is not a torch.nn.Module"),
    "a pattern of nothing": (
        (None, 0.1),
        dict(no_decay=["wieght*"]),
        r"no_decay='wieght\*' is not a pattern that matches .*there are weight, bias. Did you mean '\*weight\*'",
    ),
    "no pattern": ((None, 0.1), dict(no_decay=[3]), r"no_decay=\[3\] is not a list of patterns"),
    "no list": ((None, 0.1), dict(no_decay=3), "no_decay=3 is not a list of patterns"),
    "negative decay": ((None, -0.1), {}, "weight_decay=-0.1 is not a finite number ≥ 0"),
    "a word for decay": ((None, "x"), {}, "weight_decay='x' is not a finite number"),
    "a negative rate": ((None, 0.1), dict(lr=-1), "lr=-1 is not a finite number"),
    "a word for layers": ((None, 0.1), dict(lr=1, layer_decay="x"), r"layer_decay='x' is not in \(0, 1\]"),
    "an unknown dtype": ((None, 0.1), dict(state_dtype="int9"), "state_dtype='int9' is not None or one of"),
}


@pytest.mark.parametrize("slip", GROUPS)
def test_groups_of_what_is_none(slip):
    (model, decay), more, words = GROUPS[slip]
    with pytest.raises(ValueError, match=words):
        schuss.torch.groups(model or torch.nn.Linear(2, 2), decay, **more)


@dataclass(frozen=True, kw_only=True)
class OneNumber(Rule):
    """A rule with a single hyperparameter."""

    lr: float = number(0.1, low=0)

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, lr):
        w = w - lr * sign(g)
        return (w,)


def test_a_rule_with_one_hyperparameter():
    class SignSGD(schuss.torch.Optimizer):
        row = Row(OneNumber, "lr", {})

    one = weight()
    one.grad = torch.tensor([2.0, -3.0, 0.0])
    optimizer = SignSGD([one], lr=0.25)
    optimizer.step()
    assert one.tolist() == [0.75, 1.25, 1.0]
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert one.tolist() == [0.25, 1.75, 1.0]
