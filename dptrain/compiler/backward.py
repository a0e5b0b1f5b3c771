"""Recording the backward pass of what a call returned, which is still to come.

Owns: `record_backward`. Must not know: how a call is listened to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.compiler.arrays import TracedArray
from dptrain.compiler.draft import Backward, Draft
from dptrain.compiler.graphs import ends_of, nodes_behind
from dptrain.compiler.trace import INPUT, Trace
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.core.walk import Pass


def record_backward(
    draft: Draft, values: list[Any], known: dict[int, Tensor], arguments: list[Tensor]
) -> None:
    """Walk back from the pending results, into no tensor's gradient, while the call is recorded.

    Args:
        draft: the recording.
        values: the leaves of what the call returned.
        known: the tensors in reach, by id.
        arguments: the tensor arguments.
    """
    trace = draft.trace
    living = trace.alive()  # what the graph saved is needed again where it is retained
    behind = [e for i in draft.pending for e in ends_of(values[i]) if e._requires_grad]
    ends = list({id(e): e for e in behind}.values())
    positions = {id(a): i for i, a in enumerate(arguments)}
    if any(id(e) not in known and id(e) not in positions for e in ends):
        trace.refuse("a tensor made in the call requires gradients")
        return
    leaves_behind = [e if id(e) in known else positions[id(e)] for e in ends]
    chosen = _differentiated(draft, values)
    results = [values[i] for i in chosen]
    saved = _saved(results, known, arguments)
    hosts: list[np.ndarray] = [r._array.host for r in results]
    for strides, likes in _ways(hosts).items():
        start = len(trace.nodes)
        memory = [_incoming(trace, like) for like in likes]
        grads = [_shown(m, h.shape) for m, h in zip(memory, hosts, strict=True)]
        found = _walk(results, grads, ends)
        if any(a is not None and type(a) is not TracedArray for a in found):
            trace.refuse("a gradient does not come from the recording")
            return
        trace.outputs.update(a.block.number for a in found if a is not None)
        draft.backwards.append(
            Backward(
                start,
                len(trace.nodes),
                strides,
                chosen,
                [m.host for m in memory],
                leaves_behind,
                saved,
                [None if a is None else a.host for a in found],
                [None if a is None else a.block.number for a in found],
            )
        )
        del found  # of several ways one is gone in a pass: they may share their memory
    trace.kept.append([block.memory for block in living])


def _differentiated(draft: Draft, values: list[Any]) -> list[int]:
    """Which results are expected to be given gradients: the loss, if one is among them, or all."""
    scalars = [i for i in draft.pending if not values[i]._array.ndim]
    return scalars if len(scalars) == 1 else draft.pending


def _saved(results: list[Tensor], known: dict[int, Tensor], arguments: list[Tensor]) -> list[Any]:
    """The tensors from before the call (or positions of arguments) that the graph needs as they are."""
    versions = [v for node in nodes_behind(results) for v in node.versions if v is not None]
    counters = {id(counter) for counter, _ in versions}
    before: list[tuple[Tensor, Any]] = [(t, t) for t in known.values()]
    before += [(a, i) for i, a in enumerate(arguments) if id(a) not in known]
    return [name for t, name in before if id(t._version_counter()) in counters]


def _ways(hosts: list[np.ndarray]) -> dict[tuple[tuple[int, ...], ...], list[np.ndarray]]:
    """In what ways the gradients of results may lie in memory, which decides the order of sums.

    As the results do; that of a single one also row by row, or as one number for all elements.
    """
    ways = {tuple(h.strides for h in hosts): hosts}
    if len(hosts) == 1:
        shape, kind = hosts[0].shape, hosts[0].dtype
        in_rows = np.empty(shape, kind)
        ways[(in_rows.strides,)] = [in_rows]
        ways[((0,) * len(shape),)] = [np.empty((), kind)]
    return ways


def _incoming(trace: Trace, like: np.ndarray) -> TracedArray:
    """Memory for a gradient that comes in."""
    memory = trace.own(like)
    memory.host.fill(1)
    memory.block.kind = trace.kinds[memory.block.number] = INPUT
    return memory


def _shown(memory: TracedArray, shape: tuple[int, ...]) -> TracedArray:
    if memory.host.shape == shape:
        return memory
    return TracedArray(np.broadcast_to(memory.host, shape), memory.block, memory.trace)


def _walk(results: list[Tensor], grads: list[TracedArray], ends: list[Tensor]) -> list[Any]:
    """The gradients of `ends`; the graph is kept."""
    hooks, quiet = [(e, e._hooks) for e in ends], ignore_float_errors()
    for end, _ in hooks:
        end._hooks = None
    try:
        run = Pass(False, True, ends)
        for result, grad in zip(results, grads, strict=True):
            run.add_root(result, grad)
        with no_grad():
            run.run(run.order())
    finally:
        restore_float_errors(quiet)
        for end, held in hooks:
            end._hooks = held
    captured: Any = run.captured
    return [captured[id(e)] for e in ends]
