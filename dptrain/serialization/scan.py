"""Reading a pickle for the names in it, without making anything that it holds.

Owns: `unsafe_names`. Must not know: file formats.
"""

from __future__ import annotations

import pickletools
from typing import Any

from dptrain.serialization.names import modern_name
from dptrain.serialization.safe_globals import find_safe
from dptrain.serialization.source import Source
from dptrain.serialization.unpickler import DAMAGE, damaged


def unsafe_names(source: Source) -> list[str]:
    """The full names in a pickle that `load_safely` would refuse, in alphabetical order; nothing is loaded.

    Raises:
        UnpicklingError: the pickle is damaged.
        EOFError: it is cut short.
    """
    try:
        return sorted(name for name in _names(source) if find_safe(name) is None)
    except DAMAGE as error:
        raise damaged(error) from error


class _Lines:
    """A source for `pickletools`, which wants lines with their ends."""

    def __init__(self, source: Source) -> None:
        self.read = source.read
        self._source = source

    def readline(self) -> bytes:
        return self._source.readline() + b"\n"


def _names(source: Source) -> set[str]:
    """All names in a pickle; module and name may be texts that were put into the memo before."""
    found: set[str] = set()
    recent: list[Any] = [None, None]
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(_Lines(source)):  # type: ignore[arg-type]
        value: Any = argument
        if opcode.name == "GLOBAL":
            module, _, name = value.partition(" ")
            found.add(modern_name(module, name))
        elif opcode.name == "STACK_GLOBAL":
            found.add(f"{recent[-2]}.{recent[-1]}")
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = recent[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = recent[-1]
        else:
            recent = [recent[-1], memo.get(value) if opcode.name.endswith("GET") else value]
    return found
