"""Weights and state in few bits: that they learn, go on where they stopped, and lie in memory in any way."""

import copy

import pytest
import torch

from schuss.compile.storage import BLOCK
from schuss.torch import SGD, Adam, AdamW

STOCHASTIC = dict(rounding="stochastic")
COMPENSATED = dict(compensated=True)
WAYS = {
    "stochastic": STOCHASTIC,
    "compensated": COMPENSATED,
    "stochastic-bfloat16": STOCHASTIC | dict(state_dtype=torch.bfloat16),
    "stochastic-int8": STOCHASTIC | dict(state_dtype="int8"),
    "compensated-int8": COMPENSATED | dict(state_dtype="int8"),
    "averaged-int8": dict(ema_decay=0.9, state_dtype="int8"),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
SIZE = 4096 + 3 * BLOCK + 7


def gradients_of(weights, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(w.shape, generator=generator).add_(0.3).to(w.dtype) for w in weights]


def trained(make, weights, steps, first=1):
    """Weights after steps with gradients that depend on the step alone."""
    optimizer = make(weights)
    for step in range(first, first + steps):
        for weight, gradient in zip(weights, gradients_of(weights, step), strict=True):
            weight.grad = gradient
        optimizer.step()
    return optimizer


def parameters(dtype, *shapes):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes or ((SIZE,), (70, 80), (5,))]


def everything(optimizer):
    """All numbers of weights and state, in order."""
    found = []
    for group in optimizer.param_groups:
        for weight in group["params"]:
            entry = optimizer.state.get(weight, {})
            found += [
                weight.detach(),
                *(entry[name] for name in sorted(entry) if torch.is_tensor(entry[name])),
            ]
    return found


def assert_same_bits(one, other):
    for a, b in zip(everything(one), everything(other), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# That they learn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["stochastic", "compensated", "stochastic-bfloat16"])
def test_small_changes_count(dtype, way):
    """The mean of 4096 weights of 1 follows the float32 run within 1 %, and stands still if rounded to nearest."""

    def mean(dtype, **options):
        weights = [torch.nn.Parameter(torch.ones(4096, dtype=dtype))]
        trained(lambda params: AdamW(params, lr=1e-3, **options), weights, 1000)
        return weights[0].double().mean().item()

    expected = mean(torch.float32)
    assert expected < 0.75
    assert mean(dtype, **WAYS[way]) == pytest.approx(expected, rel=0.01)
    if dtype == torch.bfloat16:
        assert mean(dtype) == 1.0


@pytest.mark.parametrize("way", ["stochastic", "compensated", "stochastic-int8"])
def test_decay_alone(way):
    """2000 steps without gradients, weight decay 0.1 at a rate of 1e-3: (1 − 1e-4)²⁰⁰⁰ = 0.819."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = AdamW([weight], lr=1e-3, weight_decay=0.1, **WAYS[way])
    weight.grad = torch.zeros_like(weight)
    for _ in range(2000):
        optimizer.step()
    assert weight.double().mean().item() == pytest.approx(0.819, abs=0.01)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "int8"], ids=str)
def test_a_slow_average_decays(state_dtype):
    """With β₂ = 0.999 a step takes a thousandth off v, far less than its spacing; after 3000, 0.0497 is left."""
    weight = torch.nn.Parameter(torch.zeros(8192))
    optimizer = Adam([weight], lr=0.0, betas=(0.0, 0.999), state_dtype=state_dtype)
    weight.grad = torch.full_like(weight, 1000.0**0.5)
    optimizer.step()
    weight.grad = torch.zeros_like(weight)
    for _ in range(3000):
        optimizer.step()
    entry = optimizer.state[weight]
    v = entry["exp_avg_sq"].double()
    if state_dtype == "int8":
        v = _decoded(entry, "exp_avg_sq")
    assert v.mean().item() == pytest.approx(0.999**3000, rel=0.1)


def _decoded(entry, name):
    """The numbers of 8-bit codes: 8 levels an octave, 16 octaves below the block's largest."""
    level = entry[name].double().abs()
    size = torch.where(level > 0, (1 + level % 8 / 8) * 2.0 ** (level // 8 - 15), 0.0) * entry[name].sign()
    return size * entry[f"{name}_scale"].double().repeat_interleave(BLOCK)[: size.numel()].view(size.shape)


@ways
def test_every_page_every_way(way, plain):
    """Close to the run in float32 after 20 steps: by much less than it has moved."""

    def run(dtype, **options):
        weights = parameters(dtype, (SIZE,))
        start = weights[0].detach().double()
        optimizer = trained(lambda params: plain.ours(params, **options), weights, 20)
        return start, weights[0].detach().double(), optimizer

    start, expected, _ = run(torch.float32)
    _, found, optimizer = run(torch.bfloat16, **way)
    moved = (expected - start.to(torch.bfloat16)).norm()
    # One rounding to bfloat16 is within 2⁻⁸ of a weight; each of those by chance may be off by 2⁻⁷.
    chance = found.norm() * 2.0**-7 * (1 if way.get("compensated") else 20**0.5)
    assert (found - expected).norm() < 0.35 * moved + chance
    assert all(tensor.isfinite().all() for tensor in everything(optimizer))


# Going on where they stopped


@ways
def test_saved_loaded_and_continued(way, tmp_path):
    weights = parameters(torch.bfloat16)
    straight = trained(lambda params: AdamW(params, **way, seed=3), weights, 6)
    again = parameters(torch.bfloat16)
    first = trained(lambda params: AdamW(params, **way, seed=3), again, 3)
    torch.save(first.state_dict(), tmp_path / "state.pt")

    def loaded(params):
        optimizer = AdamW(params, **way, seed=3)
        optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        return optimizer

    continued = trained(loaded, [torch.nn.Parameter(w.detach().clone()) for w in again], 3, first=4)
    assert_same_bits(straight, continued)
    other = trained(lambda params: AdamW(params, **way, seed=4), parameters(torch.bfloat16), 6)
    if "compensated" not in way and "rounding" in way:
        assert not torch.equal(everything(other)[0], everything(straight)[0])


@ways
def test_copies_go_on_alike(way):
    weights = parameters(torch.bfloat16)
    optimizer = trained(lambda params: AdamW(params, **way), weights, 2)
    twin = copy.deepcopy(optimizer)
    mine = [weight for group in twin.param_groups for weight in group["params"]]
    for pair in ((optimizer, weights), (twin, mine)):
        trained(lambda params, pair=pair: pair[0], pair[1], 2, first=3)
    assert_same_bits(optimizer, twin)


@ways
def test_threads_change_no_bit(way):
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append(
                trained(lambda params: AdamW(params, **way), parameters(torch.bfloat16, (700_001,)), 2)
            )
        finally:
            torch.set_num_threads(before)
    assert_same_bits(*found)


def test_a_checkpoint_of_another_block_size():
    weights = parameters(torch.float32, (SIZE,))
    optimizer = trained(lambda params: Adam(params, state_dtype="int8"), weights, 3)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["block_size"] == BLOCK
    entry = optimizer.state[weights[0]]
    codes, scales = torch.zeros(SIZE, dtype=torch.int8), torch.zeros(-(-SIZE // 64))
    value = _decoded(entry, "exp_avg_sq")
    for block in range(
        len(scales)
    ):  # the same numbers, in blocks of 64, every second code halved: an octave lower
        part = slice(64 * block, 64 * block + 64)
        codes[part] = entry["exp_avg_sq"][part]
        scales[block] = entry["exp_avg_sq_scale"][block // 2]
    state["state"][0] |= {"exp_avg_sq_codes": codes, "exp_avg_sq_scale": scales}
    state["state"][0] |= {
        "exp_avg_codes": entry["exp_avg"].clone(),
        "exp_avg_scale": entry["exp_avg_scale"].repeat_interleave(2)[: len(scales)].clone(),
    }
    state["param_groups"][0]["block_size"] = 64
    other = Adam(parameters(torch.float32, (SIZE,)), state_dtype="int8")
    other.load_state_dict(state)
    loaded = other.state[other.param_groups[0]["params"][0]]
    assert len(loaded["exp_avg_sq_scale"]) == -(-SIZE // BLOCK)
    torch.testing.assert_close(_decoded(loaded, "exp_avg_sq"), value, rtol=1 / 15, atol=0)


def test_torch_does_not_take_codes_for_numbers():
    weight = torch.nn.Parameter(torch.ones(SIZE))
    state = trained(lambda params: Adam(params, state_dtype="int8"), [weight], 2).state_dict()
    theirs = torch.optim.Adam([weight])
    theirs.load_state_dict(state)
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()
    wide = Adam([weight], state_dtype="float32")  # the way back
    wide.load_state_dict(state)
    theirs.load_state_dict(wide.state_dict())
    theirs.step()
    assert theirs.state[weight]["exp_avg_sq"].dtype == torch.float32


def test_a_checkpoint_without_its_scales_is_refused():
    weights = parameters(torch.float32, (SIZE,))
    state = trained(lambda params: Adam(params, state_dtype="int8"), weights, 1).state_dict()
    del state["state"][0]["exp_avg_scale"]
    with pytest.raises(
        ValueError,
        match=r"'exp_avg' of weight 0 .* need 36 scales \(float32\) in 'exp_avg_scale' of weight 0; there are none",
    ):
        Adam(weights, state_dtype="int8").load_state_dict(state)


# Memory


def test_bytes_of_state():
    """Adam's two slots take 2 + 8/128 bytes a weight."""
    weight = torch.nn.Parameter(torch.zeros(100_000))
    optimizer = trained(lambda params: Adam(params, state_dtype="int8"), [weight], 1)
    entry = optimizer.state[weight]
    state = sum(t.numel() * t.element_size() for name, t in entry.items() if name != "step")
    assert state / weight.numel() == pytest.approx(2.0625, abs=0.001)


@ways
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
def test_any_layout(way, layout):
    """What lies otherwise gets the numbers that it gets when it lies straight."""
    straight = parameters(torch.bfloat16, (4, 16, 16, 20))
    odd = {
        "transposed": lambda t: t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    }[layout]
    mine = [torch.nn.Parameter(odd(straight[0].detach()))]
    assert not mine[0].is_contiguous()
    results = [
        trained(lambda params: AdamW(params, lr=0.01, **way), weights, 5) for weights in (straight, mine)
    ]
    if "state_dtype" in way and way["state_dtype"] == "int8":  # which is counted row by row
        assert torch.equal(straight[0], mine[0])
    else:  # chance goes by the place in memory
        torch.testing.assert_close(straight[0].float(), mine[0].float(), rtol=5 * 2.0**-7, atol=0.02)
    assert all(tensor.isfinite().all() for one in results for tensor in everything(one))


@ways
def test_sparse_gradients(way):
    """Touched rows move, others stay as they are, and state in blocks becomes float32."""
    weight = torch.nn.Parameter(torch.ones(300, 20, dtype=torch.bfloat16))
    optimizer = AdamW([weight], lr=0.01, **way)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (optimizer.state[weight]["exp_avg"].dtype == torch.int8) == (way.get("state_dtype") == "int8")
    before = weight.detach().clone()
    rows = torch.tensor([[3, 7, 299]])
    for _ in range(3):
        weight.grad = torch.sparse_coo_tensor(
            rows, torch.ones(3, 20, dtype=torch.bfloat16), (300, 20), check_invariants=True
        )
        optimizer.step()
    touched = torch.zeros(300, dtype=torch.bool)
    touched[rows[0]] = True
    assert torch.equal(weight[~touched], before[~touched])
    assert (weight[touched] < before[touched]).float().mean() > 0.9
    assert optimizer.state[weight]["exp_avg"].dtype != torch.int8
    torch.testing.assert_close(weight[touched].float().mean().item(), 0.96, rtol=0, atol=0.01)


def test_a_weight_cast_to_another_dtype_loses_its_rest():
    weight = torch.nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    optimizer = trained(lambda params: SGD(params, lr=1e-3, compensated=True), [weight], 2)
    assert optimizer.state[weight]["rest"].dtype == torch.int16
    weight.data = weight.data.half()
    trained(lambda params: optimizer, [weight], 1)
    assert optimizer.state[weight]["rest"].dtype == torch.float16


def test_complex_and_wide_weights_take_the_options():
    weights = [
        torch.nn.Parameter(torch.ones(5000, dtype=dtype))
        for dtype in (torch.complex64, torch.float64, torch.float32)
    ]
    optimizer = trained(lambda p: Adam(p, rounding="stochastic", state_dtype="int8"), weights, 2)
    kinds = [optimizer.state[weight]["exp_avg"].dtype for weight in weights]
    assert kinds == [torch.complex64, torch.int8, torch.int8]
    assert all(weight.isfinite().all() for weight in weights)


def test_groups_have_ways_of_their_own():
    one, other = parameters(torch.bfloat16, (SIZE,), (SIZE,))
    optimizer = AdamW([{"params": [one], "state_dtype": "int8"}, {"params": [other], "compensated": True}])
    trained(lambda params: optimizer, [one, other], 1)
    assert optimizer.state[one]["exp_avg"].dtype == torch.int8
    assert "rest" in optimizer.state[other]
    assert "rest" not in optimizer.state[one]


# Refusals


def test_torchs_own_dtypes_are_named_as_they_are():
    with pytest.raises(ValueError, match=r"state_dtype=torch.float16 is not None or one of"):
        AdamW([torch.nn.Parameter(torch.ones(2))], state_dtype=torch.float16)


@pytest.mark.parametrize(("name", "value"), [("rounding", "up"), ("compensated", 1), ("ema_decay", 2.0)])
def test_options_changed_on_the_way_are_checked(name, value):
    optimizer = trained(lambda params: AdamW(params, ema_decay=0.5), parameters(torch.bfloat16, (5,)), 1)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name}={value!r} is not"):
        optimizer.step()


def test_the_whole_optimizers_options_are_not_a_groups():
    with pytest.raises(ValueError, match=r"max_norm=2\.0 is of one parameter group"):
        SGD([{"params": [torch.nn.Parameter(torch.ones(2))], "max_norm": 2.0}], max_norm=1.0)
