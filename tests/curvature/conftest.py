"""Small models of today, and an independent dense matrix to hold every product against."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.set_num_threads(1)


class Attention(nn.Module):
    """One block of causal self-attention, as models call it: the fused kernel, chosen by torch."""

    def __init__(self, width: int = 8, classes: int = 3):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)
        return self.out(mixed[:, 0].mean(dim=1))


class Tied(nn.Module):
    """Input and output share one table."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens)).mean(dim=1)))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def build(name: str, dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    if name == "mlp":
        model, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(6, 5)
    elif name == "attention":
        model, x = Attention(), torch.randn(6, 4, 8)
    elif name == "convolution":
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.GELU(), nn.Conv2d(3, 4, 2), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 9, 3)
        )
        x = torch.randn(6, 1, 6, 6)
    elif name == "batchnorm":
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        x = torch.randn(6, 5)
    elif name == "dropout":
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3))
        x = torch.randn(6, 5)
    elif name == "lstm":
        lstm = nn.LSTM(3, 4, batch_first=True)

        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.out = lstm, nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.out(self.lstm(x)[0][:, -1])

        model, x = Last(), torch.randn(6, 5, 3)
    elif name == "tied":
        return Tied().to(dtype), (torch.randint(7, (6, 3)), torch.tensor([0, 1, 2, 4, 5, 6]))
    else:
        model = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, activation="gelu")
        model = nn.Sequential(model, nn.Flatten(), nn.Linear(32, 3))
        x = torch.randn(6, 4, 8)
    return model.to(dtype), (x.to(dtype), labels)


MODELS = ("mlp", "attention", "convolution", "batchnorm", "dropout", "lstm", "tied", "transformer")


@pytest.fixture
def make():
    return build


@pytest.fixture
def loss():
    return cross_entropy


@pytest.fixture
def dense_hessian():
    """The Hessian by torch.func (forward over reverse), another route than the package's own."""

    def whole(model: nn.Module, loss, batch) -> Tensor:
        weights = dict(model.named_parameters())
        sizes = [w.numel() for w in weights.values()]

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self):
                return loss(self.model, batch)

        wrapped = Whole()

        def of_flat(flat: Tensor) -> Tensor:
            parts = flat.split(sizes)
            swapped = {
                f"model.{name}": part.view(w.shape)
                for (name, w), part in zip(weights.items(), parts, strict=True)
            }
            return functional_call(wrapped, swapped, ())

        flat = torch.cat([w.detach().reshape(-1) for w in weights.values()])
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.func's own use of torch.jit
            return hessian(of_flat)(flat).detach()

    return whole


@pytest.fixture(params=MODELS)
def named(request):
    return request.param
