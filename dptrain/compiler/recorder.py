"""Recording one call of a function: what the core tells, and what the call did to tensors from before it.

Owns: `record`. Must not know: how a draft is run.

While the call runs, every tensor in its reach holds a traced array over the memory that it has, and each
tensor argument one over a copy: so that all that is computed from them is seen. What is not seen to be
repeatable gives the draft a reason not to be used; the call itself is right either way.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from threading import get_ident
from types import SimpleNamespace
from typing import Any

import numpy as np

from dptrain.compiler.arrays import TracedArray
from dptrain.compiler.calls import Draw, Whole, check
from dptrain.compiler.draft import Backward, Draft, Result, result_of
from dptrain.compiler.kernels import kernels_of
from dptrain.compiler.state import Survey
from dptrain.compiler.trace import EXTERNAL, INPUT, Trace
from dptrain.compiler.tree import leaves, rebuild
from dptrain.core.autocast import as_now
from dptrain.core.capturing import recorders
from dptrain.core.grad_mode import no_grad
from dptrain.core.memory_order import keep_unseen
from dptrain.core.op import edge_of
from dptrain.core.parts import root_of
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap, wrap_computed
from dptrain.core.walk import Pass


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
    recorder = _Recorder(tensors, found)
    args, kwargs = recorder.given(args, kwargs)
    try:
        with (
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
    return outcome, recorder.draft


def _free_tensors() -> None:
    """Give tensors that outlived a recording plain arrays."""
    for tensor in _all_tensors():
        held: Any = tensor.__dict__.get("_array")
        if type(held) is TracedArray:
            tensor._array = held.host


def _all_tensors() -> list[Tensor]:
    """The tensors of the process."""
    # By type: `isinstance` would ask everybody's objects for `__class__`, at which some warn.
    return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]


_REBOUND = "a tensor in reach was bound to other memory in the call"


class _Recorder:
    """Listens to one call."""

    def __init__(self, tensors: list[Tensor], found: Survey) -> None:
        self.trace = Trace(kernels_of, set(found.arrays))
        self.draft = Draft(self.trace)
        self._existing = {id(tensor): tensor for tensor in _all_tensors()}
        self._arguments = list(tensors)
        self._swaps: list[tuple[Any, str, Any, Any]] = []
        self._known: dict[int, Tensor] = {}
        self._fresh_results: list[Any] = []
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
        self._plan(externals)
        self._starts = {id(t): t._grad for t in self._known.values()}

    def _externals(self, found: Survey) -> dict[int, Tensor]:
        externals: dict[int, Tensor] = {}
        for tensor in found.tensors.values():
            if tensor._has_values and tensor._node is None:
                externals[id(tensor)] = tensor
                if tensor._slot is not None:
                    externals[id(tensor._slot)] = tensor._slot
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
            if tensor._place is not None:
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
        self._existing.clear()
        self._fresh_results.clear()

    # ---- what the core tells ---------------------------------------------------------------------

    def enter(self, args: tuple[Any, ...], raw: list[Any]) -> None:
        """Arrays of tensors that were made in the call from numbers become traced ones."""
        for i, value in enumerate(args):
            if not isinstance(value, Tensor) or type(raw[i]) is not np.ndarray:
                continue
            if id(value) in self._existing:
                self.trace.refuse(
                    f"it reads a tensor of shape {list(value.shape)} that was made before the call and that neither "
                    "arguments, modules, closures, globals nor attributes lead to"
                )
                continue
            traced: Any = self.trace.adopted(raw[i])
            raw[i] = value._array = traced

    def refuse(self, reason: str) -> None:
        """Something was done that a replay would not do."""
        self.trace.refuse(reason)

    def changed(self, tensor: Tensor) -> None:
        """A tensor was changed in place."""
        if type(tensor._array) is np.ndarray and id(tensor) in self._existing:
            self.trace.refuse("it changes a tensor in place that is out of its reach")

    def draws(self, generator: Any, purpose: int) -> Any:
        """A stream of random numbers whose draws are recorded."""
        if generator is default_generator():
            self.draft.generator = generator
        return _Draws(self, generator, purpose)

    def drawn(self, generator: Any, purpose: int, name: str, args: Any, kwargs: Any) -> Any:
        """Draw numbers, now and at each run."""
        with _Aside(self):
            values = getattr(generator.stream(purpose), name)(*args, **kwargs)
        if not isinstance(values, np.ndarray):
            self.trace.refuse(f"random numbers were drawn as Python numbers ({name})")
            return values
        made = self.trace.own(values)
        np.copyto(made.host, values)
        call = Draw(generator, purpose, name, args, kwargs)
        writes = (made.block.number,)
        self.trace.add("store", call, (), {}, (made.host,), (), writes, (), False, call.text())
        return made

    def refuse_if(self, bad: Any, error: Callable[..., Exception], arrays: Any) -> None:
        """Check values, now and at each run."""
        traced = [a for a in (bad, *arrays) if type(a) is TracedArray]
        hosts = tuple(a.host if type(a) is TracedArray else a for a in (bad, *arrays))
        check(error, *hosts)
        if traced:
            name = getattr(getattr(error, "func", error), "__qualname__", "")
            self.trace.add("call", check, (error, *hosts), {}, (), traced, (), (), False, name)

    def whole(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function as it is, now and at each run."""
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        grads = [(t, t._grad) for t in self._known.values() if t._requires_grad]
        for _, grad in grads:
            if grad is not None and id(grad) not in self._known:
                self.trace.refuse("a gradient has no place in the optimizer's storage")
        seen: list[TracedArray] = []
        given = tuple(self._outside(a, seen) for a in args)
        named = {k: self._outside(v, seen) for k, v in kwargs.items()}
        self._pause()
        try:
            result = function(*given, **named)
        finally:
            self._resume()
        self._whole_seen = True
        for value in (*given, *named.values()):
            if callable(value) and not hasattr(value, "param_groups"):
                self.trace.refuse("a closure is handed to a function that is kept whole")
        out: tuple[Any, ...] = ()
        writes: tuple[int, ...] = ()
        if isinstance(result, Tensor):
            made = self.trace.own(result._array)
            np.copyto(made.host, result._array)
            out, writes, result = (made.host,), (made.block.number,), wrap(made)  # type: ignore[arg-type]
        elif result is not None:
            self.trace.refuse(f"{getattr(function, '__name__', 'a function')} returned a value")
        call = Whole(function, given, named, grads)
        self.trace.add("whole", call, (), {}, out, seen, writes, (), False, call.text())
        return result

    def _outside(self, value: Any, seen: list[TracedArray]) -> Any:
        """An argument as the function outside of the recording gets it."""
        if isinstance(value, Tensor) and id(value) not in self._known:
            array = value._array
            if type(array) is TracedArray:
                seen.append(array)
                self.trace.kept.append(array.host)
                return wrap(array.host)
        if type(value) in (list, tuple):
            return type(value)(self._outside(v, seen) for v in value)
        return value

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
        pending = [i for i, v in enumerate(values) if _is_pending(v, self._known)]
        if pending and self.trace.reason is None:
            if len(pending) > 1:
                self.trace.refuse("it returns several tensors whose graph is still to be walked")
            else:
                self._record_backward(pending[0], values[pending[0]])

    def _record_backward(self, place: int, result: Tensor) -> None:
        """Walk back from a result, into no tensor's gradient."""
        living = self.trace.alive()  # what the graph saved is needed again where it is retained
        ends = [e for e in _ends_of(result) if e._requires_grad]
        positions = {id(a): i for i, a in enumerate(self._arguments)}
        if any(id(e) not in self._known and id(e) not in positions for e in ends):
            self.trace.refuse("a tensor made in the call requires gradients")
            return
        leaves_behind = [e if id(e) in self._known else positions[id(e)] for e in ends]
        array: Any = result._array
        host: np.ndarray = array.host
        in_rows = np.empty(host.shape, host.dtype)
        single = np.empty((), host.dtype)
        ways = {host.strides: host, in_rows.strides: in_rows, (0,) * host.ndim: single}
        for strides, like in ways.items():
            start, memory = len(self.trace.nodes), self.trace.own(like)
            memory.host.fill(1)
            memory.block.kind = self.trace.kinds[memory.block.number] = INPUT
            grad = TracedArray(np.broadcast_to(memory.host, host.shape), memory.block, self.trace)
            found = self._walk(result, grad if like is single else memory, ends)
            if any(a is not None and type(a) is not TracedArray for a in found):
                self.trace.refuse("a gradient does not come from the recording")
                return
            self.trace.outputs.update(a.block.number for a in found if a is not None)
            self.trace.held += [a.block for a in found if a is not None]
            hosts = [None if a is None else a.host for a in found]
            stop = len(self.trace.nodes)
            self.draft.backwards.append(
                Backward(start, stop, strides, place, memory.host, leaves_behind, hosts)
            )
        self.trace.kept.append([block.memory for block in living])

    def _walk(self, result: Tensor, grad: TracedArray, ends: list[Tensor]) -> list[Any]:
        """The gradients of `ends`; the graph is kept."""
        hooks = [(e, e._hooks) for e in ends]
        for end, _ in hooks:
            end._hooks = None
        try:
            run = Pass(False, True, ends)
            run.add_root(result, grad)
            with no_grad():
                run.run(run.order())
        finally:
            for end, held in hooks:
                end._hooks = held
        captured: Any = run.captured
        return [captured[id(e)] for e in ends]

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
                _lead_back(values, stand_in, real)
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


def _lead_back(values: list[Any], stand_in: Tensor, real: Tensor) -> None:
    """Let the graph behind some results end where that of an argument begins."""
    stack, seen = [v._node for v in values if isinstance(v, Tensor)], set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        node.edges = [
            edge_of(real) if e is not None and e[0] is stand_in else e for e in node.edges
        ]
        stack += [e[0] for e in node.edges if e is not None and e[1] is not None]


def _is_pending(value: Any, known: dict[int, Tensor]) -> bool:
    """Whether a result has a graph that no backward pass has freed yet."""
    if not isinstance(value, Tensor) or value._node is None or id(value) in known:
        return False
    return all(node.saved is not None for node in _nodes_behind(value))


def _nodes_behind(tensor: Tensor) -> list[Any]:
    stack, seen = [tensor._node], {}
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack += [e[0] for e in node.edges if e is not None and e[1] is not None]
    return list(seen.values())


def _ends_of(tensor: Tensor) -> list[Tensor]:
    """The leaves behind a tensor."""
    edges = [e for node in _nodes_behind(tensor) for e in node.edges]
    return list({id(e[0]): e[0] for e in edges if e is not None and e[1] is None}.values())


class _Aside:
    """What runs inside this block is not recorded."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        recorders.pop(get_ident(), None)

    def __exit__(self, *exc: Any) -> None:
        recorders[get_ident()] = self._recorder


class _Draws:
    """A stream whose methods draw arrays that are recorded."""

    def __init__(self, recorder: _Recorder, generator: Any, purpose: int) -> None:
        self._recorder, self._generator, self._purpose = recorder, generator, purpose

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "bit_generator":
            raise AttributeError(name)
        return lambda *args, **kwargs: self._recorder.drawn(
            self._generator, self._purpose, name, args, kwargs
        )
