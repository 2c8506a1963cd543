"""The published problems, loaded from the files beside this one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


def load(name: str) -> ModuleType:
    """A module of this folder, under a name no installed package has."""
    full = f"newton_test_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "published" in metafunc.fixturenames:
        problems = load("mgh").PROBLEMS
        metafunc.parametrize("published", problems, ids=[p.name for p in problems])
    if "dataset" in metafunc.fixturenames:
        datasets = load("nist").DATASETS
        metafunc.parametrize("dataset", datasets, ids=[d.name for d in datasets])


@pytest.fixture
def problems():
    """Moré, Garbow & Hillstrom's problems by name."""
    return {p.name: p for p in load("mgh").PROBLEMS}


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems run faster on one thread, and several test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
