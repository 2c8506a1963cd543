"""Pack a task and its entries for a worker, and name what cannot be packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType
from typing import Any, cast

import cloudpickle

DEPTH = 8


def pack(source: Any, entries: Mapping[str, Any]) -> bytes:
    """Bytes of both; `TypeError` with the field that cannot travel to a worker."""
    try:
        return cloudpickle.dumps((source, dict(entries)))
    except Exception as error:
        named = {"task": source.task, **{f"entry {name!r}": entry for name, entry in entries.items()}}
        found = (culprit(each, name) for name, each in named.items() if each is not None)
        where, reason = next(filter(None, found), ("the race", str(error)))
        raise TypeError(
            f"A worker cannot be sent {where}: {reason}. Make it inside the function that uses it, or once in the "
            "model; a race sends its task and its entries to processes of their own."
        ) from error


def culprit(value: Any, name: str, depth: int = DEPTH) -> tuple[str, str] | None:
    """The innermost part that cannot be pickled, by its path from here, and why; None if all can."""
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        return None
    inner = (culprit(each, f"{name}{part}", depth - 1) for part, each in _parts(value)) if depth else iter(())
    return next(filter(None, inner), (f"{name} (a {type(value).__name__})", reason))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, as it is written."""
    if isinstance(value, FunctionType):
        code = value.__code__
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        used = {name: cell.cell_contents for name, cell in cells}
        used |= {name: value.__globals__[name] for name in code.co_names if name in value.__globals__}
        yield from ((f", which uses {name}", each) for name, each in used.items())
        yield from ((f", with its default {each!r}", each) for each in value.__defaults__ or ())
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in cast("Mapping[Any, Any]", value).items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", each) for i, each in enumerate(cast("list[Any]", value)))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{each.name}", getattr(value, each.name)) for each in fields(value))
    else:
        inside = cast("Mapping[str, Any]", getattr(value, "__dict__", {}))
        yield from ((f".{key}", each) for key, each in inside.items() if not key.startswith("__"))
