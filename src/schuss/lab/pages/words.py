"""Numbers and settings as a reader of a page sees them."""

from collections.abc import Mapping
from math import floor, isfinite, log10
from typing import Any

from schuss.units import in_unit

NARROW = "\u202f"  # no-break space between groups of digits
UNBROKEN = "\u00a0"
MINUS = "\u2212"


def number(x: float | None, digits: int = 4) -> str:
    """Return a number with that many significant digits, readable at any size; "–" for none.

    >>> number(12345.6), number(-0.00012345, 3), number(1.23e-7), number(None), number(float("inf"))
    ('12\u202f346', '−0.000123', '1.23e−7', '–', '∞')
    """
    if x is None or x != x:
        return "–"
    if not isfinite(x):
        return "∞" if x > 0 else f"{MINUS}∞"
    if x == 0:
        return "0"
    size = floor(log10(abs(x)))
    if not -5 < size < 7:
        text = f"{x:.{min(digits, 3) - 1}e}"
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{x:,.{max(0, digits - 1 - size)}f}".replace(",", NARROW)
        text = text.rstrip("0").rstrip(".") if isinstance(x, int) else text
    return text.replace("-", MINUS)


def interval(found: Mapping[str, Any] | None) -> str:
    """Return "mean (low … high)", cut where the half-width's second digit stands; the mean alone without an interval.

    >>> interval({"mean": 0.97134, "low": 0.96924, "high": 0.97344})
    '0.9713 (0.9692 … 0.9734)'
    """
    if found is None or found["mean"] is None:
        return "–"
    mean, low, high = found["mean"], found["low"], found["high"]
    if low is None or high is None:
        return number(mean)
    half = (high - low) / 2
    if not 1e-6 <= half < 1e5:
        return f"{number(mean)} ({number(low)} … {number(high)})"
    places = max(0, 1 - floor(log10(half)))
    return f"{mean:.{places}f} ({low:.{places}f} … {high:.{places}f})".replace("-", MINUS)


def cost(x: float | None) -> str:
    """Return a cost in whole units, "∞" where it was never paid.

    >>> cost(15000.0), cost(None)
    ('15\u202f000', '∞')
    """
    return "∞" if x is None else f"{x:,.0f}".replace(",", NARROW)


def duration(seconds: float | None) -> str:
    """Return a duration in the unit that suits it.

    >>> duration(3.42e-5), duration(0.25), duration(75.0), duration(None)
    ('34.2\u202fµs', '250\u202fms', '75.0\u202fs', '–')
    """
    if seconds is None or not isfinite(seconds):
        return "–"
    count, unit = in_unit(seconds, longest=1)
    return f"{number(count, 3)}{NARROW}{unit}"


def percent(fraction: float) -> str:
    """Return a fraction in whole per cent.

    >>> percent(0.8)
    '80\u202f%'
    """
    return f"{100 * fraction:.0f}{NARROW}%"


def settings(parameters: Mapping[str, float]) -> str:
    """Return a configuration in a line that breaks after commas only, its learning rate first.

    >>> settings({"1 - beta1": 0.1, "lr": 1.23456e-7}).replace(UNBROKEN, " ")
    'lr 1.23e−7, 1 − beta1 0.1'
    """
    names = sorted(parameters, key=lambda name: name != "lr")
    pairs = (f"{name} {parameters[name]:.3g}".replace("e-0", "e-") for name in names)
    return ", ".join(pair.replace("-", MINUS).replace(" ", UNBROKEN) for pair in pairs)
