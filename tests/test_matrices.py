"""Rules of matrices, Muon and one's own: in both APIs, with every option, and what they refuse."""

import copy
import os
import pickle
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.apis import NumPy, Torch

import schuss.compile
import schuss.numpy
import schuss.torch
from schuss.compile import eager, gpu, matrices
from schuss.compile.formula import formula
from schuss.compile.reference import Reference
from schuss.lab.doctor import own_rule
from schuss.rules import TABLE, Muon, Rule, columns, norm, number, orthogonal, rows, sqrt
from schuss.rules.polynomials import POLYNOMIALS

# Three of one shape, wide and tall enough for Gram's form, a convolution, one number, and none.
SHAPES = [(4, 6), (6, 4), (4, 6), (30, 7), (5, 50), (4, 6), (3, 2, 2, 2), (1, 1), (0, 3), (3, 0)]
BOTH = pytest.mark.parametrize("api", [Torch, NumPy], ids=lambda api: api.__name__)


@dataclass(frozen=True, kw_only=True)
class Stretched(Rule):
    """Someone's own: along the average gradient made orthogonal, by its size and the weight's; words of all kinds."""

    state = ("b",)
    lr: float = number(0.02, low=0)
    beta: float = number(0.8, low=0, below=1)
    iterations = POLYNOMIALS["quintic5"]

    def coefficients(self, step):
        return dict(decay=self.beta, gain=1 - self.beta, lr=self.lr)

    @staticmethod
    def update(w, g, b, decay, gain, lr):
        b = decay * b + gain * g
        w = w - lr * (norm(b) / sqrt(rows(w) * columns(w)) + norm(w)) * orthogonal(b)
        return w, b


def starts(dtype="float64", shapes=SHAPES):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def gradients(steps, shapes=SHAPES, seed=1, dtype="float64"):
    random = np.random.default_rng(seed)
    return [
        [(10.0 ** (t % 3 - 1) * random.standard_normal(s)).astype(dtype) for s in shapes]
        for t in range(steps)
    ]


def trained(api, name, weights, given, **options):
    found = api(name, weights, **options)
    for step in given:
        found.step(*step)
    return found


def reference(rule, weights, given):
    found = [Reference(rule, w) for w in weights]
    for step in given:
        for one, g in zip(found, step, strict=True):
            one.step(g)
    return found


def near(found, expected, tolerance):
    for w, one in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(w, dtype=np.float64), one, rtol=tolerance, atol=tolerance)


# The same numbers on every path


@BOTH
def test_every_case_is_the_reference(api, matrix_case):
    found = trained(api, matrix_case.name, starts(), gradients(4), **matrix_case.options | matrix_case.own)
    expected = reference(matrix_case.rule, starts(), gradients(4))
    near(found.weights(), [one.w for one in expected], 1e-11)
    for k, one in enumerate(expected):
        near([found.values(k, "b")], one.state, 1e-12)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_narrow_weights_compute_in_float32(api, dtype):
    weights, given = starts(dtype), gradients(3, dtype=dtype)
    found = trained(api, "Muon", weights, given, lr=0.02)
    expected = reference(Muon(lr=0.02), weights, given)
    near(found.weights(), [one.w for one in expected], {"float32": 3e-6, "float16": 4e-3}[dtype])


@BOTH
def test_how_a_weight_lies_in_memory_changes_nothing(api):
    """Fortran's order, rows apart, and backwards."""
    weights, given = starts(), gradients(3)
    room = np.zeros((4, 12))
    room[:, ::2] = weights[0]
    others = [np.asfortranarray(w) for w in weights]
    if api is NumPy:
        others[5] = weights[5][::-1].copy()[::-1]
    one = trained(api, "Muon", weights, given, lr=0.02)
    other = trained(api, "Muon", others, [[np.asfortranarray(g) for g in step] for step in given], lr=0.02)
    assert not (api is NumPy and other.params["0"].flags.c_contiguous)
    near(other.weights(), one.weights(), 1e-13)
    near([other.values(k, "b") for k in range(7)], [one.values(k, "b") for k in range(7)], 1e-13)


def test_strided_arrays_of_numpy():
    weights, given = starts(), gradients(3)
    room = np.zeros((4, 12))
    params = {"w": room[:, ::2], "back": weights[1][::-1].copy()[::-1]}
    params["w"][...] = weights[0]
    optimizer = schuss.numpy.Muon(lr=0.02)
    for step in given:
        optimizer.update(params, {"w": step[0], "back": step[1].T.copy().T})
    expected = reference(Muon(lr=0.02), weights[:2], [step[:2] for step in given])
    near(params.values(), [one.w for one in expected], 1e-11)
    assert not room[:, 1::2].any()


def test_transposed_weights_of_torch_and_gradients_that_lie_otherwise():
    weights, given = starts()[:3], [step[:3] for step in gradients(3)]
    params = [torch.nn.Parameter(torch.from_numpy(w).mT.contiguous().mT) for w in weights]
    params[2] = torch.nn.Parameter(torch.from_numpy(weights[2].copy()))
    optimizer = schuss.torch.Muon(params, lr=0.02)
    for step in given:
        for w, g in zip(params, step, strict=True):
            w.grad = torch.from_numpy(g).mT.contiguous().mT
        optimizer.step()
    expected = reference(Muon(lr=0.02), weights, given)
    near([w.detach() for w in params], [one.w for one in expected], 1e-11)
    assert not params[0].is_contiguous()


def test_the_eager_path_is_the_kernel():
    """Of a weight of no matrix's shape too: what a GPU does, and a DTensor."""
    for rule in (Muon(lr=0.02), Stretched()):
        one = formula(rule)
        numbers = [1.0, *one.pick(rule.coefficients(1))]
        for w, g in zip(starts(), gradients(1)[0], strict=True):
            memory = [torch.from_numpy(x.copy()) for x in (w, g, np.zeros_like(w))]
            eager.step(one, ("float64",) * 3, memory, numbers, rule=rule)
            near([memory[0]], [Reference(rule, w).step(g)], 1e-12)


@BOTH
def test_a_rule_of_ones_own(api, monkeypatch):
    mine = {Torch: schuss.torch, NumPy: schuss.numpy}[api]
    monkeypatch.setattr(mine, "Stretched", mine.optimizer(Stretched), raising=False)
    found = trained(api, "Stretched", starts(), gradients(4), lr=0.1)
    near(found.weights(), [one.w for one in reference(Stretched(lr=0.1), starts(), gradients(4))], 1e-10)


def test_ones_own_rule_of_matrices_passes_the_check(monkeypatch):
    """All but the narrow kernels, which take long to compile."""
    for name in ("CPU kernel, bfloat16", "CPU kernel, float16", "low precision"):
        monkeypatch.delitem(own_rule._OF_VARIANTS, name)
    found = {one.about: one for one in own_rule.examine_rule(Stretched)}
    assert not [one for one in found.values() if one.verdict not in ("holds", "note")]
    assert "eager path" in found["GPU kernel"].measured
    assert {"strides", "NaN and infinity", "save, load, continue", "compiles once"} < found.keys()


# Options


@BOTH
def test_momentum_in_int8_and_a_running_average(api):
    """A steady gradient: the average of the path is the path's own, and a code is at most an eighth off."""
    weights, given = starts(shapes=[(64, 80)]), gradients(1, [(64, 80)]) * 6
    found = trained(api, "Muon", weights, given, lr=0.02, state_dtype="int8", ema_decay=0.5)
    exact = reference(Muon(lr=0.02), weights, given)[0].w
    assert found.values(0, "b").dtype == np.int8
    moved, off = np.linalg.norm(exact - weights[0]), np.linalg.norm(found.weights()[0] - exact)
    assert 0 < off < 0.05 * moved
    path, average = [], None
    one = api("Muon", weights, lr=0.02, ema_decay=0.5)
    for step in given:
        one.step(*step)
        path.append(one.weights()[0])
        average = path[-1] if average is None else average + 0.5 * (path[-1] - average)
    near(one.averages(), [average], 1e-12)


@BOTH
def test_clipping_skipping_and_a_schedule(api):
    weights, given = starts(), gradients(3)
    length = np.sqrt(sum(float(np.sum(g * g)) for g in given[2]))
    found = api("Muon", weights, lr=lambda n: 0.02 / (1 + n), max_norm=1.0, skip_nonfinite=True, eps=0.5)
    found.step(*given[0])
    bad = [g.copy() for g in given[1]]
    bad[0][0, 0] = np.inf
    found.step(*bad)
    found.step(*given[2])
    assert found.optimizer.skipped == 1
    assert found.optimizer.gradient_norm == pytest.approx(length, rel=1e-6)
    for k, w in enumerate(weights):
        one = Reference(Muon(lr=0.02, eps=0.5), w)
        for rate, step in ((0.02, given[0]), (0.01, given[2])):
            one.rule = Muon(lr=rate, eps=0.5)
            norm_of = np.sqrt(sum(float(np.sum(g * g)) for g in step))
            one.step(step[k] * min(1.0, 1 / (norm_of + 1e-6)))
        near([found.weights()[k]], [one.w], 1e-9)


@BOTH
def test_an_infinite_gradient_spoils_its_matrix_alone(api):
    weights, given = starts(), gradients(2)
    given[0][0][0, 0] = np.inf
    found = trained(api, "Muon", weights, given, lr=0.02).weights()
    expected = [one.w for one in reference(Muon(lr=0.02), weights, given)]
    assert np.isnan(found[0]).all()
    near(found[1:], expected[1:], 1e-11)


@pytest.mark.parametrize("options", [{"rounding": "stochastic"}, {"compensated": True}], ids=str)
def test_bfloat16_weights_that_lose_no_small_step(options):
    """A thousandth of a unit a step is below what bfloat16 tells apart at 1."""
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = schuss.torch.Muon([weight], lr=0.02, weight_decay=0.0, **options)
    gradient = torch.linspace(-1, 1, 64 * 64).reshape(64, 64).sin()
    for _ in range(40):
        weight.grad = gradient.bfloat16()
        optimizer.step()
    one = reference(
        Muon(lr=0.02, weight_decay=0.0), [np.ones((64, 64))], [[gradient.bfloat16().double().numpy()]] * 40
    )
    moved, found = one[0].w - 1, weight.detach().double().numpy() - 1
    assert np.vdot(found, moved) == pytest.approx(np.vdot(moved, moved), rel=0.1)
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.float32


def test_several_groups_with_settings_and_rules_of_their_own():
    weights, given = starts(), gradients(3)
    sets = [
        {},
        {"lr": 0.05, "nesterov": False},
        {"polynomials": "quintic8", "ns_steps": 2},
        {"momentum": 0.5},
    ]
    params = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in weights]
    vector = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    groups = [{"params": params[k::4], **own} for k, own in enumerate(sets)]
    optimizer = schuss.torch.Muon([*groups, {"params": [vector], "rule": "AdamW", "lr": 0.1}], lr=0.02)
    for step in given:
        for w, g in zip(params, step, strict=True):
            w.grad = torch.from_numpy(g)
        vector.grad = torch.ones_like(vector)
        optimizer.step()
    for k, w in enumerate(params):
        rule = Muon(**{"lr": 0.02, **sets[k % 4]})
        one = reference(rule, [weights[k]], [[step[k]] for step in given])
        near([w.detach()], [one[0].w], 1e-11)
    assert vector[0].item() == pytest.approx(0.7, abs=5e-3)


# torch.optim.Muon


def in_float64(g, coefficients, steps, eps):
    """What torch.optim.Muon does in bfloat16."""
    x = g / g.norm().clamp(min=eps)
    for _ in range(steps):
        a, b, c = coefficients
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def pair(options, shapes=SHAPES[:6]):
    mine, other = ([torch.nn.Parameter(torch.from_numpy(w)) for w in starts(shapes=shapes)] for _ in range(2))
    return mine, other, schuss.torch.Muon(mine, **options), torch.optim.Muon(other, **options)


def step_both(mine, other, ours, theirs, given):
    for step in given:
        for w, v, g in zip(mine, other, step, strict=True):
            w.grad, v.grad = torch.from_numpy(g), torch.from_numpy(g.copy())
        ours.step()
        theirs.step()


TORCHS = [
    {},
    {"lr": 0.02, "nesterov": False, "momentum": 0.8, "weight_decay": 0.3},
    {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "ns_coefficients": (3.0, -3.2, 1.2)},
    {"lr": 0.01, "adjust_lr_fn": "original", "eps": 0.5},
]


@pytest.mark.parametrize("options", TORCHS, ids=str)
def test_torchs_muon_over_a_hundred_steps(options, monkeypatch):
    """Within what bfloat16 costs it; with its products in float64, to the last digits."""
    given = gradients(100, SHAPES[:6])
    mine, other, ours, theirs = pair(options)
    first = [w.detach().clone() for w in mine]
    step_both(mine, other, ours, theirs, given)
    for w, v, start in zip(mine, other, first, strict=True):
        assert (w - v).norm() < 0.02 * (v - start).norm()
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float64)
    mine, other, ours, theirs = pair(options)
    step_both(mine, other, ours, theirs, given)
    near([w.detach() for w in mine], [v.detach() for v in other], 1e-9)
    for w, v in zip(mine, other, strict=True):
        torch.testing.assert_close(ours.state[w]["momentum_buffer"], theirs.state[v]["momentum_buffer"])


def test_checkpoints_go_both_ways(monkeypatch):
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_float64)
    given = gradients(6, SHAPES[:6])
    mine, other, ours, theirs = pair({"lr": 0.02})
    step_both(mine, other, ours, theirs, given[:2])
    saved, torchs = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    assert all(set(entry) == {"momentum_buffer"} for entry in torchs["state"].values())
    ours.load_state_dict(torchs)
    theirs.load_state_dict(saved)
    step_both(mine, other, ours, theirs, given[2:])
    near([w.detach() for w in mine], [v.detach() for v in other], 1e-9)


@BOTH
def test_saved_loaded_and_gone_on(api):
    given = gradients(4)
    never = trained(api, "Muon", starts(), given, lr=0.02)
    stopped = trained(api, "Muon", starts(), given[:2], lr=0.02)
    saved = stopped.saved()
    again = stopped.again()
    again.load(saved)
    for step in given[2:]:
        again.step(*step)
    for one, other in zip(never.weights(), again.weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    other = pickle.loads(pickle.dumps(never.optimizer))
    assert other.row is TABLE["Muon"]


def test_bfloat16_momentum_is_not_normalised_in_place():
    """As torch.optim.Muon's is without Nesterov's momentum: its buffer has norm 1 after a step."""
    weight = torch.nn.Parameter(torch.ones(4, 100, dtype=torch.bfloat16))
    optimizer = schuss.torch.Muon([weight], nesterov=False, momentum=0.5)
    weight.grad = torch.full_like(weight, 2.0)
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], torch.ones(4, 100))


# Refusals


def test_what_is_no_matrix_is_refused_at_construction():
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    model = torch.nn.Linear(2, 3)
    offer = r".*groups\(model, matrix='auto'\)"
    for params, words in (
        ([matrix, torch.ones(3)], r"Weight 1, of shape \(3,\), is a vector, and Muon moves matrices"),
        ([torch.ones(())], r"Weight 0, of shape \(\), is a number"),
        (model.named_parameters(), r"Weight 1 \(bias\), of shape \(3,\), is a vector"),
        ([torch.ones(2, 2, dtype=torch.complex64)], "Weight 0, .* is complex, and Muon moves real matrices"),
    ):
        with pytest.raises(ValueError, match=words + offer):
            schuss.torch.Muon(params)
    optimizer = schuss.torch.Muon([matrix])
    with pytest.raises(ValueError, match=r"Weight 2, of shape \(3,\), is a vector"):
        optimizer.add_param_group({"params": [torch.ones(2, 2), torch.ones(3)]})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="Stretched moves matrices"):
        schuss.torch.AdamW([{"params": [torch.ones(3)], "rule": Stretched}])


@pytest.mark.parametrize(
    ("weight", "gradient", "kind", "words"),
    [
        (np.ones(3), np.ones(3), ValueError, r"params\['w'\], of shape \(3,\), is a vector, and Muon moves"),
        (np.ones(()), np.ones(()), ValueError, r"params\['w'\], of shape \(\), is a number"),
        (np.ones((2, 2), complex), np.ones((2, 2), complex), ValueError, "is complex, and Muon moves real"),
        (
            np.ones((3, 2)),
            (np.array([1]), np.ones((1, 2))),
            RuntimeError,
            r"only some rows. params\['w'\], of shape \(3, 2\), has one: make it dense",
        ),
    ],
    ids=["vector", "number", "complex", "sparse"],
)
def test_what_is_no_matrix_is_refused_by_the_first_update(weight, gradient, kind, words):
    params, optimizer = {"a": np.ones((2, 2)), "w": weight}, schuss.numpy.Muon()
    with pytest.raises(kind, match=words):
        optimizer.update(params, {"a": np.ones((2, 2)), "w": gradient})
    assert (params["a"] == 1).all()
    assert optimizer.finished == 0


def test_a_sparse_gradient_is_refused_before_anything_moves():
    weights = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizer = schuss.torch.Muon(weights)
    weights[0].grad = torch.ones(3, 2)
    weights[1].grad = torch.ones(3, 2).to_sparse(1)
    with pytest.raises(RuntimeError, match=r"only some rows. Weight 1, of shape \(3, 2\), has one"):
        optimizer.step()
    assert all(torch.equal(w, torch.ones(3, 2)) for w in weights)
    assert not optimizer.state


def test_settings_that_make_no_sense_are_refused():
    for options, words in (
        ({"ns_steps": 2.5}, "ns_steps=2.5 is not a whole number"),
        ({"ns_steps": 100}, r"ns_steps=100 is not in \[1, 100\)"),
        ({"ns_coefficients": (1.0, 2.0)}, "is not a triple of numbers"),
        (
            {"adjust_lr_fn": "cubic"},
            "adjust_lr_fn='cubic' is not one of None, 'original', 'match_rms_adamw', ",
        ),
        ({"polynomials": "cubic"}, "polynomials='cubic' is not one of 'given', 'quintic5', "),
    ):
        with pytest.raises(ValueError, match=words):
            schuss.numpy.Muon(**options)


def test_there_is_no_gpu_kernel_and_that_is_said():
    for rule in (Muon, Stretched):
        with pytest.raises(ValueError, match=f"{rule.__name__} has no GPU kernel: it uses orthogonal"):
            schuss.compile.source(rule, "gpu")
    with pytest.raises(ValueError, match="takes the eager path"):
        gpu.kernels(formula(Muon), ("float32",) * 3)
    assert "store_orthogonal_n" in schuss.compile.source("Muon")


# What belongs to the rule


def test_polynomials_by_name_and_as_given():
    assert Muon().iterations == POLYNOMIALS["quintic"]
    assert Muon(ns_steps=2, ns_a=1.5, ns_b=-0.5, ns_c=0.0).iterations == ((1.5, -0.5, 0.0),) * 2
    for name in ("quintic5", "polar_express", "quintic8"):
        assert Muon(polynomials=name, ns_steps=1).iterations == POLYNOMIALS[name]
    assert Muon(eps=0.25).smallest_norm == 0.25


@BOTH
def test_ctrl_c_during_the_product_finishes_the_step(api, monkeypatch):
    weights, given = starts(), gradients(2)
    expected = trained(api, "Muon", weights, given, lr=0.02)
    found = api("Muon", weights, lr=0.02)
    found.step(*given[0])
    multiply, calls = matrices.orthogonal, []

    def interrupted(*arguments):
        if not calls:
            os.kill(os.getpid(), signal.SIGINT)
        calls.append(None)
        return multiply(*arguments)

    monkeypatch.setattr(matrices, "orthogonal", interrupted)
    with pytest.raises(KeyboardInterrupt):
        found.step(*given[1])
    monkeypatch.undo()
    assert len(calls) > 2
    for one, other in zip(found.weights(), expected.weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(found.state().values(), expected.state().values(), strict=True):
        np.testing.assert_array_equal(one, other)
    later = gradients(1, seed=9)[0]
    found.step(*later)
    expected.step(*later)
    near(found.weights(), expected.weights(), 0)


def test_a_new_rate_or_batch_compiles_nothing_and_keeps_the_rule():
    from schuss.compile import cpu

    params = [torch.nn.Parameter(torch.from_numpy(w)) for w in starts()]
    optimizer = schuss.torch.Muon(params, lr=0.02)
    step_both(params, params, optimizer, optimizer, gradients(1))
    before, rule = cpu.count(), optimizer._hyperparameters.rule(optimizer.param_groups[0])
    assert optimizer._hyperparameters.rule(optimizer.param_groups[0]) is rule
    optimizer.param_groups[0]["lr"] = 0.01
    step_both(params, params, optimizer, optimizer, gradients(1))
    assert cpu.count() == before
