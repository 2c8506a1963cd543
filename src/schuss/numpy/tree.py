"""Dicts and lists of arrays, nested to any depth: what a weight is called, and which gradient is its own."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import numpy as np

Path = tuple[str | int, ...]


class KeyMismatchError(KeyError, ValueError):
    """`params` and `grads`, or an optimizer and its checkpoint, do not have the same keys."""

    __str__ = Exception.__str__  # KeyError would put the words in quotes


def name(tree: str, path: Path) -> str:
    """Where an array is, as Python would reach it: `params['layers'][0]['W']`."""
    return tree + "".join(f"[{key!r}]" for key in path)


_ESCAPES = str.maketrans({"%": "%25", "/": "%2F", "\0": "%00"})


def flat_key(path: Path) -> str:
    """The path as one string, for a flat checkpoint.

    >>> flat_key(("layers", 0, "W")), flat_key(("a/b",))
    ('layers/0/W', 'a%2Fb')
    """
    return "/".join(str(key).translate(_ESCAPES) for key in path)


def _keys(keys: Any) -> str:
    return ", ".join(map(repr, keys)) or "nothing"


def pair(params: Any, grads: Any) -> tuple[list[Path], list[Any], list[Any]]:
    """The paths, weights and gradients of all leaves, in the order of `params`.

    A gradient of None, of an array or of everything below, stays None. Raises `KeyMismatchError` where the keys of
    the two differ, `TypeError` where one has an array and the other has not.
    """
    if params is None:
        raise TypeError("params is None. Give a dict of arrays.")
    paths: list[Path] = []
    weights: list[Any] = []
    gradients: list[Any] = []
    _descend(params, grads, (), paths, weights, gradients)
    return paths, weights, gradients


def _descend(
    params: Any, grads: Any, path: Path, paths: list[Path], weights: list[Any], gradients: list[Any]
) -> None:
    if isinstance(params, MutableMapping):
        items = cast(MutableMapping[Any, Any], params).items()
        _check_mapping(params, grads, path)
    elif isinstance(params, list | tuple):
        items = enumerate(cast(list[Any], params))
        _check_sequence(cast(list[Any], params), grads, path)
    else:
        paths.append(path)
        weights.append(params)
        gradients.append(grads)
        return
    for key, node in items:
        below = None if grads is None else grads[key]
        if type(node) is np.ndarray:
            paths.append((*path, key))
            weights.append(node)
            gradients.append(below)
        else:
            _descend(node, below, (*path, key), paths, weights, gradients)


def _check_mapping(params: Any, grads: Any, path: Path) -> None:
    if grads is None or (isinstance(grads, dict) and params.keys() == grads.keys()):
        return
    if not isinstance(grads, Mapping):
        raise TypeError(
            f"{name('grads', path)} is of type {type(grads).__name__}, but {name('params', path)} is a dict with "
            f"{_keys(params)}. Give a dict with the same keys."
        )
    theirs = cast(Mapping[Any, Any], grads)
    for key in params:
        if key not in theirs:
            raise KeyMismatchError(
                f"{name('grads', (*path, key))} is missing: grads has {_keys(theirs)}. "
                "Give None for an array that has no gradient this time."
            )
    for key in theirs:
        if key not in params:
            raise KeyMismatchError(
                f"{name('params', (*path, key))} is missing, but has a gradient: params has {_keys(params)}. "
                "Take the gradient out, or add the array."
            )


def _check_sequence(params: Any, grads: Any, path: Path) -> None:
    if grads is None:
        return
    if not isinstance(grads, list | tuple):
        raise TypeError(
            f"{name('grads', path)} is of type {type(grads).__name__}, but {name('params', path)} is a "
            f"{type(params).__name__} of {len(params)} entries. Give a list with a gradient for each."
        )
    theirs = len(cast(list[Any], grads))
    if theirs != len(params):
        missing = min(theirs, len(params))
        short = "grads" if theirs < len(params) else "params"
        raise KeyMismatchError(
            f"{name(short, (*path, missing))} is missing: {name('params', path)} has {len(params)} entries, "
            f"{name('grads', path)} {theirs}. Give None for an array that has no gradient this time."
        )
