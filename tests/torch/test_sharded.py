"""Weights that are divided between processes: they clip and skip by one norm. The checks are in `ranks.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import schuss

ranks = Path(__file__).with_name("ranks.py")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not torch.distributed.is_gloo_available(), reason="needs forks and gloo"
)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_agree_and_do_as_one_process_does(world, tmp_path):
    command = [sys.executable, ranks, tmp_path, str(world)]
    environment = os.environ | {"PYTHONPATH": str(Path(schuss.__file__).parents[1])}
    done = subprocess.run(command, timeout=240, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for rank in range(world):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        failed = {name: trace for name, trace in found.items() if trace}
        assert not failed, "\n".join(f"rank {rank}, {name}:\n{trace}" for name, trace in failed.items())
        assert set(found) == set(done.stdout.split())
