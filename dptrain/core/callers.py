"""Who called the package: the line of the user's program that a warning should name."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def level_outside() -> int:
    """The `stacklevel` at which a warning, given by the caller of this function, names code outside.

    Counted, not written down: how many wrappers stand between depends on modes and hooks.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level
