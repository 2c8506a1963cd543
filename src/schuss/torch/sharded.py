"""Weights that lie in parts on several processes: the norm of all their gradients, the same number on every rank.

A DTensor (`fully_shard`, tensor parallel) says where its parts are. Weights that are plain tensors on each rank do not:
for them a process group says between which ranks they are divided (ZeRO, FSDP1, pipeline stages).

Each rank takes the norm of what it holds, the norms are gathered, and every rank combines the same numbers in the same
order. Norms, not their squares, are sent: `math.hypot` scales them, so that no square overflows. Every rank takes part
in each exchange, also with an empty shard or without a gradient, because the weights alone decide which there are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from schuss.errors import refusal

Tensor = torch.Tensor


class Held:
    """The process group of an optimizer, if it has one. A deep copy shares it, a pickle cannot and says so later."""

    def __init__(self, group: Any = None, *, lost: bool = False) -> None:
        self.group, self.lost = group, lost

    def __deepcopy__(self, memo: Any) -> Held:
        return self

    def __reduce__(self) -> Any:
        return _unpickled, (self.lost or self.group is not None,)


def _unpickled(lost: bool) -> Held:
    return Held(lost=lost)


def checked(group: Any) -> Held:
    """Hold a process group, if it is one and this rank is in it."""
    kind = getattr(torch.distributed, "ProcessGroup", None)
    if group is not None and (kind is None or not isinstance(group, kind)):
        advice = "Try process_group=torch.distributed.group.WORLD, or device_mesh.get_group()."
        raise refusal("process_group", group, "None or a process group that this rank is in", advice)
    return Held(group)


def of_zero() -> Any:
    """The process group of the ZeroRedundancyOptimizer whose constructor is building an optimizer now, if one is.

    It gives each rank's optimizer some of the weights, and tells it nothing of the others.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe(1) if module is not None else None  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_filename == getattr(module, "__file__", ""):
            return getattr(frame.f_locals.get("self"), "process_group", None)
        frame = frame.f_back
    return None


def _dtensor() -> Any:
    """The class of DTensors, if anything has imported it: without that there are none."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())


def check_whole(weights: Sequence[Tensor]) -> None:
    """Refuse weights of which a rank has a part that does not know its tensor, where whole tensors are measured."""
    if _several() and any(map(_is_flat, weights)):
        raise ValueError(
            "FSDP has divided these weights between ranks without regard to their tensors, and this rule, or cautious "
            "or max_update, measures whole tensors. Use fully_shard, with which every step is exact."
        )


class Shards:
    """Between which processes some weights are divided."""

    def __init__(self, weights: Sequence[Tensor], held: Held | None = None) -> None:
        self.weights, self.held = weights, held or Held()
        self.group = self.held.group
        self.kind = _dtensor()
        meshes = dict.fromkeys(w.device_mesh for w in weights if isinstance(w, self.kind))  # pyright: ignore
        self.meshes: list[Any] = [mesh for mesh in meshes if mesh.get_coordinate() is not None]
        self.elsewhere: list[Any] = [mesh for mesh in meshes if mesh.get_coordinate() is None]
        self.checked = False

    def check(self) -> None:
        """Refuse to take the norm of some gradients for that of all."""
        if self.checked:
            return
        if self.elsewhere:
            raise ValueError(
                f"A weight's {self.elsewhere[0]} leaves out this rank, which would not know the norm of its gradient. "
                "Give each rank's optimizer the weights of that rank alone, and all ranks as process_group=."
            )
        if self.held.lost:
            raise ValueError(
                "This optimizer had a process_group and was pickled, which a process group cannot be. Set "
                "optimizer.process_group again: the norm would be that of one rank's gradients only."
            )
        if self.group is not None:
            self._check_apart()
        elif _several() and any(map(_is_flat, self.weights)):
            raise ValueError(
                "FSDP has divided these weights between ranks, and max_norm, skip_nonfinite and global_norm need the "
                "gradients of all. Give process_group= the group that FSDP divides over (its own process_group, as a "
                "rule torch.distributed.group.WORLD), or use fully_shard, where none is needed."
            )
        self.checked = True

    def _check_apart(self) -> None:
        """Refuse a group whose ranks hold parts of the same DTensor: those would be counted twice."""
        distributed: Any = torch.distributed
        others = set(distributed.get_process_group_ranks(self.group)) - {distributed.get_rank()}
        for mesh in self.meshes:
            both = sorted(others.intersection(mesh.mesh.flatten().tolist()))
            if both:
                raise ValueError(
                    f"process_group= and a weight's {mesh} both reach rank {both[0]}: its gradient would be counted "
                    "more than once. DTensors need no process_group; leave it out."
                )

    @property
    def several(self) -> bool:
        """Whether other ranks hold parts."""
        return bool(self.meshes) or self.group is not None

    @torch.no_grad()
    def norm(
        self, gradients: Sequence[Tensor | None], local: Callable[[list[Tensor]], float], stop: bool = False
    ) -> tuple[float, bool]:
        """The norm of all gradients of all ranks, and whether any of them said `stop`.

        `gradients` are the weights', in their order. `local` is the norm of tensors that lie on this rank.
        """
        found = [local([g for g in gradients if g is not None and not isinstance(g, self.kind)])]
        for mesh in self.meshes:
            mine = [
                _part(g)
                for w, g in zip(self.weights, gradients, strict=True)
                if isinstance(g, self.kind) and _mesh(w, g) == mesh
            ]
            norm = local([part for part in mine if part is not None])
            for axis in range(mesh.ndim):
                norm, stop = _gathered(norm, stop, mesh.get_group(axis))
            found.append(norm)
        return self.over_group(math.hypot(*found), stop)

    def over_group(self, norm: float, stop: bool = False) -> tuple[float, bool]:
        """The norm of what all ranks of the process group hold, each its own."""
        return (norm, stop) if self.group is None else _gathered(norm, stop, self.group)


def _gathered(norm: float, stop: bool, group: Any) -> tuple[float, bool]:
    distributed: Any = torch.distributed
    size = distributed.get_world_size(group)
    if size == 1:
        return norm, stop
    kinds = [device.type for device in getattr(group, "_device_types", ())]
    where = "cpu" if "cpu" in kinds or not kinds else kinds[0]
    mine = torch.tensor([norm, float(stop)], dtype=torch.float64, device=where)
    every = [torch.empty_like(mine) for _ in range(size)]
    distributed.all_gather(every, mine, group=group)
    numbers = torch.stack(every).tolist()
    return math.hypot(*(one for one, _ in numbers)), any(said for _, said in numbers)


def _mesh(weight: Any, gradient: Any) -> Any:
    mesh = getattr(weight, "device_mesh", None)
    if gradient.device_mesh != mesh:
        raise ValueError(
            f"A weight lies on {mesh or 'one device'} and its gradient on {gradient.device_mesh}. Redistribute the "
            "gradient to the weight's mesh."
        )
    return mesh


def _part(gradient: Any) -> Tensor | None:
    """What this rank counts of a gradient: its shard, and of replicas those that lie first; None if another counts."""
    from torch.distributed.tensor import Replicate

    if any(one.is_partial() for one in gradient.placements):  # a sum that is still to be taken
        whole = [Replicate() if one.is_partial() else one for one in gradient.placements]
        gradient = gradient.redistribute(placements=whole)
    place = gradient.device_mesh.get_coordinate()
    again = any(one.is_replicate() and at for one, at in zip(gradient.placements, place, strict=True))
    return None if again else gradient.to_local()


def _several() -> bool:
    distributed: Any = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _is_flat(weight: Tensor) -> bool:
    """Whether FSDP1 holds this weight in its flat parameter, or it is one."""
    marked = getattr(weight, "_is_flat_param", False) or getattr(weight, "_fsdp_flattened", False)
    return marked and not isinstance(weight, _dtensor())
