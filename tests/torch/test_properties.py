"""What must hold for any options: torch.optim's path, and that neither splitting nor fusing tensors changes a bit."""

import numpy as np
import optax
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schuss.torch
from schuss.compile.formula import formula

SHARE = st.one_of(st.just(0.0), st.floats(0.05, 0.999))
RATE = st.floats(-4, 0).map(lambda x: 10**x)
SMALL = st.floats(-10, -2).map(lambda x: 10**x)
DECAY = st.one_of(st.just(0.0), st.floats(0, 0.5))
BETAS = st.tuples(SHARE, SHARE)
COMMON = {"lr": RATE, "weight_decay": DECAY, "maximize": st.booleans()}

OPTIONS = {
    "SGD": COMMON | {"momentum": SHARE, "dampening": st.floats(-1, 1), "nesterov": st.booleans()},
    "Adagrad": COMMON
    | {"lr_decay": st.floats(0, 1), "initial_accumulator_value": st.floats(0, 2), "eps": SMALL},
    "Adadelta": COMMON | {"rho": st.floats(0, 1), "eps": SMALL},
    "RMSprop": COMMON | {"alpha": st.floats(0.5, 1), "momentum": SHARE, "eps": SMALL},
    "Adam": COMMON
    | {"betas": BETAS, "eps": SMALL, "amsgrad": st.booleans(), "decoupled_weight_decay": st.booleans()},
    "AdamW": COMMON | {"betas": BETAS, "eps": SMALL, "amsgrad": st.booleans()},
    "NAdam": COMMON
    | {
        "betas": BETAS,
        "eps": SMALL,
        "momentum_decay": st.floats(0, 1),
        "decoupled_weight_decay": st.booleans(),
    },
    "RAdam": COMMON | {"betas": BETAS, "eps": SMALL, "decoupled_weight_decay": st.booleans()},
    "Adamax": COMMON | {"betas": BETAS, "eps": SMALL},
    "Rprop": {
        "lr": RATE,
        "etas": st.tuples(st.floats(0.1, 0.9), st.floats(1.1, 3)),
        "step_sizes": st.tuples(SMALL, RATE.map(lambda x: x + 0.01)),
        "maximize": st.booleans(),
    },
    "ASGD": COMMON | {"lambd": st.floats(0, 0.5), "alpha": st.floats(0, 1), "t0": st.floats(0, 4)},
}


@pytest.mark.parametrize("name", OPTIONS)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_options_of_torch(name, data, float64_default, decades, close):
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    if options.get("nesterov"):  # what torch itself refuses otherwise
        options |= {"dampening": 0.0, "momentum": options["momentum"] or 0.5}
    gradients = decades(6, 20, data.draw(st.integers(0, 2**32)), -4, 2)
    start = np.random.default_rng(1).standard_normal(20)
    paths = []
    for cls in (getattr(schuss.torch, name), getattr(torch.optim, name)):
        weight = torch.from_numpy(start.copy()).requires_grad_()
        optimizer, path = cls([weight], **options), []
        for g in gradients:
            weight.grad = torch.from_numpy(g.copy())
            optimizer.step()
            path.append(weight.detach().numpy().copy())
        paths.append(path)
    close(*paths, 1e-10, start=start)


def test_splitting_and_fusing_tensors(plain, noise):
    """The same numbers in one tensor or in many, of one group or of many; in the same tensors where the rule
    measures whole ones."""
    sizes = [1, 0, 63, 900, 36]
    fused = sizes if formula(plain.rule).passes else [1000]
    start = noise(1000).float()
    whole, parts = ([part.clone().requires_grad_() for part in start.split(n)] for n in (fused, sizes))
    made = (
        (plain.ours(whole), whole),
        (plain.ours([{"params": [p]} for p in parts]), parts),
    )
    for seed in range(3):
        for optimizer, weights in made:
            for w, g in zip(
                weights, noise(1000, seed=seed + 1).float().split([w.numel() for w in weights]), strict=True
            ):
                w.grad = g.clone()
            optimizer.step()
    assert torch.equal(torch.cat(whole), torch.cat(parts))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_rate_of_zero_moves_nothing(dtype, case, noise):
    if case.name == "Rprop":
        pytest.skip("its rate is the first length")
    weight = noise(50).to(dtype).requires_grad_()
    start = weight.detach().clone()
    optimizer = case.ours([weight], lr=0.0)
    for seed in range(3):
        weight.grad = noise(50, seed=seed).to(dtype)
        optimizer.step()
    assert torch.equal(weight, start)


OPTAX = [
    ("SGD", dict(lr=0.1), lambda: optax.sgd(0.1)),
    ("SGD", dict(lr=0.1, momentum=0.9), lambda: optax.sgd(0.1, 0.9)),
    ("SGD", dict(lr=0.1, momentum=0.9, nesterov=True), lambda: optax.sgd(0.1, 0.9, nesterov=True)),
    (
        "Adagrad",
        dict(lr=0.1, initial_accumulator_value=0.1, eps=1e-7, eps_position="inside"),
        lambda: optax.adagrad(0.1, 0.1, 1e-7),
    ),
    ("Adadelta", dict(lr=1.0, rho=0.9, eps=1e-6), lambda: optax.adadelta(1.0, 0.9, 1e-6)),
    (
        "RMSprop",
        dict(lr=0.1, alpha=0.9, eps=1e-8, eps_position="inside"),
        lambda: optax.rmsprop(0.1, 0.9, 1e-8),
    ),
    ("Adam", dict(lr=0.1, betas=(0.8, 0.95)), lambda: optax.adam(0.1, 0.8, 0.95)),
    ("Adam", dict(lr=0.1, eps=1e-3, eps_position="inside"), lambda: optax.adam(0.1, eps=0.0, eps_root=1e-3)),
    ("AdamW", dict(lr=0.1, weight_decay=0.2), lambda: optax.adamw(0.1, weight_decay=0.2)),
    ("Adamax", dict(lr=0.1), lambda: optax.adamax(0.1)),
    ("Lion", dict(lr=0.1, weight_decay=0.2), lambda: optax.lion(0.1, weight_decay=0.2)),
]


@pytest.mark.parametrize(("name", "options", "theirs"), OPTAX)
def test_optax_where_it_means_the_same(name, options, theirs, noise):
    """In float32, in which Optax keeps 1 − β₂ᵗ to no more than 6e-5; its other meanings are options of ours."""
    weight = noise(30).float().requires_grad_()
    optimizer = getattr(schuss.torch, name)([weight], **options)
    transform = theirs()
    params = weight.detach().numpy().copy()
    state = transform.init(params)
    for seed in range(1, 6):
        g = noise(30, seed=seed).float()
        weight.grad = g.clone()
        optimizer.step()
        updates, state = transform.update(g.numpy(), state, params)
        params = np.asarray(optax.apply_updates(params, updates))
    np.testing.assert_allclose(weight.detach().numpy(), params, rtol=2e-5, atol=2e-5)
