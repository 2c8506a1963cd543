"""What only a new process can tell: its first step, and its peak memory. Each file is a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schuss

FOLDER = Path(__file__).parent


def answer(program: str, *arguments: str, **environment: str) -> Mapping[str, Any]:
    """Run a program of this folder in a new process of this Python, and return what it prints.

    It is run by path: importing it by name would import its package first, and with it what is to be timed.
    Raises `RuntimeError` with the program's last words if it fails.
    """
    package = str(Path(schuss.__file__).parents[1])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, "-P", str(FOLDER / f"{program}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1])
    return json.loads(ended.stdout)
