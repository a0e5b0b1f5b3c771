"""What the core tells while a call over a GPU's arrays is rehearsed or recorded into a CUDA graph.

Owns: `GpuListener`. Must not know: graphs, what the call returns.

Python runs at the recording only. What it does beside starting work on the GPU is either done by the host
before each replay (an optimizer counts, a schedule moves), or a reason against the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from dptrain.compiler.ranks import is_of_ranks
from dptrain.compiler.state import all_tensors, is_plain
from dptrain.core.arrays import on_gpu
from dptrain.core.capturing import recorders
from dptrain.core.cuda_capture import Capture
from dptrain.core.kernels.cuda.numbers import KeptNumbers
from dptrain.core.random import current_shard, default_generator
from dptrain.core.tensor import Tensor
from dptrain.core.transfers import watch
from dptrain.core.tree import leaves
from dptrain.optim.grad_scaler import GradScaler
from dptrain.optim.hooks import step_hooks
from dptrain.optim.lr_scheduler import LRScheduler
from dptrain.optim.optimizer import Optimizer
from dptrain.optim.recorded import can_be_recorded


class Step(NamedTuple):
    """A step of an optimizer in the call: its plan, and the gradients that its parameters had then."""

    optimizer: Optimizer
    plan: Any
    grads: list[tuple[Tensor, Tensor | None]]


class Drawn(NamedTuple):
    """A stream of random numbers on a GPU from which the call drew."""

    gpu: int
    purpose: int
    shard: int
    stream: Any


class GpuListener:
    """Listens to one call.

    Args:
        known: the tensors that the call may read: its arguments, those in its reach.
        recording: whether the call is recorded, not run.

    Attributes:
        needs: what a replay needs beside the graph.
        reason: why the call cannot be replayed, if so.
        text: what operations were given, to compare it with that of another run.
        steps: the optimizers' steps, in order.
        drawn: the streams of random numbers that were used.
    """

    def __init__(self, known: list[Tensor], needs: Capture) -> None:
        self.needs = needs
        self.reason: str | None = None
        self.text: list[Any] = []
        self.steps: list[Step] = []
        self.drawn: dict[int, Drawn] = {}
        self._known = {id(t): t for t in known}
        self._existing = {id(t): t for t in all_tensors()}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside this block it listens to this thread."""
        recorders[get_ident()] = self
        try:
            with self.needs.current(), watch() as seen:
                yield
        finally:
            recorders.pop(get_ident(), None)
            self._existing.clear()
        if seen:
            self.refuse(
                f"values of a tensor of shape {list(seen[0].shape)} on the GPU are read on the host (.item(), .cpu(), "
                "printing, a condition)"
            )

    def forget(self) -> None:
        """Hold nothing any more but what a replay needs."""
        self._known.clear()
        self.text.clear()

    def refuse(self, reason: str) -> None:
        """Something was done that a replay would not do."""
        self.reason = self.reason or reason

    def enter(self, args: tuple[Any, ...], raw: list[Any]) -> None:
        """An operation is about to run."""
        facts: list[Any] = []
        for value in args:
            if isinstance(value, Tensor):
                facts.append((value._array.shape, str(value._array.dtype), value._requires_grad))
                self._check_read(value)
            else:
                facts.append(repr(value) if is_plain(value) else type(value).__name__)
        self.text.append(tuple(facts))

    def _check_read(self, tensor: Tensor) -> None:
        if id(tensor) in self._known:
            if type(tensor._array) is np.ndarray:
                self.refuse(
                    f"it computes with a tensor of shape {list(tensor.shape)} on the CPU; move it to the GPU before the call"
                )
        elif id(tensor) in self._existing:
            self.refuse(
                f"it reads a tensor of shape {list(tensor.shape)} that was made before the call and that neither "
                "arguments, modules, closures, globals nor attributes lead to"
            )

    def changed(self, tensor: Tensor) -> None:
        """A tensor was changed in place."""
        if id(tensor) in self._existing and id(tensor) not in self._known:
            self.refuse("it changes a tensor in place that is out of its reach")

    def draws(self, generator: Any, purpose: int) -> Any:
        """The stream itself, which advances on the GPU."""
        recorders.pop(get_ident(), None)
        arrived = len(self.needs.arrived)
        try:
            stream = generator.stream(purpose)
            del self.needs.arrived[arrived:]  # it is made after each seed
            index = generator.device.index
            if generator.device.type != "cuda":
                self.refuse("it draws random numbers on the CPU")
            elif default_generator().on(index) is not generator:
                self.refuse("it draws from a random generator of its own")
            else:
                self.drawn[id(stream)] = Drawn(index, purpose, current_shard(), stream)
        finally:
            recorders[get_ident()] = self
        return stream

    def refuse_if(self, bad: Any, error: Callable[..., Exception], arrays: Any) -> None:
        """Check values; those that a recording has yet to compute do not come here."""
        if bad:
            raise error(*arrays)

    def whole(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What looks at options, or at values, at each call."""
        owner = args[0] if args else None
        if isinstance(owner, LRScheduler):
            return self._schedule(function, args, kwargs)
        if isinstance(owner, Optimizer):
            return self._step(owner, function, args, kwargs)
        if isinstance(owner, GradScaler) and owner.is_enabled():
            self.refuse("a GradScaler decides on the host whether a step is taken")
        return function(*args, **kwargs)

    def _schedule(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if any(isinstance(v, Tensor) for v in leaves((args[1:], kwargs))[0]):
            self.refuse("a schedule is given a tensor, at which the host has to look")
        if not self.needs.recording:
            return function(*args, **kwargs)
        self.needs.before.append(partial(function, *args, **kwargs))
        return None

    def _step(self, owner: Optimizer, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name, params = type(owner).__name__, [p for g in owner.param_groups for p in g["params"]]
        if len(args) > 1 or kwargs:
            self.refuse(f"{name}.step is given a closure")
        if not can_be_recorded(owner):
            self.refuse(f"the step of {name} is more than kernels")
        if not all(map(is_of_ranks, step_hooks(owner))):
            self.refuse(f"{name} has hooks, which run at its steps")
        if not all(on_gpu(p._array) for p in params if p._has_values):
            self.refuse(f"{name} has parameters on the CPU")
        if self.reason is not None and self.needs.recording:
            raise RuntimeError(self.reason)
        recording = self.needs.recording
        with nullcontext() if recording else KeptNumbers().launching(recorded=False):
            result = function(*args, **kwargs)
        self.steps.append(Step(owner, owner._plan, [(p, p._grad) for p in params]))
        return result
