"""Write the golden checkpoints of this folder, with the code that is on the path.

`PYTHONPATH=<old checkout>/src python tests/golden/write.py` wrote those that are here, with the code of commit
c220f3b. A file holds the weights and the checkpoint after `BEFORE` steps, and the weights after `AFTER` more. Weights
and gradients are fractions that float16 holds, and repeat, so that a file is small and needs no random numbers.
"""

import gzip
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import schuss.numpy
import schuss.torch

FOLDER = Path(__file__).parent
BEFORE, AFTER = 3, 4
SMALL, LARGE = ((3, 5), (7,)), ((4224,), (7,))  # state in 8 bits begins at 4096 weights


@dataclass(frozen=True)
class Golden:
    """A rule with options, shapes and a dtype."""

    rule: str
    options: dict = field(default_factory=dict)
    shapes: tuple = SMALL
    dtype: str = "float32"
    numpy_options: dict = field(default_factory=dict)


GOLDEN = {
    "adamw_amsgrad": Golden("AdamW", dict(lr=0.02, amsgrad=True, betas=(0.9, 0.9))),
    "sgd_momentum": Golden("SGD", dict(lr=0.03, momentum=0.9, weight_decay=0.1)),
    "adagrad": Golden("Adagrad", dict(lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5)),
    "asgd": Golden("ASGD", dict(lr=0.03, t0=2)),
    "int8_ema": Golden("Adam", dict(lr=0.02, state_dtype="int8", ema_decay=0.9, seed=5), LARGE),
    # NumPy has no bfloat16 weights: float16 ones there, and bfloat16 state.
    "compensated": Golden(
        "AdamW",
        dict(lr=1e-3, compensated=True),
        dtype="bfloat16",
        numpy_options=dict(state_dtype="bfloat16", seed=5),
    ),
    "stochastic": Golden("Adam", dict(lr=1e-3, rounding="stochastic", seed=7), dtype="float16"),
}


def pattern(shape, step):
    """Numbers of both signs and exact zeros, without random numbers: at step 0 where the weights start."""
    place = np.arange(np.prod(shape), dtype=np.int64) % 128
    values = ((place * 37 + step * 53) % 23 - 11) / 16
    if place.size > 100:  # mostly zeros, whose codes take no room in a file
        values[place % 8 != 0] = 0
    return values.reshape(shape)


class Torch:
    """The PyTorch API, with a golden checkpoint."""

    def __init__(self, golden):
        dtype = getattr(torch, golden.dtype)
        self.weights = [
            torch.from_numpy(pattern(shape, 0)).to(dtype).requires_grad_() for shape in golden.shapes
        ]
        self.optimizer = getattr(schuss.torch, golden.rule)(self.weights, **golden.options)

    def steps(self, first, last):
        for step in range(first + 1, last + 1):
            for w in self.weights:
                w.grad = torch.from_numpy(pattern(w.shape, step)).to(w.dtype)
            self.optimizer.step()

    def numbers(self):
        """The bits of the weights, and of their averages."""
        found = [w.detach().clone() for w in self.weights]
        if self.optimizer.param_groups[0].get("ema_decay") is not None:
            with self.optimizer.averaged():
                found += [w.detach().clone() for w in self.weights]
        return found

    def write(self, name):
        """Take the steps and keep what they give."""
        self.steps(0, BEFORE)
        weights, state = [w.detach().clone() for w in self.weights], self.optimizer.state_dict()
        room = io.BytesIO()
        state = torch.load(self._copy(state), weights_only=True)
        self.steps(BEFORE, BEFORE + AFTER)
        torch.save({"weights": weights, "state": state, "after": self.numbers()}, room)
        (FOLDER / f"{name}.pt.gz").write_bytes(gzip.compress(room.getvalue(), mtime=0))

    @staticmethod
    def _copy(state):
        room = io.BytesIO()
        torch.save(state, room)
        room.seek(0)
        return room

    def load(self, name):
        """Put the weights and the checkpoint in; return where the steps must end."""
        room = io.BytesIO(gzip.decompress((FOLDER / f"{name}.pt.gz").read_bytes()))
        saved = torch.load(room, weights_only=True)
        with torch.no_grad():
            for w, value in zip(self.weights, saved["weights"], strict=True):
                w.copy_(value)
        self.optimizer.load_state_dict(saved["state"])
        return saved["after"]


class NumPy:
    """The NumPy API, with a golden checkpoint."""

    def __init__(self, golden):
        dtype = {"bfloat16": "float16"}.get(golden.dtype, golden.dtype)
        self.params = {str(k): pattern(shape, 0).astype(dtype) for k, shape in enumerate(golden.shapes)}
        options = golden.options | golden.numpy_options
        self.optimizer = getattr(schuss.numpy, golden.rule)(**options)

    def steps(self, first, last):
        for step in range(first + 1, last + 1):
            grads = {key: pattern(w.shape, step).astype(w.dtype) for key, w in self.params.items()}
            self.optimizer.update(self.params, grads)

    def numbers(self):
        """The bits of the weights, and of their averages."""
        found = [w.copy() for w in self.params.values()]
        if self.optimizer.ema_decay is not None:
            with self.optimizer.averaged(self.params):
                found += [w.copy() for w in self.params.values()]
        return found

    def write(self, name):
        """Take the steps and keep what they give."""
        self.steps(0, BEFORE)
        saved = {f"weights {k}": w.copy() for k, w in enumerate(self.params.values())}
        saved |= {f"state {key}": np.array(value) for key, value in self.optimizer.state_dict().items()}
        self.steps(BEFORE, BEFORE + AFTER)
        saved |= {f"after {k}": w for k, w in enumerate(self.numbers())}
        np.savez_compressed(FOLDER / f"{name}.npz", **saved)

    def load(self, name):
        """Put the weights and the checkpoint in; return where the steps must end."""
        with np.load(FOLDER / f"{name}.npz") as file:
            parts = {part: {} for part in ("weights", "state", "after")}
            for key in file:
                part, name = key.split(" ", 1)
                parts[part][name] = file[key]
        for k, w in parts["weights"].items():
            self.params[k][...] = w
        self.optimizer.load_state_dict(parts["state"])
        return list(parts["after"].values())


if __name__ == "__main__":
    for name, golden in GOLDEN.items():
        for api in (Torch, NumPy):
            api(golden).write(name)
