"""One table of every rule with every option feeds the tests of all packages. A row in `TABLE` is all it takes."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings

from schuss.compile.grammar import options_of_variants
from schuss.core.arguments import own_names
from schuss.rules import TABLE

# How long an example takes says how busy the machine is, and whether a kernel had to be compiled.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@dataclass(frozen=True)
class Case:
    """A rule with some of its options, in PyTorch's words; `own` are those that torch.optim does not have."""

    name: str
    options: dict[str, object] = field(default_factory=dict)
    own: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        words = [
            f"{key}={value}".replace("=True", "")
            for key, value in (self.options | self.own).items()
            if key != "lr"
        ]
        return "-".join([self.name, *words]).replace(" ", "")

    @property
    def row(self):
        return TABLE[self.name]

    @property
    def rule(self):
        """The page with these options."""
        return self.row.rule(**own_names(self.row, self.options | self.own))

    def ours(self, params, **more):
        """The optimizer of `schuss.torch`."""
        import schuss.torch

        return getattr(schuss.torch, self.name)(params, **(self.options | self.own | more))

    def theirs(self, params, **more):
        """The optimizer of `torch.optim`."""
        import torch

        return getattr(torch.optim, self.name)(params, **(self.options | more))

    @property
    def in_torch(self):
        import torch

        return not self.own and hasattr(torch.optim, self.name)

    @property
    def of_matrices(self):
        """Whether the rule moves matrices alone."""
        from schuss.compile.formula import formula

        return formula(self.rule).of_matrices

    @property
    def feels_untouched_rows(self):
        """Whether L2 decay moves weights that have no gradient."""
        return self.rule.coefficients(1, **dict.fromkeys(self.rule.scalars, 1.0)).get("l2", 0) != 0

    @property
    def sparse_refusal(self):
        """Why the rule cannot move some rows only; None if it can."""
        from schuss.compile.formula import formula

        if formula(self.rule).passes:
            return f"{self.name} measures whole tensors, of which a sparse gradient has only some rows"
        decay = self.rule.weight_decay if self.feels_untouched_rows else 0
        return rf"weight_decay={decay} \(L2\) is not possible with sparse gradients" if decay else None


LISTED = (
    Case("SGD"),
    Case("SGD", dict(lr=0.03, weight_decay=0.1)),
    Case("SGD", dict(lr=0.03, momentum=0.9)),
    Case("SGD", dict(lr=0.03, momentum=0.8, dampening=0.3, weight_decay=0.1)),
    Case("SGD", dict(lr=0.03, momentum=0.9, nesterov=True, weight_decay=0.1)),
    Case("SGD", dict(lr=0.03, momentum=0.9), dict(lr_inside_velocity=True)),
    Case("SGD", dict(lr=0.03, momentum=0.9, nesterov=True), dict(lr_inside_velocity=True)),
    Case("SGD", dict(lr=0.03, momentum=0.9, weight_decay=0.1), dict(decoupled_weight_decay=True)),
    Case("Adagrad"),
    Case("Adagrad", dict(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-3)),
    Case("Adagrad", dict(lr=0.1, eps=1e-3), dict(eps_position="inside")),
    Case("Adadelta"),
    Case("Adadelta", dict(lr=0.5, rho=0.95, eps=1e-4, weight_decay=0.1)),
    Case("RMSprop"),
    Case("RMSprop", dict(lr=0.02, alpha=0.9, eps=1e-3, weight_decay=0.1)),
    Case("RMSprop", dict(lr=0.02, momentum=0.9)),
    Case("RMSprop", dict(lr=0.02, centered=True)),
    Case("RMSprop", dict(lr=0.02, alpha=0.9, centered=True, momentum=0.9, weight_decay=0.1)),
    Case("RMSprop", dict(lr=0.02, eps=1e-3), dict(eps_position="inside")),
    Case("RMSprop", dict(lr=0.02, momentum=0.9), dict(lr_inside_velocity=True)),
    Case("Adam"),
    Case("Adam", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    Case("Adam", dict(lr=0.02, amsgrad=True, betas=(0.9, 0.9))),
    Case("Adam", dict(lr=0.02, weight_decay=0.1, decoupled_weight_decay=True)),
    Case("Adam", dict(lr=0.02, eps=1e-3), dict(eps_position="inside")),
    Case("Adam", dict(lr=0.02, eps=1e-3), dict(eps_position="uncorrected")),
    Case("AdamW"),
    Case("AdamW", dict(lr=0.02, betas=(0.0, 0.5), weight_decay=0.3, amsgrad=True)),
    Case("NAdam"),
    Case("NAdam", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, momentum_decay=0.1)),
    Case("NAdam", dict(lr=0.02, weight_decay=0.1, decoupled_weight_decay=True)),
    Case("RAdam"),
    Case("RAdam", dict(lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)),
    Case("RAdam", dict(lr=0.02, weight_decay=0.1, decoupled_weight_decay=True)),
    Case("Adamax"),
    Case("Adamax", dict(lr=0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)),
    Case("Rprop"),
    Case("Rprop", dict(lr=0.1, etas=(0.3, 1.5), step_sizes=(0.05, 0.2))),
    Case("ASGD"),
    Case("ASGD", dict(lr=0.03, lambd=0.1, alpha=0.5, t0=2, weight_decay=0.1)),
    Case("Lion"),
    Case("Lion", dict(lr=0.02, betas=(0.8, 0.95), weight_decay=0.1)),
    Case("LARS"),
    Case("LARS", dict(lr=0.3, momentum=0.5, weight_decay=0.1, trust_coefficient=0.2)),
    Case("LARS", dict(lr=0.3), dict(lr_inside_velocity=True, trust_clip=True)),
    Case("LARS", dict(lr=0.01), dict(always_adapt=False)),
    Case("LAMB"),
    Case("LAMB", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    Case("LAMB", dict(lr=0.02, weight_decay=0.0), dict(always_adapt=False)),
    Case("MARS"),
    Case("MARS", dict(lr=0.02, betas=(0.8, 0.95), gamma=0.1, eps=1e-3, weight_decay=0.1)),
    Case("ScheduleFreeSGD"),
    Case(
        "ScheduleFreeSGD",
        dict(lr=0.03, momentum=0.8, weight_decay=0.1, warmup_steps=4, r=1, weight_lr_power=1),
    ),
    Case("ScheduleFreeAdamW"),
    Case("ScheduleFreeAdamW", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, warmup_steps=3)),
    Case("ScheduleFreeRAdam"),
    Case(
        "ScheduleFreeRAdam", dict(lr=0.02, betas=(0.8, 0.9), weight_decay=0.1, silent_sgd_phase=False, r=0.5)
    ),
    Case("Adan"),
    Case("Adan", dict(lr=0.02, betas=(0.8, 0.7, 0.95), eps=1e-3, weight_decay=0.3)),
    Case("Adan", dict(lr=0.02, weight_decay=0.3, no_prox=True)),
    Case("AdaBelief"),
    Case("AdaBelief", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    Case(
        "AdaBelief",
        dict(lr=0.02, eps=1e-3, weight_decay=0.1, decoupled_weight_decay=False),
        dict(eps_position="once"),
    ),
    Case("AdaBelief", dict(lr=0.02, eps=1e-3), dict(eps_position="outside")),
    Case("ADOPT"),
    Case("ADOPT", dict(lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)),
    Case("ADOPT", dict(lr=0.02, weight_decay=0.1, decoupled_weight_decay=True), dict(clip=False)),
    Case("AdEMAMix"),
    Case("AdEMAMix", dict(lr=0.02, betas=(0.8, 0.95, 0.99), eps=1e-3, weight_decay=0.1, alpha=3.0)),
    Case("AdEMAMix", dict(lr=0.02, beta3_warmup=6, alpha_warmup=5)),
    Case("Adafactor"),
    Case("Adafactor", dict(lr=0.5, beta2_decay=-0.5, eps=(0.5, 5.0), d=2.0, weight_decay=0.1)),
    Case("Adafactor", dict(lr=0.02, eps=(1e-3, 1e-2))),
    Case("Muon"),
    Case("Muon", dict(lr=0.02, momentum=0.8, nesterov=False, weight_decay=0.3, eps=0.3)),
    Case("Muon", dict(lr=0.02, ns_coefficients=(3.0, -3.2, 1.2), ns_steps=3, adjust_lr_fn="match_rms_adamw")),
    Case("Muon", dict(lr=0.02, momentum=0.0), dict(polynomials="polar_express")),
    Case(
        "Muon",
        dict(lr=0.02, weight_decay=0.0),
        dict(polynomials="quintic8", adjust_lr_fn="spectral_unclamped"),
    ),
)


def _not_listed():
    """A case for each variant that the list above does not name: a new row of the table is tested as it is."""
    listed = {(case.name, case.rule.variant) for case in LISTED}
    for name, row in TABLE.items():
        for variant, options in options_of_variants(row.rule).items():
            if (name, variant) not in listed:
                yield Case(name, own=options)


CASES = (*LISTED, *_not_listed())


def _first_of_each(cases, key):
    """One case for each `key`: the first."""
    found = {}
    for case in cases:
        found.setdefault(key(case), case)
    return tuple(found.values())


# Rules that move weights of every shape, and rules of matrices.
OF_ANY_SHAPE = tuple(case for case in CASES if not case.of_matrices)
OF_MATRICES = tuple(case for case in CASES if case.of_matrices)

# What a test may ask for: of rules for weights of every shape every case, those that torch.optim has too, one for each
# kernel, one for each rule, and where the question is one of memory and not of maths, a stateless rule, a usual one and
# one that counts by tensor; and every case of the rules of matrices.
PARAMETERS = {
    "case": OF_ANY_SHAPE,
    "torch_case": tuple(case for case in OF_ANY_SHAPE if case.in_torch),
    "variant": _first_of_each(OF_ANY_SHAPE, lambda case: (case.name, case.rule.variant)),
    "plain": _first_of_each(OF_ANY_SHAPE, lambda case: case.name),
    "sample": tuple(case for case in OF_ANY_SHAPE if str(case) in ("SGD", "AdamW", "NAdam")),
    "matrix_case": OF_MATRICES,
}


def pytest_generate_tests(metafunc):
    for name, cases in PARAMETERS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases, ids=str)


@pytest.fixture(scope="session")
def decades():
    """`decades(steps, size, seed)`: gradients of all sizes from 1e-12 to 1e6, both signs, and exact zeros."""

    def make(steps, size, seed=0, low=-12.0, high=6.0):
        random = np.random.default_rng(seed)
        g = random.choice([-1.0, 1.0], (steps, size)) * 10 ** random.uniform(low, high, (steps, size))
        return np.where(random.random((steps, size)) < 0.1, 0.0, g)

    return make


@pytest.fixture(scope="session")
def close():
    """`close(path, expected, relative, start=0)`: each within `relative` of the largest it has been since `start`."""

    def check(path, expected, relative, condition=1.0, start=0.0):
        path, expected = np.asarray(path, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        scale = np.maximum(np.maximum.accumulate(np.abs(expected), axis=0), np.abs(start))
        same = (path == expected) | (np.isnan(path) & np.isnan(expected))
        with np.errstate(invalid="ignore"):
            off = np.where(same, 0.0, np.abs(path - expected) / np.where(scale > 0, scale, 1.0) / condition)
        assert not np.isnan(off).any(), (
            "a number is NaN or infinite that should not be, or the other way round"
        )
        assert off.max(initial=0.0) <= relative, (
            f"off by {off.max():.3g} at {np.unravel_index(off.argmax(), off.shape)}"
        )

    return check


@pytest.fixture(scope="session")
def cases_of():
    """`cases_of(name)`: every case of one rule."""
    return lambda name: [case for case in CASES if case.name == name]
