"""What the machine says of itself, and the units in which it is told."""

import os

import pytest
import torch

from schuss import machine
from schuss.units import human_seconds, in_unit


def test_the_machine_has_a_processor_and_memory():
    assert machine.processor() or os.name != "posix"
    assert machine.cores() >= 1
    free, there = machine.free_memory(), machine.total_memory()
    assert free is None or free > 2**20
    assert there is None or there > 2**20
    assert machine.free_memory(torch.device("meta")) is None


def test_a_system_without_these_files_says_so_in_another_way(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_field", lambda *_: "")
    assert machine.processor() == (machine.platform.processor() or machine.platform.machine())
    monkeypatch.setattr(machine, "_pages", lambda _: None)
    assert machine.free_memory() is None
    assert machine.total_memory() is None


@pytest.mark.parametrize("longest", [1.0, 60.0, 31557600e9])
def test_every_time_has_a_unit_that_leaves_at_least_one(longest):
    for power in range(-9, 20):
        count, unit = in_unit(2.0 * 10.0**power, longest)
        assert count >= 1
        assert unit == "s" or power < 0 or longest > 1
    assert in_unit(0.0) == (0.0, "s")
    assert human_seconds(5400) == "1.5 hours"
