"""Callables that replay CUDA graphs: one for the forward pass, one for its backward pass.

Owns: `make_graphed_callables`. Must not know: how work is recorded (see `graphs`), modules beyond their
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from dptrain.core.engine import grad as gradients
from dptrain.core.function import Function
from dptrain.core.grad_mode import enable_grad, no_grad
from dptrain.core.tensor import Tensor, wrap
from dptrain.cuda.devices import synchronize
from dptrain.cuda.graphs import CUDAGraph, graph, graph_pool_handle
from dptrain.cuda.streams import Stream, stream


class _Recorded(NamedTuple):
    """What was recorded of one callable.

    Attributes:
        inputs: the tensors that the graphs read: those of the call, then the parameters.
        given: how many of them a call gives.
        outputs: what the forward graph writes.
        single: whether a call returns one tensor, not a tuple.
        forward, backward: the graphs.
        grad_outputs: what the backward graph reads; None for outputs without a gradient.
        grad_inputs: what it writes; None where there is no gradient.
    """

    inputs: tuple[Tensor, ...]
    given: int
    outputs: tuple[Tensor, ...]
    single: bool
    forward: Any
    backward: Any
    grad_outputs: tuple[Tensor | None, ...]
    grad_inputs: tuple[Tensor | None, ...]


def make_graphed_callables(
    callables: Any,
    sample_args: Any,
    num_warmup_iters: int = 3,
    allow_unused_input: bool = False,
    pool: Any = None,
) -> Any:
    """Record modules or functions, forward and backward, so that each later call replays two graphs.

    Arguments of later calls have the shapes, dtypes and `requires_grad` of the samples. Results are
    overwritten by the next call. A module keeps its own `forward` for the mode (`train` or `eval`) that
    it was not recorded in. Second derivatives are not recorded.

    Args:
        callables: a module or function, or a tuple of them in the order in which they will be called.
        sample_args: the tuple of tensors of a call, or one such tuple for each callable.
        num_warmup_iters: passes before the recording.
        allow_unused_input: whether inputs may have no gradient.
        pool: memory that other graphs use too; see `graph_pool_handle`.

    Returns:
        What was given: a module with a recorded `forward`, a new function, or a tuple of these.

    Raises:
        RuntimeError: there is no GPU; a module has hooks, or buffers that require gradients.
        TypeError: arguments or results that are no tensors.
    """
    several = isinstance(callables, tuple)
    functions = callables if several else (callables,)
    samples = tuple(sample_args) if several else (tuple(sample_args),)
    if len(functions) != len(samples):
        raise ValueError(
            f"make_graphed_callables: {len(functions)} callables, but {len(samples)} tuples of sample_args"
        )
    for function, args in zip(functions, samples, strict=True):
        _check(function, args)
    pool = graph_pool_handle() if pool is None else pool
    side = Stream()
    parameters = [_parameters(function) for function in functions]
    _warm_up(functions, samples, parameters, num_warmup_iters, allow_unused_input, side)
    # The very functions: a module's `forward` is about to be another, and it has no hooks.
    plain = [getattr(function, "forward", function) for function in functions]
    forwards = [
        _record(pool, side, partial(_call, f, a)) for f, a in zip(plain, samples, strict=True)
    ]
    # Backward graphs are recorded in the order in which backward will run them, for their memory's sake.
    recorded = []
    for (outputs, forward), args, params in reversed(
        list(zip(forwards, samples, parameters, strict=True))
    ):
        inputs = (*args, *params)
        recorded.append(
            _with_backward(outputs, forward, inputs, args, allow_unused_input, pool, side)
        )
    made = tuple(
        _installed(function, one)
        for function, one in zip(functions, reversed(recorded), strict=True)
    )
    return made if several else made[0]


def _check(function: Any, args: Sequence[Any]) -> None:
    if not all(isinstance(arg, Tensor) for arg in args):
        kinds = ", ".join(type(arg).__name__ for arg in args)
        raise TypeError(f"make_graphed_callables: sample_args must be tensors, got {kinds}")
    if not hasattr(function, "parameters"):
        return
    hooks = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks")
    if any(getattr(function, name, None) for name in hooks):
        raise RuntimeError(
            "Modules must not have hooks registered at the time they are passed. However, registering hooks on modules "
            "after passing them through make_graphed_callables is allowed."
        )
    if any(buffer.requires_grad for buffer in function.buffers()):
        raise RuntimeError(
            "In any module passed to make_graphed_callables, only parameters may be trainable. All buffers must have "
            "``requires_grad=False``."
        )


def _parameters(function: Any) -> tuple[Tensor, ...]:
    return tuple(function.parameters()) if hasattr(function, "parameters") else ()


def _call(function: Any, args: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
    """The results of a call as a tuple, and whether it was a single one."""
    with enable_grad():
        found = function(*args)
    single = isinstance(found, Tensor)
    outputs = (found,) if single else tuple(found)
    if not all(isinstance(out, Tensor) for out in outputs):
        kinds = ", ".join(type(out).__name__ for out in outputs)
        raise TypeError(f"make_graphed_callables: results must be tensors, got {kinds}")
    return outputs, single


def _grads(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    allow_unused: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs that want one, of those results that have one."""
    wanted = [t for t in inputs if t.requires_grad]
    differentiable = [out for out in outputs if out.requires_grad]
    if not wanted or not differentiable:
        return ()
    return gradients(differentiable, wanted, list(grad_outputs), allow_unused=allow_unused)


def _ones(outputs: Sequence[Tensor]) -> list[Tensor]:
    from dptrain.core.creation import ones_like

    return [ones_like(out) for out in outputs if out.requires_grad]


def _warm_up(
    functions: Sequence[Any],
    samples: Sequence[Sequence[Tensor]],
    parameters: Sequence[tuple[Tensor, ...]],
    count: int,
    allow_unused: bool,
    side: Stream,
) -> None:
    """Run everything on the stream that will record it: kernels are compiled, plans made, memory taken."""
    synchronize()
    with stream(side):
        for function, args, params in zip(functions, samples, parameters, strict=True):
            for _ in range(count):
                outputs, _ = _call(function, args)
                _grads(outputs, (*args, *params), _ones(outputs), allow_unused)
    synchronize()


def _record(pool: Any, side: Stream, work: Callable[[], Any]) -> tuple[Any, Any]:
    """The result of `work`, which was recorded, not run, and the graph."""
    made = CUDAGraph()
    with graph(made, pool=pool, stream=side):
        result = work()
    return result, made


def _with_backward(
    found: tuple[tuple[Tensor, ...], bool],
    forward: Any,
    inputs: tuple[Tensor, ...],
    args: Sequence[Tensor],
    allow_unused: bool,
    pool: Any,
    side: Stream,
) -> _Recorded:
    outputs, single = found
    given = _ones(outputs)
    grads: tuple[Tensor | None, ...] = ()
    backward = None
    if given and any(t.requires_grad for t in inputs):
        grads, backward = _record(pool, side, partial(_grads, outputs, inputs, given, allow_unused))
    rest, left = iter(given), iter(grads)
    return _Recorded(
        inputs,
        len(args),
        tuple(wrap(out._array) for out in outputs),
        single,
        forward,
        backward,
        tuple(next(rest) if out.requires_grad else None for out in outputs),
        tuple(next(left, None) if t.requires_grad else None for t in inputs),
    )


class _Graphed(Function):
    """A call as the replay of the forward graph, its backward as the replay of the other."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *inputs: Tensor) -> Any:
        """Bring the arguments where the graph reads them, replay, return what it wrote."""
        ctx.recorded = recorded
        for static, value in zip(recorded.inputs[: recorded.given], inputs, strict=False):
            if static._array is not value._array:
                with no_grad():
                    static.detach().copy_(value)
        recorded.forward.replay()
        outputs = tuple(out.detach() for out in recorded.outputs)
        ctx.mark_non_differentiable(
            *(o for o, g in zip(outputs, recorded.grad_outputs, strict=True) if g is None)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Bring the gradients where the graph reads them, replay, return copies of what it wrote."""
        recorded: _Recorded = ctx.recorded
        if recorded.backward is None:
            return (None, *(None for _ in recorded.inputs))
        for static, grad in zip(recorded.grad_outputs, grads, strict=True):
            if static is not None:
                static.copy_(grad.detach())
        recorded.backward.replay()
        # A parameter may keep its gradient, and the next replay overwrites what this one wrote.
        return (None, *(None if g is None else g.detach().clone() for g in recorded.grad_inputs))


def _replayed(recorded: _Recorded, args: tuple[Any, ...]) -> Any:
    static = recorded.inputs[: recorded.given]
    if len(args) != len(static) or any(
        not isinstance(a, Tensor) or a.shape != s.shape or a.dtype != s.dtype
        for a, s in zip(args, static, strict=False)
    ):
        wanted = ", ".join(f"{s.dtype}{list(s.shape)}" for s in static)
        got = ", ".join(
            f"{a.dtype}{list(a.shape)}" if isinstance(a, Tensor) else type(a).__name__ for a in args
        )
        raise RuntimeError(f"a graphed callable was recorded for ({wanted}), got ({got})")
    outputs = _Graphed.apply(recorded, *args, *recorded.inputs[recorded.given :])
    return outputs[0] if recorded.single else tuple(outputs)


def _installed(function: Any, recorded: _Recorded) -> Any:
    if not hasattr(function, "parameters"):
        return lambda *args: _replayed(recorded, args)
    mode, plain = function.training, function.forward

    def forward(*args: Any) -> Any:
        return _replayed(recorded, args) if function.training == mode else plain(*args)

    function.forward = forward
    return function
