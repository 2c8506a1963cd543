"""How numbers are kept: by chance, compensated, in blocks of 8 bits. Kernels are plain tensors' steps, to the bit."""

import numpy as np
import pytest
import torch

from schuss.compile import cpu, eager, launch
from schuss.compile.formula import formula
from schuss.compile.launch import Launch, Terms, WholeTensors, numbers
from schuss.compile.reference import Reference
from schuss.compile.storage import BLOCK, columns, keys
from schuss.rules import SGD

DTYPES = {
    name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16", "int16", "int8")
}
STEP = SGD(lr=1.0)  # w − g, rounded once
PUSHED = SGD(lr=1.0, momentum=0.5)  # v ← v/2 + g, w ← w − v, each rounded once
COMBINATIONS = [
    ("bfloat16 stochastic", "bfloat16", "float32"),
    ("bfloat16 compensated", "float32", "bfloat16 stochastic"),
    ("float16 stochastic", "float16", "float16 stochastic"),
    ("float16 compensated", "float32", "int8"),
    ("bfloat16 stochastic", "float32", "int8"),
    ("float32", "float32", "int8"),
    ("float64", "float32", "int8"),
    ("float64", "float64", "bfloat16 stochastic"),
]


def memory(rule, kept, start, slots=()):
    """Arrays for the launch of one tensor: `start` and `slots` as they are kept."""
    found = []
    names = ("w", "g", *formula(rule).slots)
    given = dict(zip(("w", *formula(rule).slots), (start, *slots), strict=True))
    for column in columns(names, kept):
        dtype = DTYPES[column.storage.beside.dtype if column.beside else column.storage.dtype]
        if column.beside or column.name == "g":
            found.append(torch.zeros(-(-len(start) // column.per), dtype=dtype))
        elif column.storage.name == "int8":
            found.append(torch.zeros(len(start), dtype=dtype))
        else:
            found.append(given[column.name].to(dtype).clone())
    return found


def launched(rule, kept, arrays, steps, gradients, seed=0, averaged=False):
    """Steps by the kernel, in place."""
    one = formula(rule, averaged)
    table = WholeTensors(columns(("w", "g", *one.slots), kept), [len(arrays[0])], one.passes)
    for column, array in enumerate(arrays):
        table.place(column, np.array([array.data_ptr()]))
    made = Launch(one, cpu.kernel(one, kept), table, [0], [3])
    ledger = np.zeros((4, 1 + len(rule.scalars)))
    ledger[3, 1:] = [rule.initial().get(name, 0.0) for name in rule.scalars]
    for k in range(steps):
        arrays[1].copy_(gradients[k])
        made.step(ledger, [rule], [Terms(seed=seed)], 1)
    return arrays


def stepped_eagerly(rule, kept, arrays, steps, gradients, seed=0):
    remembered = [0.0, *(rule.initial().get(name, 0.0) for name in rule.scalars)]
    for k in range(steps):
        arrays[1].copy_(gradients[k])
        row, remembered = numbers(formula(rule), True, rule, remembered, Terms(seed=seed))
        eager.step(formula(rule), kept, arrays, row, torch.tensor([3 << launch.TENSOR_BITS]))
    return arrays


def gaussian(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


def bits(tensor):
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


# The kernel and the eager path mean the same


@pytest.mark.parametrize("kept", COMBINATIONS, ids="-".join)
def test_the_kernel_is_the_eager_path_to_the_bit(kept):
    size, steps = 3 * BLOCK + 17, 4
    gradients = gaussian(steps, size) * 10.0 ** torch.randint(
        -6, 3, (size,), generator=torch.Generator().manual_seed(1)
    )
    gradients[:, ::7] = 0
    arrays = [memory(PUSHED, kept, gaussian(size, seed=2), [torch.zeros(size)]) for _ in range(2)]
    for found, expected in zip(
        launched(PUSHED, kept, arrays[0], steps, gradients, seed=5),
        stepped_eagerly(PUSHED, kept, arrays[1], steps, gradients, seed=5),
        strict=True,
    ):
        assert torch.equal(bits(found), bits(expected))
        assert (bits(found) != 0).any()


SPECIAL = torch.tensor(
    [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-40, 3e38, -3.4e38, 65519.0, 1e-7, 6e-8]
)


@pytest.mark.parametrize("kept", COMBINATIONS, ids="-".join)
def test_special_numbers_are_the_eager_paths_to_the_bit(kept):
    """Each in a block of its own, where there are blocks: one NaN there is the block's."""
    start = torch.zeros(len(SPECIAL) * BLOCK)
    gradient = torch.zeros_like(start)
    gradient[::BLOCK] = SPECIAL
    gradient[1::BLOCK] = 1.0
    arrays = [memory(PUSHED, kept, start, [start]) for _ in range(2)]
    found = launched(PUSHED, kept, arrays[0], 2, [gradient] * 2)
    expected = stepped_eagerly(PUSHED, kept, arrays[1], 2, [gradient] * 2)
    for one, other in zip(found, expected, strict=True):
        wide, meant = one.double(), other.double()
        assert torch.equal(wide.isnan(), meant.isnan())
        assert torch.equal(wide.nan_to_num(), meant.nan_to_num())
    assert found[0][0].isnan()
    assert found[0][1 + BLOCK :: BLOCK].isfinite().sum() >= len(SPECIAL) // 2


@pytest.mark.parametrize("kept", COMBINATIONS, ids="-".join)
def test_how_tensors_are_cut_changes_no_bit(kept, monkeypatch):
    size = 5 * BLOCK + 3
    found = []
    for row in (32768, BLOCK):
        monkeypatch.setattr(launch, "ROW", row)
        arrays = memory(PUSHED, kept, gaussian(size), [torch.zeros(size)])
        found.append(launched(PUSHED, kept, arrays, 3, gaussian(3, size, seed=1)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(bits(one), bits(other))


KEPT = [
    ("bfloat16 stochastic", "float32", "float32"),
    ("bfloat16 compensated", "float32", "bfloat16 stochastic"),
]


@pytest.mark.parametrize(
    ("w", "g", "slot"), [*KEPT, ("float32", "float32", "int8"), ("float32", "float32", "float32")]
)
def test_every_page_against_the_reference(w, g, slot, variant):
    """One step from where the reference is after three, as far as that can be kept."""
    rule, size = variant.rule, 2 * BLOCK + 9
    random = np.random.default_rng(4)
    reference = Reference(rule, random.choice([-1.0, 1.0], size) * random.uniform(1, 2, size))
    gradients = random.choice([-1.0, 1.0], (4, size)) * random.uniform(0.5, 2, (4, size))
    kept = (w, g, *[slot] * len(rule.slots))
    # All that is remembered, from the start, by kernel; where it is kept coarsely, compared coarsely.
    arrays = memory(rule, kept, torch.from_numpy(reference.w), map(torch.from_numpy, reference.state))
    names = ("w", "g", *formula(rule).slots)
    for k, column in enumerate(columns(names, kept)):
        if column.storage.name == "int8" and not column.beside:
            value = torch.from_numpy(reference.state[k - 2]).float()
            arrays[k].copy_(eager.to_levels(value)[0])
            scale = next(j for j, c in enumerate(columns(names, kept)) if c.name == f"{column.name}_scale")
            arrays[scale].copy_(eager.to_levels(value)[1])
    start = arrays[0].double().numpy()
    reference = Reference(rule, start)
    launched(rule, kept, arrays, 1, torch.from_numpy(gradients[:1]).float())
    reference.step(torch.from_numpy(gradients[0]).float().double().numpy())
    step = np.abs(reference.w - start).max()
    unit = {"bfloat16 stochastic": 2.0**-7, "bfloat16 compensated": 2.0**-8, "float32": 2.0**-22}[w]
    np.testing.assert_allclose(arrays[0].double().numpy(), reference.w, rtol=unit, atol=1e-5 * step)
    for k, meant in enumerate(reference.state):
        found = arrays[2 + k].double()
        if slot == "int8":
            besides = [c.name for c in columns(names, kept)]
            found = eager.from_levels(arrays[2 + k], arrays[besides.index(f"{names[2 + k]}_scale")]).double()
        coarse = {"int8": 1 / 8, "bfloat16 stochastic": 2.0**-7, "float32": 1e-6}[slot]
        np.testing.assert_allclose(found.numpy(), meant, rtol=coarse, atol=1e-12)


# Chance


def plain_draw(place, seed, step, number):
    """The bits for a place, in Python's own numbers, from the words of `storage`."""

    def hashed(x, between):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32 ^ between
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    first, second = (
        hashed((int(key) + (2 * number + k) * 0x9E3779B9) % 2**32, place >> 32)
        for k, key in enumerate(keys(seed, step))
    )
    return hashed((place + first) % 2**32, second)


def test_the_bits_are_those_of_the_formula():
    places = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, (7 << 40) + 12345, (2**22 << 40) + 2**39])
    for seed, step, number in ((0, 1, 0), (3, 2, 2), (-1, 10**12, 5)):
        expected = [plain_draw(place, seed, step, number) for place in places.tolist()]
        assert eager.chances(places, keys(seed, step), number).tolist() == expected


def test_chance_is_even_and_depends_on_all_that_it_should():
    places = torch.arange(1 << 16)
    base = eager.chances(places, keys(0, 1), 0)
    shares = torch.stack([(base >> bit) & 1 for bit in range(32)]).double().mean(dim=1)
    assert (shares - 0.5).abs().max() < 5 * 0.5 / 2**8  # five standard deviations
    uniform = (base.double() + 0.5) / 2**32
    assert torch.histc(uniform, 64, 0, 1).sub(1024).abs().max() < 5.5 * 32
    others = {
        "the seed": eager.chances(places, keys(1, 1), 0),
        "the step": eager.chances(places, keys(0, 2), 0),
        "the array": eager.chances(places, keys(0, 1), 2),
        "the tensor": eager.chances(places + (1 << 40), keys(0, 1), 0),
        "the place": eager.chances(places + 1, keys(0, 1), 0),
    }
    for what, other in others.items():
        paired = torch.corrcoef(torch.stack([uniform, (other.double() + 0.5) / 2**32]))[0, 1]
        assert abs(paired) < 5 / 2**8, what
        assert (other == base).double().mean() < 1e-3, what


def test_keys_are_whole_numbers_that_float32_holds():
    found = [keys(seed, step) for seed in range(-3, 4) for step in (1, 2, 10**15)]
    assert all(key == int(key) and 0 <= key < 2**24 for pair in found for key in pair)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_chance_is_right_on_average(dtype):
    """To one of the two neighbours; exact numbers stay; denormals of float16 too."""
    kept = (f"{dtype} stochastic", "float32")
    values = torch.tensor([1.003, -1.003, 0.4999, 3.14159, -2e-6, 3.3e-8, 1e4 + 1.7, 1.0, -0.5, 0.0])
    tries = 40_000
    g = -values.repeat_interleave(tries)
    w = launched(STEP, kept, memory(STEP, kept, torch.zeros(len(g))), 1, [g])[0].view(len(values), tries)
    nearest = values.to(DTYPES[dtype])
    lower = torch.where(nearest.float() > values, _next(nearest, -1), nearest).double()
    upper = torch.where(nearest.float() < values, _next(nearest, 1), nearest).double()
    found = w.double()
    assert ((found == lower[:, None]) | (found == upper[:, None])).all()
    gap = upper - lower
    error = (found.mean(dim=1) - values.double()).abs()
    assert (error <= 5 * 0.5 * gap / tries**0.5 + 2.0**-13 * gap).all()
    assert (gap[-3:] == 0).all()
    assert (gap[:4] > 0).all()


def _next(tensor, way):
    """The neighbour of each number, up or down."""
    whole = tensor.view(torch.int16)
    up = torch.where(tensor > 0, way, torch.where(tensor < 0, -way, way))
    return (whole + up.to(torch.int16)).view(tensor.dtype)


# Compensated


def test_bfloat16_and_its_rest_are_the_float32_number():
    kept = ("bfloat16 compensated", "float32")
    random = np.random.default_rng(0)
    every = torch.from_numpy(random.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32).copy())
    values = every[every.isfinite() & (every.abs() < 3.38e38)]
    arrays = memory(STEP, kept, torch.zeros(len(values)))
    launched(STEP, kept, arrays, 1, [-values])
    half = torch.finfo(torch.bfloat16).eps / 2
    np.testing.assert_allclose(arrays[0].double().numpy(), values.double().numpy(), rtol=half, atol=1e-38)
    again = [*memory(STEP, kept, torch.zeros(len(values)))]
    again[0], again[2] = arrays[0], arrays[2]
    wide = eager._join(again[0], again[2])
    assert torch.equal(wide + 0.0, values + 0.0)
    # And so it stays where the kernel reads and writes it.
    before = [array.clone() for array in again]
    launched(STEP, kept, again, 1, [torch.zeros(len(values))])
    assert torch.equal(again[0], before[0])
    assert torch.equal(again[2], before[2])


def test_float16_and_its_rest_have_22_bits():
    kept = ("float16 compensated", "float32")
    values = gaussian(50_000)
    arrays = launched(STEP, kept, memory(STEP, kept, torch.zeros(len(values))), 1, [-values])
    error = (eager._join(arrays[0], arrays[2]) - values).abs() / values.abs()
    assert error.max() < 2.0**-21


def test_what_was_written_from_outside_counts():
    """A pruned weight is 0, an infinite one infinite: the rest of what stood there is no part of it."""
    kept = ("bfloat16 compensated", "float32")
    arrays = memory(STEP, kept, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    launched(STEP, kept, arrays, 1, [torch.full((4,), 1e-3)])
    assert (arrays[2] != 0).all()
    arrays[0].copy_(torch.tensor([0.0, torch.inf, 2.0, 1.0]))
    launched(STEP, kept, arrays, 1, [torch.tensor([0.0, 0.0, 0.0, 0.0])])
    assert arrays[0].tolist()[2:] == [2.0, 1.0]
    assert 0 <= arrays[0][0] < 1e-35
    assert not arrays[0][1].isfinite()


# Blocks


def test_levels_are_close_and_right_on_average():
    values = gaussian(64 * BLOCK)
    drawn = eager.chances(torch.arange(len(values)), keys(0, 1), 2)
    codes, scales = eager.to_levels(values, drawn)
    found = eager.from_levels(codes, scales)
    most = values.view(-1, BLOCK).abs().amax(dim=1).repeat_interleave(BLOCK)
    ordinary = values.abs() > most * 2.0**-15
    assert ordinary.float().mean() > 0.99
    assert ((found - values).abs()[ordinary] <= values.abs()[ordinary] / 8).all()
    assert (found.sign() == values.sign()).all()
    nearest = eager.from_levels(*eager.to_levels(values))
    assert ((nearest - values).abs()[ordinary] <= 1.0001 * values.abs()[ordinary] / 16).all()
    many = torch.stack(
        [
            eager.from_levels(
                *eager.to_levels(values, eager.chances(torch.arange(len(values)), keys(0, t), 2))
            )
            for t in range(1, 401)
        ]
    )
    bias = (many.double().mean(dim=0) - values).abs() / values.abs()
    assert bias[ordinary].max() < 5.5 * (1 / 16) / 400**0.5
    largest = values.abs() == most
    torch.testing.assert_close(found[largest], values[largest], rtol=3e-7, atol=0)


def test_what_codes_mean():
    """Level l is (1 + (l mod 8)/8) · 2^(⌊l/8⌋ − 15) of the scale, the block's largest 127: checkpoints hold it."""
    values = torch.tensor([1.875, 1.0, -0.5, 2.0**-14, 1e-9, 0.0])
    codes, scales = eager.to_levels(values)
    assert codes.tolist() == [127, 120, -112, 8, 1, 0]
    assert scales.tolist() == [1.0]


def test_zero_stays_zero_and_nothing_else_becomes_it():
    values = torch.zeros(2 * BLOCK)
    values[BLOCK:] = torch.logspace(-30, 0, BLOCK)
    found = eager.from_levels(*eager.to_levels(values))
    assert (found[:BLOCK] == 0).all()
    assert (found[BLOCK:] > 0).all()


@pytest.mark.parametrize("size", [1e-40, 1e-38, 1e-20, 1e20, 3e38])
def test_blocks_of_any_size(size):
    """Down to the least level of the least block that is counted: 2⁻¹⁴¹."""
    values = torch.tensor([1.0, -0.5, 0.25, 0.0]).repeat(BLOCK // 4) * size
    found = eager.from_levels(*eager.to_levels(values))
    torch.testing.assert_close(found, values, rtol=1 / 16, atol=2.0**-141)
