"""Parameter groups as papers train: no decay where it does harm, smaller rates for the layers below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import Any, cast

import torch
from torch import nn

from schuss.core.options import OPTIONS, check_options
from schuss.errors import closest, real, refusal

_NORMS = (
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def groups(
    model: nn.Module,
    weight_decay: float,
    *,
    no_decay: Sequence[str] = (),
    lr: float | None = None,
    layer_decay: float | None = None,
    state_dtype: Any = None,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable weights into groups for any optimizer: with decay, and without.

    Biases, the weights of normalisation layers, and all weights with fewer than two dimensions are not decayed, nor is
    any whose name matches one of the `no_decay` patterns (as in a shell: `"*embed*"`). Tied weights count once.

    With `layer_decay` (0.65 to 0.9 in the literature) the learning rate falls by that factor per layer, from `lr` in
    the last one down: layers are numbered by the first number in a weight's name (`blocks.3.attn.weight`), weights
    before the first numbered one belong to the bottom, weights after the last to the top (Clark and others 2020,
    ELECTRA).

    With `state_dtype` (see `schuss.torch`) the groups ask for it, but for those of embeddings, whose state stays in
    float32: rare rows would be quantized with the scale of common ones.

    With `rules` weights whose names match a pattern, the first that does, get these settings, a `rule` of their own
    among them: `{"*embed*": {"rule": "AdamW", "lr": 3e-4}}`.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    >>> [(g["weight_decay"], g["param_names"]) for g in groups(model, 0.1)]
    [(0.1, ['0.weight']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    rules = rules or {}
    _check(model, weight_decay, no_decay, lr, layer_decay, state_dtype, rules)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not named:
        raise ValueError(
            "The model has no trainable weights: every requires_grad is False, or there are none."
        )
    names = [name for name, _ in named]
    _check_patterns("no_decay", no_decay, names)
    _check_patterns("rules", list(rules), names)
    embedded = _weights_of(model, (nn.Embedding, nn.EmbeddingBag)) if state_dtype is not None else set()
    normed = _weights_of(model, _NORMS)
    depths = _depths(names)
    found: dict[tuple[str, int, bool, bool], list[tuple[str, torch.Tensor]]] = {}
    for (name, weight), depth in zip(named, depths, strict=True):
        plain = (
            weight.ndim < 2
            or id(weight) in normed
            or name.rpartition(".")[2] == "bias"
            or any(fnmatchcase(name, pattern) for pattern in no_decay)
        )
        own = next((pattern for pattern in rules if fnmatchcase(name, pattern)), "")
        key = (own, depth if layer_decay is not None else 0, plain, id(weight) in embedded)
        found.setdefault(key, []).append((name, weight))
    made: list[dict[str, Any]] = []
    for (own, depth, plain, wide), pairs in found.items():
        group: dict[str, Any] = {
            "params": [weight for _, weight in pairs],
            "param_names": [name for name, _ in pairs],
            "weight_decay": 0.0 if plain else weight_decay,
        }
        if state_dtype is not None:
            group["state_dtype"] = "float32" if wide else state_dtype
        if lr is not None:
            group["lr"] = lr * (layer_decay or 1.0) ** (max(depths) - depth)
        made.append(group | dict(rules.get(own, {})))
    return made


def _check(
    model: Any, weight_decay: Any, no_decay: Any, lr: Any, layer_decay: Any, state_dtype: Any, rules: Any
) -> None:
    if not (isinstance(rules, Mapping) and all(isinstance(one, Mapping) for one in rules.values())):
        advice = "Try rules={'*embed*': {'rule': 'AdamW', 'lr': 3e-4}}."
        raise refusal("rules", rules, "a dict of settings by pattern", advice)
    if not isinstance(model, nn.Module):
        raise refusal("model", model, "a torch.nn.Module", "Weights alone do not say which are biases.")
    if isinstance(no_decay, str):
        raise refusal("no_decay", no_decay, "a list of patterns", f"Try no_decay=[{no_decay!r}].")
    if not (
        isinstance(no_decay, Iterable)
        and all(isinstance(pattern, str) for pattern in cast(Iterable[object], no_decay))
    ):
        raise refusal("no_decay", no_decay, "a list of patterns", "Try no_decay=['*embed*'].")
    real("weight_decay", weight_decay, "a finite number ≥ 0", lambda x: 0 <= x < inf)
    if lr is not None:
        real("lr", lr, "a finite number ≥ 0", lambda x: 0 <= x < inf)
    if layer_decay is not None:
        real("layer_decay", layer_decay, "in (0, 1]", lambda x: 0 < x <= 1)
    check_options({**OPTIONS, "state_dtype": state_dtype})
    if layer_decay is not None and lr is None:
        raise ValueError(f"layer_decay={layer_decay!r} scales a rate: give the top layer's, lr=..., too.")


def _check_patterns(argument: str, patterns: Sequence[str], names: list[str]) -> None:
    """Refuse a pattern that matches nothing, with what was probably meant."""
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        near = closest(pattern.strip("*"), {part for name in names for part in name.split(".")})
        raise refusal(
            argument,
            pattern,
            f"a pattern that matches a trainable weight: there are {some}",
            f"Did you mean '*{near}*'?" if near else "In a pattern * stands for any letters.",
        )


def _weights_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[int]:
    """The weights of all layers of some kinds, by id."""
    return {id(w) for m in model.modules() if isinstance(m, kinds) for w in m.parameters(recurse=False)}


def _depths(names: Sequence[str]) -> list[int]:
    """The layer of each weight, 0 at the bottom."""
    numbers = [
        int(found[1]) if (found := re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)) else None for name in names
    ]
    numbered = [k for k, number in enumerate(numbers) if number is not None]
    if not numbered:
        return list(range(len(names)))
    top = max(number for number in numbers if number is not None) + 2
    return [
        number + 1 if number is not None else (0 if k < numbered[0] else top)
        for k, number in enumerate(numbers)
    ]
