"""Tensors that are replaced, resized, cast and freed between two steps: the right numbers, or a refusal in words.

What is refused has changed nothing, and no test writes or reads outside the tensors that are there: each is carved out
of a buffer whose margins are looked at afterwards.
"""

import copy
import ctypes
import math
import re
import signal
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import schuss.torch
from schuss.compile import threads
from schuss.torch import layout

SENTINEL, MARGIN = 77, 16
SHAPE = (6, 5)


class Carved:
    """Tensors carved out of larger buffers."""

    def __init__(self):
        self.buffers = []

    def __call__(self, tensor):
        tensor = torch.as_tensor(tensor)
        size = tensor.numel() * tensor.element_size()
        buffer = torch.full((size + 2 * MARGIN,), SENTINEL, dtype=torch.uint8)
        inner = buffer[MARGIN : MARGIN + size].view(tensor.dtype).view(tensor.shape)
        inner.copy_(tensor)
        self.buffers.append((buffer, size))
        return inner

    def whole(self):
        return all(
            (buffer[:MARGIN] == SENTINEL).all() and (buffer[MARGIN + size :] == SENTINEL).all()
            for buffer, size in self.buffers
        )


@pytest.fixture
def carve():
    carved = Carved()
    yield carved
    assert carved.whole(), "memory outside a tensor was written to"


@pytest.fixture(params=["exchange", "calls"])
def look(request, monkeypatch):
    """By the exchange API, if PyTorch has it, and tensor by tensor."""
    if request.param == "calls":
        monkeypatch.setattr(layout, "_describe", lambda: 0)
    elif not layout._describe():
        pytest.skip("this PyTorch has no exchange API")


def readable(value):
    return not isinstance(value, torch.Tensor) or (
        value.layout != torch.strided or (layout.in_memory(value) and layout.held(value))
    )


def snapshot(optimizer):
    """Everything that a step may change, as it is; freed memory has no content."""
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    state = [
        {k: copy.deepcopy(v) if readable(v) else None for k, v in optimizer.state.get(w, {}).items()}
        for w in weights
    ]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return [w.detach().clone() if readable(w) else None for w in weights], state, copy.deepcopy(groups)


def assert_unchanged(before, after):
    assert type(before) is type(after)
    if isinstance(before, torch.Tensor):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
    elif isinstance(before, dict):
        assert list(before) == list(after)
        assert_unchanged(list(before.values()), list(after.values()))
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_unchanged(one, other)
    elif not callable(before):
        assert before == after


def grads(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slot(name, change, replace=False):
    """An attack on a slot, through its `.data` or by another entry."""

    def attack(weight, optimizer, carve):
        entry = optimizer.state[weight]
        new = change(entry[name].detach().clone())
        new = carve(new) if new.layout == torch.strided and new.device.type == "cpu" else new
        if replace:
            entry[name] = new
        else:
            entry[name].data = new

    return attack


def gradient(change):
    def attack(weight, optimizer, carve):
        new = change(weight.grad.detach().clone())
        weight.grad.data = carve(new) if new.device.type == "cpu" and new.is_contiguous() else new

    return attack


def moved_to(change):
    """An attack on the weight, whose gradient is made to fit."""

    def attack(weight, optimizer, carve):
        with torch.no_grad():
            new = change(weight.detach().clone())
        weight.grad = None
        weight.data = carve(new) if new.device.type == "cpu" and new.is_contiguous() else new
        made = grads(*new.shape, seed=9)
        weight.grad = torch.complex(made, made).to(new) if new.is_complex() else made.to(new)

    return attack


def freed(what, size=0):
    def attack(weight, optimizer, carve):
        one = {"weight": weight, "gradient": weight.grad}.get(what)
        one = optimizer.state[weight][what] if one is None else one
        one.data = one.detach().clone()
        one.untyped_storage().resize_(size)

    return attack


def freed_part(weight, optimizer, carve):
    """Memory that is gone, of a gradient that did not start where it started."""
    buffer = grads(7, 5, seed=2)
    weight.grad = buffer[1:]
    buffer.untyped_storage().resize_(0)


def all_elsewhere(weight, optimizer, carve):
    """What moves an optimizer to another device in many a recipe; here with another count."""
    for name, value in optimizer.state[weight].items():
        value.data = carve(value.clone() + 3.0 * (name == "step"))


def without(name):
    def attack(weight, optimizer, carve):
        del optimizer.state[weight][name]

    return attack


def shared(change):
    """Numbers of a slot that share memory, which no copy may undo."""

    def attack(weight, optimizer, carve):
        optimizer.state[weight]["exp_avg"] = change(optimizer.state[weight]["exp_avg"].detach().clone())

    return attack


def counted(value):
    def attack(weight, optimizer, carve):
        optimizer.state[weight]["step"] = value

    return attack


def overlapping(x):
    """As many numbers as before, of which neighbours in both axes are the same."""
    return x.reshape(-1).as_strided(x.shape, (1, 1))


def scales(change):
    def attack(weight, optimizer, carve):
        entry = optimizer.state[weight]
        entry["exp_avg_scale"].data = carve(change(entry["exp_avg_scale"].detach().clone()))

    return attack


def shorter(x):
    return x.reshape(-1)[: x.numel() // 2].clone()


def longer(x):
    return torch.cat([x, x])


def to_complex(x):
    return torch.complex(x, x)


ADAM = dict(lr=0.1)
INT8 = dict(lr=0.1, state_dtype="int8")
ROUND = dict(lr=0.1, compensated=True)
AVERAGE = dict(lr=0.1, ema_decay=0.9)
BIG = (70, 60)

# The attack, the optimizer's options, the weight's dtype and shape, and the words of the refusal; None if it goes on.
ATTACKS = {
    "gradient shorter": (gradient(shorter), ADAM, "The gradient of weight 1"),
    "gradient longer": (gradient(longer), ADAM, "it needs shape (6, 5) on cpu"),
    "gradient of another shape": (gradient(torch.t), ADAM, "is float64 of shape (5, 6)"),
    "gradient int64": (gradient(lambda x: x.long()), ADAM, "is int64"),
    "gradient bool": (gradient(lambda x: x > 0), ADAM, "is bool"),
    "gradient complex": (gradient(to_complex), ADAM, "is complex128"),
    "gradient float32": (gradient(torch.Tensor.float), ADAM, None),
    "gradient freed": (freed("gradient"), ADAM, "Was its storage freed or resized?"),
    "gradient freed with an offset": (freed_part, ADAM, "Was its storage freed or resized?"),
    "gradient elsewhere": (gradient(torch.clone), ADAM, None),
    "gradient strided": (gradient(lambda x: longer(x)[::2]), ADAM, None),
    "weight grown": (
        moved_to(longer),
        ADAM,
        "'exp_avg' of weight 1, of shape (12, 5), is float64 of shape (6, 5)",
    ),
    "weight shrunk": (
        moved_to(lambda x: x[:3].clone()),
        ADAM,
        "`optimizer.state.clear()` starts the state anew",
    ),
    "weight of another shape": (
        moved_to(lambda x: x.view(5, 6)),
        ADAM,
        "'exp_avg' of weight 1, of shape (5, 6)",
    ),
    "weight float32": (moved_to(torch.Tensor.float), ADAM, None),
    "weight complex": (moved_to(to_complex), ADAM, "it needs shape (6, 5) on cpu and complex numbers"),
    "weight float8": (
        moved_to(lambda x: x.to(torch.float8_e5m2)),
        ADAM,
        "weight 1, of shape (6, 5), is float8_e5m2",
    ),
    "weight freed": (freed("weight"), ADAM, "has memory for fewer numbers than its shape"),
    "weight cut": (freed("weight", 40), ADAM, "has memory for fewer numbers than its shape"),
    "weight expanded": (
        moved_to(lambda x: x[:1].expand(6, 5)),
        ADAM,
        "has numbers that share memory; it needs memory of its own",
    ),
    "weight overlapping": (
        moved_to(overlapping),
        ADAM,
        "has numbers that share memory; it needs memory of its own",
    ),
    "weight elsewhere": (moved_to(torch.clone), ADAM, None),
    "weight strided": (moved_to(lambda x: torch.cat([x, x], 1)[:, ::2]), ADAM, None),
    "slot shorter": (slot("exp_avg", shorter), ADAM, "The state 'exp_avg' of weight 1"),
    "slot of another shape": (slot("exp_avg_sq", torch.t), ADAM, "The state 'exp_avg_sq' of weight 1"),
    "slot expanded": (
        shared(lambda x: x[:1].expand(6, 5)),
        ADAM,
        "The state 'exp_avg' of weight 1, of shape (6, 5), has numbers that share memory",
    ),
    "slot overlapping": (shared(overlapping), ADAM, "has numbers that share memory"),
    "slot missing": (
        without("exp_avg_sq"),
        ADAM,
        "The state 'exp_avg_sq' of weight 1, of shape (6, 5), is missing; it needs its own numbers, like 'exp_avg', "
        "'step'",
    ),
    "step missing": (without("step"), ADAM, "The state 'step' of weight 1, of shape (6, 5), is missing"),
    "step text": (
        counted("x"),
        ADAM,
        "The state 'step' of weight 1, of shape (6, 5), is 'x'; it needs a whole",
    ),
    "step of three": (counted(torch.zeros(3)), ADAM, "is tensor([0., 0., 0.]); it needs a whole number ≥ 0"),
    "step NaN": (counted(torch.tensor(math.nan)), ADAM, "is tensor(nan); it needs a whole number ≥ 0"),
    "step negative": (counted(torch.tensor(-3.0)), ADAM, "is tensor(-3.); it needs a whole number ≥ 0"),
    "slot elsewhere": (slot("exp_avg", torch.clone), ADAM, None),
    "slot strided": (slot("exp_avg", lambda x: longer(x)[::2]), ADAM, None),
    "slot float32": (slot("exp_avg", torch.Tensor.float), ADAM, None),
    "slot int64": (slot("exp_avg", torch.Tensor.long), ADAM, "is int64"),
    "slot bool": (slot("exp_avg", lambda x: x > 0), ADAM, "is bool"),
    "slot float8": (slot("exp_avg", lambda x: x.to(torch.float8_e4m3fn)), ADAM, "is float8_e4m3fn"),
    "slot complex": (slot("exp_avg", to_complex), ADAM, "is complex128"),
    "slot meta": (slot("exp_avg", lambda x: x.to("meta"), True), ADAM, "on meta"),
    "slot sparse": (
        slot("exp_avg", torch.Tensor.to_sparse, True),
        ADAM,
        "is torch.sparse_coo; it needs a dense",
    ),
    "slot replaced, shorter": (slot("exp_avg", shorter, True), ADAM, "The state 'exp_avg' of weight 1"),
    "slot replaced, int8": (
        slot("exp_avg", lambda x: x.to(torch.int8), True),
        ADAM,
        "'exp_avg_scale' of weight 1",
    ),
    "slot replaced": (slot("exp_avg", torch.clone, True), ADAM, None),
    "slot freed": (freed("exp_avg"), ADAM, "Was its storage freed or resized?"),
    "slot cut": (freed("exp_avg", 40), ADAM, "Was its storage freed or resized?"),
    "all state elsewhere": (all_elsewhere, ADAM, None),
    "average shorter": (slot("average", shorter), AVERAGE, "The state 'average' of weight 1"),
    "average int64": (slot("average", torch.Tensor.long), AVERAGE, "The state 'average' of weight 1"),
    "average freed": (freed("average"), AVERAGE, "Was its storage freed or resized?"),
}
OURS = {
    "codes shorter": (slot("exp_avg", shorter), INT8, torch.float32, "The state 'exp_avg' of weight 1"),
    "codes half": (slot("exp_avg", torch.Tensor.half), INT8, torch.float32, "float16 with scales"),
    "codes freed": (freed("exp_avg"), INT8, torch.float32, "Was its storage freed or resized?"),
    "scales float64": (
        scales(torch.Tensor.double),
        INT8,
        torch.float32,
        "needs 33 scales, contiguous float32",
    ),
    "scales half": (scales(torch.Tensor.half), INT8, torch.float32, "is float16 of shape (33,)"),
    "scales shorter": (scales(shorter), INT8, torch.float32, "is float32 of shape (16,)"),
    "scales freed": (freed("exp_avg_scale"), INT8, torch.float32, "Was its storage freed or resized?"),
    "scales missing": (
        lambda w, o, _: o.state[w].pop("exp_avg_scale"),
        INT8,
        torch.float32,
        "'exp_avg_scale' of weight 1, of shape (70, 60), is missing",
    ),
    "rest shorter": (slot("rest", shorter), ROUND, torch.bfloat16, "The state 'rest' of weight 1"),
    "rest freed": (freed("rest"), ROUND, torch.bfloat16, "Was its storage freed or resized?"),
    "real state of a complex weight": (
        slot("exp_avg", lambda x: x.real.clone()),
        ADAM,
        torch.complex128,
        "complex numbers, one of complex64, complex128",
    ),
}


def trained(make, options, dtype=torch.float64, shape=SHAPE):
    """An optimizer after two steps of two weights, with gradients for the third."""
    weights = [grads(*shape, seed=k).to(dtype).requires_grad_() for k in (0, 1)]
    optimizer = make(weights, **options)
    for step in range(3):
        for k, w in enumerate(weights):
            w.grad = grads(*shape, seed=5 * step + k).to(dtype)
        if step < 2:
            optimizer.step()
    return weights, optimizer


@pytest.mark.usefixtures("look")
@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@pytest.mark.parametrize("name", ATTACKS)
def test_what_happens_to_tensors_between_steps(name, carve):
    attack, options, words = ATTACKS[name]
    weights, optimizer = trained(schuss.torch.AdamW, options)
    attack(weights[1], optimizer, carve)
    if words is not None:
        refused(optimizer, words)
        return
    optimizer.step()
    # torch.optim's, with everything in float64 where it does not take a mixture.
    theirs, other = trained(torch.optim.AdamW, {k: v for k, v in options.items() if k == "lr"})
    attack(theirs[1], other, Carved())
    for tensor in (theirs[1], theirs[1].grad, other.state[theirs[1]]["exp_avg"]):
        tensor.data = tensor.data.double()
    other.step()
    tolerance = 1e-6 if "float32" in name else 1e-12
    for mine, expected in zip(weights, theirs, strict=True):
        torch.testing.assert_close(mine.detach().double(), expected.detach(), rtol=tolerance, atol=tolerance)


def refused(optimizer, words):
    """The step is refused, again and again, and has changed nothing."""
    before = snapshot(optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(words)):
            optimizer.step()
        assert_unchanged(before, snapshot(optimizer))


@pytest.mark.usefixtures("look")
@pytest.mark.parametrize("name", OURS)
def test_what_happens_to_what_torch_does_not_keep(name, carve):
    attack, options, dtype, words = OURS[name]
    weights, optimizer = trained(schuss.torch.AdamW, options, dtype, BIG)
    attack(weights[1], optimizer, carve)
    refused(optimizer, words)


@pytest.mark.parametrize(
    "name", ["weight grown", "gradient shorter", "slot shorter", "slot freed", "weight float8"]
)
def test_what_fits_again_goes_on(name, carve):
    """A refusal is no end: when the tensor is as it was, training goes on as if nothing had been."""
    attack, options, words = ATTACKS[name]
    weights, optimizer = trained(schuss.torch.AdamW, options)
    expected, clean = trained(schuss.torch.AdamW, options)
    clean.step()
    entry = optimizer.state[weights[1]]
    whole = weights[1].data, weights[1].grad.clone(), entry["exp_avg"], entry["exp_avg"].clone()
    attack(weights[1], optimizer, carve)
    refused(optimizer, words)
    weights[1].grad = None
    weights[1].data, weights[1].grad = whole[0], whole[1]
    whole[2].data = whole[3]
    optimizer.step()
    assert all(map(torch.equal, weights, expected))


def test_an_int8_checkpoint_that_was_cast_is_refused():
    _, optimizer = trained(schuss.torch.AdamW, INT8, torch.float32, BIG)
    saved = optimizer.state_dict()
    saved["state"] = {
        key: {n: v.half() if v.ndim else v for n, v in entry.items()} for key, entry in saved["state"].items()
    }
    try:
        optimizer.load_state_dict(saved)
    except ValueError:
        return
    refused(optimizer, "float16 with scales")


def test_a_slot_of_every_rule(variant, noise):
    """Whatever a rule remembers is looked at."""
    for slot in variant.rule.slots_of(len(SHAPE)):
        weight = noise(*SHAPE).requires_grad_()
        optimizer = variant.ours([weight])
        weight.grad = noise(*SHAPE, seed=1)
        optimizer.step()
        name = variant.row.names[slot]
        optimizer.state[weight][name].data = noise(3, seed=2)
        refused(optimizer, f"The state '{name}' of weight 0, of shape (6, 5), is float64 of shape (3,)")


@pytest.mark.usefixtures("look")
def test_a_conjugate_through_data_is_seen():
    weight = torch.ones(3, dtype=torch.complex128, requires_grad=True)
    optimizer = schuss.torch.SGD([weight], lr=1.0)
    for k in range(2):
        weight.grad = torch.full((3,), 1j, dtype=torch.complex128)
        if k:
            weight.data = weight.data.conj()  # 1 + 1j, whose memory still says 1 - 1j
        optimizer.step()
    torch.testing.assert_close(weight.detach().resolve_conj(), torch.ones(3, dtype=torch.complex128))


def test_state_that_is_replaced_as_a_whole(noise):
    """Deep copies, and copies with their tensors elsewhere, between two steps."""
    weights, optimizer = trained(schuss.torch.AdamW, ADAM)
    expected, clean = trained(schuss.torch.AdamW, ADAM)
    clean.step()
    optimizer.state = {w: {k: v.clone() for k, v in optimizer.state[w].items()} for w in weights}
    optimizer.step()
    assert all(map(torch.equal, weights, expected))
    assert copy.copy(optimizer.state).keys() == optimizer.state.keys()
    both = copy.deepcopy((weights, optimizer))
    for ws, one in ((weights, optimizer), both):
        for k, w in enumerate(ws):
            w.grad = noise(*SHAPE, seed=k)
        one.step()
    assert all(map(torch.equal, weights, both[0]))
    assert float(optimizer.state[weights[0]]["step"]) == float(both[1].state[both[0][0]]["step"]) == 4


# Errors in the middle of a step


def sparse(indices, values=None, shape=SHAPE):
    values = torch.ones(len(indices), shape[1], dtype=torch.float64) if values is None else values
    return torch.sparse_coo_tensor(torch.tensor([indices]), values, shape, check_invariants=False)


MIDDLE = {
    "index too large": (lambda: sparse([0, 6]), "has the index 6 in dimension 0; it needs one in [0, 6)"),
    "index negative": (lambda: sparse([-1, 2]), "has the index -1 in dimension 0"),
    "float8": (None, "weight 1, of shape (6, 5), is float8_e4m3fn"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("name", MIDDLE)
def test_an_error_of_one_weight_moves_no_other(name, clipped, first):
    """Beside it lie weights that go every other way: plain, staged, eager and sparse."""
    make, words = MIDDLE[name]

    class Marked(torch.Tensor):
        pass

    beside = [grads(*SHAPE), grads(5, 6).t(), grads(*SHAPE).as_subclass(Marked), grads(*SHAPE)]
    bad = grads(*SHAPE)
    weights = [w.requires_grad_() for w in (beside[0], bad, *beside[1:])]
    optimizer = schuss.torch.Adam(weights, lr=0.1, max_norm=1.0 if clipped else None)
    for step in range(1 if first else 2):
        for k, w in enumerate(weights):
            w.grad = grads(*SHAPE, seed=k).as_subclass(type(w.detach()))
        weights[-1].grad = sparse([1, 3])
        weights[1].grad = None if make is None else sparse([1, 2])
        if step == 0 and not first:
            optimizer.step()
    if make is None:
        weights[1].grad = None
        weights[1].data = bad.detach().to(torch.float8_e4m3fn)
        weights[1].grad = torch.zeros_like(weights[1])
    else:
        weights[1].grad = make()
    refused(optimizer, words)


def test_a_table_of_rates_that_ends(noise):
    """Each rate in it is used; the step after the last is refused before anything moves."""
    weights = [noise(5, seed=k).requires_grad_() for k in (0, 1)]
    groups = [{"params": [w]} for w in weights]
    optimizer = schuss.torch.Adam(groups, lr=lambda n: [0.1, 0.2][n])
    expected = [w.detach().clone().requires_grad_() for w in weights]
    other = torch.optim.Adam(expected)
    for rate in (0.1, 0.2):
        other.param_groups[0]["lr"] = rate
        for k, (w, e) in enumerate(zip(weights, expected, strict=True)):
            w.grad = e.grad = noise(5, seed=10 + k)
        optimizer.step()
        other.step()
    torch.testing.assert_close(weights, expected)
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]
    before = snapshot(optimizer)
    with pytest.raises(IndexError):
        optimizer.step()
    assert_unchanged(before, snapshot(optimizer))


def test_scalars_that_fail_for_a_later_batch_leave_the_earlier_ones(noise, monkeypatch):
    """The coefficients of every kernel are worked out before the first one runs, and a failure leaves no trace."""
    weights = [noise(5).requires_grad_(), noise(5).float().requires_grad_()]
    optimizer = schuss.torch.Adam([{"params": [w], "lr": 0.1 + k} for k, w in enumerate(weights)])
    expected = copy.deepcopy(weights)
    clean = schuss.torch.Adam([{"params": [w], "lr": 0.1 + k} for k, w in enumerate(expected)])
    for ws in (weights, expected):
        for w in ws:
            w.grad = torch.ones_like(w)
    kind = type(optimizer._hyperparameters.rule(optimizer.param_groups[0]))
    own = kind.coefficients

    def failing(self, step, **scalars):
        if self.lr > 1 and step == 2:
            raise OverflowError("too far")
        return own(self, step, **scalars)

    optimizer.step()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "coefficients", failing)
        before = snapshot(optimizer)
        with pytest.raises(OverflowError, match="too far"):
            optimizer.step()
        assert_unchanged(before, snapshot(optimizer))
    optimizer.step()
    clean.step()
    clean.step()
    assert all(map(torch.equal, weights, expected))


def test_an_interrupt_finds_a_whole_step(noise, monkeypatch):
    """Ctrl-C between any two actions of a step: all of it is done, and counted alike everywhere."""
    interrupt = partial(getattr(ctypes.PyDLL(None), "raise"), int(signal.SIGINT))
    own = threads.together

    def model():
        tensors = [noise(5), noise(4, 3).t(), noise(5).float(), noise(*SHAPE)]
        weights = [t.requires_grad_() for t in tensors]
        optimizer = schuss.torch.Adam([{"params": [w]} for w in weights], lr=lambda n: 0.1 / (n + 1))
        for w in weights:
            w.grad = torch.ones_like(w)
        weights[-1].grad = torch.ones_like(weights[-1]).to_sparse(1)
        optimizer.step()
        return optimizer

    clean = model()
    clean.step()
    place, interrupted = 0, True
    while interrupted:
        interrupted = False

        def together(actions, at=place):
            nonlocal interrupted
            actions = list(actions)
            interrupted = at < len(actions)
            own([*actions[:at], interrupt, *actions[at:]] if interrupted else actions)

        optimizer = model()
        with monkeypatch.context() as patch:
            patch.setattr(threads, "together", together)
            try:
                optimizer.step()
            except KeyboardInterrupt:
                assert interrupted
        optimizer._hyperparameters.show(optimizer.param_groups)
        assert_unchanged(snapshot(clean), snapshot(optimizer))
        place += 1
    assert place > 10


def test_an_interrupt_waits_for_all_pieces_of_a_kernel():
    """On several threads, and in a function of Python: what is begun is done, then the interrupt is raised."""
    interrupt = partial(getattr(ctypes.PyDLL(None), "raise"), int(signal.SIGINT))
    walked = []

    def kernel(table, matrix, first, last):
        walked.extend(range(first, last))
        interrupt()

    def later():
        walked.append("later")

    many = threads.ELEMENTS_A_THREAD * 2
    with pytest.raises(KeyboardInterrupt):
        threads.together([threads.call(kernel, 0, 0, slice(50), many, 1), partial(later)])
    assert sorted(walked, key=str) == sorted([*range(50), "later"], key=str)


# Tensors that are made within a step


def test_every_path_under_another_default_device(noise):
    """No tensor of a step is made where `torch.set_default_device` says."""

    class Marked(torch.Tensor):
        pass

    def run():
        tensors = [
            noise(*SHAPE),
            noise(5, 6).t(),
            torch.complex(noise(4, 3), noise(4, 3)).mT,
            noise(*SHAPE).as_subclass(Marked),
            noise(*SHAPE),
            noise(*SHAPE).bfloat16(),
            noise(60, 70).t(),
            noise(60, 70).float(),
        ]
        weights = [t.requires_grad_() for t in tensors]
        made = [noise(*w.shape, seed=k).to(w).as_subclass(type(w.detach())) for k, w in enumerate(weights)]
        made[0] = made[0].t().contiguous().t()
        made[4] = made[4].to_sparse(1)
        optimizer = schuss.torch.AdamW(
            weights, lr=0.1, max_norm=1.0, compensated=True, state_dtype="int8", ema_decay=0.9
        )
        return weights, made, optimizer

    found = []
    for device in (None, "meta"):
        weights, made, optimizer = run()
        for w, g in zip(weights, made, strict=True):
            w.grad = g
        try:
            torch.set_default_device(device)
            for _ in range(2):
                optimizer.step()
        finally:
            torch.set_default_device(None)
        found.append([w.detach() for w in weights])
    assert all(map(torch.equal, *found))


# Everything at once


class Between(RuleBasedStateMachine):
    """Steps of ours and of torch.optim's with the same tensors, to which anything happens in between."""

    dtype = torch.float64
    make = staticmethod(lambda package, weights: package.Adam(weights, lr=0.1))
    slots = ("exp_avg", "exp_avg_sq")
    low = False  # whether something is in float32

    @initialize()
    def start(self):
        self.steps, self.undo = 0, None
        self.pairs = [
            (
                ws := [
                    grads(*shape, seed=k).to(self.dtype).requires_grad_()
                    for k, shape in enumerate([(4,), (3, 2)])
                ],
                self.make(package, ws),
            )
            for package in (schuss.torch, torch.optim)
        ]
        self.take()

    def take(self):
        """One step each, from gradients of the weights' own shapes, unless an attack has changed them."""
        self.steps += 1
        for weights, _ in self.pairs:
            for k, w in enumerate(weights):
                if w.grad is None:
                    made = grads(*w.shape, seed=self.steps * 10 + k)
                    w.grad = (torch.complex(made, made) if w.is_complex() else made).to(w)
        (mine, ours), (others, theirs) = self.pairs
        before = snapshot(ours)
        raised = []
        for optimizer in (ours, theirs):
            try:
                optimizer.step()
                raised.append(None)
            except (RuntimeError, ValueError, TypeError) as problem:
                raised.append(problem)
        if raised[0] is not None:
            assert "it needs" in str(raised[0])
            assert self.undo is not None, f"nothing was changed, but: {raised[0]}"
            assert_unchanged(before, snapshot(ours))
        if raised == [None, None]:
            relative = 64 * torch.finfo(torch.float32 if self.low else self.dtype).eps
            for w, other in zip(mine, others, strict=True):
                torch.testing.assert_close(w.detach(), other.detach(), rtol=relative, atol=relative)
                w.data.copy_(other.data)  # roundings do not add up
        if any(raised):
            self.restore()
        self.undo = None
        for weights, _ in self.pairs:
            for w in weights:
                w.grad = None

    def restore(self):
        """Put back what was there before the attack."""
        for (weights, optimizer), (was, state) in zip(self.pairs, self.undo, strict=True):
            for w, old, entry in zip(weights, was, state, strict=True):
                w.grad = None
                w.data = old.clone()
                optimizer.state[w].clear()
                optimizer.state[w].update(
                    {k: v.clone() if torch.is_tensor(v) else v for k, v in entry.items()}
                )

    def keep(self):
        if self.undo is None:
            self.undo = [
                (
                    [w.detach().clone() for w in weights],
                    [
                        {k: v.clone() if torch.is_tensor(v) else v for k, v in o.state[w].items()}
                        for w in weights
                    ],
                )
                for weights, o in self.pairs
            ]

    @rule()
    def step(self):
        self.take()

    @rule(
        k=strategies.integers(0, 1),
        what=strategies.sampled_from(["weight", "slot", "gradient"]),
        change=strategies.sampled_from(
            ["elsewhere", "strided", "grow", "shrink", "turn", "cast", "complex", "free"]
        ),
        where=strategies.integers(0, 1),
        replace=strategies.booleans(),
    )
    def attack(self, k, what, change, where, replace):
        self.keep()
        for weights, optimizer in self.pairs:
            w = weights[k]
            if what == "gradient":
                w.grad = grads(*w.shape, seed=self.steps).to(w)
            name = self.slots[where % len(self.slots)]
            one = {"weight": w, "gradient": w.grad}.get(what)
            one = optimizer.state[w][name] if what == "slot" else one
            with torch.no_grad():
                data = one.detach()
                new = {
                    "elsewhere": lambda x: x.clone(),
                    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
                    "grow": lambda x: torch.cat([x, x]),
                    "shrink": lambda x: x[:1].clone(),
                    "turn": lambda x: x.t().contiguous() if x.dim() == 2 else x[None].clone(),
                    "cast": lambda x: x.to(torch.float64 if x.dtype == torch.float32 else torch.float32),
                    "complex": lambda x: torch.complex(x, x) if not x.is_complex() else x.real.clone(),
                    "free": lambda x: x.clone(),
                }[change](data)
            self.low |= change == "cast"
            if change == "free":
                if optimizer is self.pairs[1][1]:
                    continue  # torch reads what is not there
                new.untyped_storage().resize_(0)
            if what == "slot" and replace:
                optimizer.state[w][name] = new
            else:
                one.data = new
        if change == "free":
            (_, ours), _ = self.pairs
            self.fill()
            with pytest.raises(ValueError, match="it needs"):
                ours.step()
            self.restore()
            self.undo = None
        else:
            self.take()

    def fill(self):
        for weights, _ in self.pairs:
            for w in weights:
                if w.grad is None:
                    w.grad = torch.zeros_like(w)

    @rule()
    def save_and_load(self):
        for _, optimizer in self.pairs:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    @rule()
    def deep_copy(self):
        self.pairs = copy.deepcopy(self.pairs)


def the_machine(dtype, make, slots):
    name = f"Between{len(slots)}{dtype}"
    return type(name, (Between,), dict(dtype=dtype, make=staticmethod(make), slots=slots))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_anything_between_two_steps(name, dtype):
    make, slots = {
        "Adam": (lambda package, weights: package.Adam(weights, lr=0.1), ("exp_avg", "exp_avg_sq")),
        "SGD": (lambda package, weights: package.SGD(weights, lr=0.1, momentum=0.9), ("momentum_buffer",)),
    }[name]
    run_state_machine_as_test(
        the_machine(dtype, make, slots),
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
