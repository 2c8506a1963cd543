"""What a check comes back with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "note"]


@dataclass(frozen=True)
class Finding:
    """One known value (`truth`) and what this machine measured.

    `verdict` is "note" where nothing can be right or wrong, such as whether there is a GPU.
    """

    about: str
    truth: str
    measured: str
    verdict: Verdict


def judged(about: str, truth: str, measured: str, holds: bool) -> Finding:
    """A finding that holds or fails."""
    return Finding(about, truth, measured, "holds" if holds else "fails")


def close(about: str, truth: float, measured: float, relative: float, digits: int = 8) -> Finding:
    """Two numbers that are to agree to a relative error."""
    holds = abs(measured - truth) <= relative * abs(truth)
    return judged(about, f"{truth:.{digits}g}", f"{measured:.{digits}g}", holds)
