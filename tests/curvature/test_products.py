"""Products against dense matrices from another route, the third-order law, cost, forms of a vector."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian as double_backward_hessian
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from schuss.curvature import Pieces, ggnvp, hvp, quadratic_model


def size(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def random_vector(n: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["mlp", "convolution"])
def test_hvp_is_the_dense_hessian_times_the_vector(make, loss, dense_hessian, kind):
    model, batch = make(kind)
    dense = dense_hessian(model, loss, batch)
    v = random_vector(size(model))
    torch.testing.assert_close(hvp(model, loss, batch, v), dense @ v, rtol=1e-11, atol=1e-12)


def test_hvp_is_symmetric_and_linear_on_every_kind_of_model(make, loss, named):
    model, batch = make(named)
    u, v = random_vector(size(model), 1), random_vector(size(model), 2)
    hu, hv = hvp(model, loss, batch, u), hvp(model, loss, batch, v)
    assert float(v @ hu) == pytest.approx(float(u @ hv), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(hvp(model, loss, batch, 2 * u - 3 * v), 2 * hu - 3 * hv, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["attention", "convolution", "batchnorm", "transformer", "lstm", "dropout"])
def test_the_quadratic_models_error_falls_as_the_third_power(make, loss, kind):
    model, batch = make(kind)
    v = random_vector(size(model))
    v /= v.norm()
    scales = [0.08, 0.04, 0.02, 0.01]
    result = quadratic_model(model, loss, batch, v, scales)
    error = abs(result.predicted - result.actual)
    orders = [float(torch.log2(torch.tensor(error[i] / error[i + 1]))) for i in range(3)]
    assert orders[-1] == pytest.approx(3, abs=0.15), (orders, error)


def test_a_wrong_curvature_breaks_the_third_power_law(make, loss):
    """The negative control: 1 % off in the curvature, and the error falls as the second power."""
    model, batch = make("mlp")
    v = random_vector(size(model))
    v /= v.norm()
    result = quadratic_model(model, loss, batch, v, [0.02, 0.01, 0.005])
    wrong = result.predicted - 0.01 * result.scales**2 * abs(result.curvature)
    error = abs(wrong - result.actual)
    assert float(error[1] / error[2]) == pytest.approx(4, abs=0.6)


def test_every_form_of_vector_comes_back_in_its_form(make, loss):
    model, batch = make("mlp")
    flat = random_vector(size(model))
    names = [name for name, _ in model.named_parameters()]
    shapes = [weight.shape for weight in model.parameters()]
    parts = [
        part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)
    ]
    want = hvp(model, loss, batch, flat)
    as_list = hvp(model, loss, batch, parts)
    as_dict = hvp(model, loss, batch, dict(reversed(list(zip(names, parts, strict=True)))))
    assert isinstance(as_list, list)
    assert list(as_dict) == names[::-1]
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in as_list]), want)
    torch.testing.assert_close(torch.cat([as_dict[name].reshape(-1) for name in names]), want)
    assert [part.shape for part in as_list] == shapes
    assert not want.requires_grad


def test_plain_functions_of_a_tensor_a_list_and_a_dict():
    def of_tensor(x, batch):
        return (x[0] ** 3 * x[1]).sum() * batch

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    v = torch.ones_like(x)
    want = double_backward_hessian(lambda x: of_tensor(x, 2.0), x).reshape(4, 4) @ v.reshape(4)
    got = hvp(x, of_tensor, 2.0, v)
    assert got.shape == x.shape
    torch.testing.assert_close(got.reshape(4), want)
    assert hvp(x, of_tensor, 2.0, v.reshape(4)).shape == (4,)

    def of_parts(parts, _):
        return (parts[0] ** 3 * parts[1]).sum()

    in_list = hvp([x[0], x[1]], of_parts, None, [v[0], v[1]])
    torch.testing.assert_close(torch.cat(in_list), want / 2)
    in_dict = hvp(
        {"a": x[0], "b": x[1]}, lambda p, _: of_parts([p["a"], p["b"]], None), None, {"b": v[1], "a": v[0]}
    )
    torch.testing.assert_close(torch.cat([in_dict["a"], in_dict["b"]]), want / 2)


def test_a_linear_loss_has_no_curvature():
    x = torch.ones(3, dtype=torch.float64)
    assert hvp(x, lambda x, _: x.sum(), None, x).tolist() == [0, 0, 0]


def explicit_gauss_newton(forward, criterion, x: torch.Tensor) -> torch.Tensor:
    z = forward(x)
    jacobian = torch.autograd.functional.jacobian(forward, x)
    return jacobian.T @ double_backward_hessian(criterion, z) @ jacobian


def test_ggnvp_is_the_explicit_matrix():
    x, batch = random_vector(12), random_vector(20, 5).view(5, 4)

    def forward(x, batch):
        return (torch.tanh(batch @ x.view(4, 3)) ** 2).reshape(-1)

    def criterion(z, batch):
        return (z.exp().mean() + z.square().sum()) * batch[0, 0].abs()

    dense = explicit_gauss_newton(lambda x: forward(x, batch), lambda z: criterion(z, batch), x)
    v = random_vector(12, 9)
    torch.testing.assert_close(ggnvp(x, (forward, criterion), batch, v), dense @ v, rtol=1e-10, atol=1e-12)


def test_ggnvp_splits_a_module_at_its_outputs_and_counts_a_penalty_in_full(make, loss):
    model, batch = make("mlp")
    v = random_vector(size(model))

    def penalised(model, batch):
        return loss(model, batch) + 0.35 * sum((w**2).sum() for w in model.parameters())

    def outputs(model, batch):
        return model(batch[0])

    def criterion(z, batch):
        return nn.functional.cross_entropy(z, batch[1])

    plain = ggnvp(model, loss, batch, v)
    torch.testing.assert_close(ggnvp(model, (outputs, criterion), batch, v), plain)
    torch.testing.assert_close(ggnvp(model, penalised, batch, v), plain + 0.7 * v)
    assert float(v @ plain) > 0
    assert not torch.allclose(plain, hvp(model, loss, batch, v), rtol=1e-3)


def test_for_a_linear_model_hessian_and_gauss_newton_are_one(loss):
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3).double(), (random_vector(24).view(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
    v = random_vector(15)
    torch.testing.assert_close(ggnvp(model, loss, batch, v), hvp(model, loss, batch, v))


def test_pieces_add_up_to_the_whole(make, loss):
    model, (x, y) = make("mlp")
    v = random_vector(size(model))
    pieces = Pieces([(x[:4], y[:4]), (x[4:], y[4:])], weights=[4 / 6, 2 / 6])
    whole = (x, y)
    for product in (hvp, ggnvp):
        torch.testing.assert_close(product(model, loss, pieces, v), product(model, loss, whole, v))


def test_pieces_of_unequal_sizes_count_by_their_size(make, loss):
    model, (x, y) = make("mlp")
    v = random_vector(size(model))
    for pieces in (
        Pieces([(x[:5], y[:5]), (x[5:], y[5:])]),
        Pieces([{"x": x[:1], "n": 1}, {"x": x[1:], "n": 5}]),
    ):
        of_mean = loss if isinstance(pieces.batches[0], tuple) else lambda m, b: m(b["x"]).square().mean()
        whole = (x, y) if isinstance(pieces.batches[0], tuple) else {"x": x}
        torch.testing.assert_close(hvp(model, of_mean, pieces, v), hvp(model, of_mean, whole, v))
    assert Pieces([np.zeros((3, 2)), np.zeros((1, 2))]).weights == (0.75, 0.25)
    assert Pieces([None, 3, "text"]).weights == (1 / 3,) * 3


def test_pieces_of_other_shapes_are_refused_without_weights():
    """Of 2 × 7 and 3 × 5 tokens, say, nobody knows what the loss is a mean over."""
    pieces = [torch.zeros(2, 7), torch.zeros(3, 5)]
    with pytest.raises(
        ValueError, match=r"batches=\[\(2, 7\), \(3, 5\)\] is not pieces of one shape.*give weights="
    ):
        Pieces(pieces)
    assert Pieces(pieces, weights=[14 / 29, 15 / 29]).weights == [14 / 29, 15 / 29]


def test_batchnorm_in_pieces_is_warned_of(make, loss):
    model, (x, y) = make("batchnorm")
    v = random_vector(size(model))
    pieces = Pieces([(x[:3], y[:3]), (x[3:], y[3:])])
    with pytest.warns(UserWarning, match="BatchNorm in training mode"):
        torn = hvp(model, loss, pieces, v)
    whole = hvp(model, loss, (x, y), v)
    assert float((torn - whole).norm() / whole.norm()) > 0.05
    model.eval()
    torch.testing.assert_close(hvp(model, loss, pieces, v), hvp(model, loss, (x, y), v))


def test_dropout_keeps_its_mask_from_product_to_product(make, loss):
    model, batch = make("dropout")
    v = random_vector(size(model))
    first = hvp(model, loss, batch, v)
    torch.testing.assert_close(hvp(model, loss, batch, v), first, rtol=0, atol=0)
    torch.rand(1)
    assert not torch.equal(hvp(model, loss, batch, v), first)


def test_tied_weights_count_once(make, loss, dense_hessian):
    model, batch = make("tied")
    n = size(model)
    assert n == 7 * 4 + 4 * 4 + 4
    v = random_vector(n)
    dense = dense_hessian(model, loss, batch)
    torch.testing.assert_close(hvp(model, loss, batch, v), dense @ v, rtol=1e-10, atol=1e-12)


def test_frozen_weights_are_left_out_and_dict_batches_pass_through(make):
    model, (x, y) = make("mlp")
    model[0].weight.requires_grad_(False)
    v = random_vector(size(model) - model[0].weight.numel())

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    assert hvp(model, loss, {"x": x, "y": y}, v).shape == v.shape


def test_compiled_models_are_unwrapped_whole_and_in_part(make, loss):
    model, batch = make("mlp")
    v = random_vector(size(model))
    want = hvp(model, loss, batch, v)
    torch.testing.assert_close(hvp(torch.compile(model, backend="eager"), loss, batch, v), want)
    model[0] = torch.compile(model[0], backend="aot_eager")
    torch.testing.assert_close(hvp(model, loss, batch, v), want)


@pytest.mark.parametrize("outside", [False, True])
def test_mixed_precision_inside_the_loss_or_around_the_call(make, loss, outside):
    model, (x, y) = make("mlp", torch.float32)
    v = random_vector(size(model)).float()
    want = hvp(model, loss, (x, y), v)

    def mixed(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=not outside):
            return loss(model, batch)

    around = torch.autocast("cpu", torch.bfloat16) if outside else contextlib.nullcontext()
    with around:
        got = hvp(model, loss if outside else mixed, (x, y), v)
    assert got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) < 0.05


def test_recording_works_under_no_grad_and_inference_mode(make, loss):
    model, batch = make("mlp")
    v = random_vector(size(model))
    want = hvp(model, loss, batch, v)
    with torch.no_grad():
        torch.testing.assert_close(hvp(model, loss, batch, v), want)
    with torch.inference_mode():
        torch.testing.assert_close(hvp(model, loss, batch, v), want)


@pytest.mark.parametrize("kind", ["mlp", "convolution", "attention"])
def test_a_product_costs_at_most_three_gradients(make, loss, kind):
    """Counted in multiplications, on shapes where the batch is not the smallest thing."""
    torch.manual_seed(0)
    if kind == "mlp":
        layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.Tanh())]
        model, batch = nn.Sequential(nn.Linear(16, 32), *layers, nn.Linear(32, 10)), torch.randn(64, 16)
    elif kind == "convolution":
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        batch = torch.randn(16, 3, 12, 12)
    else:
        model, (batch, _) = make("attention", torch.float32)
    target = torch.zeros(len(batch), dtype=torch.long)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as gradient,
    ):  # it counts no fused CPU one
        torch.autograd.grad(loss(model, (batch, target)), list(model.parameters()))
    with FlopCounterMode(display=False) as product:
        hvp(model, loss, (batch, target), torch.ones(size(model)))
    ratio = product.get_total_flops() / gradient.get_total_flops()
    assert 1 < ratio <= 3, ratio
