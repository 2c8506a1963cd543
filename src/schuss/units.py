"""Sizes and times in the unit that suits them."""

from __future__ import annotations

import math

_SECONDS = (
    *((31557600e9, "billion years"), (31557600e6, "million years"), (31557600.0, "years")),
    *((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")),
    *((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
)


def in_unit(seconds: float, longest: float = math.inf) -> tuple[float, str]:
    """A time in the largest unit that leaves at least 1, of those that are at most `longest` seconds long.

    >>> in_unit(0.25), in_unit(7200.0), in_unit(7200.0, longest=1)
    ((250.0, 'ms'), (2.0, 'hours'), (7200.0, 's'))
    """
    if not seconds:
        return 0.0, "s"
    size, unit = next((pair for pair in _SECONDS if pair[0] <= longest and seconds >= pair[0]), _SECONDS[-1])
    return seconds / size, unit


def human_bytes(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point.

    >>> human_bytes(2.4e13)
    '24.0 TB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 1000:
            return f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} EB"


def human_seconds(seconds: float) -> str:
    """Seconds to two digits, in the largest unit that leaves at least 1.

    >>> human_seconds(7200.0), human_seconds(0.00014), human_seconds(1.234e12), human_seconds(5e14)
    ('2.0 hours', '140 µs', '39,000 years', '16 million years')
    """
    count, unit = in_unit(seconds)
    count = float(f"{count:.1e}")
    return f"{count:,.1f} {unit}" if count < 10 else f"{count:,.0f} {unit}"
