import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from schuss.lab.entries import find
from schuss.lab.racing.preflight import preflight
from schuss.lab.racing.ranges import largest_curvature, limits, search_spaces
from schuss.lab.tasks import load

counter = itertools.count()


def frozen():
    return torch.nn.Linear(3, 1).requires_grad_(False)


def broken(model, batch):
    raise KeyError("labels")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": broken}, "Task 'line': its model or loss raised KeyError: 'labels'"),
        ({"metric": broken}, "its loss or metric on validation raised KeyError"),
        ({"metric": lambda model, batch: "good"}, "its loss or metric on validation raised ValueError"),
        ({"metric": lambda model, batch: math.nan, "metric_name": "skill"}, "its skill on validation is nan"),
        ({"loss": lambda model, batch: model(batch[0]).sum() * math.nan}, "untrained model's loss is nan"),
        ({"loss": lambda model, batch: model(batch[0])}, "a tensor of shape .28, 1.; a scalar tensor"),
        ({"loss": lambda model, batch: 1.0}, "is float; a scalar tensor is needed"),
        ({"model": frozen}, "does not depend on trainable weights.*Either every requires_grad"),
        ({"model": lambda: 1 / 0}, "its model or loss raised ZeroDivisionError"),
        ({"loss": lambda model, batch: torch.zeros(1, requires_grad=True).sum()}, "no weight has a gradient"),
    ],
)
def test_what_cannot_be_raced_says_so_before_the_race(line, changes, message):
    with pytest.raises(ValueError, match=message):
        preflight(line(**changes))


def test_data_that_raises_is_named(line):
    def stream():
        raise OSError("disk on fire")
        yield

    held = (torch.ones(4, 3), torch.ones(4, 1))
    with pytest.raises(ValueError, match="its train data raised OSError: disk on fire"):
        preflight(line(train=stream, validation=held, test=held, epochs=None, steps=5))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (list, "test='no batches' is not data. The test split of 'line' gave nothing"),
        ([(torch.ones(4, 3),)], "its loss or metric on test raised IndexError"),
    ],
)
def test_a_test_split_that_cannot_be_measured_is_refused_before_the_race(line, test, message):
    held = (torch.ones(4, 3), torch.ones(4, 1))
    with pytest.raises(ValueError, match=message):
        preflight(line(validation=held, test=test))


def test_data_in_another_order_every_time_is_refused(line):
    def stream():
        yield torch.full((4, 3), float(next(counter))), torch.ones(4, 1)

    held = (torch.ones(4, 3), torch.ones(4, 1))
    with pytest.raises(ValueError, match="other training batches when asked again with the same seed"):
        preflight(line(train=stream, validation=held, test=held, epochs=None, steps=5))


def test_data_shuffled_by_the_global_generators_is_pinned(line):
    def stream():
        for _ in range(3):
            yield torch.rand(4, 3), torch.from_numpy(np.random.rand(4, 1)).float()  # noqa: NPY002

    held = (torch.ones(4, 3), torch.ones(4, 1))
    assert preflight(line(train=stream, validation=held, test=held, epochs=None, steps=5)).parameters == 4


def test_the_fingerprint_sees_data_code_and_settings(line):
    base = preflight(line()).fingerprint
    assert preflight(line()).fingerprint == base
    x, y = line().train
    changed = x.clone()
    changed[0, 0] += 1e-3
    others = [
        line(train=(changed, y)),
        line(loss=lambda model, batch: (model(batch[0]) - batch[1]).abs().mean()),
        line(model=lambda: nn.Linear(3, 1, bias=False)),
        line(epochs=11),
        line(batch_size=14),
    ]
    assert len({base, *(preflight(task).fingerprint for task in others)}) == 6


def test_looking_leaves_the_generators_alone(line):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    preflight(line())
    assert torch.equal(before, torch.get_rng_state())


def test_the_largest_curvature_of_a_quadratic_is_one():
    assert largest_curvature(load("quadratic:kappa=100")) == pytest.approx(1, rel=0.02)


def test_the_largest_curvature_at_a_saddle_counts_both_signs():
    assert largest_curvature(load("saddle")) == pytest.approx(1, rel=1e-3)


def test_measured_ranges_end_at_twice_the_limit():
    task = load("quadratic:kappa=100")
    spaces = search_spaces(task, [find("sgd"), find("momentum"), find("adam")], [1])
    assert spaces["sgd", 1] == {"lr": pytest.approx((4e-3, 4.0, True), rel=0.05)}
    assert spaces["momentum", 1]["lr"][1] == pytest.approx(7.6, rel=0.05)  # 2 · 2(1 + 0.9)/L
    assert "weight_decay" not in spaces["adam", 1]
    start = limits(task)["unit"]
    assert spaces["adam", 1]["lr"][1] == pytest.approx(2 * start, rel=0.05)


def test_published_ranges_are_left_as_they_are_and_equally_wide():
    spaces = search_spaces(load("digits"), [find("momentum"), find("adamw")], [64])
    assert spaces["momentum", 64] == dict(find("momentum").space)
    widths = {round(math.log10(high / low), 9) for low, high, _ in (space["lr"] for space in spaces.values())}
    assert len(widths) == 1


def test_the_largest_curvature_is_found_where_two_eigenvalues_of_either_sign_are_equal(line):
    """A power method would turn between them for ever."""
    signs = torch.tensor([2.0, -2.0, 0.5])
    task = line(loss=lambda model, batch: (signs * model.weight.square()).sum() / 2 + model.bias.sum() * 0)
    assert largest_curvature(task) == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize("slope", [lambda w: w.sum(), lambda w: w.abs().sum()])
def test_a_loss_without_curvature_has_none(line, slope):
    assert largest_curvature(line(loss=lambda model, batch: slope(model.weight) + slope(model.bias))) == 0
