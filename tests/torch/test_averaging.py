"""The running average of the weights: torch's own, in the pass of the step."""

import copy
import pickle

import pytest
import schedulefree
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from schuss.torch import SGD, AdamW, ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).to(dtype)


def train(net, optimizer, steps, first=0, after=lambda: None):
    for step in range(first, first + steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()).dtype)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        after()


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_it_is_torchs_averaged_model(plain):
    net = model()
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = plain.ours(net.parameters(), ema_decay=0.8)
    alone = model()
    train(alone, plain.ours(alone.parameters()), 7)
    train(net, optimizer, 7, after=lambda: theirs.update_parameters(net))
    torch.testing.assert_close(flat(net), flat(alone), rtol=1e-12, atol=1e-14)
    if optimizer.evaluates_average:  # which comes first
        found = torch.cat([optimizer.state[p]["average"].flatten() for p in net.parameters()])
        torch.testing.assert_close(found, flat(theirs.module), rtol=1e-12, atol=1e-14)
        return
    with optimizer.averaged():
        torch.testing.assert_close(flat(net), flat(theirs.module), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(flat(net), flat(alone), rtol=1e-12, atol=1e-14)


def test_it_is_in_the_checkpoint(tmp_path):
    net = model()
    optimizer = AdamW(net.parameters(), lr=0.01, ema_decay=0.7)
    train(net, optimizer, 6)
    other = model()
    first = AdamW(other.parameters(), lr=0.01, ema_decay=0.7)
    train(other, first, 3)
    torch.save([first.state_dict(), other.state_dict()], tmp_path / "saved.pt")
    state, weights = torch.load(tmp_path / "saved.pt", weights_only=True)
    again = model()
    again.load_state_dict(weights)
    continued = AdamW(again.parameters(), lr=0.01, ema_decay=0.7)
    continued.load_state_dict(state)
    train(again, continued, 3, first=3)
    for one, two in ((optimizer, net), (continued, again)):
        one.found = [flat(two)]
        with one.averaged():
            one.found.append(flat(two))
    assert all(map(torch.equal, optimizer.found, continued.found))
    torch.optim.AdamW(again.parameters()).load_state_dict(state)


def test_narrow_weights_have_a_wide_average():
    net = model(torch.bfloat16)
    wide = model(torch.bfloat16).float()
    optimizer = AdamW(net.parameters(), lr=1e-4, ema_decay=0.99, compensated=True)
    reference = AdamW(wide.parameters(), lr=1e-4, ema_decay=0.99)
    for step in range(50):
        for p, q in zip(net.parameters(), wide.parameters(), strict=True):
            q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).bfloat16().float()
            p.grad = q.grad.bfloat16()
        optimizer.step()
        reference.step()
    for p, q in zip(net.parameters(), wide.parameters(), strict=True):
        assert optimizer.state[p]["average"].dtype == torch.float32
        assert torch.equal(optimizer.state[p]["average"], reference.state[q]["average"])


# Schedule-Free: the weights to evaluate follow from those that are trained

AUTHORS = {
    ScheduleFreeSGD: (schedulefree.SGDScheduleFree, dict(lr=0.1, momentum=0.8)),
    ScheduleFreeAdamW: (schedulefree.AdamWScheduleFree, dict(lr=0.05, betas=(0.8, 0.95), weight_decay=0.1)),
    ScheduleFreeRAdam: (schedulefree.RAdamScheduleFree, dict(lr=0.05, betas=(0.8, 0.95))),
}


@pytest.mark.parametrize("make", AUTHORS)
def test_schedule_free_evaluates_what_its_authors_do(make):
    theirs, options = AUTHORS[make]
    net, other = model(), model()
    optimizer, reference = make(net.parameters(), **options), theirs(other.parameters(), **options)
    reference.train()
    for first in (0, 10):
        train(net, optimizer, 10, first)
        train(other, reference, 10, first)
        trained = flat(net)
        reference.eval()
        with optimizer.averaged():
            torch.testing.assert_close(flat(net), flat(other), rtol=1e-10, atol=1e-13)
            with pytest.raises(RuntimeError, match="would be taken from the averaged weights"):
                train(net, optimizer, 1)
        reference.train()
        assert torch.equal(flat(net), trained)


def test_only_groups_with_an_average_are_swapped():
    net = model()
    optimizer = SGD(
        [
            {"params": net[0].weight, "rule": "ScheduleFreeSGD", "lr": 0.1},
            {"params": net[0].bias, "ema_decay": 0.5},
            {"params": net[2].parameters()},
        ],
        lr=0.1,
    )
    train(net, optimizer, 3)
    own = [p.detach().clone() for p in net.parameters()]
    with optimizer.averaged():
        same = [torch.equal(p, mine) for p, mine in zip(net.parameters(), own, strict=True)]
        assert torch.equal(net[0].bias, optimizer.state[net[0].bias]["average"])
    assert same == [False, False, True, True]
    assert all(map(torch.equal, net.parameters(), own))


def test_before_the_first_step_there_is_nothing_to_swap():
    """Also where a checkpoint library has made the state by a step that is none."""
    net = model()
    optimizer, own = ScheduleFreeAdamW(net.parameters()), flat(net)
    for _ in range(2):
        with optimizer.averaged():
            assert torch.equal(flat(net), own)
        get_optimizer_state_dict(net, optimizer)
    assert set(optimizer.state) == set(net.parameters())
    twin = ScheduleFreeAdamW(net.parameters())
    twin.load_state_dict(optimizer.state_dict())
    with twin.averaged():
        assert torch.equal(flat(net), own)
    train(net, optimizer, 1)
    with optimizer.averaged():
        assert not torch.equal(flat(net), own)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_checkpoint_is_the_same_inside_and_a_copy_is_outside(copied):
    net = model()
    optimizer = ScheduleFreeAdamW(net.parameters(), lr=0.05)
    train(net, optimizer, 5)
    saved, own = copy.deepcopy(optimizer.state_dict()), flat(net)
    with optimizer.averaged():
        inside, averages = copy.deepcopy(optimizer.state_dict()), flat(net)
        snapshot = copy.deepcopy(net)
        other, twin = copied((net, optimizer))
        shallow = copy.copy(optimizer)
        with pytest.raises(RuntimeError, match="would be taken from the averaged weights"):
            train(net, shallow, 1)
        assert torch.equal(flat(net), averages)
        torch.testing.assert_close(
            get_optimizer_state_dict(net, optimizer)["state"]["0.bias"]["step"].item(), 5.0
        )
    torch.testing.assert_close(inside, saved, rtol=0, atol=0)
    assert torch.equal(flat(net), own)
    assert torch.equal(flat(snapshot), averages)
    assert torch.equal(flat(other), own)
    train(net, optimizer, 3, first=5)
    train(other, twin, 3, first=5)
    assert torch.equal(flat(other), flat(net))
    with optimizer.averaged(), twin.averaged():
        assert torch.equal(flat(other), flat(net))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", ["int8", "bfloat16", None])
def test_state_that_holds_weights_stays_precise(dtype, state_dtype):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5000).to(dtype))
    optimizer = ScheduleFreeAdamW([weight], lr=1e-3, state_dtype=state_dtype)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    z, v = (optimizer.state[weight][name] for name in ("z", "exp_avg_sq"))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert z.dtype == wide
    assert v.dtype == (wide if state_dtype is None else getattr(torch, state_dtype))
    # The steps of a steady gradient are as long as the rate
    torch.testing.assert_close(
        z.double(), torch.linspace(-1, 1, 5000).to(dtype).double() - 3e-3, rtol=0, atol=2e-4
    )
    loaded = ScheduleFreeAdamW(
        [torch.nn.Parameter(weight.detach().clone())], lr=1e-3, state_dtype=state_dtype
    )
    loaded.load_state_dict(optimizer.state_dict())
    ((_, entry),) = loaded.state.items()
    assert torch.equal(entry["z"], z)


def test_a_narrow_z_in_a_checkpoint_becomes_wide():
    """The authors' own has the dtype of the weights."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 50).bfloat16())
    optimizer = ScheduleFreeSGD([weight], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["z"] = saved["state"][0]["z"].bfloat16()
    optimizer.load_state_dict(saved)
    assert optimizer.state[weight]["z"].dtype == torch.float32
