"""However a tensor lies in memory, whatever its size and dtype: the right answer, and nothing else touched."""

import itertools

import numpy as np
import pytest
import torch

from schuss.compile.formula import formula
from schuss.torch import SGD

SIZES = [0, 1, 63, 1000, 32767, 32768, 32769, 100_001]
SHAPE = (2, 3, 4, 5)


def walk(case, oracle, weight, gradients):
    """Step `weight` with ours; return it, and where the reference takes it."""
    expected = oracle(case.rule, weight, gradients)
    optimizer = case.ours([weight])
    for g in gradients:
        weight.grad = g
        before = g.clone()
        optimizer.step()
        assert torch.equal(g.to_dense() if g.is_sparse else g, before), "a gradient was written to"
    return weight.detach().double(), expected


def assert_near(found, expected, relative=1e-12):
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative)


def hole(shape, part):
    """Return a function that copies a tensor into a part of a buffer of NaN."""
    return lambda x: torch.full(shape, torch.nan, dtype=x.dtype)[part].view(SHAPE).copy_(x)


# How a tensor can lie in memory.
WEIGHTS = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.full((2, 3, 4, 11), torch.nan, dtype=x.dtype)[..., 1::2].copy_(x),
    "offset": hole((121,), slice(1, None)),
    "inner": lambda x: torch.full((2, 5, 4, 5), torch.nan, dtype=x.dtype)[:, 1:4].copy_(x),
}
GRADIENTS = WEIGHTS | {
    "negative": lambda x: torch._neg_view(-x),
    "repeated": lambda x: x.clone(),
}


@pytest.mark.parametrize(("lies", "gradient"), list(itertools.product(WEIGHTS, GRADIENTS)))
def test_layouts(lies, gradient, sample, oracle, noise):
    weight = WEIGHTS[lies](noise(*SHAPE)).requires_grad_()
    strides, at = weight.stride(), weight.data_ptr()
    gradients = [GRADIENTS[gradient](noise(*SHAPE, seed=s)) for s in (1, 2, 3)]
    assert_near(*walk(sample, oracle, weight, gradients))
    assert (weight.stride(), weight.data_ptr()) == (strides, at)


@pytest.mark.parametrize("lies", WEIGHTS)
def test_expanded_gradients(lies, sample, oracle, noise):
    weight = WEIGHTS[lies](noise(*SHAPE)).requires_grad_()
    one, column = torch.tensor(0.5).double(), noise(3, 1, 1)
    gradients = [one.expand(SHAPE), column.expand(SHAPE), one.expand(SHAPE)]
    assert_near(*walk(sample, oracle, weight, gradients))


def test_a_gradient_whose_strides_change_from_step_to_step(plain, oracle, noise):
    """torch's fused CPU kernels get this wrong without a word."""
    weight = noise(*SHAPE).requires_grad_()
    gradients = [lay(noise(*SHAPE, seed=s)) for s, lay in enumerate(GRADIENTS.values())]
    assert_near(*walk(plain, oracle, weight, gradients))


@pytest.mark.parametrize("lies", ["sliced", "inner", "offset"])
def test_neighbours_of_a_weight_are_untouched(lies, plain, noise):
    weight = WEIGHTS[lies](noise(*SHAPE)).requires_grad_()
    buffer = weight.detach().as_strided((weight.untyped_storage().nbytes() // 8,), (1,), 0)
    others = buffer.isnan()
    optimizer = plain.ours([weight])
    for s in (1, 2):
        weight.grad = noise(*SHAPE, seed=s)
        optimizer.step()
    assert torch.equal(buffer.isnan(), others)
    assert weight.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, sample, oracle, noise):
    weight = noise(size).requires_grad_()
    assert_near(*walk(sample, oracle, weight, [noise(size, seed=s) for s in (1, 2)]))


@pytest.mark.parametrize("empty", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("place", range(4))
def test_empty_tensors_in_every_position(empty, place, sample, oracle, noise):
    shapes = [(5,), (), (40_000,)]
    shapes.insert(place, empty)
    weights = [noise(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes)]
    expected = [oracle(sample.rule, w, [torch.ones_like(w)] * 2) for w in weights]
    optimizer = sample.ours(weights)
    for _ in range(2):
        for w in weights:
            w.grad = torch.ones_like(w)
        optimizer.step()
    for w, e in zip(weights, expected, strict=True):
        assert w.shape == e.shape
        assert_near(w.detach(), e)


def test_nothing_but_empty_tensors(plain):
    weight = torch.zeros(0, requires_grad=True)
    weight.grad = torch.zeros(0)
    optimizer = plain.ours([weight])
    optimizer.step()
    assert weight.numel() == 0


def test_a_number_without_dimensions(plain, oracle, noise):
    weight = noise().requires_grad_()
    assert weight.shape == ()
    assert_near(*walk(plain, oracle, weight, [noise(seed=s) for s in (1, 2, 3)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes(dtype, case, oracle):
    """One step from every size of weight and gradient: within a few roundings of float64's."""
    random = np.random.default_rng(5)
    size = 500
    start = torch.from_numpy(random.choice([-1, 0, 1], size) * 10 ** random.uniform(-2, 2, size)).to(dtype)
    g = torch.from_numpy(random.choice([-1, 0, 1], size) * 10 ** random.uniform(-6, 3, size)).to(dtype)
    weight = start.clone().requires_grad_()
    found, expected = walk(case, oracle, weight, [g])
    moved = (expected - start.double()).abs()
    # The step carries float32's rounding, the weight one rounding to its own dtype.
    allowed = torch.finfo(dtype).eps * expected.abs() + 32 * torch.finfo(torch.float32).eps * (
        moved + start.abs()
    )
    assert ((found - expected).abs() <= allowed + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights_keep_state_in_float32(dtype, plain):
    weight = torch.ones(5, dtype=dtype, requires_grad=True)
    optimizer = plain.ours([weight])
    weight.grad = torch.ones(5, dtype=dtype)
    optimizer.step()
    for slot in plain.rule.slots:
        assert optimizer.state[weight][plain.row.names[slot]].dtype == torch.float32


def test_a_bfloat16_average_of_squares_decays():
    """In bfloat16 itself, v with β₂ = .999 would stay where it is for ever."""
    import schuss.torch

    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = schuss.torch.Adam([weight], lr=0.0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.state[weight]["exp_avg_sq"].fill_(1.0)
    weight.grad = torch.zeros_like(weight)
    for _ in range(1000):
        optimizer.step()
    assert optimizer.state[weight]["exp_avg_sq"].item() == pytest.approx(0.999**1000, rel=1e-4)


def test_tensors_of_many_dtypes_in_one_step(oracle, noise, sample):
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float64, torch.float32]
    weights = [noise(7, seed=k).to(dtype).requires_grad_() for k, dtype in enumerate(dtypes)]
    gradients = [noise(7, seed=k + 10).to(dtype) for k, dtype in enumerate(dtypes)]
    expected = [oracle(sample.rule, w, [g]) for w, g in zip(weights, gradients, strict=True)]
    for w, g in zip(weights, gradients, strict=True):
        w.grad = g
    sample.ours(weights).step()
    for w, e in zip(weights, expected, strict=True):
        assert_near(w.detach().double(), e, max(1e-12, 2 * torch.finfo(w.dtype).eps))


def test_a_nan_gradient_makes_its_weight_nan_and_no_other(variant, noise):
    weight, other = noise(70).float().requires_grad_(), noise(70).float().requires_grad_()
    clean = [w.detach().clone().requires_grad_() for w in (weight, other)]
    poisoned, healthy = variant.ours([weight, other]), variant.ours(clean)
    for s in (1, 2):
        for p, q in zip((weight, other), clean, strict=True):
            p.grad, q.grad = noise(70, seed=s).float(), noise(70, seed=s).float()
        if s == 1:
            weight.grad[17] = torch.nan
        poisoned.step()
        healthy.step()
    assert weight[17].isnan()
    rest = torch.arange(70) != 17
    if formula(variant.rule).passes:  # a norm of the tensor: all of it
        assert weight.isnan().all()
    else:
        assert torch.equal(weight[rest], clean[0][rest])
    assert torch.equal(other, clean[1])


@pytest.mark.parametrize("lies", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugate_views(lies, dtype, sample, noise):
    """A conjugate that is noted and not yet computed, as weight, as gradient and as both."""

    def layout(z):
        return z.mT.contiguous().mT if lies == "transposed" else z

    values = torch.complex(noise(4, 3), noise(4, 3, seed=1)).to(dtype)
    push = torch.complex(noise(4, 3, seed=2), noise(4, 3, seed=3)).to(dtype)
    plainly = values.clone().requires_grad_()
    optimizer = sample.ours([plainly])
    for _ in range(2):
        plainly.grad = push.clone()
        optimizer.step()
    for lazy_weight, lazy_gradient in ((True, False), (False, True), (True, True)):
        weight = (
            layout(values.conj().resolve_conj().clone()).conj() if lazy_weight else layout(values.clone())
        )
        weight = weight.detach().requires_grad_()
        assert weight.is_conj() == lazy_weight
        optimizer = sample.ours([weight])
        for _ in range(2):
            weight.grad = push.conj().resolve_conj().conj() if lazy_gradient else push.clone()
            optimizer.step()
        torch.testing.assert_close(weight.detach().resolve_conj(), plainly.detach(), rtol=1e-6, atol=1e-6)


def test_subclasses_of_tensors_move(sample, noise):
    """A tensor that is more than its memory goes the eager way."""

    class Marked(torch.Tensor):
        pass

    plainly = noise(6).requires_grad_()
    weight = noise(6).as_subclass(Marked).requires_grad_()
    optimizer = sample.ours([plainly, weight])
    for s in (1, 2):
        plainly.grad = noise(6, seed=s)
        weight.grad = noise(6, seed=s).as_subclass(Marked)
        optimizer.step()
    assert type(weight) is Marked
    assert_near(weight.detach().as_subclass(torch.Tensor), plainly.detach())


def test_memory_that_moves_between_steps(sample, oracle, noise):
    """Weights given new memory through `.data`, gradients new memory or the old."""
    weight = noise(50).requires_grad_()
    gradients = [noise(50, seed=s) for s in (1, 2, 3, 4)]
    expected = oracle(sample.rule, weight, gradients)
    optimizer = sample.ours([weight])
    keep = []
    for g in gradients:
        weight.grad = g
        optimizer.step()
        keep.append(weight.data)
        weight.data = weight.data.clone()
    assert_near(weight.detach(), expected)


def test_a_weight_in_freed_memory_is_found_again(sample, noise):
    """Adopting a new tensor of another length under the same weight."""
    weight = noise(8).requires_grad_()
    weight.grad = noise(8)
    optimizer = sample.ours([weight])
    optimizer.step()
    moved = weight.detach().clone()
    optimizer.state.clear()
    weight.grad = None
    weight.data = noise(20, seed=1)
    weight.grad = torch.ones(20, dtype=torch.float64)
    optimizer.step()
    assert moved.shape == (8,)
    assert weight.shape == (20,)
    assert weight.isfinite().all()


def test_a_model_cast_to_another_dtype_goes_on(sample, noise):
    model = torch.nn.Linear(4, 3).double()
    optimizer = sample.ours(model.parameters())

    def step():
        optimizer.zero_grad()
        (model(noise(5, 4).to(model.weight.dtype)) ** 2).sum().backward()
        optimizer.step()

    step()
    step()
    model.float()
    before = model.weight.detach().clone()
    step()
    assert model.weight.dtype == torch.float32
    assert model.weight.isfinite().all()
    assert not torch.equal(model.weight, before)


def test_threads_change_no_bit(plain, noise):
    def run(threads):
        torch.set_num_threads(threads)
        weight = noise(900_000).float().requires_grad_()
        optimizer = plain.ours([weight])
        for s in (1, 2):
            weight.grad = noise(900_000, seed=s).float()
            optimizer.step()
        return weight.detach()

    before = torch.get_num_threads()
    try:
        assert torch.equal(run(1), run(2))
    finally:
        torch.set_num_threads(before)


def test_a_noted_negative_of_one_number_is_seen_at_any_step():
    """An imaginary part of a conjugate lies in memory with the other sign; backward passes leave such gradients."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=1.0)
    for gradient in (torch.ones(1), torch.complex(torch.zeros(1), torch.ones(1)).conj().imag):
        weight.grad = gradient
        optimizer.step()
    assert weight.grad.is_neg()
    assert weight.item() == 0.0
