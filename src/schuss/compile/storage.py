"""How the numbers of one array are kept: in which dtype, how they are rounded to it, and what is kept beside them.

| name                                            | rounded          | kept beside it                                  |
|-------------------------------------------------|------------------|-------------------------------------------------|
| "float64", "float32", "bfloat16", "float16"     | to nearest       | nothing                                         |
| "bfloat16 stochastic", "float16 stochastic"     | by chance        | nothing                                         |
| "bfloat16 compensated", "float16 compensated"   | to nearest       | what rounding took, 16 bits a number            |
| "int8"                                          | by chance        | one float32 scale for each `BLOCK` numbers      |

*By chance*: to one of the two neighbours, the nearer with the higher chance, so that it is right on average and a
change too small for the dtype still counts. The chances come from a counter (`keys`), not from a generator's state.

*Compensated*: the array holds the nearest 16-bit number, the other one what is missing to the float32 it stands for.
For bfloat16 that is all of it, the lower half of the bits; for float16 11 bits more. This is Kahan's sum, with nothing
of the lost part lost again.

*int8*: a sign and a level, 1 to 127, of 8 levels an octave over 16 octaves below the largest magnitude of its block.
0 is exactly 0, and what is smaller than the lowest level is kept there, so that no square becomes 0 before its root is
divided by. Evenly spaced levels would lose most of a block; these are 6 to 12 % apart everywhere.

Sources: Gupta and others 2015 (stochastic rounding); Kahan 1965; Dettmers and others 2022, 8-bit optimizers via
block-wise quantization (the blocks). A number of 8 bits with an exponent is that of Micikevicius and others 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

# Numbers of an int8 array that share a scale: 2 · (1 + 4/128) = 2.06 bytes a weight for Adam's two slots.
BLOCK = 128
# Levels are the upper bits of a float32 in [2⁻¹⁵, 2): its mantissa's first 3, and 4 of its exponent.
LEVEL_BITS, LEVEL_OFFSET, LEVEL_MOST, LEVEL_TOP = 20, (127 - 15) << 3, 127, 1.875
# The least magnitude, as a float32's bits, that a block counts as its largest: 2⁻¹²⁵, whose inverse is finite.
LEVEL_LEAST = 0x01000000


@dataclass(frozen=True)
class Beside:
    """The array that is kept beside another: its name's last word, its dtype, and how many numbers share an entry."""

    name: str
    dtype: str
    per: int


@dataclass(frozen=True)
class Storage:
    """How one array is kept. `dtype` is the array's own."""

    name: str
    dtype: str
    drawn: bool = False
    beside: Beside | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one number, without what is beside it."""
        return BYTES[self.dtype]


# Those with nothing special: what weights and gradients can be of by themselves.
PLAIN = ("float64", "float32", "bfloat16", "float16")
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int16": 2, "int8": 1}

# The distance from 1 to the next number of each.
EPSILONS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}

STORAGES = {
    storage.name: storage
    for storage in (
        *(Storage(dtype, dtype) for dtype in PLAIN),
        *(Storage(f"{dtype} stochastic", dtype, drawn=True) for dtype in ("bfloat16", "float16")),
        Storage("bfloat16 compensated", "bfloat16", beside=Beside("rest", "int16", 1)),
        Storage("float16 compensated", "float16", beside=Beside("rest", "float16", 1)),
        Storage("int8", "int8", drawn=True, beside=Beside("scale", "float32", BLOCK)),
    )
}


@dataclass(frozen=True)
class Column:
    """One column of addresses in a launch: an array, or the one beside it (`beside`)."""

    name: str
    storage: Storage
    beside: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of one entry."""
        return (
            BYTES[self.storage.beside.dtype] if self.beside and self.storage.beside else self.storage.itemsize
        )

    @property
    def per(self) -> int:
        """How many of the weight's numbers share an entry."""
        return self.storage.beside.per if self.beside and self.storage.beside else 1


def columns(names: tuple[str, ...], kept: tuple[str, ...]) -> list[Column]:
    """A launch's columns: an array for each name, then what is beside those that have something beside them."""
    arrays = [
        Column(name, STORAGES.get(one) or Storage(one, one)) for name, one in zip(names, kept, strict=True)
    ]
    return arrays + [
        Column(f"{c.name}_{c.storage.beside.name}", c.storage, beside=True)
        for c in arrays
        if c.storage.beside
    ]


def compute_dtype(kept: tuple[str, ...]) -> str:
    """What a kernel of these computes in."""
    return "float64" if "float64" in kept else "float32"


def drawn(kept: tuple[str, ...]) -> bool:
    """Whether any of these rounds by chance."""
    return any(STORAGES[one].drawn for one in kept)


# Chance, from a counter. The bits for a number depend on the seed, the step, which array it is in and its place there,
# and on nothing else: not on threads, on how tensors were cut, or on what was drawn before.
#
#     key  = the upper and the lower 24 bits of mixed(seed, step)       on the host, as two numbers exact in float32
#     a, b = hash(key + the place's upper half + the array's number)    once a row
#     bits = hash(place + a, with b between its two rounds)             32 of them for each number
#
# hash: x ^= x >> 16; x *= FIRST; [x ^= b;] x ^= x >> 15; x *= SECOND; x ^= x >> 16, a permutation of 32 bits whose
# constants were found by search (Wellons 2018, "lowbias32").
FIRST, SECOND, GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def keys(seed: int, step: int) -> tuple[float, float]:
    """What all draws of one step share: two whole numbers below 2²⁴ (splitmix64 of both; Steele and others 2014)."""
    x = (seed * 0xD1342543DE82EF95 + step * 0x9E3779B97F4A7C15) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    x ^= x >> 31
    return float(x >> 40), float((x >> 8) & 0xFFFFFF)
