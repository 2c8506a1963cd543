"""What the tests of the GPU kernels share: compiling for GPUs that are not here, and launches in the interpreter."""

import re
import subprocess
from pathlib import Path

import numpy as np
import torch
import triton

from schuss.compile import cpu, device, gpu
from schuss.compile.formula import formula
from schuss.compile.launch import Launch, Terms, WholeTensors
from schuss.compile.storage import columns

INSTRUCTION = re.compile(r"^\s+(?:@!?%\w+ )?([a-z][\w.:]+)", re.MULTILINE)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


compiled, page_kernel = gpu.compiled, gpu.machine_code


def nothing_is_spilled(made, tmp_path):
    """No stack and no local memory, as NVIDIA's own tool has it."""
    if not CUOBJDUMP.exists():
        return
    code = tmp_path / "code.cubin"
    code.write_bytes(made.asm["cubin"])
    said = subprocess.run([CUOBJDUMP, "-res-usage", code], capture_output=True, text=True, check=True).stdout
    assert " STACK:0 " in said, said
    assert " LOCAL:0 " in said, said


def torch_dtype(column):
    beside = column.storage.beside
    return getattr(torch, beside.dtype if column.beside and beside else column.storage.dtype)


class Arrays:
    """A launch's memory for weights of some lengths, `kept` so: tensors by column, then by weight."""

    def __init__(self, rules, kept, lengths, **options):
        self.rules, self.kept, self.lengths = rules, kept, lengths
        self.formula = formula(rules[0], **options)
        self.columns = columns(("w", "g", *self.formula.slots), kept)
        self.tensors = [
            [torch.zeros(-(-n // c.per), dtype=torch_dtype(c)) for n in lengths] for c in self.columns
        ]

    def copy(self):
        other = Arrays.__new__(Arrays)
        other.__dict__.update(self.__dict__)
        other.tensors = [[tensor.clone() for tensor in column] for column in self.tensors]
        return other

    def named(self, name):
        return self.tensors[[column.name for column in self.columns].index(name)]

    def fill(self, name, values):
        for tensor, value in zip(self.named(name), values, strict=True):
            tensor.copy_(torch.as_tensor(value))

    def placed(self, table):
        for k, column in enumerate(self.tensors):
            table.place(k, np.array([tensor.data_ptr() for tensor in column], dtype=np.int64))

    def on_cpu(self, groups, members):
        table = WholeTensors(self.columns, self.lengths, self.formula.passes)
        self.placed(table)
        return Launch(self.formula, cpu.kernel(self.formula, self.kept), table, groups, members)

    def on_gpu(self, groups, members):
        made = device.DeviceLaunch(
            self.formula, self.kept, self.lengths, groups, members, torch.device("cpu")
        )
        self.placed(made.tensors)
        return made


def first_ledger(rules):
    """A row for each tensor, of its own rule."""
    return np.array([[0.0, *(rule.initial().get(name, 0.0) for name in rule.scalars)] for rule in rules])


def plain(*scales):
    """Terms of groups that only scale their gradients."""
    return [Terms(scale) for scale in scales]
