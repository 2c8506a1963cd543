"""Optimizer state that notes when it is changed from outside, so that a step need not look each time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

# One count for all: a change anywhere makes every optimizer look once, at its next step.
_changes = [0]


def changes() -> int:
    """How often any state was changed, other than in place."""
    return _changes[0]


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        _changes[0] += 1
        return method(self, *args, **kwargs)

    noted.__doc__ = method.__doc__
    return noted


class Slots(dict[str, Any]):
    """The state of one weight: a dict whose replaced entries are noted."""

    __setitem__ = _noting(dict.__setitem__)
    __delitem__ = _noting(dict.__delitem__)
    __ior__ = _noting(dict.__ior__)
    clear = _noting(dict.clear)
    pop = _noting(dict.pop)
    popitem = _noting(dict.popitem)
    setdefault = _noting(dict.setdefault)
    update = _noting(dict.update)


class State(defaultdict[Any, Any]):
    """The state of all weights, by weight: what `torch.optim.Optimizer.state` is, noting changes."""

    def __init__(self, content: Any = ()) -> None:
        super().__init__(Slots)
        for key, value in dict(content).items():
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        _changes[0] += 1
        super().__setitem__(key, Slots(value) if type(value) is dict else value)

    def __reduce__(self) -> Any:
        return State, (dict(self),)

    def __copy__(self) -> State:
        return State(self)

    __delitem__ = _noting(defaultdict.__delitem__)
    __ior__ = _noting(defaultdict.__ior__)
    clear = _noting(defaultdict.clear)
    pop = _noting(defaultdict.pop)
    popitem = _noting(defaultdict.popitem)
    setdefault = _noting(defaultdict.setdefault)
    update = _noting(defaultdict.update)
