"""Rules that torch.optim does not have, against other libraries, over 120 steps in float64, defaults included.

Where a peer strays from the paper, the comparison is the one that its fault does not touch, and a comment says which.
"""

import jax
import numpy as np
import optax
import pytest
import pytorch_optimizer
import schedulefree
import torch

import schuss.torch

STEPS, SIZE = 120, 40


@pytest.fixture
def start():
    return np.random.default_rng(5).standard_normal(SIZE)


@pytest.fixture
def gradients():
    """A direction of each weight's own, noise as large, sizes over six decades, and zeros."""
    random = np.random.default_rng(6)
    sizes = 10.0 ** random.uniform(-4, 2, SIZE)
    found = sizes * (random.standard_normal(SIZE) + random.standard_normal((STEPS, SIZE)))
    found[random.random(found.shape) < 0.05] = 0.0
    return found


def path(make, start, gradients):
    """Where an optimizer of torch's kind takes a weight."""
    weight = torch.tensor(start, requires_grad=True)
    optimizer, found = make([weight]), []
    if hasattr(optimizer, "train"):  # schedulefree's
        optimizer.train()
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
        found.append(weight.detach().numpy().copy())
    return np.array(found)


def path_of_optax(transform, start, gradients):
    with jax.enable_x64(True):
        params, found = jax.numpy.asarray(start), []
        state = transform.init(params)
        step = jax.jit(transform.update)
        for g in gradients:
            updates, state = step(jax.numpy.asarray(g), state, params)
            params = optax.apply_updates(params, updates)
            found.append(np.asarray(params))
    assert params.dtype == np.float64
    return np.array(found)


def ours(name, options):
    return lambda params: getattr(schuss.torch, name)(params, **options)


PYTORCH_OPTIMIZER = [
    ("Adan", {}, {}),
    (
        "Adan",
        dict(lr=0.02, betas=(0.9, 0.7, 0.95), eps=1e-3, weight_decay=0.3),
        dict(lr=0.02, betas=(0.9, 0.7, 0.95), eps=1e-3, weight_decay=0.3),
    ),
    ("Adan", dict(weight_decay=0.3, no_prox=True), dict(weight_decay=0.3, weight_decouple=True)),
    ("AdaBelief", {}, {}),
    (
        "AdaBelief",
        dict(lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
        dict(lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
    ),
    (
        "AdaBelief",
        dict(weight_decay=0.3, decoupled_weight_decay=False),
        dict(weight_decay=0.3, weight_decouple=False),
    ),
    # It counts the first step that moves nothing among those whose fourth root it clips by.
    ("ADOPT", {}, dict(clip_lambda=lambda t: (t - 1) ** 0.25)),
    ("ADOPT", dict(clip=False), dict(clip_lambda=None)),
    (
        "ADOPT",
        dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
        dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, clip_lambda=lambda t: (t - 1) ** 0.25),
    ),
    ("AdEMAMix", {}, {}),
    (
        "AdEMAMix",
        dict(lr=0.02, betas=(0.8, 0.95, 0.99), eps=1e-3, alpha=8.0, weight_decay=0.3),
        dict(lr=0.02, betas=(0.8, 0.95, 0.99), eps=1e-3, alpha=8.0, weight_decay=0.3, weight_decouple=True),
    ),
    ("AdEMAMix", dict(beta3_warmup=80, alpha_warmup=80), dict(t_alpha_beta3=80)),
]


@pytest.mark.parametrize(("name", "options", "theirs"), PYTORCH_OPTIMIZER)
def test_pytorch_optimizer(name, options, theirs, start, gradients, close):
    expected = path(lambda params: getattr(pytorch_optimizer, name)(params, **theirs), start, gradients)
    close(path(ours(name, options), start, gradients), expected, 1e-11)


def test_pytorch_optimizers_adopt_decays_once_more(start, gradients, close):
    """Its decoupled decay begins at the step that moves nothing: from w / (1 − η λ) it comes to w there."""
    lr, decay = 0.02, 0.3
    expected = path(
        lambda params: pytorch_optimizer.ADOPT(
            params, lr, weight_decay=decay, weight_decouple=True, clip_lambda=lambda t: (t - 1) ** 0.25
        ),
        start / (1 - lr * decay),
        gradients,
    )
    options = dict(lr=lr, weight_decay=decay, decoupled_weight_decay=True)
    close(path(ours("ADOPT", options), start, gradients), expected, 1e-11)


def rising(n):
    """α after n finished steps, from 0 to 5 in 80."""
    return 5.0 * (n + 1).clip(max=80) / 80


OPTAX = [
    ("AdaBelief", {}, lambda: optax.adabelief(1e-3)),
    (
        "AdaBelief",
        dict(lr=0.02, betas=(0.8, 0.95), eps=1e-4),
        lambda: optax.adabelief(0.02, 0.8, 0.95, 1e-4, 1e-4),
    ),
    (
        "AdaBelief",
        dict(eps=1e-8, eps_position="outside"),
        lambda: optax.adabelief(1e-3, eps=1e-8, eps_root=0.0),
    ),
    ("ADOPT", {}, lambda: optax.contrib.adopt(1e-3)),
    (
        "ADOPT",
        dict(betas=(0.8, 0.95), clip=False),
        lambda: optax.contrib.adopt(1e-3, 0.8, 0.95, use_clipping=False),
    ),
    ("AdEMAMix", {}, lambda: optax.contrib.ademamix(1e-3)),
    ("AdEMAMix", dict(alpha_warmup=80), lambda: optax.contrib.ademamix(1e-3, alpha=rising)),
    # Optax multiplies differences by 1 − β₂ where the authors multiply by β₂: the same where β₂ = ½.
    (
        "Adan",
        dict(betas=(0.98, 0.5, 0.99), weight_decay=0.3, no_prox=True),
        lambda: optax.adan(1e-3, b2=0.5, eps_root=0.0, weight_decay=0.3),
    ),
]


@pytest.mark.parametrize(("name", "options", "theirs"), OPTAX)
def test_optax(name, options, theirs, start, gradients, close):
    expected = path_of_optax(theirs(), start, gradients)
    close(path(ours(name, options), start, gradients), expected, 1e-11)


# Rules that measure whole tensors, and Schedule-Free, on matrices: vectors others move otherwise. The gradients pull
# towards 0, so that norms of weights matter.

SHAPES = ((4, 3), (2, 5), (7, 1))


def matrix_paths(make, seed=3):
    """Where three matrices are after every step, one after the other."""
    random, found = np.random.default_rng(seed), []
    weights = [torch.tensor(random.standard_normal(shape), requires_grad=True) for shape in SHAPES]
    optimizer = make(weights)
    if hasattr(optimizer, "train"):  # schedulefree's
        optimizer.train()
    for _ in range(STEPS):
        for weight in weights:
            size = 10.0 ** random.uniform(-3, 1)
            noise = torch.from_numpy(size * random.standard_normal(tuple(weight.shape)))
            weight.grad = noise + 0.1 * weight.detach()
        optimizer.step()
        found.append(torch.cat([weight.detach().flatten() for weight in weights]).numpy())
    return np.array(found)


class OfOptax:
    """An Optax optimizer with a step, as torch's have it."""

    def __init__(self, transform, weights):
        self.weights, self.transform = weights, transform
        with jax.enable_x64(True):
            self.state = transform.init(self.numbers())
            self.update = jax.jit(transform.update)

    def numbers(self, of=lambda w: w.detach()):
        return [jax.numpy.asarray(of(w).numpy()) for w in self.weights]

    def step(self):
        with jax.enable_x64(True), torch.no_grad():
            updates, self.state = self.update(self.numbers(lambda w: w.grad), self.state, self.numbers())
            for weight, update in zip(self.weights, updates, strict=True):
                weight += torch.from_numpy(np.array(update))


def limited(*rule, most, lr, weight_decay=0.0):
    """Optax's clipping of each tensor's update by its root mean square."""
    with jax.enable_x64(True):
        steps = (optax.clip_by_block_rms(most), optax.add_decayed_weights(weight_decay))
        return optax.chain(*rule, *steps, optax.scale_by_learning_rate(lr))


class Cautious(torch.optim.Optimizer):
    """AdamW or Lion as timm has them with `caution`: decay, then the update where its sign is the gradient's."""

    def __init__(self, params, lr, betas, weight_decay, lion=False, eps=1e-8):
        super().__init__(params, {})
        self.chosen = lr, betas, weight_decay, lion, eps
        self.count = 0

    @torch.no_grad()
    def step(self):
        lr, (beta1, beta2), weight_decay, lion, eps = self.chosen
        self.count += 1
        for p in self.param_groups[0]["params"]:
            state, g = self.state[p], p.grad
            m, v = (state.setdefault(key, torch.zeros_like(p)) for key in "mv")
            p.mul_(1 - lr * weight_decay)
            if lion:
                update = (beta1 * m + (1 - beta1) * g).sign()
                m.lerp_(g, 1 - beta2)
            else:
                m.lerp_(g, 1 - beta1)
                v.lerp_(g * g, 1 - beta2)
                root = (v / (1 - beta2**self.count)).sqrt()
                update = m / (1 - beta1**self.count) / (root + eps)
            mask = (update * g > 0).to(p.dtype)
            p.sub_(lr * update * mask / mask.mean().clamp(min=1e-3))


def by_mean(optimizer):
    """A pytorch_optimizer whose cautious scale is 1 / mean(mask), where it has n / (n mean(mask) + 1)."""

    def apply_cautious(update, grad):
        mask = (update * grad > 0).to(grad.dtype)
        update.mul_(mask / mask.mean().clamp(min=1e-3))

    optimizer.apply_cautious = apply_cautious
    return optimizer


MATRICES = [
    ("LAMB", dict(weight_decay=0.0), lambda p: OfOptax(optax.lamb(1e-3), p)),
    (
        "LAMB",
        dict(betas=(0.8, 0.95)),
        lambda p: OfOptax(optax.lamb(1e-3, b1=0.8, b2=0.95, weight_decay=0.01), p),
    ),
    # Its default rate is another, and it has no ε.
    ("LARS", dict(eps=0.0), lambda p: pytorch_optimizer.LARS(p, lr=1.0)),
    (
        "LARS",
        dict(lr=0.5, weight_decay=0.1, momentum=0.8, eps=0.0),
        lambda p: pytorch_optimizer.LARS(p, lr=0.5, weight_decay=0.1, momentum=0.8),
    ),
    # It adds ε before the correction of v, where the authors add it after.
    ("MARS", dict(eps=0.0), lambda p: pytorch_optimizer.MARS(p, eps=0.0)),
    (
        "MARS",
        dict(lr=0.01, weight_decay=0.1, gamma=0.1, eps=0.0),
        lambda p: pytorch_optimizer.MARS(p, lr=0.01, weight_decay=0.1, gamma=0.1, eps=0.0),
    ),
    ("ScheduleFreeSGD", dict(lr=0.1), lambda p: schedulefree.SGDScheduleFree(p, lr=0.1)),
    (
        "ScheduleFreeSGD",
        dict(lr=0.1, weight_decay=0.1, warmup_steps=10, r=1.0),
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.1, weight_decay=0.1, warmup_steps=10, r=1.0),
    ),
    ("ScheduleFreeAdamW", {}, schedulefree.AdamWScheduleFree),
    (
        "ScheduleFreeAdamW",
        dict(lr=0.05, weight_decay=0.1, warmup_steps=10, betas=(0.95, 0.99)),
        lambda p: schedulefree.AdamWScheduleFree(
            p, lr=0.05, weight_decay=0.1, warmup_steps=10, betas=(0.95, 0.99)
        ),
    ),
    ("ScheduleFreeRAdam", {}, schedulefree.RAdamScheduleFree),
    (
        "ScheduleFreeRAdam",
        dict(silent_sgd_phase=False, weight_decay=0.1),
        lambda p: schedulefree.RAdamScheduleFree(p, silent_sgd_phase=False, weight_decay=0.1),
    ),
    (
        "AdamW",
        dict(lr=0.03, betas=(0.9, 0.95), weight_decay=0.1, cautious=True),
        lambda p: Cautious(p, lr=0.03, betas=(0.9, 0.95), weight_decay=0.1),
    ),
    (
        "Lion",
        dict(lr=0.01, weight_decay=0.1, cautious=True),
        lambda p: Cautious(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, lion=True),
    ),
    (
        "Lion",
        dict(lr=0.01, weight_decay=0.1, cautious=True),
        lambda p: by_mean(pytorch_optimizer.Lion(p, lr=0.01, weight_decay=0.1, cautious=True)),
    ),
    (
        "MARS",
        dict(lr=0.01, weight_decay=0.1, eps=0.0, cautious=True),
        lambda p: by_mean(pytorch_optimizer.MARS(p, lr=0.01, weight_decay=0.1, eps=0.0, cautious=True)),
    ),
    (
        "AdamW",
        dict(lr=0.03, weight_decay=0.1, max_update=0.5),
        lambda p: OfOptax(limited(optax.scale_by_adam(), most=0.5, lr=0.03, weight_decay=0.1), p),
    ),
    (
        "SGD",
        dict(lr=0.03, momentum=0.9, max_update=1.0),
        lambda p: OfOptax(limited(optax.trace(0.9), most=1.0, lr=0.03), p),
    ),
]


@pytest.mark.parametrize(("name", "options", "theirs"), MATRICES)
def test_matrices(name, options, theirs, close):
    # Without ε, MARS divides differences of gradients by their own size: rounding shows.
    close(matrix_paths(ours(name, options)), matrix_paths(theirs), 1e-9 if name == "MARS" else 1e-11)
