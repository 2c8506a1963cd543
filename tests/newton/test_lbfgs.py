"""What L-BFGS remembers and where its searches begin; a search that fails."""

import io

import pytest
import torch

from schuss.newton import LBFGS


def leaf(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def quadratic(w):
    return 0.5 * (w.square() * torch.tensor([1.0, 30.0, 7.0, 0.2, 11.0], dtype=torch.float64)).sum()


def test_it_is_bfgs_until_the_memory_is_full():
    """B is the dense BFGS update from I (Nocedal & Wright, 6.17) while no pair is forgotten."""
    w = leaf(1.0, -2.0, 0.5, 3.0, 1.0)
    optimizer = LBFGS([w], history_size=4)
    dense = torch.eye(5, dtype=torch.float64)
    probe = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for finished in range(1, 5):
        optimizer.step(lambda: quadratic(w))
        s, y = optimizer.memory["s"][-1], optimizer.memory["y"][-1]
        rho = 1 / (s @ y)
        left = torch.eye(5, dtype=torch.float64) - rho * torch.outer(s, y)
        dense = left @ dense @ left.T + rho * torch.outer(s, s)
        same = torch.allclose(optimizer._smoothed(probe), dense @ probe, rtol=1e-9)
        assert same == (finished < 4)  # the fourth fills the memory, and B starts from γ


def test_a_full_memory_starts_from_the_last_pairs_own_scale():
    w = leaf(1.0, -2.0, 0.5, 3.0, 1.0)
    optimizer = LBFGS([w], history_size=1)
    optimizer.step(lambda: 1e6 * quadratic(w))
    (s,), (y,) = optimizer.memory["s"], optimizer.memory["y"]
    across = torch.linalg.svd(torch.stack([s, y]), full_matrices=True)[2][-1]
    assert torch.allclose(optimizer._smoothed(across), (s @ y) / (y @ y) * across, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "bent"), [(lambda w: 3 * w.square().sum(), False), (lambda w: (w**4).sum(), True)]
)
def test_a_pair_knows_the_losses_as_well_as_the_slopes(loss, bent):
    w = leaf(1.5)
    optimizer = LBFGS([w])
    values, slopes = [], []
    for _ in range(2):
        values.append(loss(w))
        slopes.append(torch.autograd.grad(values[-1], w)[0])
        optimizer.step(lambda: loss(w))
    s, y = optimizer.memory["s"][0], optimizer.memory["y"][0]
    parabola = 2 * (values[0].detach() - values[1].detach() + slopes[1] @ s)
    assert float(s @ y) == pytest.approx(float(parabola), rel=1e-9)
    secant = float(s @ (slopes[1] - slopes[0]))
    assert (float(s @ y) != pytest.approx(secant, rel=1e-6)) == bent


def test_pairs_are_kept_whatever_the_units():
    """The path in units a billion times smaller, of a loss as much larger, is the same path."""
    paths = []
    for unit in (1.0, 1e-9):
        w = leaf(1.0 * unit, -2.0 * unit, 0.5 * unit, 3.0 * unit, 1.0 * unit)
        optimizer = LBFGS([w])
        for _ in range(12):
            optimizer.step(lambda w=w, unit=unit: quadratic(w / unit))
        paths.append(optimizer.report.loss_after)
        assert len(optimizer.memory["s"]) == 12
    assert paths[1] <= 1e-3
    assert paths[0] <= 1e-3


def test_the_first_length_is_the_one_that_falls_as_far_as_the_last_step():
    w = leaf(1.0)
    optimizer = LBFGS([w])
    assert optimizer._first_length(-16.0) == 0.25  # of −g with ‖g‖ = 4: a change of length 1
    assert optimizer._first_length(-0.25) == 1.0
    optimizer.memory |= {"s": [w.detach()], "y": [w.detach()], "fall": 0.5}
    assert optimizer._first_length(-4.0) == pytest.approx(0.2525)
    assert optimizer._first_length(-0.1) == 1.0
    optimizer.memory["fall"] = 0.0
    assert optimizer._first_length(-4.0) == 1.0


def test_a_search_that_fails_takes_the_weights_back_and_says_so():
    w = leaf(1.0, 2.0, 0.0, 0.0, 0.0)
    optimizer = LBFGS([w])
    for _ in range(3):
        optimizer.step(lambda: quadratic(w))
    before = w.detach().clone()

    def uphill():
        loss = quadratic(w)
        w.grad = -torch.autograd.grad(loss, w)[0]  # a wrong gradient: every direction from it goes up
        return loss

    optimizer.step(uphill)
    assert torch.equal(w.detach(), before)
    assert not optimizer.report.accepted
    assert optimizer.report.stopped == "rejected: no length along this direction lowered the loss"
    assert optimizer.report.loss_after == optimizer.report.loss_before
    optimizer.step(lambda: quadratic(w))
    assert optimizer.report.accepted


def test_a_file_restores_the_memory_to_the_bit():
    def run(steps, saved=None, start=(1.0, -2.0, 0.5, 3.0, 1.0)):
        w = torch.tensor(start, dtype=torch.float32, requires_grad=True)
        optimizer = LBFGS([{"params": [w], "weight_decay": 0.1}], full_batch=True)
        if saved is not None:
            optimizer.load_state_dict(saved)
        for _ in range(steps):
            optimizer.step(lambda: quadratic(w))
        return w.tolist(), optimizer

    whole, _ = run(7)
    half, optimizer = run(4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {t.dtype for t in saved["memory"]["s"]} == {torch.float64}
    assert run(3, saved, half)[0] == whole
