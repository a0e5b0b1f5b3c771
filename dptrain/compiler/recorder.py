"""Recording one call of a function: what the call returned, and what it did to tensors from before it.

Owns: `record`. Must not know: how a draft is run.

While the call runs, every tensor in its reach holds a traced array over the memory that it has, and each
tensor argument one over a copy: so that all that is computed from them is seen. What is not seen to be
repeatable gives the draft a reason not to be used; the call itself is right either way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import numpy as np

from dptrain.compiler.arrays import TracedArray
from dptrain.compiler.backward import record_backward
from dptrain.compiler.draft import Draft, Result, result_of
from dptrain.compiler.graphs import is_pending, lead_back, nodes_behind
from dptrain.compiler.guards import Unchanged
from dptrain.compiler.kernels import kernels_of
from dptrain.compiler.listening import Listener, NewTensors
from dptrain.compiler.state import Survey, all_tensors
from dptrain.compiler.trace import EXTERNAL, INPUT, Trace, plain
from dptrain.core.autocast import as_now
from dptrain.core.capturing import recorders
from dptrain.core.memory_order import keep_unseen
from dptrain.core.parts import root_of
from dptrain.core.tensor import Tensor, wrap, wrap_computed
from dptrain.core.tree import leaves, rebuild


def record(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    tensors: list[Tensor],
    found: Survey,
    attach: Callable[[Draft, list[Any], list[Tensor]], None],
) -> tuple[Any, Draft]:
    """Run a call and record it.

    Args:
        function: what is called.
        args: its arguments.
        kwargs: its arguments by name.
        tensors: the tensors among them.
        found: what else is in reach.
        attach: gives a result whose backward pass is still to come its place in the graph; gets the
            draft, the leaves of what the call returned, and its tensor arguments.

    Returns:
        What the call returned, and its draft (with `trace.reason` where it cannot be used).
    """
    unchanged = Unchanged(found)
    recorder = _Recorder(tensors, found)
    recorder.draft.unchanged = unchanged.holds
    args, kwargs = recorder.given(args, kwargs)
    try:
        with (
            NewTensors(),
            recorder,
            as_now(),
        ):  # weights that autocast has cast before are not at hand in a replay
            result = function(*args, **kwargs)
            recorder.finish(result)
    except BaseException:
        recorder.close()
        _free_tensors()
        raise
    outcome = recorder.outcome(result, attach)
    del result, args, kwargs
    recorder.close()
    trace = recorder.trace
    if trace.reason is None and trace.living():
        gc.collect()
        if trace.living():
            trace.reason = (
                "a tensor made in the call is kept outside of it (in an attribute, a list, a graph)"
            )
    if trace.reason is not None:
        _free_tensors()
    else:
        trace.reason = unchanged.reason()
    return outcome, recorder.draft


def _free_tensors() -> None:
    """Give tensors that outlived a recording plain arrays, and so the graphs behind them."""
    tensors = all_tensors()
    for tensor in tensors:
        held: Any = tensor.__dict__.get("_array")
        if type(held) is TracedArray:
            tensor._array = held.host
    for node in nodes_behind(tensors):
        node.saved = plain(node.saved)
        # Beside its saved values a node keeps what it likes: the mask of a dropout, statistics.
        for name, fact in vars(node).items():
            if type(fact) in (TracedArray, tuple, list):
                setattr(node, name, plain(fact))


_REBOUND = "a tensor in reach was bound to other memory in the call"


class _Recorder(Listener):
    """Listens to one call."""

    def __init__(self, tensors: list[Tensor], found: Survey) -> None:
        self.trace = Trace(kernels_of, set(found.arrays))
        self.draft = Draft(self.trace)
        self._arguments = list(tensors)
        self._swaps: list[tuple[Any, str, Any, Any]] = []
        self._known: dict[int, Tensor] = {}
        self._bumps: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._whole_seen = False
        externals = self._externals(found)
        self._stand_ins: dict[int, Tensor] = {}
        self._real = tensors
        for position, tensor in enumerate(tensors):
            stands = tensor._requires_grad or tensor._unseen is not None
            if stands and id(tensor) not in externals and type(tensor._array) is np.ndarray:
                self._stand_ins[id(tensor)] = self._arguments[position] = _stand_in(tensor)
        self._gradients = found.gradients
        self._plan(externals)
        self._starts = {id(t): t._grad for t in self._known.values()}

    def _externals(self, found: Survey) -> dict[int, Tensor]:
        externals: dict[int, Tensor] = {}
        for tensor in found.tensors.values():
            if tensor._has_values and tensor._node is None:
                externals[id(tensor)] = tensor
                if tensor._slot is not None and found.gradients:
                    externals[id(tensor._slot)] = tensor._slot
                    tensor._place.storage.pinned = True
        return externals

    def _plan(self, externals: dict[int, Tensor]) -> None:
        """Which attributes hold traced arrays during the call."""
        storages: dict[int, Any] = {}
        for tensor in externals.values():
            array = tensor._array
            if type(array) is not np.ndarray:
                self.trace.refuse(f"a tensor in reach lives on {tensor.device}")
                continue
            self._known[id(tensor)] = tensor
            self._swaps.append((tensor, "_array", array, self.trace.external(array)))
            self.draft.tensors.append((tensor, array, tensor._requires_grad))
            tensor._version_counter()
            if tensor._place is not None and self._gradients:
                storages[id(tensor._place.storage)] = tensor._place.storage
        for storage in storages.values():
            for name in ("data", "grad"):
                held = getattr(storage, name)
                self._swaps.append((storage, name, held, self.trace.external(held)))
        seen: dict[int, int] = {}
        for position, tensor in enumerate(self._arguments):
            first = seen.setdefault(id(tensor), position)
            if id(tensor) in externals or first != position:
                self.draft.inputs.append(None)
                same = tensor if first == position else first
                self.draft.fixed.append((position, same))
                continue
            array = tensor._array
            if type(array) is not np.ndarray:
                self.trace.refuse(f"an argument lives on {tensor.device}")
                continue
            own = self.trace.own(array)
            np.copyto(own.host, array)
            own.block.kind = INPUT
            self.trace.kinds[own.block.number] = INPUT
            self._swaps.append((tensor, "_array", array, own))
            self.draft.inputs.append(own.host)

    def given(self, args: Any, kwargs: Any) -> Any:
        """The arguments with leaves in the place of tensors that a graph may lead to."""
        values, structure = leaves((args, kwargs))
        values = [self._stand_ins.get(id(v), v) if isinstance(v, Tensor) else v for v in values]
        return rebuild(values, structure) if self._stand_ins else (args, kwargs)

    # ---- entering and leaving --------------------------------------------------------------------

    def __enter__(self) -> None:
        self._resume()

    def __exit__(self, *exc: Any) -> None:
        self._pause()

    def _resume(self) -> None:
        self._counts = {i: t._version_counter()[0] for i, t in self._known.items()}
        for i, (owner, name, real, traced) in enumerate(self._swaps):
            found = getattr(owner, name)
            if found is not real:  # what was kept whole (an optimizer) has moved it
                self.trace.refuse(_REBOUND)
                traced = self.trace.external(found)
                self._swaps[i] = owner, name, found, traced
            setattr(owner, name, traced)
        recorders[get_ident()] = self

    def _pause(self) -> None:
        recorders.pop(get_ident(), None)
        for i, (owner, name, real, traced) in enumerate(self._swaps):
            found = getattr(owner, name)
            if (
                found is not traced
                and traced.block.kind == INPUT
                and owner in self._stand_ins.values()
            ):
                pass  # its elements lie in the order now that they show; those of the argument need not
            elif found is not traced:
                self.trace.refuse(_REBOUND)
                real = found.host if type(found) is TracedArray else found
                self._swaps[i] = owner, name, real, traced
            setattr(owner, name, real)
        for i, tensor in self._known.items():
            changes = tensor._version_counter()[0] - self._counts[i]
            if changes:
                self._bumps[i] = self._bumps.get(i, 0) + changes

    def close(self) -> None:
        """Listen to nothing any more."""
        self.trace.open = False
        self._swaps.clear()
        self._starts.clear()

    # ---- the end of the call ---------------------------------------------------------------------

    def finish(self, result: Any) -> None:
        """Note what was returned and what became of the tensors in reach, while these are traced."""
        values, self.draft.structure = leaves(result)
        for value in values:
            self._add_result(value)
        for i, tensor in self._known.items():
            self._note_gradient(tensor, self._starts[i])
            if tensor._node is not None:
                self.trace.refuse("a tensor in reach was given a history")
        for tensor, _ in self.draft.gradients:
            if tensor._hooks or tensor._post_hooks:
                self.trace.refuse("a tensor in reach has hooks, which run in its backward pass")
        for real in self._real:
            stand_in = self._stand_ins.get(id(real))
            if stand_in is not None and stand_in._grad is not None:
                self.trace.refuse("it computes the gradient of an argument")
                held = stand_in._grad._array
                real._accumulate_grad(held.host if type(held) is TracedArray else held)
        self.draft.pending = [i for i, v in enumerate(values) if is_pending(v, self._known)]
        if self.draft.pending and self.trace.reason is None:
            if len(self.draft.pending) > 1 and self._gradients:
                self.trace.refuse("it returns several tensors whose graph is still to be walked")
            else:
                record_backward(self.draft, values, self._known, self._arguments)

    def _add_result(self, value: Any) -> None:
        made = Result(value=value)
        if isinstance(value, Tensor):
            position = next((i for i, a in enumerate(self._arguments) if a is value), None)
            array: Any = value._array
            if position is not None:
                made = Result(position=position)
            elif id(value) not in self._known:
                if type(array) is np.ndarray:
                    array = self.trace.adopted(array)
                if array.block.kind in (INPUT, EXTERNAL):
                    self.trace.refuse("it returns a view of what existed before the call")
                name = None if value._node is None else value._node.grad_name
                made = Result(array.host, name, value._unseen is not None)
                self.trace.used.add(array.block.number)
                self.trace.outputs.add(array.block.number)
                self.trace.held.append(array.block)
        elif type(value) is TracedArray:
            self.trace.refuse("it returns a raw array")
        self.draft.results.append(made)

    def _note_gradient(self, tensor: Tensor, before: Tensor | None) -> None:
        after = tensor._grad
        if not self._gradients:
            if after is not before:
                self.trace.refuse("it computes the gradient of a tensor in reach")
            return
        if after is before:
            touched = before is not None and self._is_used(before)
            if touched:
                self.draft.starts.append((tensor, before))
            elif after is None and tensor._requires_grad:
                return
            if after is None or not touched:
                return
            self.draft.gradients.append((tensor, after))
            return
        if before is None or self._is_used(before):
            self.draft.starts.append((tensor, before))
        if after is None or id(after) in self._known:
            self.draft.gradients.append((tensor, after))
            return
        array = after._array
        if type(array) is not TracedArray:
            self.trace.refuse("a gradient was assigned that no call of the recording makes")
            return
        if after._node is not None:
            self.trace.refuse("a gradient has a history (create_graph)")
        if array.block.kind in (INPUT, EXTERNAL):
            self.trace.refuse("a gradient is a view of what existed before the call")
        self.draft.gradients.append((tensor, array.host))
        self.trace.outputs.add(array.block.number)
        self.trace.held.append(array.block)
        tensor._grad = wrap_computed(array.host.copy(order="K"))

    def _is_used(self, tensor: Tensor) -> bool:
        traced = next((s[3] for s in self._swaps if s[0] is tensor), None)
        return traced is None or traced.block.number in self.trace.used

    def outcome(self, result: Any, attach: Callable[..., None]) -> Any:
        """What the call returned, as it is without a recording."""
        self.draft.bumps = [(self._known[i]._version_counter(), n) for i, n in self._bumps.items()]
        for owner, _, real, traced in self._swaps:
            number, kind = traced.block.number, traced.block.kind
            if kind == INPUT and number in self.trace.written:
                self.trace.reason = self.trace.reason or "it changes an argument in place"
                np.copyto(real, traced.host)
            by_optimizer = self._whole_seen and getattr(owner, "_requires_grad", True)
            if kind == EXTERNAL and (by_optimizer or number in self.trace.written):
                self.draft.written.append(root_of(real))
        if self.trace.reason is not None:
            return self._untraced(result)
        values = [result_of(r, self._real) for r in self.draft.results]
        if self.draft.backwards:
            attach(self.draft, values, self._real)
        return rebuild(values, self.draft.structure)

    def _untraced(self, result: Any) -> Any:
        """The very result, over plain arrays."""
        values, structure = leaves(result)
        back = {id(s): r for r in self._real if (s := self._stand_ins.get(id(r))) is not None}
        for value in values:
            if isinstance(value, Tensor) and type(value._array) is TracedArray:
                value._array = self._memory_of(value._array)
        for real in self._real:
            if (stand_in := self._stand_ins.get(id(real))) is not None:
                lead_back(values, stand_in, real)
        return rebuild([back.get(id(v), v) for v in values], structure)

    def _memory_of(self, array: TracedArray) -> np.ndarray:
        """The memory behind an array; what looks into a copied argument looks into that argument."""
        for _, _, real, traced in self._swaps:
            if traced.block is array.block and traced.block.kind == INPUT:
                return _same_place(array.host, traced.host, real)
        return array.host


def _stand_in(tensor: Tensor) -> Tensor:
    """A leaf with the array of a tensor that a graph may lead to, or whose memory order is unseen."""
    made = wrap(tensor._array)
    made._requires_grad = tensor._requires_grad
    if tensor._unseen is not None:
        keep_unseen(made)
    return made


def _same_place(view: np.ndarray, copy: np.ndarray, real: np.ndarray) -> np.ndarray:
    """What `view` shows of `copy`, of `real`, which has the same strides."""
    facts = view.__array_interface__
    start = facts["data"][0] - copy.__array_interface__["data"][0]
    place = real.__array_interface__["data"][0] + start
    holder = SimpleNamespace(
        __array_interface__={**facts, "data": (place, False), "strides": view.strides}, real=real
    )
    return np.asarray(holder)
