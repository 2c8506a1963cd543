"""The two APIs behind one face, for the tests of what both promise. Weights and gradients go in and out as arrays."""

import copy

import numpy as np
import torch

import schuss.numpy
import schuss.torch
from schuss.core.options import WHOLE
from schuss.rules import TABLE


class Api:
    """An optimizer and what it trains: `name` is a rule's, `starts` its weights."""

    def __init__(self, name, starts, **options):
        self.name, self.options = name, options
        self.starts = [np.array(start) for start in starts]

    def again(self, **changes):
        """A new optimizer, of the same weights as they are now."""
        return type(self)(self.name, self.weights(), **self.options | changes)

    def values(self, k, slot):
        """What is remembered of a weight, by the rule's own names; None if nothing is."""
        return self.state().get((k, slot))

    def averages(self):
        """The averaged weights."""
        with self.averaged():
            return self.weights()


class Torch(Api):
    """`schuss.torch`."""

    def __init__(self, name, starts, **options):
        super().__init__(name, starts, **options)
        self.params = [torch.nn.Parameter(torch.from_numpy(start.copy(order="K"))) for start in self.starts]
        self.optimizer = getattr(schuss.torch, name)(self.params, **options)

    def step(self, *gradients):
        """Take a step. A gradient is an array, None, or a pair of row numbers and rows."""
        for weight, gradient in zip(self.params, gradients, strict=True):
            if isinstance(gradient, tuple):
                rows, values = map(torch.from_numpy, gradient)
                gradient = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=True)
            elif gradient is not None:
                gradient = torch.from_numpy(
                    np.array(gradient, dtype=str(weight.dtype).removeprefix("torch."))
                )
            weight.grad = gradient
        self.optimizer.step()

    def weights(self):
        """Copies of the weights."""
        return [weight.detach().numpy().copy() for weight in self.params]

    def averaged(self):
        """The block in which the weights are the averages."""
        return self.optimizer.averaged()

    def change(self, name, value):
        """Give an option or hyperparameter another value, between two steps."""
        if name in WHOLE:
            setattr(self.optimizer, name, value)
        else:
            self.optimizer.param_groups[0][name] = value

    def refused_later(self, name, value):
        """Try to give it such a value: torch's groups are dicts, so what they hold is checked by `add_param_group`."""
        if name in WHOLE:
            self.change(name, value)
        else:
            weight = torch.nn.Parameter(torch.ones(2))
            self.optimizer.add_param_group({"params": [weight], name: value})

    def shown(self, name):
        """The value of a hyperparameter for the next step."""
        return self.optimizer.param_groups[0][name]

    def state(self):
        """All that is remembered, by weight and the rule's own name; bfloat16 as its bits."""
        slots = {theirs: mine for mine, theirs in TABLE[self.name].names.items()}
        slots |= {f"{theirs}_scale": f"{mine}_scale" for theirs, mine in list(slots.items())}
        found = {}
        for k, weight in enumerate(self.params):
            for name, tensor in self.optimizer.state.get(weight, {}).items():
                bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
                found[k, slots.get(name, name)] = bits.numpy().copy()
        return found

    def saved(self):
        """A checkpoint."""
        return copy.deepcopy(self.optimizer.state_dict())

    def load(self, saved):
        """Go on from a checkpoint."""
        self.optimizer.load_state_dict(saved)


class NumPy(Api):
    """`schuss.numpy`."""

    def __init__(self, name, starts, **options):
        super().__init__(name, starts, **options)
        self.params = {str(k): start.copy(order="K") for k, start in enumerate(self.starts)}
        self.optimizer = getattr(schuss.numpy, name)(**options)

    def step(self, *gradients):
        """Take a step. A gradient is an array, None, or a pair of row numbers and rows."""
        pairs = zip(self.params.values(), gradients, strict=True)
        given = [g if g is None or isinstance(g, tuple) else np.array(g, dtype=w.dtype) for w, g in pairs]
        self.optimizer.update(self.params, dict(zip(self.params, given, strict=True)))

    def weights(self):
        """Copies of the weights."""
        return [weight.copy() for weight in self.params.values()]

    def averaged(self):
        """The block in which the weights are the averages."""
        return self.optimizer.averaged(self.params)

    def change(self, name, value):
        """Give an option or hyperparameter another value, between two steps."""
        setattr(self.optimizer, name, value)

    refused_later = change

    def shown(self, name):
        """The value of a hyperparameter for the next step."""
        return getattr(self.optimizer, name)

    def state(self):
        """All that is remembered, by weight and the rule's own name; bfloat16 as its bits."""
        found = [(key.split("/"), value) for key, value in self.optimizer.state_dict().items() if "/" in key]
        return {(int(k), slot): value.copy() for (k, slot), value in found}

    def saved(self):
        """A checkpoint."""
        return self.optimizer.state_dict()

    def load(self, saved):
        """Go on from a checkpoint."""
        self.optimizer.load_state_dict(saved)
