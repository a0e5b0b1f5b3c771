"""Public places of `torch.distributed` for things that live in rooms above this one.

Owns: `found_in`, the `__getattr__` of such a place. Must not know: what the things are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def found_in(place: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """What finds a name where it lives, on first use: importing the place loads nothing.

    Args:
        place: the module's name.
        homes: by public name the module in which it lives, or the module itself, by its own name.
    """

    def find(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {place!r} has no attribute {name!r}")
        module = import_module(home)
        return module if home == f"{place}.{name}" else getattr(module, name)

    return find
