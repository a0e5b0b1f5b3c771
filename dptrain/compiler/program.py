"""A recording as a function of Python: one line for each call that is left.

Owns: `Program`, the order of its calls, its guards. Must not know: how the calls were recorded.

Views, allocations, the graph and the modules leave nothing behind; neighbouring launches of kernels in one
thread become a single call. What decides the course of the step (whether class indices lie in range, say)
runs first: where it has come out differently, nothing has happened yet, and the call is made without the
recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

import numpy as np

from dptrain.compiler.arrays import place_in, put_in
from dptrain.compiler.draft import Backward, Draft, result_of
from dptrain.compiler.replayed import Replayed
from dptrain.compiler.state import Survey, is_plain
from dptrain.compiler.trace import OWN, Constant, Node, Trace
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.kernels import pool_functions
from dptrain.core.parts import root_of
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap_computed
from dptrain.core.tree import LEAF, rebuild

#: What a program returns where a value that it depends on has changed.
MISS = object()


class NotAhead(RuntimeError):
    """A decision depends on what the step computes, so that it cannot be taken ahead."""


#: Where the backward pass of the call before is still to come, over the memory that a run would use.
BUSY = object()


def split(draft: Draft) -> tuple[list[Node], list[Node], list[list[Node]]]:
    """The calls that lead to decisions, with these; the others; those of each way to walk back.

    Raises:
        NotAhead: a decision that cannot be taken before the step.
    """
    trace = draft.trace
    nodes, written = trace.nodes, {id(root) for root in draft.written}
    ahead: set[int] = set()
    for i, node in enumerate(nodes):
        if node.form == "check":
            ahead |= _slice(trace, i, written)
    first = [nodes[i] for i in sorted(ahead)]
    read_later = set(trace.outputs)
    for i, node in enumerate(nodes):
        if i not in ahead:
            read_later.update(node.reads)
    again = any(
        nodes[i].form != "check" and read_later.intersection(nodes[i].writes) for i in ahead
    )
    # Results that are read later: all that leads to them runs again in its place.
    left = [i for i, node in enumerate(nodes) if i not in ahead or (again and node.form != "check")]
    backs = [[nodes[i] for i in left if b.start <= i < b.stop] for b in draft.backwards]
    return first, [nodes[i] for i in left if i < draft.forward_calls], backs


def _slice(trace: Trace, place: int, written: set[int]) -> set[int]:
    """The numbers of the calls that a decision depends on, and its own."""
    nodes = trace.nodes
    wanted, found = set(nodes[place].reads), {place}
    for i in range(place - 1, -1, -1):
        node = nodes[i]
        if not wanted.intersection(node.writes):
            continue
        own = all(trace.kinds[number] == OWN for number in node.writes)
        if not (node.hoistable and own):
            raise NotAhead("it decides by a value that the call computes (an `if`, .any(), bool())")
        found.add(i)
        wanted.update(node.reads)
    if any(id(trace.roots.get(number)) in written for number in wanted):
        raise NotAhead(
            "it decides by a value that the call may have changed (an `if`, .any(), bool())"
        )
    return found


class Program:
    """A draft that can be run.

    Args:
        draft: the recording.
        found: what was in reach, for the guards.

    Raises:
        NotAhead: see `split`.
    """

    def __init__(self, draft: Draft, found: Survey) -> None:
        first, rest, backs = split(draft)
        self.calls = len(rest) + (len(backs[0]) if backs else 0)
        self._draft = draft
        self._written = {id(root) for root in draft.written}
        writer = _Writer()
        self._run = writer.replay(draft, first, rest)
        self.lines = writer.lines
        self._pass = PendingPass(draft, backs) if backs else None
        self._node: Any = None
        self.holds: Callable[[], bool] = guard(
            draft.tensors,
            [(t, name) for t, _ in draft.gradients for name in ("_hooks", "_post_hooks")],
            draft.starts,
            draft.generator,
            found,
        )

    def _is_busy(self) -> bool:
        """Whether a backward pass needs what the last run has left in memory."""
        node = None if self._node is None else self._node()
        return node is not None and node.saved is not None

    def takes(self, tensors: list[Tensor]) -> bool:
        """Whether it can be run with these arguments."""
        for position, same in self._draft.fixed:
            expected = tensors[same] if isinstance(same, int) else same
            if tensors[position] is not expected:
                return False
        for tensor, own in zip(tensors, self._draft.inputs, strict=True):
            if own is not None and id(root_of(tensor._array)) in self._written:
                return False  # it looks into what the step may change
        return True

    def run(self, tensors: list[Tensor]) -> Any:
        """Replay.

        Args:
            tensors: the tensor arguments.

        Returns:
            What the call returns, or `MISS` or `BUSY`, and nothing has happened then.
        """
        if self._pass is not None and self._is_busy():
            return BUSY
        token = ignore_float_errors()
        try:
            values = self._run(tensors)
        finally:
            restore_float_errors(token)
        if self._pass is None or values is MISS:
            return values
        self._node = self._pass.attach(self._draft, values, tensors)
        return rebuild(values, self._draft.structure)


class PendingPass:
    """The backward pass of a recording, run when the engine comes to it.

    Args:
        draft: the recording.
        nodes: the calls of the pass, for each of its ways.
    """

    def __init__(self, draft: Draft, nodes: list[list[Node]] | None = None) -> None:
        if nodes is None:
            calls = [draft.trace.nodes[b.start : b.stop] for b in draft.backwards]
            nodes = [[n for n in part if n.form != "check"] for part in calls]
        self._ways = {
            back.strides: (_Writer().backward(draft, back, part), back.grads)
            for back, part in zip(draft.backwards, nodes, strict=True)
        }
        self._draft = draft  # owns the memory

    def backward(self, grad: Any) -> list[Any]:
        """Walk back from the gradient of the result; those of the leaves, in memory of the recording."""
        way = self._ways.get(grad.strides)
        if way is None:  # copied into the order of the result
            way = next(iter(self._ways.values()))
        run, grads = way
        run(grad)
        return grads

    def attach(self, draft: Draft, values: list[Any], tensors: list[Tensor]) -> Any:
        """Give the result among the leaves of what a call returned its node; a weak reference to it."""
        result = values[draft.backwards[0].result]
        return ref(Replayed.attach(draft, result, tensors, self))


def store(out: np.ndarray, value: Any) -> None:
    """Put a result in its place.

    Raises:
        RuntimeError: it has another shape than in the recording.
    """
    if value.shape != out.shape:
        raise RuntimeError(
            f"compile: a result has shape {list(value.shape)} now, and had {list(out.shape)} when the step was recorded"
        )
    out[...] = value


def store_all(out: tuple[Any, ...], values: Any) -> None:
    """Put results in their places."""
    for place, value in zip(out, values, strict=True):
        if place is not None:
            store(place, value)


class _Writer:
    """Writes the source of a replay."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[int, str] = {}
        self._globals: dict[str, Any] = {}
        self._kept: list[Any] = []

    def name(self, value: Any, stem: str = "v") -> str:
        """What a value is called in the source."""
        if value is None or type(value) in (bool, int):
            return repr(value)
        found = self._names.get(id(value))
        if found is None:
            found = self._names[id(value)] = f"{stem}{len(self._names)}"
            self._globals[found] = value  # which keeps it, so that the id stays its own
        return found

    def replay(self, draft: Draft, first: list[Node], rest: list[Node]) -> Callable[..., Any]:
        """The function that runs a draft again with other arguments."""
        for position, own in enumerate(draft.inputs):
            if own is not None:
                self.lines.append(f"{self.name(own)}[...] = tensors[{position}]._array")
        constants = draft.trace.constants.values()
        self._add_constants(c for c in constants if c.born < draft.forward_calls)
        for node in first:
            self._add(node)
        self._add_all(rest)
        self._add_effects(draft)
        self._add_return(draft)
        return self.made("tensors")

    def _add_constants(self, constants: Iterable[Constant]) -> None:
        for constant in constants:
            if constant.written:
                self.lines.append(f"{self.name(constant.host)}[...] = {self.name(constant.values)}")

    def backward(self, draft: Draft, back: Backward, nodes: list[Node]) -> Callable[..., Any]:
        """The function that runs a backward pass."""
        constants = draft.trace.constants.values()
        self._add_constants(c for c in constants if back.start <= c.born < back.stop)
        first = "" if back.grad.ndim or not back.strides else f"[{'0, ' * len(back.strides)}]"
        self.lines.append(f"{self.name(back.grad)}[...] = gradient{first}")
        self._add_all(nodes)
        return self.made("gradient")

    def key(self, key: Any) -> str:
        """A key of a dict or a place in a list."""
        return repr(key) if type(key) in (str, int) else self.value(key)

    def value(self, value: Any) -> str:
        """A new name for a plain value."""
        made = f"p{len(self._globals)}"
        self._globals[made] = value
        return made

    def made(self, argument: str) -> Callable[..., Any]:
        """The function whose lines were written."""
        source = f"def replay({argument}):\n    " + "\n    ".join(self.lines) + "\n"
        exec(compile(source, "<recorded step>", "exec"), self._globals)
        made: Callable[..., Any] = self._globals["replay"]
        return made

    def _add_all(self, nodes: list[Node]) -> None:
        place = 0
        while place < len(nodes):
            count = 0
            while place + count < len(nodes) and nodes[place + count].form == "launch":
                count += 1
            if count:
                self._add_launches(nodes[place : place + count])
            else:
                self._add(nodes[place])
            place += max(count, 1)

    def _call(self, node: Node) -> str:
        args = [self.name(a) for a in node.args]
        args += [f"{k}={self.name(v)}" for k, v in node.kwargs.items()]
        return f"{self.name(node.function, 'f')}({', '.join(args)})"

    def _add(self, node: Node) -> None:
        if node.form == "check":
            found = f"bool({self.name(node.args[0])}) is not {node.function!r}"
            self.lines.append(f"if {found}: return {self.name(MISS)}")
        elif node.function is put_in:
            target, place, value = (self.name(a) for a in node.args)
            self.lines.append(f"{target}[{place}] = {value}")
        elif node.function is np.copyto and len(node.args) == 2 and "where" not in node.kwargs:
            target, source = (self.name(a) for a in node.args)
            self.lines.append(f"{target}[...] = {source}")
        elif node.function is place_in:
            source, place = (self.name(a) for a in node.args)
            self.lines.append(f"{self.name(node.out[0])}[...] = {source}[{place}]")
        elif node.form == "call" or not node.out:
            self.lines.append(self._call(node))
        elif len(node.out) == 1:
            self.lines.append(f"{self.name(store)}({self.name(node.out[0])}, {self._call(node)})")
        else:
            self.lines.append(f"{self.name(store_all)}({self.name(node.out)}, {self._call(node)})")

    def _add_launches(self, nodes: list[Node]) -> None:
        batch, run_packed, threads = pool_functions()
        rows: list[tuple[int, int, int]] = []
        for node in nodes:
            packed, shares = node.args
            self._kept.append(packed)
            start = int(packed.__array_interface__["data"][0])
            if shares == 1 or threads == 1:
                rows.append((node.function, start, shares))
                continue
            self._add_batch(batch, rows)
            rows = []
            self.lines.append(f"{self.name(run_packed, 'f')}({node.function}, {start}, {shares})")
        self._add_batch(batch, rows)
        self._globals["kept"] = self._kept

    def _add_batch(self, batch: Any, rows: list[tuple[int, int, int]]) -> None:
        if rows:
            table = np.array(rows, np.int64)
            self._kept.append(table)
            start = int(table.__array_interface__["data"][0])
            self.lines.append(f"{self.name(batch, 'f')}({start}, {len(rows)})")

    def _add_effects(self, draft: Draft) -> None:
        for tensor, grad in draft.gradients:
            value = self.name(grad)
            if isinstance(grad, np.ndarray):
                value = f"{self.name(wrap_computed, 'f')}({value}.copy(order='K'))"
            self.lines.append(f"{self.name(tensor)}._grad = {value}")
        for counter, changes in draft.bumps:
            self.lines.append(f"{self.name(counter)}[0] += {changes}")

    def _add_return(self, draft: Draft) -> None:
        made = [f"{self.name(result_of, 'f')}({self.name(r)}, tensors)" for r in draft.results]
        if draft.backwards:
            self.lines.append(f"return [{', '.join(made)}]")
        elif draft.structure is LEAF:
            self.lines.append(f"return {made[0]}")
        else:
            self.lines.append(
                f"return {self.name(rebuild, 'f')}([{', '.join(made)}], {self.name(draft.structure)})"
            )


def _differs(found: Any, value: Any) -> bool:
    """Whether a plain value is another one now."""
    if found is value:
        return False
    return not is_plain(value) or type(found) is not type(value) or not _equal(found, value)


def _equal(found: Any, value: Any) -> bool:
    try:
        return bool(found == value)
    except (TypeError, ValueError):
        return False


def guard(
    tensors: list[tuple[Tensor, Any, bool]],
    unwatched: list[tuple[Tensor, str]],
    starts: list[tuple[Tensor, Any]],
    generator: Any,
    found: Survey,
) -> Callable[[], bool]:
    """The function that says whether tensors and everything in reach are as they were.

    Args:
        tensors: (tensor, its array, its `requires_grad`).
        unwatched: (tensor, attribute): hooks that there must not be.
        starts: (tensor, its `.grad`).
        generator: the default generator; None if nothing depends on it.
        found: what else is in reach.
    """
    writer = _Writer()
    name = writer.name
    tests = []
    for tensor, array, wanted in tensors:
        held = name(tensor)
        tests.append(f"{held}._array is not {name(array)}")
        tests.append(f"{held}._requires_grad is not {wanted!r}")
        tests.append(f"{held}._node is not None")
    tests += [f"{name(tensor)}.{hooks}" for tensor, hooks in unwatched]
    tests += [f"{name(tensor)}._grad is not {name(grad)}" for tensor, grad in starts]
    if generator is not None:
        tests.append(f"{name(default_generator)}() is not {name(generator)}")
    return _check(writer, [*tests, *_reach_tests(writer, found)])


def reach_guard(found: Survey) -> Callable[[], bool]:
    """The function that says whether plain values and objects in reach are as they were."""
    writer = _Writer()
    return _check(writer, _reach_tests(writer, found))


def _reach_tests(writer: _Writer, found: Survey) -> list[str]:
    """Expressions that are true where something in reach has changed."""
    name, differs = writer.name, writer.name(_differs, "f")
    tests = []
    for container, size in found.sizes:
        tests.append(f"len({name(container)}) != {size}" if size else name(container))
    for container, key, value in found.same:
        tests.append(f"{name(container)}[{writer.key(key)}] is not {name(value)}")
    places = [(f"{name(c)}[{writer.key(k)}]", value) for c, k, value in found.plain]
    for place, value in places + [(f"{name(c)}.cell_contents", v) for c, v in found.cells]:
        held = repr(value) if value is None or type(value) is bool else writer.value(value)
        tests.append(f"({place} is not {held} and {differs}({place}, {held}))")
    return tests


def _check(writer: _Writer, tests: list[str]) -> Callable[[], bool]:
    """The tests as a function, written out, as it runs at each call."""
    for i in range(0, len(tests), 200):
        writer.lines.append(f"if {' or '.join(tests[i : i + 200])}: return False")
    writer.lines.append("return True")
    check = writer.made("")

    def holds() -> bool:
        try:
            return bool(check())
        except (LookupError, ValueError):  # an item that is gone, an empty cell
            return False

    return holds
