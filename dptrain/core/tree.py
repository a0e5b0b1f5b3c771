"""Nested arguments and results: their leaves and their structure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

LEAF = "*"


def leaves(value: Any) -> tuple[list[Any], Any]:
    """The leaves of nested lists, tuples and dicts, and the structure around them."""
    found: list[Any] = []
    return found, _structure(value, found)


def _structure(value: Any, found: list[Any]) -> Any:
    kind = type(value)
    if kind is list or kind is tuple:
        return kind, [_structure(v, found) for v in value]
    if isinstance(value, tuple):  # named: ours, or the user's
        return kind, [_structure(v, found) for v in value]
    if kind is dict or kind is OrderedDict:
        return kind, [(k, _structure(v, found)) for k, v in value.items()]
    found.append(value)
    return LEAF


def rebuild(values: list[Any], structure: Any) -> Any:
    """The reverse of `leaves`."""
    return _rebuilt(iter(values), structure)


def _rebuilt(values: Any, structure: Any) -> Any:
    if structure is LEAF:
        return next(values)
    kind, parts = structure
    if issubclass(kind, dict):
        return kind((k, _rebuilt(values, p)) for k, p in parts)
    made = [_rebuilt(values, p) for p in parts]
    return kind(*made) if hasattr(kind, "_make") else kind(made)
