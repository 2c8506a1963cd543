"""What is measured of tasks whose curvature and noise are known, and what is advised from it."""

import math
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from schuss.lab.diagnose import Effort, advise, costs, effort, measure, render
from schuss.lab.diagnose.measure import Conditioning, Diagnosis, Directions, Measurement, Speed
from schuss.lab.diagnose.page import needle
from schuss.lab.entries import find
from schuss.lab.tasks import load
from schuss.lab.tasks.task import Task
from schuss.lab.training.train import train


@pytest.fixture(scope="module")
def quadratic():
    return measure(load("quadratic:kappa=100,dim=8"), find("momentum"), "quadratic:kappa=100,dim=8", steps=20)


def regression():
    """Linear regression in 10 dimensions, isotropic, hardly any label noise: the noise scale is about 11."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 10, dtype=torch.float64, generator=draw)
    return Task(
        name="regression",
        model=lambda: torch.nn.Linear(10, 1, bias=False, dtype=torch.float64),
        loss=lambda model, batch: (model(batch[0]).squeeze(1) - batch[1]).square().mean() / 2,
        train=(x, 3 * x.sum(dim=1)),
        batch_size=32,
        epochs=2,
    )


def test_a_quadratic_has_its_own_numbers(quadratic):
    for each in quadratic.measurements:
        assert each.largest == pytest.approx(1, rel=1e-8)
        assert each.smallest == pytest.approx(0.01, rel=1e-6)
        assert each.limit == pytest.approx(2 * 1.9 / 0.1)
        assert each.largest_lr == pytest.approx(3.8, rel=1e-8)
        assert each.sharpness_ratio == pytest.approx(1 / 38, rel=1e-8)
    assert [each.step for each in quadratic.measurements] == [0, 5, 10, 15, 20]
    assert quadratic.conditioning.value == pytest.approx(100, rel=1e-8)
    assert quadratic.noise == (None, None)
    assert "There is no data" in quadratic.missing["gradient noise"]


def test_a_noiseless_problem_is_advised_momentum(quadratic):
    optimizer, rate, *rest = advise(quadratic)
    assert optimizer.take == "momentum"
    assert "factor of 100" in optimizer.because
    assert "schuss race quadratic:kappa=100,dim=8" in optimizer.command
    assert rate.topic == "learning rate"
    assert rate.take.split(" to ")[1] == "3.8 for momentum"
    assert "batch size" not in [each.topic for each in rest]


def test_regression_has_noise_scale_d_plus_one():
    found = measure(regression(), find("sgd"), "regression.py", steps=10)
    for noise in found.noise:
        assert noise.interval[0] < 11 < noise.interval[1]
    # The sample of 512 has its largest eigenvalue at the edge of Marchenko and Pastur, (1 + √(d/n))².
    assert found.measurements[0].largest == pytest.approx((1 + math.sqrt(10 / 512)) ** 2, rel=0.05)
    assert {speed.batch for speed in found.speeds} == {2, 8, 32, 128, 512}
    topics = {each.topic: each for each in advise(found)}
    assert "examples" in topics["batch size"].because
    assert "--batch-sizes" in topics["batch size"].command


def test_nothing_is_left_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measure(load("diabetes"), find("adam"), "diabetes", steps=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_blows_up_is_said():
    found = measure(load("rosenbrock"), find("sgd"), "rosenbrock", lr=10.0, steps=30)
    assert "no longer finite" in found.missing["the whole run"]
    assert render(found, advise(found), "schuss diagnose rosenbrock")


def test_lion_has_no_limit_and_the_page_says_why():
    found = measure(load("diabetes"), find("lion"), "diabetes", steps=4)
    assert all(each.sharpness_ratio is None for each in found.measurements)
    assert "sign of the gradient" in found.missing["stability"]
    page = render(found, advise(found), "schuss diagnose diabetes")
    assert 'id="missing"' in page
    assert 'id="edge"' not in page


def test_the_page_has_every_section(quadratic):
    page = render(quadratic, advise(quadratic), "schuss diagnose <it>")
    for name in ("advice", "edge", "curvature", "repeat"):
        assert f'<section id="{name}"' in page
    assert '<section id="noise"' not in page
    assert "schuss diagnose &lt;it&gt;" in page


EMPTY = Diagnosis(
    task="t",
    description="",
    spec="t.py",
    optimizer="adamw",
    settings="",
    lr=0.01,
    steps=100,
    seed=0,
    weights=1000,
    batch_size=64,
    examples=512,
    effort=Effort(512),
    has_data=True,
    measurements=(),
)


def noise(simple, low, high):
    return SimpleNamespace(simple=simple, interval=(low, high))


def measured(step, largest_lr, ratio=0.5):
    return Measurement(step, 1.0, 1.0, 0.0, ratio, 1.0, largest_lr)


def taken(found):
    return {each.topic: each for each in advise(found)}


def test_without_measurements_nothing_is_claimed():
    (only,) = advise(EMPTY)
    assert (only.topic, only.sure) == ("optimizer", "a guess")


@pytest.mark.parametrize(
    ("along", "scaled", "take", "sure"),
    [
        (1.0, 2.0, "adamw", "an indication"),
        (2.0, 1.0, "momentum", "an indication"),
        (1.0, 1.1, "momentum", "a guess"),
    ],
)
def test_the_better_direction_is_taken(along, scaled, take, sure):
    advice = taken(replace(EMPTY, directions=Directions(along, scaled)))["optimizer"]
    assert (advice.take, advice.sure) == (take, sure)


def test_a_sparse_table_is_adagrads():
    rows = SimpleNamespace(name="words", size=900, empty_rows=0.97, zeros=0.97)
    other = SimpleNamespace(name="bias", size=100, empty_rows=0.0, zeros=0.0)
    found = replace(EMPTY, sparsity=SimpleNamespace(tensors=(other, rows)), directions=Directions(2.0, 1.0))
    assert taken(found)["optimizer"].take == "adagrad"
    # A tensor that is a small part of the model does not decide.
    small = replace(found, weights=10_000)
    assert taken(small)["optimizer"].take == "momentum"


def falling(low, high, stopped=math.inf):
    return SimpleNamespace(interval=(low, high), stopped_at=(stopped,) * 3)


def test_the_rate_of_a_plain_method_is_the_range_test_cut_at_the_limit():
    found = replace(EMPTY, measurements=(measured(0, 0.4), measured(100, 0.2)), range_test=falling(0.04, 0.5))
    advice = taken(found)["learning rate"]
    assert advice.take == "0.04 to 0.2 for adamw"
    assert advice.sure == "an indication"  # no rate was trained to the horizon
    for lr, where in ((0.03, "below"), (0.04, "inside"), (0.2, "inside"), (0.3, "above")):
        assert f"{lr:g}, is {where} this range" in taken(replace(found, lr=lr))["learning rate"].because
    # Losses that fall far below the limit are no reason to stay there.
    assert (
        taken(replace(found, range_test=falling(1e-4, 1e-3)))["learning rate"].take == "0.02 to 0.2 for adamw"
    )
    # Where the range test blew up below the limit, it is the bound.
    assert taken(replace(found, range_test=falling(0.01, 0.05, 0.1)))["learning rate"].take.startswith(
        "0.01 to 0.1 "
    )


def test_the_noise_of_a_batch_lowers_the_limit_of_a_plain_method():
    quiet = replace(EMPTY, measurements=(measured(0, 0.98),), batch_size=8, range_test=falling(0.1, 1.2))
    noisy = replace(quiet, noise=(noise(21.0, 15, 30), noise(223.0, 200, 250)))
    assert taken(quiet)["learning rate"].take == "0.1 to 0.98 for adamw"
    advice = taken(noisy)["learning rate"]
    assert advice.take == "0.09 to 0.27 for adamw"  # 8 / (8 + 21) of the limit, half a decade wide
    assert "with the noise of a batch of 8 to about 0.27" in advice.because


def test_no_range_where_range_test_and_limit_disagree():
    found = replace(
        EMPTY, measurements=(measured(0, 0.001), measured(100, 0.002)), range_test=falling(0.01, 0.5)
    )
    advice = taken(found)["learning rate"]
    assert (advice.take, advice.sure) == ("no range", "a guess")
    assert "No learning rate satisfies both" in advice.because
    assert "schuss race" in advice.command


def test_the_limit_of_a_frozen_preconditioner_bounds_no_adaptive_rate():
    found = replace(
        EMPTY,
        measurements=(measured(25, 1e-6), measured(50, 0.3), measured(100, 0.02)),
        range_test=falling(0.01, 0.09),
        adaptive=True,
    )
    assert taken(found)["learning rate"].take == "0.01 to 0.09 for adamw"
    assert "learning rate" not in taken(replace(found, range_test=None))


def test_the_rate_says_whose_it_is_and_how_to_ask_for_the_advised_optimizers():
    found = replace(EMPTY, range_test=falling(0.01, 0.09), adaptive=True, directions=Directions(2.0, 1.0))
    optimizer, rate, *_ = advise(found)
    assert optimizer.take == "momentum"
    assert rate.take.endswith(" for adamw")
    assert "schuss diagnose t.py --optimizer momentum" in rate.because


def test_a_rate_is_judged_by_the_numbers_that_are_printed():
    found = replace(EMPTY, range_test=falling(0.00104, 0.01), adaptive=True, lr=0.001)
    advice = taken(found)["learning rate"]
    assert advice.take == "0.001 to 0.01 for adamw"
    assert "is inside this range" in advice.because


@pytest.mark.parametrize(
    ("spec", "name"), [("quadratic:kappa=1000", "momentum"), ("diabetes", "adagrad"), ("diabetes", "rmsprop")]
)
def test_rates_that_are_advised_learn(spec, name, monkeypatch):
    """Trained to the horizon, the middle of the range is far better than the start, and it does not diverge."""
    monkeypatch.setattr(
        effort, "efforts", lambda n: [Effort(n, measurements=3, products=20, lanczos=4, batches=8)]
    )
    task, entry = load(spec), find(name)
    found = measure(task, entry, spec, steps=40)
    (rate,) = (each for each in advise(found) if each.topic == "learning rate")
    low, high = map(float, rate.take.removesuffix(f" for {name}").split(" to "))
    lr = math.sqrt(low * high)
    curve = train(task, lambda weights: entry.build(weights, {**entry.usual, "lr": lr}), 0).curve
    best = task.optimum
    assert curve[-1].train_loss - best < 0.1 * (curve[0].train_loss - best)
    if spec.startswith("quadratic"):
        assert curve[-1].metric < -4  # three decades below what the end of the range test reaches


def test_small_batches_do_not_make_the_sample_small():
    """The largest eigenvalue of 64 draws in 20 dimensions is 2.4 times that of their distribution; of 512, 1.4."""
    task = replace(load("diabetes"), batch_size=4)
    rows = task.rows("train")
    found = measure(task, find("sgd"), "diabetes", steps=4)
    assert found.examples == min(512, len(rows))


def test_the_batch_is_where_a_goal_costs_least():
    speeds = (Speed(16, 1.0), Speed(64, 1.1), Speed(256, 2.0))
    found = replace(EMPTY, noise=(None, noise(100.0, 98.0, 110.0)), speeds=speeds)
    times = [cost.time for cost in costs(speeds, 100.0)]
    assert times == pytest.approx([7.25, 1.1 * (1 + 100 / 64), 2 * (1 + 100 / 256)])
    advice = taken(found)["batch size"]
    assert (advice.take, advice.sure) == ("256", "measured")
    unsure = replace(found, noise=(None, noise(100.0, 5.0, math.inf)))
    assert taken(unsure)["batch size"].sure == "an indication"


def test_a_batch_size_that_rests_on_one_noisy_timing_is_not_called_measured():
    """Of three rounds one had the largest batch slowed down by something else."""
    speeds = (Speed(64, 1.1, (1.1, 1.1, 1.1)), Speed(256, 2.0, (2.0, 2.0, 9.0)))
    found = replace(EMPTY, noise=(None, noise(100.0, 98.0, 110.0)), speeds=speeds)
    advice = taken(found)["batch size"]
    assert (advice.take, advice.sure) == ("256", "an indication")
    assert "may lie between 64 and 256" in advice.because
    steady = replace(found, speeds=(speeds[0], replace(speeds[1], rounds=(2.0, 2.0, 1.9))))
    assert taken(steady)["batch size"].sure == "measured"
    assert "which is in use" in taken(replace(steady, batch_size=256))["batch size"].because


@pytest.mark.parametrize(
    ("rates", "scales", "take"),
    [
        ((0.1, 0.4), (50, 40), "warmup+cosine"),
        ((0.1, 0.12), (50, 400), "cosine"),
        ((0.1, 0.1), (5, 6), "constant"),
    ],
)
def test_the_schedule_follows_sharpness_and_noise(rates, scales, take):
    found = replace(
        EMPTY,
        measurements=(measured(0, rates[0]), measured(100, rates[1])),
        noise=(noise(scales[0], 1, 500), noise(scales[1], 1, 500)),
    )
    advice = taken(found)["schedule"]
    assert advice.take == take
    assert f"--schedules {take}," in advice.command


def test_commands_are_understood_by_the_race():
    from schuss.lab.schedules import check

    found = replace(
        EMPTY,
        measurements=(measured(0, 0.1), measured(100, 0.4)),
        noise=(noise(5, 1, 9), noise(90, 80, 110)),
        speeds=(Speed(64, 1.0),),
        directions=Directions(1.0, 2.0),
        conditioning=Conditioning(10.0, 1.0, 0.1, "κ"),
    )
    for each in advise(found):
        words = each.command.split()
        assert words[:3] == ["schuss", "race", "t.py"]
        for name in words[words.index("--entries") + 1].split(","):
            find(name)
        if "--schedules" in words:
            for name in words[words.index("--schedules") + 1].split(","):
                check(name)


def test_commands_name_the_users_own_files(tmp_path):
    """Parsed as the command line parses them, and the entries are found."""
    from schuss.cli.race import command as race

    file = tmp_path / "my opt.py"
    file.write_text("import torch\nclass Mine(torch.optim.SGD):\n    space = {'lr': (1e-3, 1.0)}\n")
    found = replace(
        EMPTY,
        named=f"{file}:Mine",
        optimizer="Mine",
        data=str(tmp_path / "my data"),
        schedule="cosine",
        measurements=(measured(0, 0.1), measured(100, 0.4)),
        noise=(noise(5, 1, 9), noise(90, 80, 110)),
        speeds=(Speed(64, 1.0),),
    )
    for each in advise(found):
        words = shlex.split(each.command)
        given = race.make_context("race", words[2:]).params
        assert given["tasks"] == "t.py"
        assert given["data"] == tmp_path / "my data"
        assert given["preset"] == "quick"
        assert all(find(name) for name in given["entries"].split(","))


def test_an_endless_noise_scale_is_written_and_costs_nothing():
    endless = SimpleNamespace(simple=math.inf, interval=(200.0, math.inf), batches=9)
    found = replace(EMPTY, noise=(None, endless), speeds=(Speed(16, 1.0), Speed(64, 1.1)))
    page = render(found, advise(found), "schuss diagnose t.py")
    assert "equal at <b>∞</b> examples (95 %: 200 to ∞; 9 batches)" in page
    assert 'data-figure="costs"' not in page


def test_the_needle():
    assert needle(0.0) == pytest.approx((30, 120))
    assert needle(2.0) == pytest.approx((210, 120))
    assert needle(1e9) == needle(2.0)
