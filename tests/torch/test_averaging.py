"""The running average of the weights: torch's own, in the pass of the step."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from schuss.torch import AdamW


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
