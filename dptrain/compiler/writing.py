"""The source of a replay: one line for each call that is left.

Owns: `Writer`. Must not know: which calls are left, when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dptrain.compiler.arrays import place_in, put_in
from dptrain.compiler.draft import Backward, Draft, result_of
from dptrain.compiler.trace import Constant, Node
from dptrain.core.kernels import pool_functions
from dptrain.core.tensor import wrap_computed
from dptrain.core.tree import LEAF, rebuild

#: What a replay returns where a value that it depends on has changed.
MISS = object()


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


class Writer:
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
        for i, (memory, strides) in enumerate(zip(back.incoming, back.strides, strict=True)):
            first = "" if memory.ndim or not strides else f"[{'0, ' * len(strides)}]"
            self.lines.append(f"{self.name(memory)}[...] = gradients[{i}]{first}")
        self._add_all(nodes)
        return self.made("gradients")

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
        # Not left among its own globals: memory would outlive its last user by as long as a circle does.
        made: Callable[..., Any] = self._globals.pop("replay")
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
