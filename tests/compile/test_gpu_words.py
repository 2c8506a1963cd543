"""GPU kernels of updates with whole-tensor words, in the interpreter: random ones, names, and gated steps."""

import random
import warnings

import numpy as np
import pytest
import torch

import schuss.torch
from schuss.compile import device, gpu
from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.torch import plan

pytest.importorskip("triton", reason="Triton is not installed")

SIZES = (0, 1, 63, gpu.ROW, gpu.ROW + 1, 2 * gpu.ROW + 100)


def positive(n, seed):
    return np.random.default_rng(seed).uniform(0.2, 3, n)


def follows_the_reference(rule, gpus, dtype="float64", sizes=SIZES):
    rules, groups = [rule(lr=0.5), rule(lr=0.25)], [k % 2 for k in range(len(sizes))]
    arrays = gpus.Arrays(rules, (dtype,) * (2 + len(rule.state)), sizes)
    starts, gradients = ([positive(n, 7 * k + one) for k, n in enumerate(sizes)] for one in (0, 1))
    arrays.fill("w", starts)
    arrays.fill("g", gradients)
    launch = arrays.on_gpu(groups, range(len(sizes)))
    ledger = gpus.first_ledger([rules[group] for group in groups])
    references = [Reference(rules[group], w) for group, w in zip(groups, starts, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(2):
            launch.step(ledger, rules, gpus.plain(1.0, 1.0))
            for reference, g in zip(references, gradients, strict=True):
                reference.step(g)
    for found, reference in zip(arrays.named("w"), references, strict=True):
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(found.double().numpy(), reference.w, rtol=200 * eps, atol=200 * eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [24, 25])
def test_interpreted_random_updates(seed, dtype, updates, gpus):
    rule = updates.rule_of(updates.body_of(random.Random(seed)))
    assert formula(rule).passes
    follows_the_reference(rule, gpus, dtype)


# Names that the kernels' own text uses, and that those of words would be.
NAMES = (
    *("norm_w", "argument_of_norm_w", "x", "row", "found", "sums", "first", "last", "count", "root", "place"),
    *("tensor_1", "row_1", "move", "end_of", "whole", "end", "stretch", "program", "tensor", "length", "i"),
    *("inside", "block", "most", "new", "upper", "aligned", "tl", "triton", "at_w", "to_w", "taken", "gate"),
    *("update", "moved", "measure_1", "coefficients", "rows_of", "new_w", "float64", "slots", "range", "min"),
)


@pytest.mark.parametrize("place", range(len(NAMES)))
def test_interpreted_names(place, updates, gpus):
    """As a variable, a coefficient and a state's name: each name once as each."""
    v, part, m = (NAMES[(place + k) % len(NAMES)] for k in range(3))
    body = [
        f"{v} = norm(w) * w",
        f"{m} = 0.5 * {m} + g * {v} / norm(w / mean({v}))",
        f"return w + lr * {part} * {m} / norm(w), {m}",
    ]
    rule = updates.rule_of(body, (m,), ("lr", part))
    rule.coefficients = lambda self, step: {"lr": self.lr, part: self.part}
    follows_the_reference(rule, gpus, sizes=(70,))


# Gated steps, through the PyTorch API


def test_interpreted_gated_steps_are_those_of_the_cpu(updates, monkeypatch):
    """Clipped, and one left out; of the weight's shape and of words of words; lying as they may."""
    rule = updates.rule_of(
        [
            "m = 0.5 * m + g * rows(w) / (1 + columns(w)) / norm(g)",
            "w = w - lr * m * mean(w * w) / (1 + norm(w - m * total(g)))",
            "return w, m",
        ]
    )
    found = []
    for on_gpu in (False, True):
        monkeypatch.setattr(device, "runs_on", lambda place, answer=on_gpu: answer)
        weights = [
            torch.nn.Parameter(torch.from_numpy(positive(shape, 0)))
            for shape in ((6, 8), (3, 2, 5), (), (gpu.ROW + 9,))
        ]
        weights.append(torch.nn.Parameter(weights[0].detach().clone().T))
        weights.append(torch.nn.Parameter(torch.complex(weights[1].detach(), weights[1].detach())))
        optimizer = schuss.torch.optimizer(rule)(weights, lr=0.1, max_norm=0.5, skip_nonfinite=True)
        for step in range(4):
            for k, w in enumerate(weights):
                w.grad = torch.full_like(w, 0.1 * (k + 1))
            if step == 2:
                weights[1].grad.view(-1)[3] = torch.nan
            optimizer.step()
        assert optimizer.skipped == 1
        kinds = {type(one.launch) for one in optimizer._plan.plain}
        assert (device.DeviceLaunch in kinds) == on_gpu
        found.append([w.detach() for w in weights])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_rows_and_columns_of_a_complex_weight_are_its_own(updates, monkeypatch):
    """On the eager path too, where it is pairs of real numbers."""
    rule = updates.rule_of(["m = 0 * m + 100 * rows(w) + columns(w)", "return w, m"])
    for has_kernel in (plan._has_kernel, lambda tensor: False):
        monkeypatch.setattr(plan, "_has_kernel", has_kernel)
        w = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))
        w.grad = torch.ones_like(w)
        optimizer = schuss.torch.optimizer(rule)([w])
        optimizer.step()
        assert torch.view_as_real(optimizer.state[w]["m"]).unique().tolist() == [304.0]
