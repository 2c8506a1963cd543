"""What a check comes back with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One known value and what this machine measured.

    `verdict` is "note" where nothing can be right or wrong, such as whether there is a GPU.
    """

    about: str
    known: str
    measured: str
    verdict: Literal["holds", "fails", "note"] = "note"


def judged(about: str, known: str, measured: str, holds: bool) -> Finding:
    """A finding that holds or fails."""
    return Finding(about, known, measured, "holds" if holds else "fails")


def close(about: str, known: float, measured: float, relative: float, digits: int = 8) -> Finding:
    """Two numbers that are to agree to a relative error."""
    holds = abs(measured - known) <= relative * abs(known)
    return judged(about, f"{known:.{digits}g}", f"{measured:.{digits}g}", holds)


def broken(about: str, error: Exception) -> Finding:
    """A check that breaks is a finding that fails."""
    return judged(about, "runs", f"{type(error).__name__}: {error}", False)
