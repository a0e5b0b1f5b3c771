"""NumPy's floating point warnings, off: inf and nan are values here, as in PyTorch.

Owns: the cheap way to switch them off around one operation. NumPy keeps its error state in a context
variable; `np.errstate` builds a new state at each use, which costs more than adding four numbers. Here
the state is built once and the variable set to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import numpy as np


def _with_errstate() -> np.errstate:
    state = np.errstate(all="ignore")
    state.__enter__()
    return state


def _leave_errstate(state: np.errstate) -> None:
    state.__exit__(None, None, None)


def _switches() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How to enter and leave the quiet state: by the variable that `np.errstate` is seen to set."""
    with np.errstate(all="ignore"):
        inside = copy_context()
    outside = copy_context()
    changed = [v for v in inside if outside.get(v) is not inside[v]]
    if len(changed) != 1:  # a NumPy that keeps its state elsewhere
        return _with_errstate, _leave_errstate
    return partial(changed[0].set, inside[changed[0]]), changed[0].reset


#: `token = ignore_float_errors()` ... `restore_float_errors(token)`, the latter in a `finally`.
ignore_float_errors, restore_float_errors = _switches()
