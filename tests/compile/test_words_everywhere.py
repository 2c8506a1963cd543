"""Random updates with whole-tensor words: cut into passes, on each path, they mean what the text says."""

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schuss.numpy
import schuss.torch
from schuss.compile.formula import formula
from schuss.compile.launch import ROW
from schuss.compile.reference import WORDS, Reference
from schuss.torch import plan

# One row of a table and less, several rows, and more than go through all passes one by one.
SIZES = (0, 1, 63, ROW, ROW + 1, 18 * ROW)


def positive(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 3, shape)


def in_passes(one, arrays, coefficients):
    """The text of each pass over NumPy's arrays, one after the other."""
    scope, found = dict(WORDS), {}
    for level in range(1, one.passes.levels + 1):
        exec(one.passes.measure(level), scope)
        known = [found[word.name] for word in one.passes.known(level)]
        measured = scope[f"measure_{level}"](*arrays, *coefficients, *known)
        for word, x in zip(one.passes.at(level), measured, strict=True):
            found[word.name] = WORDS[word.word](np.broadcast_to(x, arrays[0].shape))
    exec(one.passes.update(), scope)
    return scope["update"](*arrays, *coefficients, *(found[word.name] for word in one.passes.words))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10**9))
def test_passes_mean_what_the_text_means(seed, updates):
    """Reassigned names, several at once, words of words, in conditions and in what is returned."""
    one = formula(updates.rule_of(updates.body_of(random.Random(seed))))
    if one.passes:
        arrays, coefficients = list(positive(3, 50)), (0.25, 0.5)
        for meant, found in zip(
            one.bind(WORDS)(*arrays, *coefficients), in_passes(one, arrays, coefficients), strict=True
        ):
            np.testing.assert_allclose(found, meant, rtol=1e-12)


# Those of the random ones that say most, and all that a word can stand in.
BODIES = (
    [
        "u = w / (1 + mean(g * g))",
        "w, m = m + norm(u / norm(u)) * u, w",
        "u, part = norm(w) + w, total(m / norm(m)) / (1 + norm(w))",
        "m = where((u > mean(u)) & (norm(u) > 0.5), m, mean(m) * u)",
        "return w / norm(w * mean(m)) + lr * u, m / (1 + norm(m - part * w))",
    ],
    [
        "rows_of = sqrt(rows(w) / columns(w))",
        "m = 0.5 * m + g / norm(g)",
        "w = w - lr * rows_of * abs(mean(m)) * m",
        "w = w * maximum(0.5, norm(w)) / exp(log(norm(w)))",
        "return w, m",
    ],
)


@pytest.fixture(params=range(len(BODIES)), ids=["levels", "shape"])
def rule(request, updates):
    return RULES.setdefault(request.param, updates.rule_of(BODIES[request.param]))


RULES = {}


def assert_near(found, meant, dtype):
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, meant, rtol=100 * eps, atol=100 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", ["kernel", "eager", "NumPy"])
def test_each_path_follows_the_reference(rule, path, dtype, monkeypatch):
    """All sizes in two groups; on one thread and on several the same, bit for bit."""
    if path == "eager":
        monkeypatch.setattr(plan, "_has_kernel", lambda tensor: False)
    starts = [positive(n, 1, seed=k).astype(dtype) for k, n in enumerate(2 * SIZES)]
    steps = [[positive(n, 1, seed=99 + k).astype(dtype) for k, n in enumerate(2 * SIZES)] for _ in range(2)]
    references = [Reference(rule(lr=0.1 * (1 + k % 2)), w) for k, w in enumerate(starts)]
    for gradients in steps:
        for reference, g in zip(references, gradients, strict=True):
            if g.size:
                reference.step(g)
    found = []
    for workers in (1, 3) if path == "kernel" else (1,):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=workers: n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found.append((by_numpy if path == "NumPy" else by_torch)(rule, starts, steps))
    for reference, w in zip(references, found[0], strict=True):
        assert_near(w, reference.w, dtype)
    for one, other in zip(found[0], found[-1], strict=True):
        assert one.tobytes() == other.tobytes()


def by_torch(rule, starts, steps):
    weights = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in starts]
    groups = [{"params": weights[0::2], "lr": 0.1}, {"params": weights[1::2], "lr": 0.2}]
    optimizer = schuss.torch.optimizer(rule)(groups)
    for gradients in steps:
        for w, g in zip(weights, gradients, strict=True):
            w.grad = torch.from_numpy(g.copy())
        optimizer.step()
    return [w.detach().numpy() for w in weights]


def by_numpy(rule, starts, steps):
    """Each second gradient lies backwards in memory."""
    weights = [w.copy() for w in starts]
    for some, lr in ((slice(0, None, 2), 0.1), (slice(1, None, 2), 0.2)):
        optimizer = schuss.numpy.optimizer(rule)(lr=lr)
        for gradients in steps:
            mine = [g if k % 2 else g[::-1].copy()[::-1] for k, g in enumerate(gradients)]
            optimizer.update(weights[some], mine[some])
    return weights


# The size of numbers


@pytest.mark.parametrize("path", ["kernel", "eager"])
@pytest.mark.parametrize(("size", "norm"), [(1e200, np.inf), (1e-200, 0.0), (1e150, 2e150), (1e-150, 2e-150)])
def test_a_norm_is_the_root_of_a_sum_of_float64_squares(path, size, norm, updates, monkeypatch):
    """Whose squares are beyond float64 is infinite or 0, on each path: so is the reference."""
    if path == "eager":
        monkeypatch.setattr(plan, "_has_kernel", lambda tensor: False)
    rule = RULES.setdefault("norm", updates.rule_of(["m = 0 * m + norm(g)", "return w, m"]))
    w = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    w.grad = torch.full((4,), size, dtype=torch.float64)
    optimizer = schuss.torch.optimizer(rule)([w])
    optimizer.step()
    reference = Reference(rule(), np.zeros(4))
    reference.step(w.grad.numpy())
    for m in (optimizer.state[w]["m"].numpy(), reference.state[0]):
        np.testing.assert_allclose(m, np.full(4, norm), rtol=1e-14)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_a_norm_of_float32_numbers_neither_overflows_nor_vanishes(size, updates):
    rule = RULES.setdefault("norm", updates.rule_of(["m = 0 * m + norm(g)", "return w, m"]))
    w = torch.nn.Parameter(torch.zeros(4))
    w.grad = torch.full((4,), size)
    optimizer = schuss.torch.optimizer(rule)([w])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[w]["m"], torch.full((4,), 2 * size), rtol=1e-6, atol=0)


# What a norm sees of the gradient, and what a step that is left out changes


def test_a_norm_sees_the_clipped_gradient_without_gradscalers_factor(updates):
    rule = RULES.setdefault("norm", updates.rule_of(["m = 0 * m + norm(g)", "return w, m"]))
    w, other = (torch.nn.Parameter(torch.ones(n)) for n in (3, 4))
    optimizer = schuss.torch.optimizer(rule)([w, other], max_norm=1.0, maximize=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((3 * w).sum() + (2 * other).sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(optimizer.state[w]["m"], torch.full((3,), (27 / 43) ** 0.5))
    torch.testing.assert_close(optimizer.state[other]["m"], torch.full((4,), (16 / 43) ** 0.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_left_out_changes_nothing(bad):
    weights = [torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16)) for n in (5, 3000)]
    optimizer = schuss.torch.LAMB(
        weights, skip_nonfinite=True, state_dtype="int8", compensated=True, ema_decay=0.9
    )
    for last in (0.5, bad):
        before = [x.clone() for w in weights for x in (w.detach(), *optimizer.state[w].values())]
        for w in weights:
            w.grad = torch.ones_like(w)
        weights[0].grad[3] = last
        optimizer.step()
    after = [x for w in weights for x in (w.detach(), *optimizer.state[w].values())]
    assert all(map(torch.equal, before, after))
    assert optimizer.skipped == 1
