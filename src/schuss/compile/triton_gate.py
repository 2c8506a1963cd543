# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportOperatorIssue=false
# (Triton's functions are typed for its compiler, not for what a kernel sees.)
"""The kernels that decide on a step where the gradients are: a norm, and a gate (`device` has the design).

`squares_*` leave a sum of squares for each stretch of the gradients, `decide` adds them up and opens the gate or not.
No sum depends on which program ends first, so the same gradients give the same norm, to the last bit.

A stretch is squared in float32, after the power of two that makes its largest number about 1: nothing overflows, and
what is lost is less than half a bit of the largest. Float64, at which most GPUs are slow, is left to one number each.
"""

import triton
import triton.language as tl

from schuss.compile import gpu

ROW, BLOCK = tl.constexpr(gpu.ROW), tl.constexpr(4096)
COEFFICIENT, TAKEN, WHICH, STEPS, SKIPPED, NORM = (tl.constexpr(k) for k in range(len(gpu.GATE)))
BASE, LAST, MOST, SKIP = (tl.constexpr(k) for k in range(len(gpu.ASKED)))


@triton.jit
def square(g):
    """The sum of the squares of a block, in float64."""
    if g.dtype == tl.float64:
        total = tl.sum(g * g)
    else:
        most = tl.max(g.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        # That of the largest, of NaN and infinity too: they stay what they are.
        exponent = tl.minimum(most >> 23, 253)
        down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
        up = ((exponent + 896).to(tl.int64) << 52).to(tl.float64, bitcast=True)
        small = g * down
        total = tl.sum(small * small).to(tl.float64) * up * up
    return total


@triton.jit
def squares(rows, tensors, sums, start, stride, dtype: tl.constexpr, real: tl.constexpr):
    """The sum of a stretch of the gradients, whose addresses are in column 1."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tensors + stride * tl.load(rows + 2 * program)
    first = tl.multiple_of(tl.load(rows + 2 * program + 1), ROW)
    address = tl.load(tensor + 1)
    length = tl.load(tensor + stride - 2)
    i = first + tl.arange(0, ROW)
    if ((address & 15) == 0) & (length >= first + ROW):
        at_g = tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)
        tl.store(sums + start + program, square(tl.load(at_g + i).to(real)))
    else:
        at_g = address.to(tl.pointer_type(dtype))
        tl.store(sums + start + program, square(tl.load(at_g + i, mask=i < length, other=0).to(real)))


@triton.jit(do_not_specialize=["start", "stride"])
def squares_float64(rows, tensors, sums, start, stride):
    """Of float64 gradients."""
    squares(rows, tensors, sums, start, stride, tl.float64, tl.float64)


@triton.jit(do_not_specialize=["start", "stride"])
def squares_float32(rows, tensors, sums, start, stride):
    """Of float32 gradients."""
    squares(rows, tensors, sums, start, stride, tl.float32, tl.float32)


@triton.jit(do_not_specialize=["start", "stride"])
def squares_bfloat16(rows, tensors, sums, start, stride):
    """Of bfloat16 gradients."""
    squares(rows, tensors, sums, start, stride, tl.bfloat16, tl.float32)


@triton.jit(do_not_specialize=["start", "stride"])
def squares_float16(rows, tensors, sums, start, stride):
    """Of float16 gradients."""
    squares(rows, tensors, sums, start, stride, tl.float16, tl.float32)


@triton.jit(do_not_specialize=["count"])
def decide(sums, count, asked, grad_scale, found_inf, gate):
    """Write the gate of this step, and count it: one program, from `count` sums of squares."""
    steps = tl.load(gate + STEPS)
    skipped = tl.load(gate + SKIPPED)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(sums + i, mask=i < count, other=0.0)
    scale = tl.load(grad_scale).to(tl.float64)
    norm = tl.sqrt(tl.sum(total)) / scale
    finite = norm < float("inf")
    taken = (tl.load(found_inf) == 0) & (finite | (tl.load(asked + SKIP) == 0))
    clipped = tl.load(asked + MOST) / (norm + 1e-6)
    clipped = tl.where(clipped > 1, tl.full((), 1, tl.float64), clipped)  # a NaN stays one
    row = tl.minimum(tl.maximum(steps - tl.load(asked + BASE), 0.0), tl.load(asked + LAST))
    one = taken.to(tl.float64)
    tl.debug_barrier()  # all have read what is now written
    tl.store(gate + COEFFICIENT, clipped / scale)
    tl.store(gate + TAKEN, one)
    tl.store(gate + WHICH, row)
    tl.store(gate + STEPS, steps + one)
    tl.store(gate + SKIPPED, skipped + 1 - one)
    tl.store(gate + NORM, norm)
