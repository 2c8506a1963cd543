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
    "ScheduleFreeRAdam, first steps too": (
        lambda p: st.ScheduleFreeRAdam(p, silent_sgd_phase=False, weight_decay=0.1),
        lambda p: schedulefree.RAdamScheduleFree(p, silent_sgd_phase=False, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_the_same_path(name):
    ours, theirs = PEERS[name]
    mine, other = weights(), weights()
    a, b = ours(mine), theirs(other)
    if hasattr(b, "train"):
        b.train()
    torch.testing.assert_close(path(a, mine), path(b, other), rtol=1e-9, atol=1e-11)
