"""Every way to keep numbers, on a GPU: compiled, and in the interpreter against the CPU kernels, with their draws."""

import re

import numpy as np
import pytest
import torch

from schuss.compile import gpu
from schuss.compile.formula import formula
from schuss.compile.launch import TENSOR_BITS, Terms
from schuss.compile.storage import BLOCK, FIRST, GOLDEN, LEVEL_TOP, SECOND, columns, keys
from schuss.rules import SGD, Adadelta, Adam

# Weight, gradient, every slot of the page, and the average if there is one.
KEPT = {
    "int8": ("float32", "float32", "int8"),
    "int8 of bfloat16": ("bfloat16 stochastic", "bfloat16", "int8"),
    "stochastic": ("bfloat16 stochastic", "bfloat16", "bfloat16 stochastic"),
    "compensated": ("bfloat16 compensated", "bfloat16", "float32"),
    "float16": ("float16 compensated", "float16", "float16 stochastic"),
    "averaged": ("float16 stochastic", "float16", "int8", "float32"),
}


def kept_by(rule, name):
    w, g, slot, *average = KEPT[name]
    return w, g, *[slot] * len(rule.slots), *average


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KEPT)
def test_machine_code(name, capability, gpus, tmp_path):
    """Several numbers of every array at a time, nothing spilled, nothing in float64."""
    one = formula(Adam, averaged=name == "averaged")
    kept = kept_by(Adam(), name)
    made = gpus.page_kernel(one, kept, capability)
    used = gpus.INSTRUCTION.findall(made.asm["ptx"])
    a_thread = gpu.BLOCK // (32 * gpu.OPTIONS["num_warps"])
    read = [column for column in columns(("w", "g", *one.slots), kept) if column.per == 1]
    written = [column for column in read if column.name != "g"]
    for way, moved in (("ld", read), ("st", written)):
        sizes = [int(k) for n in used for k in re.findall(rf"^{way}\.global\.v(\d)\.b32", n)]
        assert 4 * sum(sizes) == sum(a_thread * column.itemsize for column in moved)
    assert not [n for n in used if re.search(r"f64|local|ftz|approx|^call", n)]
    gpus.nothing_is_spilled(made, tmp_path)


def test_amd_compiles(gpus):
    made = gpus.page_kernel(formula(Adam), kept_by(Adam(), "int8 of bfloat16"), "gfx942")
    assert re.search(r"vgpr_spill_count: +0\b", made.asm["amdgcn"])


def test_wide_kernels_round_from_float32(gpus):
    """Weights of float64 beside narrow slots, as a checkpoint may have them."""
    one = formula(Adam, averaged=True)
    kept = ("float64", "float32", "int8", "bfloat16 compensated", "float16 stochastic")
    assert gpus.page_kernel(one, kept).asm["ptx"]


# Chance


def _hash(x, between):
    x ^= x >> 16
    x = x * FIRST & 0xFFFFFFFF ^ between
    x ^= x >> 15
    x = x * SECOND & 0xFFFFFFFF
    return x ^ x >> 16


def chance(seed, step, place, number):
    """32 bits for the number at a place of an array, from the words in `storage`."""
    a, b = (
        _hash((int(key) + (2 * number + k) * GOLDEN) & 0xFFFFFFFF, place >> 32)
        for k, key in enumerate(keys(seed, step))
    )
    return _hash((place + a) & 0xFFFFFFFF, b)


def test_interpreted_draws_are_those_of_plain_python(gpus):
    """A bfloat16 moves up if and only if its 16 bits and those that it loses are together more than 16."""
    lengths, members, steps = (gpu.ROW + 130, 1, 0, 70), (5, 0, 1, 1 << 20), 2
    arrays = gpus.Arrays([SGD(lr=1.0)], ("bfloat16 stochastic", "float32"), lengths)
    lost = np.random.default_rng(0).integers(0, 2**16, sum(lengths), dtype=np.uint32)
    g = torch.from_numpy((np.uint32(0x3F800000) + lost).view(np.float32)).split(lengths)
    launch, ledger = arrays.on_gpu([0] * 4, members), np.zeros(((1 << 20) + 1, 1))
    for step in range(1, steps + 1):
        arrays.fill("w", [torch.zeros(n) for n in lengths])
        arrays.fill("g", g)
        launch.step(ledger, arrays.rules, [Terms(-1.0, seed=-7)])
        for w, gradient, member in zip(arrays.named("w"), g, members, strict=True):
            bits = gradient.numpy().view(np.uint32)
            draws = [chance(-7, step, (member << TENSOR_BITS) + i, 0) >> 16 for i in range(len(w))]
            expected = (bits + np.array(draws, dtype=np.uint32)) >> 16
            assert (w.view(torch.int16).numpy().view(np.uint16) == expected).all()


# Against the CPU's kernels

SPECIAL = [
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    3e38,
    -3.3895314e38,
    65519.0,
    -65520.0,
    6e-8,
    3e-5,
    1.0,
]


def same_bits(a, b):
    """Whether two tensors hold the same bytes; one NaN is as good as another."""
    if a.is_floating_point():
        both = a.isnan() & b.isnan()
        a, b = a.masked_fill(both, 0), b.masked_fill(both, 0)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def both(arrays, members, steps, ledger_rows, gpus, terms):
    """The same steps on the CPU and in the interpreter: the arrays of each."""
    other = arrays.copy()
    for made in (arrays, other):
        groups = [0] * len(made.lengths)
        launch = made.on_cpu(groups, members) if made is arrays else made.on_gpu(groups, members)
        ledger = gpus.first_ledger(made.rules * ledger_rows)
        for g in steps:
            made.fill("g", g)
            launch.step(ledger, made.rules, [terms], 1)
    return arrays, other


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    "kept",
    [
        ("bfloat16 stochastic", "float32", "int8"),
        ("float16 stochastic", "float32", "bfloat16 stochastic"),
        ("bfloat16 compensated", "float32", "float16 compensated"),
        ("float16 compensated", "float32", "bfloat16 compensated"),
        ("float32", "bfloat16", "int8"),
    ],
    ids=" ".join,
)
def test_interpreted_numbers_are_kept_to_the_bit(kept, gpus):
    """Where the arithmetic is exact, so is all else: every special number, and 13 decades, twice in and out."""
    rule = SGD(lr=1.0, momentum=0.5)
    random = np.random.default_rng(1)
    lengths = (gpu.ROW + 5, 0, 1, 14, 3 * BLOCK)
    g = [(random.choice([-1, 1], n) * 10 ** random.uniform(-9, 4, n)).astype(np.float32) for n in lengths]
    g[3][:] = SPECIAL
    g[4][:BLOCK], g[4][BLOCK + 3] = 0, np.nan
    steps = [g, [-x for x in g]]
    arrays = gpus.Arrays([rule], kept, lengths)
    cpu, found = both(arrays, (4, 3, 2, 1, 0), steps, 5, gpus, Terms(seed=3))
    for column, a, b in zip(cpu.columns, cpu.tensors, found.tensors, strict=True):
        assert all(map(same_bits, a, b)), column.name
    assert found.named("w")[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_interpreted_a_weight_set_by_hand_leaves_its_rest(dtype, gpus):
    """What rounding took is no part of a zero, an infinity or a NaN that is written since: as on the CPU."""
    arrays = gpus.Arrays([SGD(lr=1.0)], (f"{dtype} compensated", "float32"), (600,))
    arrays.fill("w", [np.resize([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 2.0**-24], 600)])
    random = np.random.default_rng(4)
    arrays.fill("w_rest", [random.integers(-300, 300, 600) / (1 if dtype == "bfloat16" else 16)])
    cpu, found = both(arrays, (0,), [[np.full(600, 2.0**-20)]], 1, gpus, Terms())
    for a, b in zip(cpu.tensors, found.tensors, strict=True):
        assert same_bits(a[0], b[0])


def test_interpreted_every_page(variant, gpus):
    """The same draws, and arithmetic that may fuse otherwise: nearly all codes the same, the others neighbours."""
    rule = variant.rule
    lengths = (400, 1)
    random = np.random.default_rng(2)
    arrays = gpus.Arrays([rule], kept_by(rule, "averaged"), lengths, averaged=True)
    start = [random.choice([-1.0, 1.0], n) * random.uniform(1, 2, n) for n in lengths]
    arrays.fill("w", start)
    steps = [[random.choice([-1.0, 1.0], n) * random.uniform(0.5, 2, n) for n in lengths] for _ in range(2)]
    cpu, found = both(arrays, (1, 0), steps, 2, gpus, Terms(-1.0, renewed=0.25, seed=11))
    for column, a, b in zip(cpu.columns, cpu.tensors, found.tensors, strict=True):
        if column.beside or column.storage.dtype == "float32":
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)
        elif column.name != "g":
            # Codes and float16 numbers of one sign are in order as whole numbers.
            whole = [t.view(torch.int8 if t.dtype is torch.int8 else torch.int16).int() for t in (*a, *b)]
            for x, y in zip(whole[:2], whole[2:], strict=True):
                assert ((x - y).abs() <= 1).all(), column.name
                assert (x == y).double().mean() > 0.98, column.name
    assert not torch.equal(found.named("w")[0].double(), torch.as_tensor(start[0]))


@pytest.mark.parametrize(("name", "limit"), [("int8", 50.0), ("compensated", 0.2)])
def test_interpreted_a_change_that_is_held_back(name, limit, gpus):
    """The options of the change: measured over tensors of several programs, and of one number."""
    lengths, lr = (gpu.ROW + 130, 1), 0.1
    random = np.random.default_rng(3)
    rule, kept = Adam(lr=lr), kept_by(Adam(), name)
    arrays = gpus.Arrays([rule], kept, lengths, cautious=True, limited=True)
    steps = [[random.choice([-1.0, 1.0], n) * random.uniform(0.5, 2, n) for n in lengths] for _ in range(2)]
    cpu, found = both(arrays, (1, 0), steps, 2, gpus, Terms(seed=11, max_update=limit))
    for a, b in zip(cpu.named("w"), found.named("w"), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=0.02 * float(a.abs().max()))
        far = float(b.double().square().mean().sqrt())
        assert (0 < far <= len(steps) * limit * lr * 1.01) if limit < 1 else far > lr


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, gpu.BLOCK + 3 * BLOCK, gpu.ROW + 1])
def test_interpreted_scales_end_with_their_tensor(length, gpus):
    """Neither codes nor scales beyond the last are read or written."""
    rule = SGD(lr=1.0, momentum=0.5)
    arrays = gpus.Arrays([rule], ("float32", "float32", "int8"), (length,))
    scales = -(-length // BLOCK)
    codes, beside = torch.full((length + 300,), 77, dtype=torch.int8), torch.full((scales + 9,), torch.nan)
    codes[:length], beside[:scales] = 0, 0
    arrays.tensors[2:] = [[codes[:length]], [beside[:scales]]]
    arrays.fill("g", [torch.ones(length)])
    launch = arrays.on_gpu([0], [0])
    launch.step(np.zeros((1, 1)), [rule], [Terms()])
    assert (codes[length:] == 77).all()
    assert beside[scales:].isnan().all()
    assert (codes[:length] == 127).all()
    torch.testing.assert_close(beside[:scales], torch.full((scales,), 1 / LEVEL_TOP))
    assert (arrays.named("w")[0] == -1).all()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_interpreted_what_is_beyond_a_tensor_is_in_no_block(gpus):
    """Adadelta without eps makes 0/0 of the zeros that stand there."""
    arrays = gpus.Arrays([Adadelta(eps=0.0)], ("float32", "float32", "int8", "int8"), (3,))
    arrays.fill("g", [torch.ones(3)])
    arrays.on_gpu([0], [0]).step(np.zeros((1, 1)), arrays.rules, [Terms()])
    assert all(t.isfinite().all() for column in arrays.tensors for t in column)
