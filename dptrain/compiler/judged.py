"""A recording of a call, and whether it can stand for calls to come.

Owns: `judged_record`, `program_of`. Must not know: which calls are recorded, and when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.compiler.draft import Draft, difference
from dptrain.compiler.guards import reach_guard
from dptrain.compiler.kinds import modes
from dptrain.compiler.program import NotAhead, Program
from dptrain.compiler.recorder import record
from dptrain.compiler.state import Survey
from dptrain.core.tensor import Tensor

CHANGES = "it changes a plain value, an object or a container in its reach"
CHANGES_A_MODE = "it changes a mode (gradients, autocast, threads, default dtype)"


def judged_record(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    tensors: list[Tensor],
    found: Survey,
    attach: Callable[[Draft, list[Any], list[Tensor]], None],
) -> tuple[Any, Draft]:
    """Run a call and record it; see `record`. What it changed in its reach is a reason not to use the draft."""
    unchanged, before = reach_guard(found), modes()
    result, draft = record(function, args, kwargs, tensors, found, attach)
    if draft.trace.reason is None and not unchanged():
        draft.trace.reason = CHANGES
    if draft.trace.reason is None and before != modes():
        draft.trace.reason = CHANGES_A_MODE
    return result, draft


def program_of(draft: Draft, before: Draft, found: Survey) -> Program | str:
    """A program of a draft that agrees with the one before; else why not."""
    unequal = difference(before, draft)
    if unequal is not None:
        return unequal
    try:
        return Program(draft, found)
    except NotAhead as error:
        return str(error)
