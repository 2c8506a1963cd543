"""Rules that torch.optim does not have, against implementations by other people: 120 steps in float64."""

import numpy as np
import optax
import pytest
import pytorch_optimizer
import schedulefree
import torch

import schuss.torch as st

STEPS = 120


def path(optimizer, weights, seed=3):
    """Where each weight is after every step, with the same gradients for everyone."""
    random, found = np.random.default_rng(seed), []
    for t in range(STEPS):
        for weight in weights:
            size = 10.0 ** random.uniform(-3, 1)
            weight.grad = (
                torch.from_numpy(size * random.standard_normal(tuple(weight.shape))) + 0.1 * weight.detach()
            )
        optimizer.step()
        found += [weight.detach().clone() for weight in weights] if t % 10 == 9 else []
    return found


def weights():
    random = np.random.default_rng(1)
    return [
        torch.nn.Parameter(torch.from_numpy(random.standard_normal(shape)))
        for shape in ((4, 3), (2, 5), (7, 1))
    ]


class Optax:
    """An Optax optimizer with a step, as torch's have it."""

    def __init__(self, transformation, params):
        self.transformation, self.params = transformation, params
        self.state = transformation.init([p.detach().numpy() for p in params])

    def step(self):
        import jax

        with jax.enable_x64(True):
            updates, self.state = self.transformation.update(
                [p.grad.numpy() for p in self.params], self.state, [p.detach().numpy() for p in self.params]
            )
        with torch.no_grad():
            for p, update in zip(self.params, updates, strict=True):
                p += torch.from_numpy(np.array(update))


def optax_lamb(params, **options):
    import jax

    with jax.enable_x64(True):
        return Optax(optax.lamb(1e-3, **options), params)


def limited(*rule, most, lr, weight_decay=0.0):
    """Optax's clipping of each tensor's update by its root mean square."""
    import jax

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


PEERS = {
    "LAMB": (lambda p: st.LAMB(p, weight_decay=0.0), optax_lamb),
    "LAMB with decay": (
        lambda p: st.LAMB(p, betas=(0.8, 0.95)),
        lambda p: optax_lamb(p, b1=0.8, b2=0.95, weight_decay=0.01),
    ),
    # Its default rate is another, and it has no ε.
    "LARS": (lambda p: st.LARS(p, eps=0.0), lambda p: pytorch_optimizer.LARS(p, lr=1.0)),
    "LARS with decay": (
        lambda p: st.LARS(p, lr=0.5, weight_decay=0.1, momentum=0.8, eps=0.0),
        lambda p: pytorch_optimizer.LARS(p, lr=0.5, weight_decay=0.1, momentum=0.8),
    ),
    # It adds ε before the correction of v, where the authors add it after.
    "MARS": (lambda p: st.MARS(p, eps=0.0), lambda p: pytorch_optimizer.MARS(p, eps=0.0)),
    "MARS with decay": (
        lambda p: st.MARS(p, lr=0.01, weight_decay=0.1, gamma=0.1, eps=0.0),
        lambda p: pytorch_optimizer.MARS(p, lr=0.01, weight_decay=0.1, gamma=0.1, eps=0.0),
    ),
    "ScheduleFreeSGD": (
        lambda p: st.ScheduleFreeSGD(p, lr=0.1),
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.1),
    ),
    "ScheduleFreeSGD with warm-up": (
        lambda p: st.ScheduleFreeSGD(p, lr=0.1, weight_decay=0.1, warmup_steps=10, r=1.0),
        lambda p: schedulefree.SGDScheduleFree(p, lr=0.1, weight_decay=0.1, warmup_steps=10, r=1.0),
    ),
    "ScheduleFreeAdamW": (st.ScheduleFreeAdamW, schedulefree.AdamWScheduleFree),
    "ScheduleFreeAdamW with warm-up": (
        lambda p: st.ScheduleFreeAdamW(p, lr=0.05, weight_decay=0.1, warmup_steps=10, betas=(0.95, 0.99)),
        lambda p: schedulefree.AdamWScheduleFree(
            p, lr=0.05, weight_decay=0.1, warmup_steps=10, betas=(0.95, 0.99)
        ),
    ),
    "ScheduleFreeRAdam": (st.ScheduleFreeRAdam, schedulefree.RAdamScheduleFree),
    "AdamW, cautious": (
        lambda p: st.AdamW(p, lr=0.03, betas=(0.9, 0.95), weight_decay=0.1, cautious=True),
        lambda p: Cautious(p, lr=0.03, betas=(0.9, 0.95), weight_decay=0.1),
    ),
    "Lion, cautious": (
        lambda p: st.Lion(p, lr=0.01, weight_decay=0.1, cautious=True),
        lambda p: Cautious(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, lion=True),
    ),
    "Lion, cautious, theirs": (
        lambda p: st.Lion(p, lr=0.01, weight_decay=0.1, cautious=True),
        lambda p: by_mean(pytorch_optimizer.Lion(p, lr=0.01, weight_decay=0.1, cautious=True)),
    ),
    "MARS, cautious": (
        lambda p: st.MARS(p, lr=0.01, weight_decay=0.1, eps=0.0, cautious=True),
        lambda p: by_mean(pytorch_optimizer.MARS(p, lr=0.01, weight_decay=0.1, eps=0.0, cautious=True)),
    ),
    "AdamW, limited": (
        lambda p: st.AdamW(p, lr=0.03, weight_decay=0.1, max_update=0.5),
        lambda p: Optax(limited(optax.scale_by_adam(), most=0.5, lr=0.03, weight_decay=0.1), p),
    ),
    "SGD, limited": (
        lambda p: st.SGD(p, lr=0.03, momentum=0.9, max_update=1.0),
        lambda p: Optax(limited(optax.trace(0.9), most=1.0, lr=0.03), p),
    ),
    "ScheduleFreeRAdam, first steps too": (
        lambda p: st.ScheduleFreeRAdam(p, silent_sgd_phase=False, weight_decay=0.1),
        lambda p: schedulefree.RAdamScheduleFree(p, silent_sgd_phase=False, weight_decay=0.1),
    ),
}


# Optax's Adam is 1e-7 off without the limit too. MARS is 5e-11 off at the first steps, and less from then on.
LOOSE = {"AdamW, limited": 1e-5, "MARS, cautious": 1e-8}


@pytest.mark.parametrize("name", PEERS)
def test_the_same_path(name):
    ours, theirs = PEERS[name]
    mine, other = weights(), weights()
    a, b = ours(mine), theirs(other)
    if hasattr(b, "train"):
        b.train()
    rtol = LOOSE.get(name, 1e-9)
    torch.testing.assert_close(path(a, mine), path(b, other), rtol=rtol, atol=rtol / 100)
