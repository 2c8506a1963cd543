"""A step with lr 0 and gradients 0, which checkpoint libraries take so that there is state: it does nothing else."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from schuss.schedules import Exponential
from schuss.torch import SGD, AdamW

RATE = Exponential(0.1, rate=0.5)
OPTIONS = [
    lambda p, lr: AdamW(p, lr=lr, weight_decay=0.5, ema_decay=0.9),
    lambda p, lr: AdamW(p, lr=lr, weight_decay=0.5, max_norm=1.0, skip_nonfinite=True, rounding="stochastic"),
    lambda p, lr: SGD(p, lr=lr, weight_decay=0.5, decoupled_weight_decay=True),
    lambda p, lr: SGD(p, lr=lr, momentum=0.9, dampening=0.5, weight_decay=0.5, ema_decay=0.9),
]


def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def train(module, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((1, 3), 1.0 + step)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()


def everything(module, optimizer):
    """Copies of weights and state; what the groups say, and what was left out."""
    state = [copy.deepcopy(dict(optimizer.state.get(w, {}))) for w in module.parameters()]
    tensors = [[w.detach().clone() for w in module.parameters()], state]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return tensors, repr(groups), optimizer.skipped


def assert_same(one, other):
    torch.testing.assert_close(
        one[0], other[0], rtol=0, atol=0, check_dtype=False
    )  # a loaded step is a float32
    assert one[1:] == other[1:]


def dry_step(module, optimizer):
    """As `torch.distributed.checkpoint` does it, also where there is state already."""
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    lrs = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], torch.Tensor) else 0.0
    optimizer.step(closure=None)
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("lr", [RATE, 0.1, torch.tensor(0.1)], ids=["schedule", "number", "tensor"])
@pytest.mark.parametrize("make", OPTIONS, ids=["ema", "skip", "stateless", "momentum"])
def test_nothing_moves_and_nothing_is_counted(make, lr):
    module, twin = model(), model()
    optimizer, expected = make(module.parameters(), lr), make(twin.parameters(), lr)
    dry_step(module, optimizer)
    assert all(map(torch.equal, module.parameters(), twin.parameters()))
    assert all(float(entry.get("step", 0)) == 0 for entry in optimizer.state.values())
    assert optimizer.param_groups[0]["step"] == 0
    for _ in range(2):
        train(module, optimizer, 2)
        train(twin, expected, 2)
        before = everything(module, optimizer)
        assert_same(before, everything(twin, expected))
        dry_step(module, optimizer)
        assert_same(before, everything(module, optimizer))


@pytest.mark.parametrize("make", OPTIONS, ids=["ema", "skip", "stateless", "momentum"])
def test_a_distributed_checkpoint_is_saved_and_loaded(make):
    module = model()
    optimizer = make(module.parameters(), RATE)
    before = everything(module, optimizer)
    empty = get_optimizer_state_dict(module, optimizer)
    now = everything(module, optimizer)
    assert_same(([now[0][0]], *now[1:]), ([before[0][0]], *before[1:]))
    if optimizer.state:
        assert set(empty["state"]) == {"weight", "bias"}
    train(module, optimizer, 3)
    before = everything(module, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(module, optimizer))
    assert_same(before, everything(module, optimizer))

    resumed = copy.deepcopy(module)
    again = make(resumed.parameters(), RATE)
    set_optimizer_state_dict(resumed, again, saved)
    assert_same(before, everything(resumed, again))
    train(module, optimizer, 3)
    train(resumed, again, 3)
    assert_same(everything(module, optimizer), everything(resumed, again))


def test_what_state_starts_from_is_no_lr_of_0(plain):
    """Rprop's step sizes and ASGD's rate start at the lr, which a dry step has hidden."""
    for options in (dict(lr=0.1), dict(lr=RATE), dict(lr=torch.tensor(0.1))):
        module, twin = model(), model()
        optimizer = plain.ours(module.parameters(), **options)
        expected = plain.ours(twin.parameters(), **options)
        dry_step(module, optimizer)
        again = copy.deepcopy(optimizer)
        dry_step(module, again)
        train(module, optimizer, 2)
        train(twin, expected, 2)
        assert_same(everything(module, optimizer), everything(twin, expected))


def test_other_steps_are_steps():
    """A schedule that says 0, an lr of 0 that was given or with gradients, one group of two with an lr of 0."""
    module = model()
    given = AdamW(module.parameters(), lr=0.0)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    given.step()
    assert float(given.state[module.bias]["step"]) == 1
    zeros = SGD(module.parameters(), lr=lambda n: 0.0)
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    zeros.step()
    assert zeros.param_groups[0]["step"] == 1
    smallest = torch.full_like(module.bias, 1e-45)
    assert smallest.min() > 0
    module.bias.grad = smallest
    other = AdamW(module.parameters(), lr=0.1)
    other.param_groups[0]["lr"] = 0.0
    other.step()
    assert float(other.state[module.bias]["step"]) == 1
    module.bias.grad = torch.zeros_like(module.bias)
    two = AdamW([dict(params=[module.weight]), dict(params=[module.bias])], lr=0.1)
    two.param_groups[0]["lr"] = 0.0
    two.step()
    assert float(two.state[module.weight]["step"]) == 1
