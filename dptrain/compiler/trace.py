"""A recording in the making: the calls of one step, and the memory that they compute in.

Owns: `Trace`, `Node`, `Block`. Must not know: tensors, how the nodes are run again.

Every array that the step makes gets memory of the recording's own. Memory whose last array has gone is
given to a later one, so that a recording needs about as much as the step does at its peak, and running
the calls again in their order, over the same memory, is the step again (the idea of a CUDA graph's
private pool). Views therefore need no call at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any
from weakref import ref

import numpy as np

from dptrain.compiler import forms
from dptrain.compiler.arrays import TracedArray, TracedNamespace
from dptrain.core.arrays import address
from dptrain.core.flat import aligned_empty
from dptrain.core.parts import root_of

#: Kinds of memory: of an array made in the step; of values that no call makes; of an argument; of what
#: existed before the step.
OWN, CONSTANT, INPUT, EXTERNAL = "own", "constant", "input", "external"


class Block:
    """Memory behind arrays of the recording."""

    __slots__ = ("__weakref__", "kind", "memory", "number", "trace")

    def __init__(self, trace: Trace, number: int, kind: str, memory: np.ndarray | None) -> None:
        self.trace, self.number, self.kind, self.memory = trace, number, kind, memory

    def __del__(self) -> None:
        if self.kind is OWN and self.memory is not None:
            self.trace.recycle(self.memory)


@dataclass(slots=True)
class Node:
    """One call of a recording.

    Attributes:
        form: "call", or "store" for a call whose result is copied into `out`, "launch" for a kernel of the
            pool, "check" for a value that decides what the step does.
        function: what is called.
        args: its arguments; arrays are those that the recording computes in.
        kwargs: likewise.
        out: where results go: for "store" as many arrays as there are results.
        reads: numbers of the blocks that are read.
        writes: of those that are written.
        hoistable: whether it may run ahead of the step: its reads and writes are all there is to it.
        text: names it where two recordings are compared.
    """

    form: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[Any, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    hoistable: bool
    text: Any


@dataclass
class Constant:
    """Values that no call of the recording makes, as they were before anything wrote to them.

    Attributes:
        host: where calls find them.
        values: a copy.
        born: number of the calls that were recorded before.
        written: whether a call may write to `host`, so that each run has to start from the copy.
    """

    host: np.ndarray
    values: np.ndarray
    born: int
    written: bool = False


@dataclass
class Trace:
    """What one run of a step consists of.

    Attributes:
        nodes: the calls, in order.
        constants: by number of the block, values from outside of the recording.
        written: numbers of the blocks that existed before, or are arguments, and are written.
        used: numbers of all blocks that a call reads or writes.
        reason: why the recording cannot be run again, if so.
        kept: arrays behind addresses that kernels were given.
    """

    kernels_of: Callable[[Trace, Any], Any]
    reachable: set[int] = field(default_factory=set)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[int, Constant] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    reason: str | None = None
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = get_ident()
        self.open = True
        self.namespace = TracedNamespace(self, np)
        self._count = 0
        self._free: list[np.ndarray] = []
        self._living: list[ref[Block]] = []
        #: The arrays that own the memory of blocks from before the step.
        self.roots: dict[int, np.ndarray] = {}
        self.places: dict[int, Any] = {}
        #: Kind of each block, by number.
        self.kinds: dict[int, str] = {}
        #: By the id of the array that owns the memory: raw memory that calls of the recording wrote to.
        self._adopted: dict[int, tuple[Any, Block]] = {}
        self._kernels: dict[Any, Any] = {}
        self.scratch_memory: list[np.ndarray] = []
        #: Blocks that drivers keep between calls, which no kernel writes to.
        self.tables: set[int] = set()
        #: Blocks whose addresses the next launch may have.
        self.addressed: list[int] = []
        #: Blocks that are read after the last call, and those themselves: their memory is given to no other.
        self.outputs: set[int] = set()
        self.held: list[Block] = []

    def refuse(self, reason: str) -> None:
        """Say that the step cannot be run again from this recording; it goes on, and is right."""
        if self.reason is None and self.listening():
            self.reason = reason

    def listening(self) -> bool:
        """Whether calls of this thread belong to the recording."""
        return self.open and get_ident() == self.thread

    def kernels(self, module: Any) -> Any:
        """The functions of a module of kernels, for traced arrays."""
        if not self.listening():
            return module_for_closed(module)
        found = self._kernels.get(module)
        if found is None:
            found = self._kernels[module] = self.kernels_of(self, module)
        return found

    def forget(self) -> None:
        """Let go of the memory, which nothing is going to compute in any more."""
        self.open = False
        for held in (self.nodes, self.kept, self.held, self._free, self.scratch_memory):
            held.clear()
        for known in (self.constants, self._adopted, self._kernels):
            known.clear()

    # ---- memory ----------------------------------------------------------------------------------

    def block(self, kind: str, memory: np.ndarray | None = None) -> Block:
        """A new block."""
        self._count += 1
        made = Block(self, self._count, kind, memory)
        self.kinds[made.number] = kind
        if kind is OWN:
            self._living.append(ref(made))
        return made

    def living(self) -> int:
        """How many arrays' memory made in the step is still looked at."""
        held = {block.number for block in self.held}
        return sum(block.number not in held for block in self.alive())

    def alive(self) -> list[Block]:
        """The blocks made in the step that are still looked at."""
        return [block for made in self._living if (block := made()) is not None]

    def nbytes(self) -> int:
        """How much memory the recording keeps, once the call has ended."""
        held = [block.memory for block in self.held if block.memory is not None]
        constants = [c.host for c in self.constants.values()]
        return sum(memory.nbytes for memory in (*self._free, *held, *constants))

    def recycle(self, memory: np.ndarray) -> None:
        """Memory that nothing looks at any more."""
        if self.open:
            self._free.append(memory)

    def _memory(self, nbytes: int) -> np.ndarray:
        best = None
        for i, held in enumerate(self._free):
            fits = nbytes <= held.nbytes <= nbytes + nbytes // 4 + 4096
            if fits and (best is None or held.nbytes < self._free[best].nbytes):
                best = i
        if best is not None:
            return self._free.pop(best)
        return aligned_empty(-(-nbytes // 64) * 64)

    def own(self, like: np.ndarray) -> TracedArray:
        """An array of the recording, laid out as `like`; its values are anything."""
        reach = [(n - 1) * step for n, step in zip(like.shape, like.strides, strict=True)]
        low = sum(min(r, 0) for r in reach)
        size = sum(max(r, 0) for r in reach) - low + like.itemsize if like.size else 0
        memory = self._memory(max(size, 1))
        host: np.ndarray = np.ndarray(
            like.shape, like.dtype, memory.data, offset=-low, strides=like.strides
        )
        return TracedArray(host, self.block(OWN, memory), self)

    def constant(self, values: np.ndarray) -> TracedArray:
        """An array of values that no call of the recording makes."""
        block = self.block(CONSTANT)
        host = values.copy(order="K")
        self.constants[block.number] = Constant(host, host.copy(order="K"), len(self.nodes))
        return TracedArray(host, block, self)

    def external(self, host: np.ndarray) -> TracedArray:
        """An array that existed before the step."""
        made = TracedArray(host, self.block(EXTERNAL), self)
        self.roots[made.block.number] = root_of(host)
        self.places[made.block.number] = ("before", address(host))
        return made

    def adopted(self, array: np.ndarray) -> TracedArray:
        """A raw array that turned up in the step: memory that its calls wrote to, or a constant."""
        found = self._adopted.get(id(root_of(array)))
        if found is not None:
            return TracedArray(array, found[1], self)
        return self.constant(array)

    # ---- calls -----------------------------------------------------------------------------------

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of arrays with traced ones; keep the call if it computes something."""
        if not self.listening():
            return function(*[plain(a) for a in args], **{k: plain(v) for k, v in kwargs.items()})
        out = kwargs.get("out")
        if out is not None and not (type(out) is tuple and out[0] is None):
            return self._call_into(function, args, kwargs, out)
        if forms.changes_first(function):
            return self._call_changing(function, args, kwargs)
        seen: list[TracedArray] = []
        opened = tuple(self._open(a, seen) for a in args)
        named = {k: self._open(v, seen) for k, v in kwargs.items()}
        if forms.shape_depends_on_values(function, args):
            self.refuse(f"the shape of a result depends on values ({forms.name_of(function)})")
        return self._close(function, opened, named, seen, function(*opened, **named))

    def _open(self, value: Any, seen: list[TracedArray]) -> Any:
        """The memory behind traced arrays in an argument of any nesting."""
        kind = type(value)
        if kind is TracedArray:
            seen.append(value)
            return value.host
        if kind in (list, tuple):
            return kind(self._open(v, seen) for v in value)
        if isinstance(value, np.ndarray):
            if id(root_of(value)) in self.reachable:
                return value
            traced = self.adopted(value)
            seen.append(traced)
            return traced.host
        if hasattr(value, "_array"):  # a tensor among raw arrays
            return self._open(value._array, seen)
        return value

    def target(self, value: Any) -> np.ndarray:
        """The memory of an array that a call is going to write to."""
        if type(value) is not TracedArray:
            root = root_of(value)
            if id(root) not in self._adopted:
                # Its values so far are constants, which each run has to start from.
                block = self.block(CONSTANT)
                self._adopted[id(root)] = root, block
                self.constants[block.number] = Constant(
                    root, root.copy(order="K"), len(self.nodes), written=True
                )
            value = TracedArray(value, self._adopted[id(root)][1], self)
        self.mark_written(value.block)
        host: np.ndarray = value.host
        return host

    def mark_written(self, block: Block) -> None:
        """Note that a call writes to a block."""
        self.mark_possible(block)
        if block.kind in (INPUT, EXTERNAL):
            self.written.add(block.number)

    def mark_possible(self, block: Block) -> None:
        """Note that a kernel knows where a block lies; it may write there if it is not an argument."""
        if block.kind is CONSTANT and block.number in self.constants:  # not of an empty array
            self.constants[block.number].written = True

    def number_of(self, value: Any) -> int:
        """The number of the block behind an array that was a target."""
        if type(value) is TracedArray:
            return value.block.number
        return self._adopted[id(root_of(value))][1].number

    def _call_into(self, function: Any, args: Any, kwargs: Any, out: Any) -> Any:
        outs = out if type(out) is tuple else (out,)
        targets = tuple(self.target(o) for o in outs)
        seen: list[TracedArray] = []
        opened = tuple(self._open(a, seen) for a in args)
        named = {k: self._open(v, seen) for k, v in kwargs.items() if k != "out"}
        named["out"] = targets if type(out) is tuple else targets[0]
        if len(targets) == 1:
            named["out"] = targets[0]
        function(*opened, **named)
        writes = tuple(self.number_of(o) for o in outs)
        self.add("call", function, opened, named, (), seen, writes)
        return outs[0] if len(outs) == 1 else outs

    def _call_changing(self, function: Any, args: Any, kwargs: Any) -> Any:
        target = self.target(args[0])
        rest: list[TracedArray] = []
        opened = (target, *(self._open(a, rest) for a in args[1:]))
        named = {k: self._open(v, rest) for k, v in kwargs.items()}
        function(*opened, **named)
        number = self.number_of(args[0])
        self.add("call", function, opened, named, (), rest, (number,), reads=(number,))
        return None

    def _close(
        self, function: Any, opened: Any, named: Any, seen: list[TracedArray], result: Any
    ) -> Any:
        if isinstance(result, (np.ndarray, np.generic)):
            host = np.asarray(result)
            shown = self._viewed(host, seen)
            if shown is not None:
                return shown
            if not seen and not forms.is_empty(function):
                return self._made(function, opened, named, host)
            made = self.own(host)
            np.copyto(made.host, host)
            if not forms.is_empty(function):
                form, call, args, kwargs = forms.into(function, opened, named, made.host)
                out = (made.host,) if form == "store" else ()
                self.add(form, call, args, kwargs, out, seen, (made.block.number,))
            return made
        if isinstance(result, (list, tuple)) and any(isinstance(r, np.ndarray) for r in result):
            return self._close_many(function, opened, named, seen, result)
        if seen and not forms.is_fact(function):
            self.refuse(f"values were read ({forms.name_of(function)})")
        return result

    def _viewed(self, host: np.ndarray, seen: list[TracedArray]) -> TracedArray | None:
        """The result as a view of one of the arguments, if it is one."""
        if not host.size:
            return TracedArray(host, self.block(CONSTANT), self)
        for source in seen:
            if np.may_share_memory(host, source.host):
                return TracedArray(host, source.block, self)
        return None

    def _made(self, function: Any, opened: Any, named: Any, host: np.ndarray) -> TracedArray:
        """An array made from numbers."""
        if forms.is_zeros(function) and host.nbytes > 1024:
            made = self.own(host)
            made.host.fill(0)
            self.add("call", np.ndarray.fill, (made.host, 0), {}, (), (), (made.block.number,))
            return made
        return self.constant(host)

    def _close_many(
        self, function: Any, opened: Any, named: Any, seen: list[TracedArray], result: Any
    ) -> Any:
        hosts = [np.asarray(r) if isinstance(r, (np.ndarray, np.generic)) else None for r in result]
        if any(h is None for h in hosts):
            self.refuse(f"values were read ({forms.name_of(function)})")
            return result
        shown = [self._viewed(h, seen) for h in hosts if h is not None]
        closed: list[Any] = []
        computed = not all(s is not None for s in shown)
        for host, view in zip(hosts, shown, strict=True):
            assert host is not None
            made = self.own(host) if view is None else view
            if view is None:
                np.copyto(made.host, host)
            closed.append(made)
        if computed:
            writes = tuple(c.block.number for c, v in zip(closed, shown, strict=True) if v is None)
            out = tuple(c.host if v is None else None for c, v in zip(closed, shown, strict=True))
            self.add("store", function, opened, named, out, seen, writes)
        return type(result)(*closed) if hasattr(result, "_fields") else type(result)(closed)

    def add(
        self,
        form: str,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: tuple[Any, ...],
        seen: Iterable[TracedArray],
        writes: tuple[int, ...],
        reads: tuple[int, ...] = (),
        hoistable: bool = True,
        text: Any = None,
    ) -> None:
        """Keep a call."""
        numbers = (*reads, *(a.block.number for a in seen))
        self.used.update(numbers, writes)
        described = forms.describe(function, args, kwargs) if text is None else text
        self.nodes.append(
            Node(form, function, args, kwargs, out, numbers, writes, hoistable, described)
        )

    def decide(self, array: TracedArray) -> bool:
        """The truth of a value: what follows holds for this truth only, which a run has to check first."""
        found = bool(array.host)
        if self.listening():
            self.add("check", found, (array.host,), {}, (), (array,), ())
        return found


def plain(value: Any) -> Any:
    """The memory behind traced arrays in an argument of any nesting."""
    if type(value) is TracedArray:
        return value.host
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value


class module_for_closed:
    """The functions of a module, for arrays of a recording that has ended."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        return lambda *args, **kwargs: function(
            *[plain(a) for a in args], **{k: plain(v) for k, v in kwargs.items()}
        )
