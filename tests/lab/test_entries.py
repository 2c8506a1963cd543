"""Entries of a race: what is built, and what is to be pasted."""

import pytest
import torch

from schuss.lab.entries import find
from schuss.lab.racing.codegen import code


def test_a_rule_of_matrices_shares_its_rate_with_adamw():
    """In a race vectors are moved by AdamW, and so they are by the code to paste."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    entry, point = find("muon"), {"lr": 0.01, "1 - momentum": 0.1, "weight_decay": 0.2}
    built = entry.build(model.parameters(), point)
    scope = {"model": model}
    exec(code(entry, "cosine", point, 100), scope)
    for optimizer in (built, scope["optimizer"]):
        matrices, vectors = optimizer.param_groups
        assert [w.ndim for w in matrices["params"] + vectors["params"]] == [2, 2, 1, 1]
        assert (vectors["rule"], vectors["lr"], vectors["weight_decay"]) == ("AdamW", 0.01, 0.0)
        assert (matrices["lr"], matrices["momentum"], matrices["adjust_lr_fn"]) == (
            0.01,
            0.9,
            "match_rms_adamw",
        )
    with pytest.raises(ValueError, match="Muon moves matrices"):
        entry.build([torch.zeros(2, requires_grad=True)], point)
    only = entry.build([torch.zeros(2, 2, requires_grad=True)], point)
    assert len(only.param_groups) == 1
