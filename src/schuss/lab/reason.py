"""Why user code failed, in a line, out of its traceback."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import schuss

_FRAME = re.compile(r'^ +File "(.+)", line (\d+)', re.MULTILINE)
_ELSEWHERE = (str(Path(schuss.__file__).parent), *sysconfig.get_paths().values())


def reason(error: str) -> str:
    """The error with the last line of the user's own that it passed through.

    >>> reason('''Traceback (most recent call last):
    ...   File "/home/me/mine.py", line 7, in step
    ...     raise ValueError("no")
    ... ValueError: no
    ... ''')
    'ValueError: no (/home/me/mine.py, line 7)'
    """
    frames = list(_FRAME.finditer(error))
    after = error[frames[-1].end() :] if frames else error
    said = [line for line in after.splitlines() if line.strip() and not line.startswith(" ")]
    words = next((line for line in said if frames == [] or re.match(r"[\w.]+(:|$)", line)), "").strip()
    words = words or (said[-1] if said else "no reason was given")
    own = [frame for frame in frames if not frame[1].startswith(("<", *_ELSEWHERE))]
    for frame in (own or frames)[-1:]:
        words += f" ({_near(frame[1])}, line {frame[2]})"
    return words


def _near(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
