"""`groups(model, matrix="auto")`: hidden matrices to the optimizer's own rule, all else to AdamW."""

import pytest
import torch
from torch import nn

from schuss.torch import Muon, groups


class Language(nn.Module):
    """A transformer with a head that is its embedding, or one of its own; a table of positions and a gate."""

    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(10, 8)
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(8, 10, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x):
        h = self.block(self.tokens(x) + self.positions)
        return self.head(self.norm(h * (1 + self.gate)))


BLOCK = {f"block.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")} | {
    "block.self_attn.in_proj_weight"
}


def split(found):
    own = {name for group in found if "rule" not in group for name in group["param_names"]}
    rest = {name for group in found if group.get("rule") == "AdamW" for name in group["param_names"]}
    return own, rest


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices_and_all_else(tied):
    model = Language(tied)
    own, rest = split(groups(model, matrix="auto"))
    assert own == BLOCK
    assert rest == {name for name, _ in model.named_parameters()} - BLOCK
    assert ("head.weight" in rest) is not tied


def test_convolutions_recurrent_layers_and_classes_of_ones_own():
    class Scaled(nn.Module):
        """Weights in a class that nobody knows."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.decay_log = nn.Parameter(torch.ones(4, 4))
            self.bias_table = nn.Parameter(torch.ones(4, 4))

    shared = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = shared.weight
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Scaled(), nn.LSTM(4, 4), shared, other, nn.Linear(4, 2))
    own, rest = split(groups(nn.Sequential(*layers), matrix="auto"))
    assert own == {"0.weight", "2.weight", "3.weight_ih_l0", "3.weight_hh_l0"}
    assert {"2.decay_log", "2.bias_table", "4.weight", "6.weight", "1.weight", "0.bias"} <= rest


def test_rates_decays_and_exceptions():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    found = groups(
        model,
        0.3,
        lr=0.02,
        layer_decay=0.5,
        matrix="auto",
        others={"lr": 0.004, "betas": (0.8, 0.9)},
        rules={"2.*": {"rule": "Lion", "lr": 1e-4}},
    )
    by_name = {name: group for group in found for name in group["param_names"]}
    assert [by_name[f"{k}.weight"]["lr"] for k in range(4)] == [0.0025, 0.005, 1e-4, 0.004]
    assert [by_name[f"{k}.bias"]["lr"] for k in (0, 1, 3)] == [0.0005, 0.001, 0.004]
    assert [by_name[f"{k}.weight"].get("rule") for k in range(4)] == [None, None, "Lion", "AdamW"]
    assert by_name["3.weight"]["betas"] == (0.8, 0.9)
    assert {group["weight_decay"] for group in found} == {0.3, 0.0}
    optimizer = Muon(groups(model, matrix="auto"), lr=0.02, weight_decay=0.05)
    decays = {(g.get("rule"), g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert decays == {(None, 0.02, 0.05), ("AdamW", 1e-3, 0.01), ("AdamW", 1e-3, 0.0)}


def test_a_model_trains_and_goes_on_from_a_checkpoint():
    def start():
        torch.manual_seed(0)
        model = Language(tied=True)
        return model, Muon(groups(model, matrix="auto", others={"lr": 3e-3}), lr=0.02)

    def train(model, optimizer, steps):
        x = torch.arange(20).reshape(4, 5) % 10
        losses = []
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.roll(1, 1).flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model, optimizer = start()
    losses = train(model, optimizer, 30)
    assert losses[-1] < 0.5 * losses[0]
    other, again = start()
    train(other, again, 15)
    saved = again.state_dict()
    _, again = other, Muon(groups(other, matrix="auto", others={"lr": 3e-3}), lr=0.02)
    again.load_state_dict(saved)
    assert train(other, again, 15) == losses[15:]


def test_what_makes_no_sense_is_refused():
    model = nn.Linear(2, 2)
    for options, words in (
        ({}, "weight_decay=None is not a finite number ≥ 0. It may be left out with matrix='auto'"),
        ({"matrix": "all"}, "matrix='all' is not None or 'auto'"),
        (
            {"weight_decay": 0.1, "others": {"lr": 1.0}},
            "others={'lr': 1.0} is not of use without matrix='auto'",
        ),
        ({"matrix": "auto", "others": 3e-4}, "others=0.0003 is not a dict of settings"),
        (
            {"matrix": "auto", "lr": 0.1, "layer_decay": 0.5, "others": {"lr": len}},
            r"others\['lr'\]=.* is not",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            groups(model, **options)
