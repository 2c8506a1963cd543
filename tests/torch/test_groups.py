"""Groups, hyperparameters that change, schedules, closures, hooks, and gradients that come and go."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import schuss.torch
from schuss.schedules import Exponential

HALVING = Exponential(1.0, rate=0.5)


@pytest.fixture(autouse=True)
def _float64(float64_default):
    """Torch's own scalars in float64, as its weights here."""


@pytest.fixture
def pair(noise):
    """Weights for ours and the same for torch's, and `push(seed, present)`, which gives both their gradients."""
    shapes = [(3, 2), (5,), (), (4,)]
    mine, other = ([noise(*s, seed=k).requires_grad_() for k, s in enumerate(shapes)] for _ in range(2))

    def push(seed, present=(0, 1, 2, 3)):
        for weights in (mine, other):
            for k, w in enumerate(weights):
                w.grad = noise(*w.shape, seed=10 * seed + k) if k in present else None

    return mine, other, push


def assert_alike(mine, other, relative=1e-12):
    for w, v in zip(mine, other, strict=True):
        torch.testing.assert_close(w.detach(), v.detach(), rtol=relative, atol=relative)


def both(case, mine, other, groups):
    return (
        case.ours([{"params": [w[k] for k in chosen], **more} for chosen, more in groups])
        if w is mine
        else case.theirs([{"params": [w[k] for k in chosen], **more} for chosen, more in groups])
        for w in (mine, other)
    )


def test_groups_with_their_own_hyperparameters(torch_case, pair):
    mine, other, push = pair
    own = {} if torch_case.name == "Rprop" else {"weight_decay": 0.3}
    groups = [([0], {"lr": 0.5}), ([3, 1], {"lr": 0.01, **own}), ([2], {"maximize": True})]
    ours, theirs = both(torch_case, mine, other, groups)
    for seed in range(4):
        push(seed)
        ours.step()
        theirs.step()
    assert_alike(mine, other)


def test_groups_of_different_variants(pair):
    mine, other, push = pair
    groups = [([0, 1], {"momentum": 0.9}), ([2], {}), ([3], {"momentum": 0.5, "nesterov": True})]
    made = []
    for cls, w in ((schuss.torch.SGD, mine), (torch.optim.SGD, other)):
        made.append(cls([{"params": [w[k] for k in chosen], **more} for chosen, more in groups], lr=0.1))
    for seed in range(4):
        push(seed)
        for optimizer in made:
            optimizer.step()
    assert_alike(mine, other)


def test_hyperparameters_are_read_at_every_step(torch_case, pair):
    mine, other, push = pair
    ours, theirs = torch_case.ours(mine), torch_case.theirs(other)
    for seed in range(6):
        push(seed)
        for optimizer in (ours, theirs):
            group = optimizer.param_groups[0]
            group["lr"] = 0.1 / (1 + seed)
            if "betas" in group:
                group["betas"] = (0.5 + 0.05 * seed, 0.9)
            if "eps" in group:
                group["eps"] = (10.0**-seed, 1e-3) if isinstance(group["eps"], tuple) else 10.0**-seed
            if seed == 3 and "weight_decay" in group:
                group["weight_decay"] = 0.2
            optimizer.step()
    assert_alike(mine, other)


def test_lr_as_a_tensor_changed_in_place(torch_case, pair):
    mine, other, push = pair
    rate = torch.tensor(0.1)
    ours, theirs = torch_case.ours(mine, lr=rate), torch_case.theirs(other, lr=0.1)
    for seed in range(4):
        push(seed)
        ours.step()
        theirs.step()
        rate.mul_(0.5)
        theirs.param_groups[0]["lr"] *= 0.5
    assert ours.param_groups[0]["lr"] is rate
    assert_alike(mine, other)


@pytest.mark.parametrize("rate", [np.float64(0.1), np.float32(0.125), torch.tensor([0.1]), 1], ids=repr)
def test_lr_as_other_numbers(rate, pair):
    mine, other, push = pair
    push(0)
    schuss.torch.SGD(mine, lr=rate).step()
    torch.optim.SGD(other, lr=float(rate)).step()
    assert_alike(mine, other)


def test_torchs_schedulers_drive_ours(pair):
    mine, other, push = pair
    made = []
    for cls, w in ((schuss.torch.AdamW, mine), (torch.optim.AdamW, other)):
        optimizer = cls(w, lr=0.1)
        made.append((optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=8)))
    for seed in range(8):
        push(seed)
        for optimizer, scheduler in made:
            optimizer.step()
            scheduler.step()
    assert_alike(mine, other)


def test_a_schedule_is_asked_with_the_finished_steps(pair):
    mine, other, push = pair
    asked = []

    def rate(n):
        asked.append(n)
        return 0.1 * 0.5**n

    ours, theirs = schuss.torch.SGD(mine, lr=rate), torch.optim.SGD(other, lr=0.1)
    assert ours.param_groups[0]["lr"] == 0.1
    for n in range(5):
        push(n)
        theirs.param_groups[0]["lr"] = 0.1 * 0.5**n
        ours.step()
        theirs.step()
        assert ours.param_groups[0]["lr"] == 0.1 * 0.5 ** (n + 1)
    assert set(asked) == set(range(6))
    assert_alike(mine, other)


def test_any_hyperparameter_may_be_a_schedule(pair):
    mine, other, push = pair
    ours = schuss.torch.AdamW(
        mine,
        betas=(lambda n: 0.5 + 0.1 * n, 0.9),
        weight_decay=lambda n: 0.1 * n,
        eps=lambda n: 10.0 ** -(n + 1),
    )
    theirs = torch.optim.AdamW(other)
    for n in range(4):
        push(n)
        theirs.param_groups[0] |= {
            "betas": (0.5 + 0.1 * n, 0.9),
            "weight_decay": 0.1 * n,
            "eps": 10.0 ** -(n + 1),
        }
        ours.step()
        theirs.step()
    assert_alike(mine, other)


def test_a_group_has_a_schedule_of_its_own_from_its_own_start(pair):
    mine, other, push = pair
    ours, theirs = schuss.torch.SGD(mine[:2], lr=lambda n: 0.1 / (1 + n)), torch.optim.SGD(other[:2], lr=0.1)
    for n in range(6):
        if n == 3:
            ours.add_param_group({"params": mine[2:], "lr": lambda n: 0.5 / (1 + n)})
            theirs.add_param_group({"params": other[2:], "lr": 0.5})
        push(n)
        theirs.param_groups[0]["lr"] = 0.1 / (1 + n)
        if n >= 3:
            theirs.param_groups[1]["lr"] = 0.5 / (1 + n - 3)
        ours.step()
        theirs.step()
    assert_alike(mine, other)


def test_a_rate_set_by_hand_is_used_for_one_step():
    """Whoever writes last has the next step; after it the schedule writes again. It is said once."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = schuss.torch.SGD([weight], lr=lambda n: 0.1, momentum=lambda n: 0.0)
    weight.grad = torch.ones(3)
    optimizer.param_groups[0]["lr"] = 5.0
    with pytest.warns(
        UserWarning, match=r"^lr=<function .* is the schedule of a parameter group, .* stands at 5\.0"
    ):
        optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -5.0))
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -5.1))
    optimizer.param_groups[0].update(lr=torch.tensor(2.0), momentum=0.5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -7.1))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), "loaded"])
def test_a_rate_set_by_hand_right_after_a_copy_or_a_checkpoint_is_used(again):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = schuss.torch.SGD([weight], lr=HALVING)
    optimizer.step()
    if again == "loaded":
        other = schuss.torch.SGD([torch.nn.Parameter(weight.detach().clone())], lr=HALVING)
        other.load_state_dict(optimizer.state_dict())
    else:
        other = again(optimizer)
    moved = other.param_groups[0]["params"][0]
    moved.grad = torch.ones(3)
    other.param_groups[0]["lr"] = 2.0
    with pytest.warns(UserWarning, match="Whoever writes last wins"):
        other.step()
    torch.testing.assert_close(moved.detach(), torch.full((3,), -3.0))
    assert other.param_groups[0]["lr"] == 0.25


def test_a_step_that_is_left_out_uses_up_no_rate_set_by_hand():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = schuss.torch.SGD([weight], lr=lambda n: 0.1, skip_nonfinite=True)
    optimizer.param_groups[0]["lr"] = 5.0
    weight.grad = torch.full((3,), torch.inf)
    with pytest.warns(UserWarning, match="Whoever writes last wins"):
        optimizer.step()
    weight.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -5.0))


def train(steps, *movers):
    for _ in range(steps):
        for one in movers:
            one.step()


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.5 if n else 1.0),
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=100),
    ],
)
def test_a_second_scheduler_is_named_once(scheduler):
    """torch's writes after our schedule has, so it wins where it writes; StepLR hands on what it finds."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = schuss.torch.SGD([weight], lr=HALVING)
    driver = scheduler(optimizer)
    lambdas = isinstance(driver, torch.optim.lr_scheduler.LambdaLR)
    with pytest.warns(UserWarning, match="by hand or by a scheduler") as said:
        train(3, optimizer, driver)
    assert len(said) == 1
    assert weight.item() == (-2.0 if lambdas else -1.75)
    assert optimizer.param_groups[0]["lr"] == (0.5 if lambdas else 0.125)


def test_a_group_added_after_steps(torch_case, pair):
    mine, other, push = pair
    ours, theirs = torch_case.ours(mine[:2]), torch_case.theirs(other[:2])
    for seed in range(6):
        if seed == 3:
            ours.add_param_group({"params": mine[2:], "lr": 0.5})
            theirs.add_param_group({"params": other[2:], "lr": 0.5})
        push(seed)
        ours.step()
        theirs.step()
    assert_alike(mine, other)


PATTERNS = [(0, 1, 2, 3), (1,), (), (0, 2), (0, 1, 2, 3), (3,), (0, 1, 3), (2, 3)]


def test_gradients_that_come_and_go(torch_case, pair):
    """Each weight counts its own steps: one that was away is corrected as torch corrects it."""
    mine, other, push = pair
    ours, theirs = torch_case.ours(mine), torch_case.theirs(other)
    for seed, present in enumerate(PATTERNS):
        push(seed, present)
        ours.step()
        theirs.step()
        assert_alike(mine, other)
    if torch_case.row.counts_steps:
        for w, v in zip(mine, other, strict=True):
            assert float(ours.state[w]["step"]) == float(theirs.state[v]["step"])


def test_weights_that_do_not_require_gradients_stay(plain, noise):
    frozen, free = noise(4), noise(4, seed=1).requires_grad_()
    start = frozen.clone()
    optimizer = plain.ours([frozen, free])
    free.grad = noise(4, seed=2)
    optimizer.step()
    assert torch.equal(frozen, start)


def test_zero_grad_in_both_ways(plain, noise):
    weight = noise(4).requires_grad_()
    optimizer = plain.ours([weight])
    for to_none in (True, False):
        weight.grad = noise(4, seed=1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        assert weight.grad is None if to_none else not weight.grad.any()


# Closures and hooks


def test_a_closure_is_called_once_with_gradients_on(plain, noise):
    weight = noise(3).requires_grad_()
    optimizer = plain.ours([weight])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for _ in range(6):  # ADOPT's first step moves nothing, ScheduleFreeRAdam's first five
        calls.clear()
        with torch.no_grad():
            start = weight.detach().clone()
            loss = optimizer.step(closure)
        assert calls == [True]
        assert loss.item() == pytest.approx(start.square().sum().item())
    assert not torch.equal(weight, start)


def test_a_step_without_a_closure_returns_none(plain, noise):
    weight = noise(3).requires_grad_()
    weight.grad = torch.ones_like(weight)
    assert plain.ours([weight]).step() is None


def test_hooks_of_the_optimizer_and_of_all(plain, noise):
    weight = noise(3).requires_grad_()
    weight.grad = torch.ones_like(weight)
    optimizer = plain.ours([weight])
    called = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: called.append("all before")),
        register_optimizer_step_post_hook(lambda *_: called.append("all after")),
        optimizer.register_step_pre_hook(lambda *_: called.append("before")),
        optimizer.register_step_post_hook(lambda *_: called.append("after")),
    ]
    try:
        optimizer.step()
        assert sorted(called[:2]) == ["all before", "before"]
        assert sorted(called[2:]) == ["after", "all after"]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(called) == 4


def test_a_hook_that_clips_is_seen(noise):
    weight = noise(3).requires_grad_()
    start = weight.detach().clone()
    weight.grad = torch.full_like(weight, 100.0)
    optimizer = schuss.torch.SGD([weight], lr=1.0)
    optimizer.register_step_pre_hook(
        lambda o, *_: torch.nn.utils.clip_grad_value_(o.param_groups[0]["params"], 1.0)
    )
    optimizer.step()
    torch.testing.assert_close(weight.detach(), start - 1)


# Autograd


def test_a_backward_through_weights_that_have_moved_is_an_error(plain, noise):
    weight = noise(3).requires_grad_()
    loss = (weight * weight).sum()
    weight.grad = torch.ones_like(weight)
    plain.ours([weight]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_without_a_gradient_keep_their_version(noise):
    still, moved = noise(3).requires_grad_(), noise(3).requires_grad_()
    moved.grad = torch.ones_like(moved)
    optimizer = schuss.torch.Adam([still, moved])
    versions = still._version, moved._version
    optimizer.step()
    assert still._version == versions[0]
    assert moved._version > versions[1]


def test_stepping_in_inference_of_autograd_leaves_no_graph(plain, noise):
    weight = noise(3).requires_grad_()
    weight.grad = torch.ones_like(weight)
    optimizer = plain.ours([weight])
    optimizer.step()
    assert weight.grad_fn is None
    assert weight.is_leaf
    assert not any(
        value.requires_grad for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)
    )


def test_generators_and_named_parameters(plain):
    model = torch.nn.Linear(3, 2)
    for params in (model.parameters(), model.named_parameters(), list(model.named_parameters())):
        optimizer = plain.ours(params)
        assert len(optimizer.param_groups[0]["params"]) == 2
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_two_optimizers_on_the_same_weights(noise, pair):
    mine, other, push = pair
    ours = schuss.torch.SGD(mine, lr=0.1), schuss.torch.Adam(mine, lr=0.1)
    theirs = torch.optim.SGD(other, lr=0.1), torch.optim.Adam(other, lr=0.1)
    for seed in range(3):
        push(seed)
        for optimizer in (*ours, *theirs):
            optimizer.step()
    assert_alike(mine, other)


def test_a_weight_swapped_in_its_group(plain, noise):
    """What `param_groups` holds at the step is what moves."""
    first, second = noise(3).requires_grad_(), noise(3).requires_grad_()
    optimizer = plain.ours([first])
    first.grad, second.grad = noise(3, seed=1), noise(3, seed=1)
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = second
    optimizer.step()
    assert torch.equal(first, second)


def test_the_weights_of_a_group_reordered(noise):
    weights, straight = ([noise(3, seed=k).requires_grad_() for k in range(3)] for _ in range(2))
    optimizer, usual = schuss.torch.NAdam(weights, lr=0.1), schuss.torch.NAdam(straight, lr=0.1)
    for seed in range(4):
        for chosen in (weights, straight):
            for k, w in enumerate(chosen):
                w.grad = noise(3, seed=10 * seed + k) if seed != 1 or k else None
        optimizer.step()
        usual.step()
        optimizer.param_groups[0]["params"].reverse()
    for w, v in zip(weights, straight, strict=True):
        assert torch.equal(w, v)
