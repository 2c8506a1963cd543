"""`cautious` and `max_update` in both APIs: refused, stored, saved, skipped, averaged, and by group."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.apis import NumPy, Torch

import schuss.numpy
import schuss.torch
from schuss.compile.reference import Reference
from schuss.curvature import stability_limit
from schuss.rules import TABLE, Rule

BOTH = dict(cautious=True, max_update=0.5)
each_api = pytest.mark.parametrize("api", [Torch, NumPy])


def noise(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same(one, other):
    for key, value in one.state().items():
        np.testing.assert_array_equal(value, other.state()[key], err_msg=str(key))
    for a, b in zip(one.weights(), other.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@each_api
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("SGD", dict(cautious=1), "cautious=1 is not True or False"),
        ("SGD", dict(cautious=None), "cautious=None is not True or False"),
        ("SGD", dict(max_update=0.0), r"max_update=0.0 is not None or a finite number > 0. Try 1.0"),
        ("SGD", dict(max_update=-1), "max_update=-1 is not None or a finite number > 0"),
        ("SGD", dict(max_update=math.inf), "max_update=inf is not None or a finite number > 0"),
        ("SGD", dict(max_update=lambda n: 1.0), "is not None or a finite number > 0"),
        ("ScheduleFreeSGD", dict(cautious=True), "cautious=True is not possible with ScheduleFreeSGD"),
        ("ScheduleFreeAdamW", dict(max_update=1.0), "max_update=1.0 is not possible with ScheduleFreeAdamW"),
    ],
)
def test_refused(api, name, options, words):
    with pytest.raises(ValueError, match=words):
        api(name, [np.ones(2)], **options)
    subject = api(name, [np.ones(2)])
    with pytest.raises(ValueError, match=words):
        subject.refused_later(*next(iter(options.items())))
    subject.step(np.ones(2))
    assert (subject.weights()[0] < 1).all() or name == "ScheduleFreeSGD"


@dataclass(frozen=True, kw_only=True)
class Rateless(Rule):
    """A rule without a learning rate."""

    def coefficients(self, step):
        return dict(rate=0.1)

    @staticmethod
    def update(w, g, rate):
        w = w - rate * g
        return (w,)


def test_a_limit_needs_a_rate():
    words = r"max_update=1.0 is in units of lr, which Rateless does not have"
    with pytest.raises(ValueError, match=words):
        schuss.numpy.optimizer(Rateless)(max_update=1.0)
    with pytest.raises(ValueError, match=words):
        schuss.torch.optimizer(Rateless)([torch.ones(2)], max_update=1.0)
    schuss.numpy.optimizer(Rateless)(cautious=True)


@each_api
@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_kernels_are_the_reference(api, name):
    """Of every size and layout: none, one, several rows of a table, more than a cache holds; in float64 and float32."""
    starts = [noise(0), noise(1), noise(8, 6).T, noise(17 * 32768 + 5)]
    starts += [noise(3, 5, dtype=np.float64)] * (name == "AdamW")
    subject = api(name, starts, lr=0.1, **BOTH)
    references = [Reference(TABLE[name].rule(lr=0.1), start, **BOTH) for start in starts[1:]]
    for k in range(2):
        g = [noise(*start.shape, seed=k) for start in starts]
        subject.step(*g)
        for reference, one in zip(references, g[1:], strict=True):
            reference.step(one)
    for found, reference in zip(subject.weights()[1:], references, strict=True):
        np.testing.assert_allclose(found, reference.w, rtol=1e-5, atol=2e-6)


@each_api
def test_maximizing_and_clipping_come_first(api):
    """What the mask is of is the gradient that the rule is given."""
    up, down = api("Lion", [noise(50)], maximize=True, **BOTH), api("Lion", [noise(50)], **BOTH)
    clipped = api("Lion", [noise(50)], max_norm=0.1, **BOTH)
    for k in range(3):
        g = noise(50, seed=k)
        up.step(-g)
        down.step(g)
        clipped.step(g)
    assert_same(up, down)
    assert (clipped.weights()[0] != noise(50)).any()


@each_api
def test_a_skipped_step_changes_nothing_and_the_average_is_of_the_new_weight(api):
    options = dict(lr=0.1, ema_decay=0.5, skip_nonfinite=True, **BOTH)
    subject, twin = (api("AdamW", [noise(40), noise(4)], **options) for _ in range(2))
    average = np.zeros(40)
    for k in range(3):
        g, bad = noise(40, seed=k), noise(4, seed=k)
        bad[k] = np.nan
        subject.step(g, bad)
        assert subject.optimizer.skipped == k + 1
        for one in (subject, twin):
            one.step(g, noise(4, seed=k))
        assert_same(subject, twin)
        average = (average + subject.weights()[0]) / 2 if k else subject.weights()[0]
    np.testing.assert_allclose(subject.averages()[0], average, rtol=1e-6, atol=1e-7)


@each_api
def test_low_precision_saved_and_continued(api):
    starts = [noise(5000, dtype=np.float16), noise(7, 8)]
    options = dict(state_dtype="int8", rounding="stochastic", ema_decay=0.9, seed=1, **BOTH)
    straight, interrupted = (api("Lion", starts, lr=0.01, **options) for _ in range(2))
    for k in range(4):
        g = [noise(5000, seed=k, dtype=np.float16), noise(7, 8, seed=k)]
        straight.step(*g)
        if k == 2:
            saved = interrupted.saved()
            interrupted = interrupted.again()
            interrupted.load(saved)
        interrupted.step(*g)
    assert_same(straight, interrupted)
    reference = Reference(TABLE["Lion"].rule(lr=0.01), starts[0], **BOTH)
    for k in range(4):
        reference.step(noise(5000, seed=k, dtype=np.float16))
    far = np.abs(straight.weights()[0] - reference.w)
    assert np.mean(far) < 0.1 * np.mean(np.abs(reference.w - starts[0]))


@each_api
def test_the_options_are_configuration_and_may_change_between_steps(api):
    """A checkpoint has them not; what is set by hand holds from the next step on."""
    subject = api("AdamW", [noise(30)], lr=0.1)
    subject.step(noise(30))
    other = subject.again(**BOTH)
    other.load(subject.saved())
    assert other.shown("cautious") is True
    assert other.shown("max_update") == 0.5
    for name, value in BOTH.items():
        subject.change(name, value)
    for k in range(2):
        subject.step(noise(30, seed=k))
        other.step(noise(30, seed=k))
    assert_same(subject, other)
    subject.change("max_update", 1e-3)
    before = subject.weights()[0]
    subject.step(noise(30))
    size = np.sqrt(np.mean((subject.weights()[0] - before * (1 - 0.1 * 0.01)) ** 2))
    np.testing.assert_allclose(size, 1e-3 * 0.1, rtol=1e-3)


@each_api
@pytest.mark.parametrize(
    ("options", "words"), [(dict(cautious=True), "cautious=True"), (dict(max_update=1.0), "max_update")]
)
def test_rows_alone_are_refused_before_anything_changes(api, options, words):
    subject = api("SGD", [np.ones((4, 2))], lr=1.0, **options)
    with pytest.raises(RuntimeError, match=f"{words} measures whole tensors"):
        subject.step((np.array([1]), np.ones((1, 2))))
    assert (subject.weights()[0] == 1).all()


def test_groups_have_options_of_their_own():
    starts = [noise(30, seed=k) for k in range(4)]
    chosen = [{}, BOTH, dict(BOTH, max_update=0.1), dict(BOTH, rule="Lion", lr=0.01)]
    together = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    alone = [torch.nn.Parameter(torch.tensor(start)) for start in starts]
    groups = [{"params": [w], **one} for w, one in zip(together, chosen, strict=True)]
    optimizers = [schuss.torch.AdamW(groups, lr=0.1)]
    for w, one in zip(alone, chosen, strict=True):
        kind = schuss.torch.Lion if "rule" in one else schuss.torch.AdamW
        one = {name: value for name, value in one.items() if name != "rule"}
        optimizers.append(kind([w], **{"lr": 0.1, **one}))
    for k in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = b.grad = torch.from_numpy(noise(30, seed=k))
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="is not possible with ScheduleFreeSGD"):
        optimizers[0].add_param_group(
            {"params": [torch.ones(1)], "rule": "ScheduleFreeSGD", "cautious": True}
        )
    assert len(optimizers[0].param_groups) == 4


def test_a_rate_that_falls_to_zero_holds_still():
    params = {"w": np.ones(9)}
    optimizer = schuss.numpy.AdamW(lr=lambda n: 0.1 * (n < 2), **BOTH)
    for _ in range(2):
        optimizer.update(params, {"w": np.ones(9)})
    before = params["w"].copy()
    optimizer.update(params, {"w": np.ones(9)})
    assert (params["w"] == before).all()


def test_no_stability_limit_is_claimed():
    for options in (dict(cautious=True), dict(max_update=1.0)):
        optimizer = schuss.torch.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)
        with pytest.raises(ValueError, match=r"is not possible here.*not linear"):
            stability_limit(optimizer)
