"""Parameter groups as papers train: no decay where it does harm, smaller rates for the layers below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import Any, Literal, cast

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
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Layers all of whose weights of two axes and more are matrices between what comes in and what goes out.
_LAYERS = (
    nn.Linear,
    nn.modules.conv._ConvNd,  # pyright: ignore[reportPrivateUsage]
    nn.RNNBase,
    nn.MultiheadAttention,
)


def groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    no_decay: Sequence[str] = (),
    lr: float | None = None,
    layer_decay: float | None = None,
    state_dtype: Any = None,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
    matrix: Literal["auto"] | None = None,
    others: Mapping[str, Any] | None = None,
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

    With `matrix="auto"` only the matrices of hidden layers are left to an optimizer of matrices, such as Muon, with
    `lr` where it is given. All else gets `"rule": "AdamW"` and the settings `others`: embeddings, weights that several
    layers share, the layer that the model lists last, norms, biases, and whatever else is no matrix of a layer.
    `weight_decay` may then be left out: each rule decays by its own default. A second head or another exception is
    one of `rules`; `param_names` says what became of each weight.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> [(g["weight_decay"], g["param_names"]) for g in groups(model, 0.1)]
    [(0.1, ['0.weight', '2.weight']), (0.0, ['0.bias', '1.weight', '1.bias', '2.bias'])]
    >>> hidden, vectors, last = groups(model, matrix="auto", others={"lr": 3e-4})
    >>> hidden["param_names"], last["param_names"], last["rule"], last["lr"]
    (['0.weight'], ['2.weight'], 'AdamW', 0.0003)
    """
    rules, others = rules or {}, others or {}
    _check(model, weight_decay, no_decay, lr, layer_decay, state_dtype, rules)
    _check_matrix(matrix, others, weight_decay, layer_decay)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not named:
        raise ValueError(
            "The model has no trainable weights: every requires_grad is False, or there are none."
        )
    names = [name for name, _ in named]
    _check_patterns("no_decay", no_decay, names)
    _check_patterns("rules", list(rules), names)
    embedded = _weights_of(model, _EMBEDDINGS) if state_dtype is not None else set()
    hidden = _hidden(model) if matrix else {id(weight) for _, weight in named}
    normed = _weights_of(model, _NORMS)
    depths = _depths(names)
    found: dict[tuple[str, int, bool, bool, bool], list[tuple[str, torch.Tensor]]] = {}
    for (name, weight), depth in zip(named, depths, strict=True):
        plain = (
            weight.ndim < 2
            or id(weight) in normed
            or name.rpartition(".")[2] == "bias"
            or any(fnmatchcase(name, pattern) for pattern in no_decay)
        )
        own = next((pattern for pattern in rules if fnmatchcase(name, pattern)), "")
        key = (
            own,
            depth if layer_decay is not None else 0,
            plain,
            id(weight) in embedded,
            id(weight) in hidden,
        )
        found.setdefault(key, []).append((name, weight))
    made: list[dict[str, Any]] = []
    for (own, depth, plain, wide, inner), pairs in found.items():
        group: dict[str, Any] = {
            "params": [weight for _, weight in pairs],
            "param_names": [name for name, _ in pairs],
        }
        if not inner:
            group |= {"rule": "AdamW", **others}
        if plain or weight_decay is not None:
            group["weight_decay"] = 0.0 if plain else weight_decay
        if state_dtype is not None:
            group["state_dtype"] = "float32" if wide else state_dtype
        if inner and lr is not None:
            group["lr"] = lr
        if layer_decay is not None and "lr" in group:
            group["lr"] *= layer_decay ** (max(depths) - depth)
        made.append(group | dict(rules.get(own, {})))
    return made


def _check_matrix(matrix: Any, others: Any, weight_decay: Any, layer_decay: Any) -> None:
    if matrix not in (None, "auto"):
        raise refusal(
            "matrix", matrix, "None or 'auto'", "To say it by name, give rules={'*pattern*': {...}}."
        )
    if not isinstance(others, Mapping):
        raise refusal("others", others, "a dict of settings", "Try others={'lr': 3e-4}.")
    if others and matrix is None:
        raise refusal(
            "others", dict(cast(Mapping[str, Any], others)), "of use without matrix='auto'", "Try rules=."
        )
    if matrix is None and weight_decay is None:
        raise refusal("weight_decay", None, "a finite number ≥ 0", "It may be left out with matrix='auto'.")
    if layer_decay is not None and "lr" in others:
        real("others['lr']", others["lr"], "a finite number ≥ 0", lambda x: 0 <= x < inf)


def _hidden(model: nn.Module) -> set[int]:
    """The matrices of hidden layers, by id: what `matrix="auto"` leaves to the optimizer's own rule."""
    found, shared, last = set[int](), set[int](), set[int]()
    seen = set[int]()
    for module in model.modules():
        own = list(module.named_parameters(recurse=False))
        shared |= seen & {id(weight) for _, weight in own}
        seen |= {id(weight) for _, weight in own}
        here = {id(weight) for name, weight in own if _is_matrix(module, name, weight)}
        last, found = here or last, found | here
    return found - shared - last - _weights_of(model, (*_EMBEDDINGS, *_NORMS))


def _is_matrix(module: nn.Module, name: str, weight: torch.Tensor) -> bool:
    """Whether a module's own weight is a matrix, of a layer that is known or in a class of someone's own."""
    if weight.ndim < 2 or weight.is_complex() or "bias" in name:
        return False
    return isinstance(module, _LAYERS) or (weight.ndim == 2 and name.endswith("weight"))


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
    if weight_decay is not None:
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
