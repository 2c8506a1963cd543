"""One voice for refusals: what was given, what is allowed, what to try."""


def refusal(name: str, value: object, allowed: str, advice: str = "") -> ValueError:
    """Return the `ValueError` that says `name=value` is not `allowed`, and what to try.

    >>> print(refusal("beta2", 1.0, "in [0, 1)", "With 1 the average would never learn."))
    beta2=1.0 is not in [0, 1). With 1 the average would never learn.
    """
    return ValueError(f"{name}={value!r} is not {allowed}." + (f" {advice}" if advice else ""))


class RuleError(ValueError):
    """A rule that cannot be compiled as it is written: the message names the file, the line and the remedy."""
