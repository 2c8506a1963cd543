"""Steps that a GPU decides on, through the PyTorch front: in the interpreter, beside the same training on the CPU."""

import pytest
import torch

import schuss.torch
from schuss.compile import device


def trained(case, gpu, monkeypatch, steps=8, bad=(), scale=None, **options):
    """Weights and an optimizer after steps of which some have a NaN; the loss scale and its flag are as a scaler's."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (700, 3)]
    groups = [
        {"params": weights[:1]},
        {"params": weights[1:], "lr": lambda n: 0.01 / (1 + n), "maximize": case.name != "Rprop"},
    ]
    with monkeypatch.context() as here:
        here.setattr(device, "runs_on", lambda place: gpu)
        optimizer = case.ours(groups, **options)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            for weight in weights:
                weight.grad = torch.rand(weight.shape, generator=generator) + 0.5
                if scale:
                    weight.grad *= scale
            found = step in bad
            if found:
                weights[0].grad[5] = torch.nan
            if scale:
                optimizer.grad_scale, optimizer.found_inf = (
                    torch.tensor([scale]),
                    torch.tensor([float(found)]),
                )
            optimizer.step()
            if scale:
                del optimizer.grad_scale, optimizer.found_inf
            if step == 5:
                optimizer.param_groups[0]["lr"] *= 0.5
    return weights, optimizer


def assert_same_training(mine, other):
    weights, optimizer = mine
    expected, reference = other
    for found, meant in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, meant, rtol=1e-5, atol=1e-6)
    assert optimizer.skipped == reference.skipped
    state, meant = optimizer.state_dict(), reference.state_dict()
    for one, two in zip(state["param_groups"], meant["param_groups"], strict=True):
        assert (one["step"], one["lr"]) == (two["step"], two["lr"])
    for key, entry in meant["state"].items():
        for name, value in entry.items():
            torch.testing.assert_close(state["state"][key][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        (dict(max_norm=0.5), ()),
        (dict(skip_nonfinite=True), (0, 3, 4, 7)),
        (dict(max_norm=2.0, skip_nonfinite=True, ema_decay=0.5), (2,)),
        (dict(scale=1024.0), (1, 2)),
        (dict(scale=8.0, max_norm=1.0), (6,)),
        (dict(capturable=True), ()),
    ],
    ids=str,
)
def test_interpreted_front_decides_as_the_host_does(options, bad, sample, monkeypatch):
    mine = trained(sample, True, monkeypatch, bad=bad, **options)
    assert mine[1]._device_steps.control is not None
    assert_same_training(mine, trained(sample, False, monkeypatch, bad=bad, **options))
    if "max_norm" in options:
        reference = trained(sample, False, monkeypatch, bad=bad, **options)[1]
        if max(bad, default=0) < 7:
            assert mine[1].gradient_norm == pytest.approx(reference.gradient_norm, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_front_goes_back_to_the_host_and_on(monkeypatch):
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = schuss.torch.Adam([weight], lr=1.0, skip_nonfinite=True)

    def step(value):
        weight.grad = torch.full_like(weight, value)
        optimizer.step()

    step(1.0)
    step(torch.nan)
    optimizer.skip_nonfinite = False
    step(1.0)
    assert optimizer._device_steps.control is None
    assert optimizer.skipped == 1
    assert optimizer.state[weight]["step"] == 2
    optimizer.skip_nonfinite = True
    step(torch.inf)
    step(1.0)
    assert optimizer.skipped == 2
    assert optimizer.state_dict()["state"][0]["step"] == 3
    torch.testing.assert_close(weight.detach(), torch.full((4,), -3.0))


def test_interpreted_front_saves_and_continues(sample, monkeypatch):
    straight = trained(sample, True, monkeypatch, bad=(1, 6), skip_nonfinite=True)
    first = trained(sample, True, monkeypatch, steps=4, bad=(1,), skip_nonfinite=True)
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    weights = [torch.nn.Parameter(weight.detach().clone()) for weight in first[0]]
    groups = [
        {"params": weights[:1]},
        {"params": weights[1:], "lr": lambda n: 0.01 / (1 + n), "maximize": sample.name != "Rprop"},
    ]
    again = sample.ours(groups, skip_nonfinite=True)
    again.load_state_dict(first[1].state_dict())
    for step in range(4, 8):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.rand(weight.shape, generator=generator) + 0.5
        if step == 6:
            weights[0].grad[5] = torch.nan
        again.step()
        if step == 5:
            again.param_groups[0]["lr"] *= 0.5
    assert_same_training((weights, again), straight)


def test_interpreted_front_sees_a_rate_that_changes_in_place(monkeypatch):
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    weight, rate = torch.nn.Parameter(torch.zeros(2)), torch.tensor(1.0)
    optimizer = schuss.torch.SGD([weight], lr=rate, max_norm=1e6)
    weight.grad = torch.ones(2)
    for value, expected in ((1.0, -1.0), (1.0, -2.0), (0.5, -2.5), (0.5, -3.0)):
        rate.fill_(value)
        optimizer.step()
        assert weight.tolist() == [expected] * 2


@pytest.mark.filterwarnings("ignore:.*is the schedule of a parameter group:UserWarning")
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_front_takes_what_is_written_over_a_schedule(monkeypatch):
    """Though the host learns late how many steps there were: what was written after the last one has the next."""
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = schuss.torch.SGD(
        [weight], lr=lambda n: 0.5**n, momentum=lambda n: 0.0, max_norm=1e6, skip_nonfinite=True
    )

    def step(expected, value=1.0, **written):
        optimizer.param_groups[0].update(written)
        weight.grad = torch.full((2,), value)
        if value < 0:
            assert optimizer.skipped == 1  # which is to wait for the device
        optimizer.step()
        assert weight.tolist() == [expected] * 2

    step(-1.0)
    step(-1.0, value=torch.nan)
    step(-5.0, lr=4.0)
    step(-5.25)
    step(-3.25, value=-1.0, lr=2.0)
    step(-3.25 - 0.0625)
    assert optimizer.skipped == 1
    assert optimizer.param_groups[0]["lr"] == 0.5**5
    assert optimizer._device_steps.control is not None


def test_interpreted_front_sees_a_dry_step(monkeypatch):
    monkeypatch.setattr(device, "runs_on", lambda place: True)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = schuss.torch.AdamW([weight], lr=lambda n: 0.5, max_norm=1e6)
    for taken in range(3):
        weight.grad = torch.zeros(2)
        rate, before = optimizer.param_groups[0]["lr"], weight.tolist()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        assert optimizer.state_dict()["param_groups"][0]["step"] == taken
        assert weight.tolist() == before
        weight.grad = torch.ones(2)
        optimizer.step()
