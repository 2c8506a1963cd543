"""Is everything right on this machine? Numbers with known values, measured in seconds.

examine()    each part of the examination with its findings, one after another
PARTS        the parts by name
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from schuss.errors import refusal
from schuss.lab.doctor.analytic import curvature, noise
from schuss.lab.doctor.finding import Finding, broken
from schuss.lab.doctor.machine import gpu, kernel_cache, processors
from schuss.lab.doctor.quadratics import limits, rates
from schuss.lab.doctor.steps import DTYPES, kernels, sparse_rows, threads

__all__ = ["DTYPES", "PARTS", "Finding", "examine"]

PARTS: dict[str, Callable[[], Iterator[Finding]]] = {
    "rates": rates,
    "limits": limits,
    "noise": noise,
    "curvature": curvature,
    "kernels": kernels,
    "sparse": sparse_rows,
    "threads": threads,
    "cache": kernel_cache,
    "processors": processors,
    "gpu": gpu,
}


def examine(
    parts: Iterable[str] | None = None, dtypes: tuple[str, ...] = ("float32",)
) -> Iterator[tuple[str, Finding]]:
    """Check each known value of these parts (all, if not given) and yield (part, finding) as they come.

    `dtypes`: those in which every kernel is compared. A check that breaks is a finding that fails.

    >>> [finding.verdict for _, finding in examine(["limits"])].count("holds")
    10
    """
    chosen = list(PARTS if parts is None else parts)
    for name in chosen:
        if name not in PARTS:
            raise refusal("part", name, f"one of {', '.join(PARTS)}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise refusal("dtype", dtype, f"one of {', '.join(DTYPES)}")
    before = torch.get_num_threads()
    for name in chosen:
        check = partial(kernels, dtypes) if name == "kernels" else PARTS[name]
        found: list[Finding] = []
        try:
            torch.set_num_threads(1)  # everything here is small; two threads would wait for each other
            found.extend(check())
        except Exception as error:
            found.append(broken(name, error))
        finally:
            torch.set_num_threads(before)
        yield from ((name, finding) for finding in found)
