"""Adafactor in PyTorch: torch.optim's paths and checkpoints, with state by rows and columns."""

import copy
import io
import math
from dataclasses import dataclass

import pytest
import torch

import schuss.torch as st
from schuss.compile.reference import Reference
from schuss.rules import Rule, number, row_mean

SHAPES = [(5,), (), (7, 3), (1, 6), (6, 1), (2, 3, 4), (4, 3, 3, 2), (2, 2, 1, 3, 2)]
OPTIONS = [
    {},
    dict(lr=0.3, weight_decay=0.1, d=2.0, eps=(1e-2, 1e-1), beta2_decay=-0.5),
    dict(lr=0.05, eps=(None, 0.3), maximize=True),
]


def made(shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(dtype) for s in shapes]


def leaves(tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def give(weights, step, size=1.0):
    for weight, g in zip(
        weights, made([w.shape for w in weights], weights[0].dtype, 100 + step), strict=True
    ):
        weight.grad = g.to(weight.dtype) * size * 10 ** (2 * math.sin(step / 5))


def assert_close(weights, others, relative=1e-13):
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=relative, atol=relative)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_path_is_torchs(options, foreach):
    mine, other = leaves(made(SHAPES)), leaves(made(SHAPES))
    ours = st.Adafactor(mine, **options)
    theirs = torch.optim.Adafactor(other, foreach=foreach, **options)
    for step in range(120):
        give(mine, step)
        give(other, step)
        ours.step()
        theirs.step()
    assert_close(mine, other)
    for one, two in zip(mine, other, strict=True):
        assert ours.state[one].keys() == theirs.state[two].keys()
        for name, value in theirs.state[two].items():
            assert ours.state[one][name].shape == value.shape
            torch.testing.assert_close(ours.state[one][name].double(), value.double(), rtol=1e-13, atol=0)


def test_signature_and_defaults_are_torchs():
    ours, theirs = (module.Adafactor([torch.zeros(2, requires_grad=True)]) for module in (st, torch.optim))
    for name, value in theirs.param_groups[0].items():
        if name != "params":
            assert ours.param_groups[0][name] == value
    assert torch.optim.Adafactor.__init__.__code__.co_varnames[2:7] == (
        *("lr", "beta2_decay", "eps", "d", "weight_decay"),
    )
    positional = st.Adafactor([torch.zeros(2, requires_grad=True)], 0.1, -0.5, (1e-3, 1e-2), 2.0, 0.3)
    assert positional.param_groups[0]["eps"] == (1e-3, 1e-2)


LARGE = [(300, 200), (1500, 600), (3, 70_000), (200, 3000), (3, 150, 260), (64, 32, 3, 3), (600_000,)]


def large_path(threads, transposed=False):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = [w.float() for w in made(LARGE)]
        if transposed:
            weights = [w.mT.contiguous().mT if w.dim() > 1 else w for w in weights]
        weights = [w.requires_grad_() for w in weights]
        optimizer = st.Adafactor(weights, lr=0.1)
        for step in range(2):
            give(weights, step)
            optimizer.step()
        return [w.detach().clone() for w in weights], optimizer
    finally:
        torch.set_num_threads(before)


def test_large_matrices_by_any_number_of_threads():
    """Several rows of the table, of which each sums for all columns: by one thread, by three, and by whole tensors."""
    one, optimizer = large_path(1)
    three, other = large_path(3)
    assert not optimizer._plan.eager
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    eager, whole = large_path(1, transposed=True)
    assert len(whole._plan.eager) == len(LARGE) - 1
    assert_close(one, eager, 2e-5)
    references = [
        Reference(st.Adafactor.row.rule(lr=0.1), w.float().double().numpy(), "float32") for w in made(LARGE)
    ]
    for step in range(2):
        weights = leaves([w.float() for w in made(LARGE)])
        give(weights, step)
        for reference, weight in zip(references, weights, strict=True):
            reference.step(weight.grad.double().numpy())
    for weight, reference in zip(one, references, strict=True):
        torch.testing.assert_close(weight.double(), torch.from_numpy(reference.w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, dict(rounding="stochastic")], ids=str)
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
def test_rows_and_columns_are_in_float32(options, state_dtype):
    start = [w.bfloat16() for w in made([(80, 60), (2, 5, 6)])]
    weights = leaves(start)
    optimizer = st.Adafactor(weights, lr=0.3, state_dtype=state_dtype, **options)
    references = [Reference(st.Adafactor.row.rule(lr=0.3), w.double().numpy(), "bfloat16") for w in start]
    for step in range(5):
        give(weights, step)
        optimizer.step()
        for reference, weight in zip(references, weights, strict=True):
            reference.step(weight.grad.double().numpy())
    for weight, reference in zip(weights, references, strict=True):
        for name in ("row_var", "col_var"):
            assert optimizer.state[weight][name].dtype == torch.float32
        torch.testing.assert_close(
            weight.detach().double(), torch.from_numpy(reference.w), rtol=0.03, atol=0.03
        )


def test_large_and_small_gradients_stay_in_float32():
    """The square of v's parts leaves float32 from 1e10 on, where torch.optim.Adafactor stands still."""
    for size in (1e-16, 1e15):
        start = made([(4, 6)])[0].float()
        weight = start.clone().requires_grad_()
        optimizer = st.Adafactor([weight], lr=0.1, eps=(1e-30, 1e-3))
        weight.grad = made([(4, 6)], seed=1)[0].float() * size
        reference = Reference(optimizer.kind.row.rule(lr=0.1, eps1=1e-30), start.double().numpy())
        reference.step(weight.grad.double().numpy())
        optimizer.step()
        torch.testing.assert_close(
            weight.detach().double(), torch.from_numpy(reference.w), rtol=1e-5, atol=1e-6
        )


def test_each_dtype_has_its_own_epsilon():
    """PyTorch takes the first weight's for all: behind a bfloat16 weight, the float32 one would end elsewhere."""
    found = []
    for dtypes in ([torch.float32], [torch.bfloat16, torch.float32]):
        weights = [torch.ones(1, dtype=dtype, requires_grad=True) for dtype in dtypes]
        optimizer = st.Adafactor(weights, lr=1.0)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.full_like(weight, 1e-4)
            optimizer.step()
        found.append(weights[-1].item())
    assert found[0] == found[1]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("into_torch", [True, False])
def test_checkpoints_both_ways(into_torch):
    options = OPTIONS[1]
    source, target = (st, torch.optim) if into_torch else (torch.optim, st)
    whole, first = leaves(made(SHAPES)), leaves(made(SHAPES))
    reference, saved = target.Adafactor(whole, **options), source.Adafactor(first, **options)
    for step in range(6):
        give(whole, step)
        reference.step()
    for step in range(3):
        give(first, step)
        saved.step()
    second = leaves(first)
    loaded = target.Adafactor(second, **options)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    for step in range(3, 6):
        give(second, step)
        loaded.step()
    assert_close(whole, second)


def test_save_load_continue_with_all_options():
    options = dict(lr=lambda n: 0.1 / (1 + n), ema_decay=0.9, max_norm=1.0)
    start = made(SHAPES)
    whole, first = leaves(start), leaves(start)
    one, saved = st.Adafactor(whole, **options), st.Adafactor(first, **options)
    for step in range(6):
        give(whole, step)
        one.step()
    for step in range(3):
        give(first, step)
        saved.step()
    second = leaves(first)
    loaded = st.Adafactor(second, **options)
    loaded.load_state_dict(through_a_file(saved.state_dict()))
    copied = copy.deepcopy(saved)
    for step in range(3, 6):
        give(second, step)
        loaded.step()
        give(copied.param_groups[0]["params"], step)
        copied.step()
    for others in (second, copied.param_groups[0]["params"]):
        assert all(torch.equal(a, b) for a, b in zip(whole, others, strict=True))
    with one.averaged(), loaded.averaged():
        assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def test_schedule_clipping_and_average_are_what_they_are_by_hand():
    start = made(SHAPES)
    mine, other = leaves(start), leaves(start)
    ours = st.Adafactor(mine, lr=lambda n: 0.2 / (1 + n), ema_decay=0.8, max_norm=0.5)
    theirs = torch.optim.Adafactor(other)
    averages = []
    for step in range(8):
        give(mine, step)
        give(other, step)
        torch.nn.utils.clip_grad_norm_(other, 0.5)
        theirs.param_groups[0]["lr"] = 0.2 / (1 + step)
        ours.step()
        theirs.step()
        now = [w.detach().clone() for w in other]
        averages = [a + 0.2 * (w - a) for a, w in zip(averages, now, strict=True)] if averages else now
    assert_close(mine, other, 1e-12)
    with ours.averaged():
        assert_close(mine, averages, 1e-12)


def test_groups_of_their_own_and_of_another_rule():
    mine, other = leaves(made(SHAPES)), leaves(made(SHAPES))
    ours = st.AdamW(
        [
            {"params": mine[:4], "rule": "Adafactor", "lr": 0.1, "d": 1.5},
            {"params": mine[4:6], "rule": "Adafactor", "weight_decay": 0.2},
            {"params": mine[6:]},
        ]
    )
    theirs = [
        torch.optim.Adafactor(
            [{"params": other[:4], "lr": 0.1, "d": 1.5}, {"params": other[4:6], "weight_decay": 0.2}]
        ),
        torch.optim.AdamW(other[6:]),
    ]
    for step in range(4):
        give(mine, step)
        give(other, step)
        for optimizer in (ours, *theirs):
            optimizer.step()
    assert_close(mine, other)


def test_torchs_narrow_state_is_widened():
    """torch.optim has rows and columns of bfloat16, in which an average of 300 steps no longer moves."""
    other = leaves([w.bfloat16() for w in made([(7, 3)])])
    theirs = torch.optim.Adafactor(other)
    give(other, 0)
    theirs.step()
    weights = leaves(other)
    ours = st.Adafactor(weights)
    ours.load_state_dict(theirs.state_dict())
    give(weights, 1)
    ours.step()
    assert ours.state[weights[0]]["row_var"].dtype == torch.float32


def test_complex_and_sparse_gradients_are_refused_before_anything_moves():
    real = torch.ones(3, 2, requires_grad=True)
    real.grad = torch.ones(3, 2)
    for shape in ((3, 2), (3,)):
        weight = torch.ones(shape, dtype=torch.complex64, requires_grad=True)
        weight.grad = torch.ones_like(weight)
        optimizer = st.Adafactor([real, weight])
        with pytest.raises(
            ValueError, match=r"weight 1.* is complex64; it needs real numbers: Adafactor takes means"
        ):
            optimizer.step()
        assert torch.equal(real.detach(), torch.ones(3, 2))
        assert not optimizer.state
    weight = torch.ones(3, 2, requires_grad=True)
    weight.grad = torch.ones(3, 2).to_sparse(1)
    with pytest.raises(RuntimeError, match="Adafactor measures whole tensors"):
        st.Adafactor([real, weight]).step()
    assert torch.equal(real.detach(), torch.ones(3, 2))


def test_a_step_that_is_skipped_changes_nothing():
    weights = leaves(made([(7, 3), (5,)]))
    optimizer = st.Adafactor(weights, lr=0.1, skip_nonfinite=True)
    give(weights, 0)
    optimizer.step()
    before = copy.deepcopy((weights, optimizer.state_dict()["state"]))
    weights[0].grad[2, 1] = math.inf
    optimizer.step()
    assert optimizer.skipped == 1
    after = weights, optimizer.state_dict()["state"]
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    for key, entry in before[1].items():
        assert all(torch.equal(value, after[1][key][name]) for name, value in entry.items())


DAMAGES = {
    "row_var": (lambda s: s.__setitem__("row_var", s["row_var"].mT.clone()), r"'row_var'.* needs \(7, 1\)"),
    "negative": (lambda s: s["col_var"].fill_(-1.0), "'col_var'.* -1, but it is never less than 0"),
    "missing": (lambda s: s.pop("col_var"), "no 'col_var' of weight 0"),
    "a vector's": (
        lambda s: (s.clear(), s.update(step=torch.tensor(1.0), variance=torch.ones(7, 3))),
        "no 'row_var'",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_state_is_refused(name):
    change, words = DAMAGES[name]
    weights = leaves(made([(7, 3)]))
    optimizer = st.Adafactor(weights)
    give(weights, 0)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state.pop("state_entries")
    change(state["state"][0])
    other = st.Adafactor(leaves(weights))
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)
    if name == "negative":
        return
    change(optimizer.state[weights[0]])
    before = weights[0].detach().clone()
    with pytest.raises(ValueError, match=r"The state '(row|col)_var' of weight 0"):
        optimizer.step()
    assert torch.equal(weights[0].detach(), before)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 3)], ids=str)
def test_empty_weights_step(shape):
    weights = [torch.zeros(shape, requires_grad=True), torch.ones(2, 2, requires_grad=True)]
    optimizer = st.Adafactor(weights)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weights[1].isfinite().all()


@dataclass(frozen=True, kw_only=True)
class WithMomentum(Rule):
    """Momentum over the size of its row."""

    lr: float = number(0.1, low=0)
    state = ("m", "r")
    shapes = {"r": "row"}

    def coefficients(self, step):
        return dict(lr=self.lr)

    @staticmethod
    def update(w, g, m, r, lr):
        m = 0.9 * m + g
        r = 0.9 * r + 0.1 * row_mean(abs(m))
        w = w - lr * m / (r + 0.1)
        return w, m, r


def test_no_slot_of_such_a_rule_is_in_blocks():
    """A block would cross from one row to the next. Here whole tensors move it, since the weight lies transposed."""
    weight = made([(60, 80)])[0].float().mT.requires_grad_()
    optimizer = st.optimizer(WithMomentum)([weight], state_dtype="int8")
    weight.grad = made([(80, 60)], seed=1)[0].float()
    reference = Reference(WithMomentum(), weight.detach().double().numpy()).step(weight.grad.double().numpy())
    optimizer.step()
    assert optimizer._plan.eager
    assert {name: v.dtype for name, v in optimizer.state[weight].items() if name != "step"} == {
        "m": torch.float32,
        "r": torch.float32,
    }
    torch.testing.assert_close(weight.detach().double(), torch.from_numpy(reference), rtol=1e-5, atol=1e-5)
