# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportOperatorIssue=false
# (Triton's functions are typed for its compiler, not for what a kernel sees.)
"""How a GPU kernel reads and rounds numbers: `memory` once more, in Triton, bit for bit.

What the conversions mean stands in `storage`. Generated kernels import these functions; nothing else imports this
module, so that Triton is needed only where a kernel is made.
"""

import triton
import triton.language as tl

from schuss.compile import storage

BLOCK = tl.constexpr(storage.BLOCK)
FIRST, SECOND, GOLDEN = (tl.constexpr(x) for x in (storage.FIRST, storage.SECOND, storage.GOLDEN))
LEVEL_BITS, LEVEL_OFFSET = tl.constexpr(storage.LEVEL_BITS), tl.constexpr(storage.LEVEL_OFFSET)
LEVEL_MOST, LEVEL_LEAST = tl.constexpr(storage.LEVEL_MOST), tl.constexpr(storage.LEVEL_LEAST)
LEVEL_TOP, PER_TOP = tl.constexpr(storage.LEVEL_TOP), tl.constexpr(1 / storage.LEVEL_TOP)
INFINITY, MAGNITUDE, SIGN = tl.constexpr(0x7F800000), tl.constexpr(0x7FFFFFFF), tl.constexpr(0x80000000)


# Chance


@triton.jit
def hashed(x, between):
    """A permutation of 32 bits, with `between` in its middle."""
    x = (x ^ (x >> 16)) * tl.full((), FIRST, tl.uint32)
    x = x ^ between
    x = (x ^ (x >> 15)) * tl.full((), SECOND, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def stream(key, place, number: tl.constexpr):
    """What the draws of one stretch share: half of it."""
    upper = (place >> 32).to(tl.uint32)
    return hashed(key.to(tl.uint32) + tl.full((), (number * GOLDEN) & 0xFFFFFFFF, tl.uint32), upper)


@triton.jit
def draw(place, first, second):
    """32 random bits for the number at a place, from the two halves of a stream."""
    return hashed(place.to(tl.uint32) + first, second)


# By chance


@triton.jit
def draw_bfloat16(value, chance):
    """Add 16 random bits below those that are kept, and cut them off; infinity stays, and NaN."""
    bits = value.to(tl.uint32, bitcast=True)
    moved = (bits + (chance >> 16)) >> 16
    quiet = (bits >> 16) | tl.where(value != value, tl.full((), 0x40, tl.uint32), tl.full((), 0, tl.uint32))
    kept = tl.where((bits & MAGNITUDE) < INFINITY, moved, quiet)
    return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def draw_float16(value, chance):
    """Add 13 random bits and cut them off; below the normal numbers, all 2⁻²⁴ apart, take the floor after adding."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & MAGNITUDE
    cut = (magnitude + (chance >> 19)) & 0xFFFFE000
    normal = magnitude >= 0x38800000
    small = tl.where(normal, 0.0, magnitude.to(tl.float32, bitcast=True))
    units = small * 16777216.0 + (chance >> 8).to(tl.float32) * 5.9604644775390625e-08
    floor = (units.to(tl.int32).to(tl.float32) * 5.9604644775390625e-08).to(tl.uint32, bitcast=True)
    kept = ((bits & SIGN) | tl.where(normal, cut, floor)).to(tl.float32, bitcast=True)
    return tl.where(magnitude < INFINITY, kept, value).to(tl.float16)


# Compensated


@triton.jit
def join_bfloat16(upper, rest):
    """The float32 whose upper half is `upper` and whose lower half, signed, is `rest`; a 0 or infinity as it is."""
    bits = upper.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    magnitude = (bits & MAGNITUDE).to(tl.int32)
    whole = magnitude + rest.to(tl.int32)
    kept = tl.where((magnitude < INFINITY) & (whole >= 0), whole, magnitude)
    return ((bits & SIGN) | kept.to(tl.uint32)).to(tl.float32, bitcast=True)


@triton.jit
def split_bfloat16(value):
    """The nearest bfloat16, of two the larger, and what is missing to the number: 16 bits with their sign."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & MAGNITUDE
    finite = magnitude < INFINITY
    rounded = (magnitude + 0x8000) & 0x7FFF0000
    quiet = (bits >> 16) | tl.where(value != value, tl.full((), 0x40, tl.uint32), tl.full((), 0, tl.uint32))
    upper = tl.where(finite, ((bits & SIGN) | rounded) >> 16, quiet)
    rest = tl.where(finite, (magnitude - rounded).to(tl.int32, bitcast=True), 0)
    return upper.to(tl.uint16).to(tl.bfloat16, bitcast=True), rest.to(tl.int16)


@triton.jit
def join_float16(upper, rest):
    """The nearest float16, and 2⁻¹¹ times what was kept of the rest."""
    return upper.to(tl.float32) + rest.to(tl.float32) * 0.00048828125


@triton.jit
def split_float16(value):
    """The nearest float16, and what is missing to the number, times 2¹¹ so that it is seldom a denormal."""
    upper = value.to(tl.float16)
    nearest = upper.to(tl.float32)
    finite = (nearest.to(tl.uint32, bitcast=True) & MAGNITUDE) < INFINITY
    missing = (value - tl.where(finite, nearest, value)) * 2048.0
    return upper, tl.where(finite, missing, 0.0).to(tl.float16)


# Levels of a block: a row of `BLOCK` numbers


@triton.jit
def from_level(code, scale):
    """The number of a code, as float32."""
    signed = code.to(tl.int32)
    level = tl.abs(signed)
    size = ((level + LEVEL_OFFSET) << LEVEL_BITS).to(tl.float32, bitcast=True)
    size = tl.where(level == 0, 0.0, size)
    return tl.where(signed < 0, -size, size) * scale


@triton.jit
def largest(value, inside):
    """The largest magnitude of each row, as a float32; a NaN is larger than any number."""
    magnitude = value.to(tl.int32, bitcast=True) & MAGNITUDE
    most = tl.max(tl.where(inside, magnitude, 0), axis=1)
    return tl.maximum(most, LEVEL_LEAST).to(tl.float32, bitcast=True)


@triton.jit
def to_level(value, most, chance):
    """One of the two nearest codes, by chance; the least level for all that is smaller, 0 for 0."""
    inverse = tl.div_rn(tl.full(most.shape, LEVEL_TOP, tl.float32), most)
    bits = (value * inverse[:, None]).to(tl.int32, bitcast=True)
    raised = (bits & MAGNITUDE).to(tl.uint32) + (chance >> (32 - LEVEL_BITS))
    level = (raised >> LEVEL_BITS).to(tl.int32) - LEVEL_OFFSET
    level = tl.minimum(tl.maximum(level, 1), LEVEL_MOST)
    level = tl.where(value == 0, 0, level)
    return tl.where(bits < 0, -level, level).to(tl.int8)
