"""The user's own Python files: tasks and optimizers that are not part of any package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from schuss.errors import refusal


def load_file(file: str | Path) -> tuple[ModuleType, str]:
    """Run a Python file as a module of its own; return it with its text.

    What it defines travels to other processes and machines by value: they need no copy of the file.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise refusal("file", str(path), "a Python file", "It holds something other than text.") from None
    name = f"{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise refusal("file", str(path), "a Python file", "It must end in .py.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, folder)  # the file may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    cloudpickle.register_pickle_by_value(module)
    return module, text


def load_name(file: str | Path, name: str) -> tuple[Any, str]:
    """One thing from a file, with the file's text."""
    module, text = load_file(file)
    if not hasattr(module, name):
        there = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise refusal("name", name, f"in {file}", f"There is: {there}.")
    return getattr(module, name), text
