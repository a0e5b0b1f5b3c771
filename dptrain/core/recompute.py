"""Activation checkpointing: compute a segment's saved values again in backward instead of keeping them.

Owns: `checkpoint`, `checkpoint_sequential`. Must not know: modules, processes.

The segment is recorded as always, so that gradients flow through the main pass and leaves are
announced by it (DistributedDataParallel sees no difference); only what the nodes have saved is
dropped. The first node whose saved values are asked for runs the segment again, with the same random
numbers, and every node takes over what its twin of the second run has saved. Source: Chen et al.,
"Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dptrain.core.autocast import as_now
from dptrain.core.function import FunctionNode
from dptrain.core.grad_mode import enable_grad, is_grad_enabled, observe_recording
from dptrain.core.op import Op
from dptrain.core.random import default_generator
from dptrain.core.saved import Deferred, SavedValues
from dptrain.core.tensor import Tensor


class CheckpointError(RuntimeError):
    """The second run of a checkpointed segment did something else than the first."""


def noop_context_fn() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Two contexts, for the first and the second run, that do nothing."""
    return nullcontext(), nullcontext()


class _Segment(Deferred):
    """The nodes of one checkpointed call, and how to run it again."""

    def __init__(
        self,
        run: Callable[[], Any],
        tensors: list[Tensor],
        context: AbstractContextManager[Any],
        preserve_rng_state: bool,
        same_types: Callable[[], AbstractContextManager[None]],
        check: bool,
    ) -> None:
        self._run, self._context, self._check = run, context, check
        self._same_types = same_types
        self._guards = [(t, t._version_counter()[0]) for t in tensors]
        self._random_state = default_generator().get_state() if preserve_rng_state else None
        self.nodes: list[Op] = []

    def drop(self, node: Op) -> None:
        """Forget what a node has just saved."""
        self.nodes.append(node)
        node.__dict__.clear()
        node.saved, node.versions = self, ()

    def values_of(self, node: SavedValues) -> Any:
        """What the node has saved, after a second run of the segment."""
        self.fill()
        return node.saved

    def fill(self) -> None:
        """Run the segment again and hand out what its nodes save.

        Raises:
            CheckpointError: it recorded other operations, or an argument was changed in place.
        """
        for tensor, version in self._guards:
            if tensor._version_counter()[0] != version:
                raise CheckpointError(
                    f"checkpoint: an argument of shape {list(tensor.shape)} was modified by an inplace operation after "
                    f"the forward pass (version {tensor._version_counter()[0]}, expected {version}), so that it cannot "
                    "be computed again"
                )
        twins: list[Op] = []
        generator = default_generator()
        present = generator.get_state()
        if self._random_state is not None:
            generator.set_state(self._random_state)
        try:
            with enable_grad(), self._same_types(), self._context, observe_recording(twins.append):
                self._run()
        finally:
            if self._random_state is not None:
                generator.set_state(present)
        if self._check:
            self._compare(twins)
        for node, twin in zip(self.nodes, twins, strict=True):
            _take_over(node, twin)
        self.nodes = []

    def _compare(self, twins: list[Op]) -> None:
        if len(twins) != len(self.nodes):
            raise CheckpointError(
                f"checkpoint: a different number of operations was recorded during the original forward "
                f"({len(self.nodes)}) and recomputation ({len(twins)})"
            )
        for i, (node, twin) in enumerate(zip(self.nodes, twins, strict=True)):
            if type(node) is not type(twin) or node.outs != twin.outs:
                raise CheckpointError(
                    f"checkpoint: recomputed values have different metadata than during the forward pass: operation {i} "
                    f"was {node.grad_name} of shapes {[list(s) for s, _ in node.outs]} and is {twin.grad_name} of shapes "
                    f"{[list(s) for s, _ in twin.outs]}"
                )


def _take_over(node: Op, twin: Op) -> None:
    node.__dict__.update(twin.__dict__)
    node.saved, node.versions = twin.saved, twin.versions
    if isinstance(node, FunctionNode):
        node.recomputed = True
    if isinstance(twin.saved, _Segment):  # a checkpoint inside this one: it now serves our nodes
        inner = twin.saved.nodes
        inner[next(i for i, n in enumerate(inner) if n is twin)] = node


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[
        [], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    ] = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Run `function(*args, **kwargs)` without keeping its activations; backward runs it again.

    Args:
        function: computes the same whenever it is given the same (dropout included).
        args: its arguments.
        use_reentrant: has no effect: there is one way, with the semantics of PyTorch's `False`.
        context_fn: makes two contexts, for the first run and for the second.
        determinism_check: "default" compares operations, shapes and types of both runs; "none" only
            their number.
        debug: has no effect; errors always name the operation that differs.
        early_stop: has no effect: the second run goes to its end.
        preserve_rng_state: draw the same random numbers in the second run.
        kwargs: its keyword arguments.

    Raises:
        CheckpointError: in backward, if the second run differs.
        ValueError: an unknown `determinism_check`.
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(
            f"determinism_check should be one of ['default', 'none'], but got {determinism_check!r}"
        )
    if not is_grad_enabled():
        return function(*args, **kwargs)
    first, second = context_fn()
    with as_now() as same_types:
        segment = _Segment(
            lambda: function(*args, **kwargs),
            _tensors(args) + _tensors(kwargs),
            second,
            preserve_rng_state,
            same_types,
            determinism_check == "default",
        )
        with first, observe_recording(segment.drop):
            return function(*args, **kwargs)


def checkpoint_sequential(
    functions: Any,
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    preserve_rng_state: bool = True,
) -> Any:
    """Run functions one after the other in checkpointed segments; the last segment is kept.

    Args:
        functions: an `nn.Sequential` or a list of functions (or modules).
        segments: into how many parts to cut them.
        input: the argument of the first.
        use_reentrant, preserve_rng_state: see `checkpoint`.

    Raises:
        ValueError: `segments` is not between 1 and the number of functions.
    """
    steps: Sequence[Callable[[Any], Any]] = list(functions)
    if not 1 <= segments <= len(steps):
        raise ValueError(
            f"checkpoint_sequential: segments must be between 1 and the number of functions ({len(steps)}), got {segments}"
        )
    size = len(steps) // segments

    def part(start: int, stop: int) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            for step in steps[start:stop]:
                value = step(value)
            return value

        return run

    for k in range(segments - 1):
        input = checkpoint(
            part(k * size, (k + 1) * size),
            input,
            use_reentrant=use_reentrant,
            preserve_rng_state=preserve_rng_state,
        )
    return part((segments - 1) * size, len(steps))(input)
