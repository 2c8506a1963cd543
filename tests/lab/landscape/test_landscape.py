"""Walks, stories and planes against what theory says of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from schuss.lab.entries import find
from schuss.lab.landscape import STORIES, SURFACES, on_network, on_surface, render, story, surface
from schuss.lab.landscape.networks import random_walk_shares
from schuss.lab.landscape.surfaces import heights_on, value_at
from schuss.lab.landscape.target import is_surface
from schuss.lab.landscape.trails import SEARCHED, given, tuned, walk
from schuss.lab.tasks import load
from schuss.torch import SGD


@pytest.mark.parametrize("name", SURFACES)
def test_known_minima_are_minima(name):
    ground = surface(name)
    for place in ground.minima:
        w = torch.tensor(place, dtype=torch.float64, requires_grad=True)
        value = ground.value(w)
        (slope,) = torch.autograd.grad(value, w)
        assert abs(value.item() - ground.lowest) < 1e-6
        assert slope.abs().max() < 1e-3


def test_a_walk_is_the_textbook_iteration():
    ground = surface("quadratic:kappa=10")
    trail = walk(ground, lambda w: SGD(w, lr=0.05), 20)
    factors = 1 - 0.05 * np.array([1.0, 10.0])
    expected = np.array(ground.start) * factors ** np.arange(21)[:, None]
    np.testing.assert_allclose(trail.places, expected, rtol=1e-12, atol=1e-15)
    assert trail.steps == 20
    assert trail.first_below(0) is None


def test_a_lost_walk_says_so():
    trail = given(surface("quadratic:kappa=100"), find("sgd"), {"lr": 1.0}, 200)
    assert trail.ended.startswith("left the surface at step")
    assert np.isfinite(trail.values).all()


def test_the_search_finds_the_best_rung():
    ground = surface("quadratic:kappa=4")
    best = tuned(ground, find("sgd"), 30)
    heights = {}
    for lr in SEARCHED:
        trail = given(ground, find("sgd"), {"lr": lr}, 30)
        if not trail.ended:
            heights[lr] = np.log10(np.maximum(trail.values, 1e-12)).mean()
    assert best.settings == f"lr {min(heights, key=heights.get):.3g}"


def test_jitter_and_momentum_are_measured():
    jitter = story("jitter")
    assert "40 of 40 steps crossed the valley" in jitter.found
    momentum = story("momentum")
    plain, damped = momentum.trails
    across = [np.abs(np.diff(trail.places[:, 1])).sum() for trail in (plain, damped)]
    turns = [(np.diff(np.sign(trail.places[:, 1])) != 0).sum() for trail in (plain, damped)]
    assert across[1] < across[0] / 3
    assert turns[1] < turns[0] / 5
    assert damped.values[-1] < plain.values[-1] / 5
    assert f"crosses the valley {turns[0]} times and moves {across[0]:.2g} across it" in momentum.found
    # A gradient counts as much in sum: lr / (1 − β) is the same.
    assert plain.settings == "lr 0.038"
    assert damped.settings == "lr 0.0038, β 0.9"


def test_the_saddle_is_left_or_not():
    ridge, shaken, beside, momentum, adam = story("saddle").trails
    assert (ridge.places[:, 1] == 0).all()
    assert ridge.first_below(-0.01) is None
    times = [trail.first_below(-0.2) for trail in (shaken, beside, momentum, adam)]
    assert None not in times
    assert times[3] < times[2] < times[1]
    # beside the ridge y grows by 1 + lr a step
    grown = beside.places[1:40, 1] / beside.places[:39, 1]
    np.testing.assert_allclose(grown, 1.1, rtol=1e-3)


def test_noise_falls_with_the_batch():
    one, sixteen, everything = story("noise").trails
    low = story("noise").lowest
    hover = [float((trail.values[200:] - low).mean()) for trail in (one, sixteen, everything)]
    assert 8 < hover[0] / hover[1] < 32
    assert hover[2] < hover[1]


def test_adagrad_only_slows_down_and_rmsprop_recovers():
    adagrad, rmsprop = story("adagrad").trails
    assert (np.diff(adagrad.seen) <= 0).all()
    assert rmsprop.seen[-1] > 2 * rmsprop.seen[0]
    assert rmsprop.values[-1] < adagrad.values[-1]


def test_restarts_leave_where_they_rest():
    scene = story("restarts")
    trail = scene.trails[1]
    rests = trail.places[[60, 120, 180, 240]]
    jumps = np.abs(np.diff(rests, axis=0)).max(axis=1)
    assert (jumps > math.pi / 4).any()  # half the distance between two bowls
    assert np.abs(trail.places[59] - trail.places[60]).max() < 1e-3


def test_the_null_is_that_of_simulated_walks():
    draw = torch.Generator().manual_seed(0)
    walks = torch.randn(2, 60, 4000, generator=draw, dtype=torch.float64)
    walks[:, 0] = 0
    places = walks.cumsum(dim=1).reshape(120, 4000)
    values = torch.linalg.svdvals(places - places.mean(dim=0)).square()
    np.testing.assert_allclose(random_walk_shares([60, 60]), values[:2] / values.sum(), rtol=0.05)


@pytest.fixture(scope="module")
def digits():
    return on_network(load("digits"), [find("momentum"), find("adam")], 40, lr=0.02)


def test_a_network_on_its_own_plane(digits):
    momentum, adam = digits.trails
    np.testing.assert_array_equal(momentum.values[0], adam.values[0])  # one start
    np.testing.assert_allclose(momentum.places[0], adam.places[0], rtol=1e-9)
    facts = dict(digits.facts)
    assert facts["weights"].replace("\u202f", "") == "4810"
    held = [int(part.strip("% ")) for part in facts["movement within the two directions"].split("+")]
    assert held[0] >= held[1] > 0
    assert sum(held) <= 100
    assert "of random walks" in digits.found


def test_a_network_on_random_directions():
    scene = on_network(load("digits"), [find("momentum")], 20, lr=0.05, plane="filter")
    (trail,) = scene.trails
    np.testing.assert_allclose(trail.places[-1], 0, atol=1e-9)  # the plane goes through its end
    assert "filter-normalised" in scene.lede
    # Random directions hold next to nothing, of a random walk too.
    assert dict(scene.facts)["expected for random walks"] == "0% + 0%"


def test_the_page_needs_nothing_else(digits):
    page = render([digits, on_surface(surface("beale"), [find("adam")], 30, lr=0.1)], "schuss landscape <x>")
    assert "schuss landscape &lt;x&gt;" in page
    assert page.count('class="scene"') == 2
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page


def test_x_and_y_have_one_scale_where_the_window_allows():
    for spec, same in (("quadratic:kappa=50", True), ("quadratic:kappa=10000", False)):
        scene = on_surface(surface(spec), [find("sgd")], 2, lr=1e-5)
        assert scene.to_scale is same
        assert ("different scales" in render([scene], "schuss landscape")) is not same


def test_the_ground_is_the_function_also_where_it_cannot_be_mapped():
    ground = surface("beale")
    xs, ys = np.linspace(-1, 1, 4), np.linspace(0, 2, 3)
    heights = heights_on(ground, xs, ys)
    assert heights.shape == (3, 4)
    assert heights[2, 0] == pytest.approx(value_at(ground, (-1.0, 2.0)), rel=1e-14)
    branching = replace(ground, value=lambda w: ground.value(w) if float(w[0]) > 0 else ground.value(w) * 1)
    assert np.array_equal(heights_on(branching, xs, ys), heights)
    with pytest.raises(ValueError, match="a place where it is finite"):
        heights_on(replace(ground, value=lambda w: w.sum() * math.nan), xs, ys)


def test_a_function_of_your_own(tmp_path):
    file = tmp_path / "hills.py"
    file.write_text(
        "def f(w):\n    x, y = w\n    return (x - 2) ** 2 + y**4\nf.start = (1.0, 1.0)\ndef g(w):\n    return 3\n"
    )
    ground = surface(f"{file}:f")
    assert ground.start == (1.0, 1.0)
    assert surface(f"{file}:f", start=(0.0, 2.0)).start == (0.0, 2.0)
    scene = on_surface(ground, [find("sgd")], 50)
    assert abs(scene.trails[0].places[-1, 0] - 2) < 0.01
    with pytest.raises(ValueError, match="is not a scalar tensor with a gradient"):
        surface(f"{file}:g")
    with pytest.raises(ValueError, match="not in"):
        surface(f"{file}:nothing")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hill", "surface='hill' is not one of rosenbrock"),
        ("quadratic:kappa=0.5", "kappa=0.5 is not a finite number of at least 1"),
        ("quadratic:kappa=many", "name=number"),
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
    with pytest.raises(ValueError, match="Try another place"):
        surface("beale", start=(1e200, 1e200))
    with pytest.raises(ValueError, match="story='hope' is not one of jitter"):
        story("hope")


def test_targets(tmp_path):
    assert is_surface("rosenbrock")
    assert not is_surface("digits:model=convnet")
    with pytest.raises(ValueError, match="is not one of rosenbrock"):
        is_surface("nothing")
    file = tmp_path / "task.py"
    file.write_text("from schuss.lab.tasks import load\nTASK = load('diabetes')\n")
    assert not is_surface(f"{file}:TASK")
    assert load(str(file)).name == load(f"{file}:TASK").name == "diabetes"
    assert set(STORIES) == {"jitter", "momentum", "saddle", "noise", "adagrad", "restarts"}


def test_a_plane_says_its_memory_and_refuses_what_is_not_there(monkeypatch):
    """Two runs of 41 places, four times: 332 vectors of 4810 numbers; the check comes before any step."""
    from schuss.curvature import memory
    from schuss.lab.landscape import network_cost, networks

    asked = load("digits"), [find("sgd"), find("adam")], 40
    cost = network_cost(*asked, lr=0.02)
    assert cost.bytes == 8 * (8 * 41 + 4) * 4810
    assert cost.seconds > 0
    monkeypatch.setattr(memory, "free_memory", lambda device: 12_000_000)
    monkeypatch.setattr(memory, "ALWAYS_FREE", 0)
    monkeypatch.setattr(networks, "training", lambda *_: pytest.fail("trained before the memory was checked"))
    with pytest.raises(MemoryError, match=r"a plane through 2 runs needs 332 vectors .*0\.0128 GB.*fewer"):
        on_network(*asked, lr=0.02)


def test_a_filter_direction_has_the_length_of_each_row():
    from schuss.lab.landscape import networks
    from schuss.lab.training.moments import flat

    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3).double()
    with torch.no_grad():
        model.weight[1] *= 100
    end, axes = networks._filters(model, flat(model), seed=1)
    rows = axes[0][:15].reshape(3, 5)
    assert torch.allclose(rows.norm(dim=1), model.weight.detach().norm(dim=1), rtol=1e-12)
    assert not axes[0][15:].any()
    assert abs(float(axes[0] @ axes[1])) < 1e-9 * float(axes[0].norm() * axes[1].norm())
    assert torch.equal(end, flat(model))
