"""One weight's state on its way into a checkpoint, in torch.optim's layout, and out of one."""

from __future__ import annotations

from typing import Any

import torch

from schuss.compile.formula import AVERAGE
from schuss.rules import Row
from schuss.torch import kept

Tensor = torch.Tensor


def exported(name: str, value: Any, row: Row) -> Any:
    """A state's entry as torch.optim has it: a count is a float32 tensor, as long as that can count on."""
    if name == "step":
        return value.to(torch.float32 if value < 2**24 else torch.float64, copy=True)
    return value.clone() if name in (row.names[scalar] for scalar in row.rule.scalars) else value


def loaded(entry: dict[str, Any], weight: Tensor, key: Any, row: Row, block: int) -> dict[str, Any]:
    """One weight's state from a checkpoint, copied to the weight's device, or words on why it does not fit."""
    entry = {kept.own_name(name): value for name, value in entry.items()}
    scalars = {row.names[scalar] for scalar in row.rule.scalars} | {"step"}
    slots = {*row.names.values(), AVERAGE} - scalars
    beside = {kept.REST, *map(kept.scale_of, slots)}
    unknown = set(entry) - slots - scalars - beside
    if unknown:
        raise ValueError(
            f"The checkpoint's state of weight {key} has {', '.join(map(repr, sorted(unknown)))}; "
            f"{row.name} keeps {', '.join(map(repr, sorted(slots - {AVERAGE})))}. Is it another optimizer's?"
        )
    copied: dict[str, Any] = {}
    for name, value in entry.items():
        if name in {*slots, kept.REST} and value is not None and tuple(value.shape) != tuple(weight.shape):
            raise ValueError(
                f"The checkpoint's {name!r} of weight {key} has shape {tuple(value.shape)}, the weight "
                f"{tuple(weight.shape)}. Is the model the one that was saved?"
            )
        if isinstance(value, Tensor):
            place = "cpu" if name in scalars else weight.device
            copied[name] = value.detach().to(place, copy=True)
        elif value is not None:
            copied[name] = value
    for name in slots & copied.keys():
        if copied[name].dtype == torch.int8:
            kept.check_scales(copied, name, key, block)
            copied[name] = copied[name].contiguous()
            kept.convert(copied, name, "int8", block)
    return copied


def steps_in(state: dict[Any, Any], weights: list[Tensor]) -> int:
    """The finished steps of a group whose checkpoint does not say: those of its oldest weight."""
    return max((int(state[w]["step"]) for w in weights if "step" in state.get(w, ())), default=0)
