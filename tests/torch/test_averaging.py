"""The running average of the weights: torch's own, in the pass of the step."""

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from schuss.torch import SGD, AdamW


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
    with optimizer.averaged():
        torch.testing.assert_close(flat(net), flat(theirs.module), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(flat(net), flat(alone), rtol=1e-12, atol=1e-14)


def test_the_decay_may_be_a_schedule():
    """Of the finished steps; 1 − 1/t gives the plain mean of all weights so far."""
    net, path = model(), []
    optimizer = SGD(net.parameters(), lr=0.01, ema_decay=lambda n: 1 - 1 / (n + 1))
    train(net, optimizer, 6, after=lambda: path.append(flat(net)))
    with optimizer.averaged():
        torch.testing.assert_close(flat(net), torch.stack(path).mean(dim=0), rtol=1e-12, atol=1e-14)
    bad = SGD(net.parameters(), ema_decay=lambda n: 0.5 + n)
    with pytest.raises(ValueError, match=r"ema_decay=1.5 is not in \[0, 1\]"):
        train(net, bad, 3)


def stop(error):
    raise error


def test_the_weights_come_back_whatever_happens():
    net = model()
    optimizer = AdamW(net.parameters(), ema_decay=0.5)
    train(net, optimizer, 3)
    before = flat(net)
    for error in (KeyboardInterrupt, RuntimeError):
        inside = []
        with pytest.raises(error), optimizer.averaged():
            inside.append(flat(net)) or stop(error)
        assert not torch.equal(inside[0], before)
        assert torch.equal(flat(net), before)
    with optimizer.averaged():
        saved = copy.deepcopy(net.state_dict())
        with pytest.raises(RuntimeError, match=r"averaged.*would be taken from the averaged weights"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="inside another"), optimizer.averaged():
            pass
    assert torch.equal(flat(net), before)
    assert not torch.equal(torch.cat([value.flatten() for value in saved.values()]), before)
    train(net, optimizer, 1)


def test_without_it_there_is_none():
    optimizer = SGD(model().parameters())
    with (
        pytest.raises(ValueError, match=r"There is no average of the weights. Try SGD.*ema_decay=0.999"),
        optimizer.averaged(),
    ):
        pass


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


def test_one_begun_on_the_way_starts_at_the_weights():
    net = model()
    state = AdamW(net.parameters())
    train(net, state, 3)
    before = flat(net)
    optimizer = AdamW(net.parameters(), ema_decay=0.9)
    optimizer.load_state_dict(state.state_dict())
    train(net, optimizer, 1, first=3)
    after = flat(net)
    with optimizer.averaged():
        torch.testing.assert_close(flat(net), 0.9 * before + 0.1 * after, rtol=1e-12, atol=1e-15)


def test_a_weight_that_joins_late_starts_its_own():
    one, two = (torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    optimizer = SGD([one, two], lr=1.0, ema_decay=0.5)
    for step in range(3):
        one.grad = torch.ones_like(one)
        two.grad = torch.ones_like(two) if step == 2 else None
        optimizer.step()
    with optimizer.averaged():
        assert one.tolist() == [-2.25] * 3  # −1, −1.5, −2.25
        assert two.tolist() == [-1.0] * 3
    assert two.tolist() == [-1.0] * 3


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


def test_sparse_gradients_renew_touched_rows():
    weight = torch.nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    optimizer = SGD([weight], lr=1.0, ema_decay=0.5)
    for row in (1, 1, 3):
        weight.grad = torch.sparse_coo_tensor(
            [[row]], torch.ones(1, 2, dtype=torch.float64), (5, 2), check_invariants=True
        )
        optimizer.step()
    with optimizer.averaged():
        assert weight[:, 0].tolist() == [0.0, -1.5, 0.0, -0.5, 0.0]
