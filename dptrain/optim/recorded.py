"""Steps of optimizers in CUDA graphs: the numbers that change from step to step lie in memory.

Owns: what a graph may record of a step, and what the host does before each replay. Must not know: any
particular optimizer, how graphs are recorded. The update itself says which numbers it needs: it runs
again on the host before each replay, with launches that only bring numbers into memory.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dptrain.core.arrays import on_gpu
from dptrain.core.capturing import recorder
from dptrain.core.cuda_capture import current_capture
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.optim.runs import STEP, Plan

if TYPE_CHECKING:
    from dptrain.optim.optimizer import Optimizer


def can_be_recorded(optimizer: Optimizer) -> bool:
    """Whether the class that defines the update says that it does nothing to arrays but call kernels."""
    home = next(c for c in type(optimizer).__mro__ if "_update" in vars(c))
    return bool(vars(home).get("_kernels_only", False))


def check_capture(optimizer: Optimizer) -> None:
    """Refuse a step that a CUDA graph cannot hold.

    Raises:
        RuntimeError: see there.
    """
    start = f"Attempting CUDA graph capture of step() for an instance of {type(optimizer).__name__}"
    counting = [g for g in optimizer.param_groups if STEP in optimizer._state_names(g)]
    able = can_be_recorded(optimizer)
    if not able or (counting and current_capture() is None):
        raise RuntimeError(
            f"{start}, whose update depends on the number of the step or is more than one kernel: a replayed graph "
            "would repeat this one. Capture forward and backward only, by dptrain.cuda.graph"
        )
    # `compile` brings up to date what a replay depends on without being asked.
    if recorder() is None and any(g.get("capturable") is False for g in counting):
        raise RuntimeError(
            f"{start} but param_groups' capturable is False: make the optimizer with capturable=True"
        )


_NOTHING = nullcontext()


def numbers_in_memory(optimizer: Optimizer, plan: Plan) -> AbstractContextManager[None]:
    """Where graphs are going to be recorded, the kernels that these consist of run from the start.

    Raises:
        AssertionError: `capturable` for parameters that are not on a GPU.
    """
    if True not in [group.get("capturable") for group in optimizer.param_groups]:
        return _NOTHING
    if not all(on_gpu(run.param) for run in plan.runs):
        raise AssertionError(
            "If capturable=True, params and state_steps must be on supported devices: ['cuda']."
        )
    from dptrain.core.kernels.cuda.numbers import KeptNumbers

    return KeptNumbers().launching(recorded=False)


def record_runs(optimizer: Optimizer, plan: Plan) -> None:
    """Record the updates: each replay counts a step and computes its numbers anew; this counts none.

    Raises:
        RuntimeError: the first step of some parameters, whose state each replay would start anew.
    """
    capture = current_capture()
    if capture is None:  # recorded by other means, an update that depends on nothing
        optimizer._take_runs(plan)
        return
    if any(run.first and run.state for run in plan.runs):
        raise RuntimeError(
            f"{type(optimizer).__name__}.step: the state of some parameters comes into being in their first step; make "
            "one before the CUDA graph is captured"
        )
    from dptrain.core.kernels.cuda.numbers import KeptNumbers

    counters = [n for held in optimizer._buffers.values() for n in held.scalars.values()]
    values, kept = [n.copy() for n in counters], KeptNumbers()
    try:
        with kept.launching(recorded=True):
            optimizer._take_runs(plan)
    finally:
        for counter, value in zip(counters, values, strict=True):
            counter[...] = value
    capture.before.append(partial(_count_step, optimizer, plan, kept))


def _count_step(optimizer: Optimizer, plan: Plan, kept: Any) -> None:
    """What the host does for a recorded step before its replay."""
    token = ignore_float_errors()
    try:
        with kept.refreshing():
            for run in plan.runs:
                again = replace(run, gaps=[])  # the graph has cleared them
                again.advance()
                optimizer._update(again)
    finally:
        restore_float_errors(token)
