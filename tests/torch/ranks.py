"""What several processes agree on, checked in each of them. `python ranks.py FOLDER WORLD` runs the checks for so many
ranks and leaves `FOLDER/RANK.json`: what became of each, None or a traceback.

Everything is imported before the processes are forked, once. Every rank sees the same data, so what it trains on its
own, undivided, is what the ranks together have to find.
"""

import copy
import json
import os
import pickle
import re
import sys
import traceback
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from schuss.torch import SGD, AdamW, Muon, ScheduleFreeAdamW, global_norm, groups

MOST = 0.01  # every gradient here has a larger norm


def model(inside=3):
    """With 3 inside, dividing its rows leaves ranks with nothing: (3, 4), (3,), (1, 3) and (1,)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, inside), nn.Tanh(), nn.Linear(inside, 1)).double()


def batch(seed):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def train(module, optimizer, steps=3, spoil=None):
    """Return the norms; `spoil(step)` may change gradients."""
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        (module(batch(step)) - 1).square().mean().backward()
        if spoil:
            spoil(step)
        optimizer.step()
        norms.append(getattr(optimizer, "optim", optimizer).gradient_norm)
    return norms


def make(params, **more):
    # SGD: a gradient that is clipped differently moves a weight differently, as its size is forgotten by Adam.
    return SGD(params, **(dict(lr=0.1, momentum=0.9, max_norm=MOST) | more))


def agreed(value):
    """The value, which is the same on every rank."""
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, value)
    assert all(one == value for one in every), every
    return value


def whole(weight):
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def assert_same_weights(module, expected):
    for mine, one in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(whole(mine).detach(), one.detach(), rtol=1e-12, atol=1e-14)


def assert_as_undivided(module, optimizer, inside=3, **more):
    alone = model(inside)
    expected = train(alone, make(alone.parameters(), **more))
    found = agreed(train(module, optimizer))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-12, atol=0)
    assert min(expected) > MOST
    if not isinstance(module, FullyShardedDataParallel):
        assert_same_weights(module, alone)
        return
    with FullyShardedDataParallel.summon_full_params(module):
        assert_same_weights(module, alone)


def sharded(mesh=None, **more):
    divided = fully_shard(model(), mesh=mesh) if mesh else fully_shard(model())
    return divided, make(divided.parameters(), **more)


def row(*shape):
    return init_device_mesh("cpu", shape)


def raises(message, call):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def fully_sharded():
    divided, optimizer = sharded()
    if dist.get_rank() == dist.get_world_size() - 1:
        assert any(w.to_local().numel() == 0 for w in divided.parameters())
    assert_as_undivided(divided, optimizer)


def replicated_and_sharded():
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    assert_as_undivided(*sharded(mesh))


def tensor_parallel():
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    divided = parallelize_module(model(8), row(dist.get_world_size()), plan)
    assert_as_undivided(divided, make(divided.parameters()), inside=8)


def zero():
    alone = model()
    optimizer = ZeroRedundancyOptimizer(alone.parameters(), SGD, lr=0.1, momentum=0.9, max_norm=MOST)
    assert_as_undivided(alone, optimizer)
    # A rank that has nothing at all takes part too.
    one = nn.Parameter(torch.zeros(2))
    optimizer = ZeroRedundancyOptimizer([one], SGD, lr=1.0, max_norm=1.0, skip_nonfinite=True)
    one.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert agreed(optimizer.optim.gradient_norm) == 5
    torch.testing.assert_close(one.detach(), torch.tensor([-0.6, -0.8]))
    one.grad[0] = torch.inf
    optimizer.step()
    assert agreed(optimizer.optim.skipped) == 1


def flattened(original):
    return FullyShardedDataParallel(model(), use_orig_params=original, device_id=torch.device("cpu"))


def flat(original):
    divided = flattened(original)
    message = "FSDP has divided these weights between ranks"
    for options in (dict(), dict(max_norm=None, skip_nonfinite=True)):
        optimizer = make(divided.parameters(), **options)
        raises(message, lambda optimizer=optimizer: train(divided, optimizer, 1))
    raises(message, lambda: global_norm(divided.parameters()))
    divided.zero_grad()
    plain = make(divided.parameters(), max_norm=None)
    plain.step()  # which asks for no norm

    divided = flattened(original)
    optimizer = make(divided.parameters(), process_group=dist.group.WORLD)
    assert_as_undivided(divided, optimizer)
    norm = global_norm(divided.parameters(), process_group=divided.process_group)
    assert agreed(norm.item()) == optimizer.gradient_norm


def flat_infinity():
    """GradScaler's flag too: what is found on one rank stops all, and all scale the next loss alike."""
    divided = flattened(True)
    optimizer = make(divided.parameters(), skip_nonfinite=True, fused=True, process_group=dist.group.WORLD)
    before = [w.detach().clone() for w in divided.parameters()]
    scaler = ShardedGradScaler("cpu", init_scale=4.0)
    scaler.scale(divided(batch(0)).square().mean()).backward()
    if dist.get_rank() == 0:
        next(w for w in divided.parameters() if w.grad is not None and w.numel()).grad.view(-1)[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert agreed(scaler.get_scale()) == 2.0
    assert all(map(torch.equal, before, divided.parameters()))
    scaler.scale(divided(batch(0)).square().mean()).backward()
    if dist.get_rank() == 0:
        next(w for w in divided.parameters() if w.grad is not None and w.numel()).grad.view(-1)[0] = torch.inf
    optimizer.step()
    assert agreed(optimizer.skipped) == 1
    assert all(map(torch.equal, before, divided.parameters()))


def infinity():
    for value in (torch.inf, torch.nan):
        divided, optimizer = sharded(skip_nonfinite=True)
        before = [w.detach().to_local().clone() for w in divided.parameters()]

        def spoil(step, divided=divided, value=value):
            if dist.get_rank() == 0:
                list(divided.parameters())[-1].grad.to_local()[...] = value

        train(divided, optimizer, 1, spoil)
        assert agreed((optimizer.skipped, optimizer.param_groups[0]["step"])) == (1, 0)
        assert all(map(torch.equal, before, (w.to_local() for w in divided.parameters())))
        assert_as_undivided(divided, optimizer)


def scaled_loss():
    for options in (dict(), dict(fused=True)):
        divided, optimizer = sharded(**options)
        scaler = GradScaler("cpu", init_scale=4.0)
        for step in range(2):
            divided.zero_grad()
            scaler.scale(divided(batch(step)).square().mean()).backward()
            if step == 0 and dist.get_rank() == 0:
                list(divided.parameters())[-1].grad.to_local()[...] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert agreed((scaler.get_scale(), optimizer.param_groups[0]["step"])) == (2.0, 1)
        alone = model()
        (alone(batch(1)).square().mean()).backward()
        torch.testing.assert_close(
            agreed(optimizer.gradient_norm), global_norm(alone.parameters()).item(), rtol=1e-12, atol=0
        )


def without_gradient():
    """One rank has no gradient of one weight, another none at all."""
    weights = [
        nn.Parameter(
            distribute_tensor(torch.zeros(n, dtype=torch.float64), row(dist.get_world_size()), [Shard(0)])
        )
        for n in (5, 1)
    ]
    optimizer = make(weights)
    gradients = [torch.arange(1.0, 6.0, dtype=torch.float64), torch.tensor([7.0], dtype=torch.float64)]
    for k, gradient in enumerate(gradients):
        part = distribute_tensor(gradient, weights[k].device_mesh, [Shard(0)])
        if dist.get_rank() == 0 and k == 0:
            weights[k].grad = part
    optimizer.step()
    mine = gradients[0].chunk(dist.get_world_size())[0]
    torch.testing.assert_close(agreed(optimizer.gradient_norm), mine.norm().item(), rtol=1e-12, atol=0)


def several_meshes():
    """Divided in all ways over two meshes, replicated, and on no mesh at all; a gradient that is still to be summed."""
    world = dist.get_world_size()
    line, square = row(world), init_device_mesh("cpu", (2, world // 2))
    ways = [
        (line, [Shard(0)]),
        (line, [Replicate()]),
        (square, [Replicate(), Shard(1)]),
        (square, [Shard(0), Shard(0)]),
        (square, [Replicate(), Replicate()]),
        (None, None),
    ]
    torch.manual_seed(1)
    values = [(torch.randn(3, 5).double(), torch.randn(3, 5).double()) for _ in ways]
    for scale in (1.0, 1e-170, 1e200):
        weights, alone = [], []
        for (mesh, places), (weight, gradient) in zip(ways, values, strict=True):
            mine, one = weight.clone(), nn.Parameter(weight.clone())
            put = (lambda tensor, m=mesh, p=places: distribute_tensor(tensor, m, p)) if mesh else torch.clone
            weights.append(nn.Parameter(put(mine)))
            weights[-1].grad, one.grad = put(gradient * scale), gradient * scale
            alone.append(one)
        summed = values[1][1] * scale / world
        weights[1].grad = DTensor.from_local(summed, line, [Partial()])
        mine, expected = make(weights), make(alone)
        torch.testing.assert_close(
            agreed(global_norm(weights).item()), global_norm(alone).item(), rtol=1e-12, atol=0
        )
        mine.step()
        expected.step()
        torch.testing.assert_close(agreed(mine.gradient_norm), expected.gradient_norm, rtol=1e-12, atol=0)
        for one, other in zip(weights, alone, strict=True):
            torch.testing.assert_close(whole(one).detach(), other.detach(), rtol=1e-12, atol=1e-14)


def stages():
    """Pipeline stages: each rank has weights of its own, divided over no other rank."""
    one = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    one.grad = torch.full_like(one, float(dist.get_rank()))
    optimizer = make([one], max_norm=None, process_group=dist.group.WORLD)
    optimizer.step()  # without a norm nobody is asked
    optimizer.max_norm = 1.0
    optimizer.step()
    expected = sum(r * r for r in range(dist.get_world_size())) ** 0.5
    torch.testing.assert_close(agreed(optimizer.gradient_norm), expected, rtol=1e-12, atol=0)


def configuration():
    """The group is shared by deep copies, missed by unpickled ones, and in no checkpoint."""
    one = nn.Parameter(torch.zeros(1))
    one.grad = torch.ones(1)
    optimizer = make([one], process_group=dist.group.WORLD)
    optimizer.step()
    assert "process_group" not in {**optimizer.defaults, **optimizer.state_dict()["param_groups"][0]}
    assert copy.deepcopy(optimizer).process_group is dist.group.WORLD
    other = pickle.loads(pickle.dumps(optimizer))
    other.param_groups[0]["params"][0].grad = torch.ones(1)
    raises("Set optimizer.process_group again", other.step)
    other.process_group = dist.group.WORLD
    other.step()
    raises("process_group='all' is not None or a process group", lambda: make([one], process_group="all"))
    group = [dict(params=[one], process_group=dist.group.WORLD)]
    raises("process_group belongs to the whole optimizer", lambda: make(group))
    divided, _ = sharded()
    optimizer = make(divided.parameters(), process_group=dist.group.WORLD)
    raises("DTensors need no process_group", lambda: train(divided, optimizer, 1))


def held_back():
    """The options of a change are of whole tensors, whoever holds them."""
    options = dict(lr=0.1, weight_decay=0.1, cautious=True, max_update=0.5)
    divided, alone = fully_shard(model()), model()
    train(divided, AdamW(divided.parameters(), **options))
    train(alone, AdamW(alone.parameters(), **options))
    assert_same_weights(divided, alone)
    for one in (True, False):
        parts = flattened(one)
        optimizer = AdamW(parts.parameters(), **options)
        raises("Use fully_shard", lambda parts=parts, optimizer=optimizer: train(parts, optimizer, 1))


def dry_step():
    """A checkpoint made before the first step, ranks with empty shards among them, counts and moves nothing."""
    divided = fully_shard(model())
    rate = lambda n: 0.1 / (1 + n)  # noqa: E731
    optimizer = AdamW(divided.parameters(), lr=rate, weight_decay=0.1, ema_decay=0.9, max_norm=MOST)
    alone = model()
    expected = AdamW(alone.parameters(), lr=rate, weight_decay=0.1, ema_decay=0.9, max_norm=MOST)
    saved = get_optimizer_state_dict(divided, optimizer)
    assert agreed([float(entry["step"]) for entry in saved["state"].values()]) == [0.0] * 4
    assert agreed(optimizer.param_groups[0]["step"]) == 0
    assert_same_weights(divided, alone)
    train(divided, optimizer)
    train(alone, expected)
    assert_same_weights(divided, alone)


def averages():
    """Schedule-Free's weights to evaluate, of divided weights; a checkpoint's dry step first."""
    divided, alone = fully_shard(model()), model()
    optimizer, expected = (
        ScheduleFreeAdamW(m.parameters(), lr=0.05, max_norm=MOST) for m in (divided, alone)
    )
    get_optimizer_state_dict(divided, optimizer)
    with optimizer.averaged():
        assert_same_weights(divided, alone)
    agreed(train(divided, optimizer))
    train(alone, expected)
    with optimizer.averaged(), expected.averaged():
        inside = [w.detach().clone() for w in alone.parameters()]
        assert_same_weights(divided, alone)
        with pytest.raises(RuntimeError, match="would be taken from the averaged weights"):
            optimizer.step()
    assert_same_weights(divided, alone)
    assert not any(map(torch.equal, inside, alone.parameters()))


def matrices():
    """Muon's products are of whole matrices, wide, tall and a convolution's, however they are divided."""
    torch.manual_seed(0)
    layers = nn.Conv1d(1, 5, 2), nn.Flatten(), nn.Linear(15, 6), nn.Tanh(), nn.Linear(6, 9), nn.Linear(9, 1)
    alone = nn.Sequential(nn.Unflatten(1, (1, 4)), *layers).double()
    divided = fully_shard(copy.deepcopy(alone))
    for module in (divided, alone):
        train(module, Muon(groups(module, matrix="auto"), lr=0.02, max_norm=MOST))
    assert_same_weights(divided, alone)


CHECKS = {
    "matrices": matrices,
    "fully_sharded": fully_sharded,
    "infinity": infinity,
    "without_gradient": without_gradient,
    "several_meshes": several_meshes,
    "tensor_parallel": tensor_parallel,
    "zero": zero,
    "flat": partial(flat, False),
    "flat_with_original_weights": partial(flat, True),
    "flat_infinity": flat_infinity,
    "scaled_loss": scaled_loss,
    "stages": stages,
    "configuration": configuration,
    "dry_step": dry_step,
    "averages": averages,
    "held_back": held_back,
}
# What two ranks do not show.
FOUR = {name: CHECKS[name] for name in ("fully_sharded", "several_meshes")} | {
    "replicated_and_sharded": replicated_and_sharded
}
WORLDS = {2: CHECKS, 4: FOUR}


def run(rank, world, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    found = {}
    for name, check in WORLDS[world].items():
        try:
            check()
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(found))
        if found[name]:
            break  # others wait for it, and what follows would be out of step
    dist.destroy_process_group()


def main(folder, world):
    print(*WORLDS[world])
    sys.stdout.flush()  # or each child has it to print
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                run(rank, world, folder)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
