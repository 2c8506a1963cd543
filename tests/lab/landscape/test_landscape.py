"""Trajectories and demonstrations against what theory says of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from schuss.lab.entries import find
from schuss.lab.landscape import (
    DEMONSTRATIONS,
    SURFACES,
    demonstration,
    on_surface,
    render,
    surface,
)
from schuss.lab.landscape.surfaces import heights_on, value_at
from schuss.lab.landscape.trajectories import SEARCHED, at_best, at_settings, descend
from schuss.torch import SGD


@pytest.mark.parametrize("name", SURFACES)
def test_known_minima_are_minima(name):
    ground = surface(name)
    for point in ground.minima:
        w = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = ground.value(w)
        (slope,) = torch.autograd.grad(value, w)
        assert abs(value.item() - ground.lowest) < 1e-6
        assert slope.abs().max() < 1e-3


def test_a_trajectory_is_the_textbook_iteration():
    ground = surface("quadratic:kappa=10")
    trajectory = descend(ground, lambda w: SGD(w, lr=0.05), 20)
    factors = 1 - 0.05 * np.array([1.0, 10.0])
    expected = np.array(ground.start) * factors ** np.arange(21)[:, None]
    np.testing.assert_allclose(trajectory.points, expected, rtol=1e-12, atol=1e-15)
    assert trajectory.steps == 20
    assert trajectory.first_below(0) is None


def test_a_lost_trajectory_says_so():
    trajectory = at_settings(surface("quadratic:kappa=100"), find("sgd"), {"lr": 1.0}, 200)
    assert trajectory.ended.startswith("left the surface at step")
    assert np.isfinite(trajectory.values).all()


def test_the_search_finds_the_best_learning_rate():
    ground = surface("quadratic:kappa=4")
    best = at_best(ground, find("sgd"), 30)
    heights = {}
    for lr in SEARCHED:
        trajectory = at_settings(ground, find("sgd"), {"lr": lr}, 30)
        if not trajectory.ended:
            heights[lr] = np.log10(np.maximum(trajectory.values, 1e-12)).mean()
    assert best.settings == f"lr {min(heights, key=heights.get):.3g}"


def test_jitter_and_momentum_are_measured():
    jitter = demonstration("jitter")
    assert "40 of 40 steps crossed the valley" in jitter.found
    momentum = demonstration("momentum")
    plain, damped = momentum.trajectories
    across = [np.abs(np.diff(trajectory.points[:, 1])).sum() for trajectory in (plain, damped)]
    turns = [(np.diff(np.sign(trajectory.points[:, 1])) != 0).sum() for trajectory in (plain, damped)]
    assert across[1] < across[0] / 3
    assert turns[1] < turns[0] / 5
    assert damped.values[-1] < plain.values[-1] / 5
    assert f"crosses the valley {turns[0]} times and moves {across[0]:.2g} across it" in momentum.found
    # A gradient counts as much in sum: lr / (1 − β) is the same.
    assert plain.settings == "lr 0.038"
    assert damped.settings == "lr 0.0038, β 0.9"


def test_the_saddle_is_left_or_not():
    ridge, shaken, beside, momentum, adam = demonstration("saddle").trajectories
    assert (ridge.points[:, 1] == 0).all()
    assert ridge.first_below(-0.01) is None
    times = [trajectory.first_below(-0.2) for trajectory in (shaken, beside, momentum, adam)]
    assert None not in times
    assert times[3] < times[2] < times[1]
    # beside the ridge y grows by 1 + lr a step
    grown = beside.points[1:40, 1] / beside.points[:39, 1]
    np.testing.assert_allclose(grown, 1.1, rtol=1e-3)


def test_noise_falls_with_the_batch():
    one, sixteen, everything = demonstration("noise").trajectories
    low = demonstration("noise").lowest
    hover = [float((trajectory.values[200:] - low).mean()) for trajectory in (one, sixteen, everything)]
    assert 8 < hover[0] / hover[1] < 32
    assert hover[2] < hover[1]


def test_adagrad_only_slows_down_and_rmsprop_recovers():
    adagrad, rmsprop = demonstration("adagrad").trajectories
    assert (np.diff(adagrad.seen) <= 0).all()
    assert rmsprop.seen[-1] > 2 * rmsprop.seen[0]
    assert rmsprop.values[-1] < adagrad.values[-1]


def test_restarts_leave_where_they_rest():
    picture = demonstration("restarts")
    trajectory = picture.trajectories[1]
    rests = trajectory.points[[60, 120, 180, 240]]
    jumps = np.abs(np.diff(rests, axis=0)).max(axis=1)
    assert (jumps > math.pi / 4).any()  # half the distance between two bowls
    assert np.abs(trajectory.points[59] - trajectory.points[60]).max() < 1e-3


def test_the_page_needs_nothing_else():
    every = [on_surface(surface(name), [find("adam")], 30, lr=0.1) for name in ("beale", "himmelblau")]
    page = render(every, "schuss landscape <x>")
    assert "schuss landscape &lt;x&gt;" in page
    assert page.count('class="picture"') == 2
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_x_and_y_have_one_scale_where_the_window_allows():
    for spec, same in (("quadratic:kappa=50", True), ("quadratic:kappa=10000", False)):
        picture = on_surface(surface(spec), [find("sgd")], 2, lr=1e-5)
        assert picture.to_scale is same
        assert ("different scales" in render([picture], "schuss landscape")) is not same


def test_the_ground_is_the_function_also_where_it_cannot_be_mapped():
    ground = surface("beale")
    xs, ys = np.linspace(-1, 1, 4), np.linspace(0, 2, 3)
    heights = heights_on(ground, xs, ys)
    assert heights.shape == (3, 4)
    assert heights[2, 0] == pytest.approx(value_at(ground, (-1.0, 2.0)), rel=1e-14)
    branching = replace(ground, value=lambda w: ground.value(w) if float(w[0]) > 0 else ground.value(w) * 1)
    assert np.array_equal(heights_on(branching, xs, ys), heights)
    with pytest.raises(ValueError, match="a point where it is finite"):
        heights_on(replace(ground, value=lambda w: w.sum() * math.nan), xs, ys)


def test_a_function_of_your_own(tmp_path):
    file = tmp_path / "hills.py"
    file.write_text(
        "def f(w):\n    x, y = w\n    return (x - 2) ** 2 + y**4\nf.start = (1.0, 1.0)\ndef g(w):\n    return 3\n"
    )
    ground = surface(f"{file}:f")
    assert ground.start == (1.0, 1.0)
    assert surface(f"{file}:f", start=(0.0, 2.0)).start == (0.0, 2.0)
    picture = on_surface(ground, [find("sgd")], 50)
    assert abs(picture.trajectories[0].points[-1, 0] - 2) < 0.01
    with pytest.raises(ValueError, match="is not a scalar tensor with a gradient"):
        surface(f"{file}:g")
    with pytest.raises(ValueError, match="not in"):
        surface(f"{file}:nothing")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hill", "surface='hill' is not one of rosenbrock"),
        ("quadratic:kappa=0.5", "kappa=0.5 is not a finite number of at least 1"),
        ("quadratic:kappa=many", "kappa=number"),
        ("quadratic:dim=3", "kappa=number"),
        ("beale:kappa=3", "it takes nothing"),
    ],
)
def test_bad_surfaces_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        surface(spec)


def test_bad_places_are_refused():
    with pytest.raises(ValueError, match="window"):
        surface("beale", window=(1.0, 0.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="start"):
        surface("beale", start=(math.nan, 0.0))
    with pytest.raises(ValueError, match="Try another point"):
        surface("beale", start=(1e200, 1e200))


def test_demonstrations_have_names():
    assert set(DEMONSTRATIONS) == {"jitter", "momentum", "saddle", "noise", "adagrad", "restarts"}
    with pytest.raises(ValueError, match="story='hope' is not one of jitter"):
        demonstration("hope")
