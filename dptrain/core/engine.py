"""The reverse pass as users start it; the walk itself is in `walk.py`.

Owns: `backward`, `autograd.grad`, the checks of what they are given, end-of-pass callbacks.
Must not know: any particular operation, processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.capturing import watcher
from dptrain.core.edges import GradientEdge, tensor_at
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.grad_mode import enable_grad, no_grad
from dptrain.core.hooked_walk import HookedPass
from dptrain.core.node_hooks import node_hooks
from dptrain.core.op import edge_of
from dptrain.core.tensor import Tensor, wrap
from dptrain.core.walk import Pass, edge_key

_callbacks: ContextVar[list[Callable[[], None]] | None] = ContextVar(
    "end_of_backward", default=None
)


def queue_callback(callback: Callable[[], None]) -> None:
    """Run `callback` once when the running backward pass has finished.

    Raises:
        RuntimeError: no backward pass is running in this thread.
    """
    callbacks = _callbacks.get()
    if callbacks is None:
        raise RuntimeError("final callbacks can only be installed during backward pass")
    callbacks.append(callback)


def current_pass() -> object | None:
    """A token of the backward pass that runs in this thread, or None."""
    return _callbacks.get()


def _root_gradient(tensor: Tensor, grad: Any, create_graph: bool) -> Any:
    if grad is None:
        if tensor._array.size != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs; this one has shape {list(tensor.shape)}: "
                "pass gradient=, or reduce it to a scalar first"
            )
        array = tensor._array
        grad = wrap(namespace_of(array).array(1, array.dtype).reshape(array.shape))
    if not isinstance(grad, Tensor):
        raise TypeError(f"gradients can be either Tensors or None, but got {type(grad).__name__}")
    if grad._array.shape != tensor._array.shape:
        raise RuntimeError(
            f"mismatch in shape: the gradient has shape {list(grad.shape)} and the tensor {list(tensor.shape)}"
        )
    return grad if create_graph else grad._array


def _walk(
    tensors: Sequence[Tensor],
    grads: Sequence[Any],
    retain_graph: bool,
    create_graph: bool,
    wanted: Sequence[Tensor] | None,
) -> list[Any]:
    for i, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"element {i} of tensors does not require grad and does not have a grad_fn"
            )
    kind = HookedPass if node_hooks else Pass
    run = kind(create_graph, retain_graph, wanted)
    watch = watcher()
    if watch is not None:
        watch.watch(run)
    callbacks: list[Callable[[], None]] = []
    quiet, token = ignore_float_errors(), _callbacks.set(callbacks)
    try:
        for tensor, grad in zip(tensors, grads, strict=True):
            run.add_root(tensor, _root_gradient(tensor, grad, create_graph))
        with enable_grad() if create_graph else no_grad():
            run.run(run.order())
            for callback in callbacks:  # may queue no further ones
                callback()
    finally:
        _callbacks.reset(token)
        restore_float_errors(quiet)
    found = run.captured
    return [] if found is None else [found[edge_key(edge_of(t))] for t in wanted or ()]


def _places(given: Any) -> list[Tensor]:
    """Tensors of an argument that is one tensor or `GradientEdge`, or a sequence of them."""
    if type(given) is Tensor:
        return [given]
    several = [given] if isinstance(given, (Tensor, GradientEdge)) else given
    return [tensor_at(place) for place in several]


def backward(
    tensors: Tensor | GradientEdge | Sequence[Tensor | GradientEdge],
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge] | None = None,
) -> None:
    """Compute the gradients of `tensors` and add them to the `.grad` of the leaves.

    Args:
        tensors: where the walk starts.
        grad_tensors: their gradients; may be left out for one-element tensors.
        retain_graph: keep what backward needs, for another walk (default: as `create_graph`).
        create_graph: record the walk itself, for higher derivatives.
        inputs: leaves to accumulate into; all by default.

    Raises:
        RuntimeError: nothing requires gradients, a second walk over a freed graph, a saved value
            changed in place, or a missing gradient for a non-scalar.
    """
    roots = _places(tensors)
    if grad_tensors is None or isinstance(grad_tensors, Tensor):
        grad_list: list[Any] = (
            [grad_tensors] * len(roots) if grad_tensors is None else [grad_tensors]
        )
    else:
        grad_list = list(grad_tensors)
    retain = create_graph if retain_graph is None else retain_graph
    if inputs is None:
        _walk(roots, grad_list, retain, create_graph, None)
        return
    targets = _places(inputs)
    if not targets:
        raise RuntimeError("'inputs' argument to backward() cannot be empty.")
    _check_inputs(targets, "backward")
    for target, grad in zip(
        targets, _walk(roots, grad_list, retain, create_graph, targets), strict=True
    ):
        if grad is not None:
            target._accumulate_grad(grad)


def _check_inputs(inputs: Sequence[Any], name: str) -> None:
    for i, target in enumerate(inputs):
        if not isinstance(target, Tensor):
            raise TypeError(f"input {i} of {name} must be a Tensor, not {type(target).__name__}")
        if not target.requires_grad:
            raise RuntimeError(
                f"One of the differentiated Tensors (input {i} of {name}) does not require grad"
            )


def grad(
    outputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge],
    inputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any `.grad`.

    Args:
        outputs: where the walk starts.
        inputs: what to differentiate by.
        grad_outputs: gradients of `outputs`; may be left out for one-element tensors.
        retain_graph: keep what backward needs, for another walk (default: as `create_graph`).
        create_graph: record the walk itself, for higher derivatives.
        only_inputs: has no effect, as in PyTorch.
        allow_unused: None instead of an error for inputs that `outputs` do not depend on (default:
            as `materialize_grads`).
        is_grads_batched: not supported; differentiate one `grad_outputs` after the other.
        materialize_grads: zeros instead of None for unused inputs.

    Raises:
        NotImplementedError: `is_grads_batched`.
        ValueError: `materialize_grads` with `allow_unused=False`.
        RuntimeError: as `backward`; or an input that the outputs do not depend on, unless
            `allow_unused`.
    """
    if is_grads_batched:
        raise NotImplementedError(
            "grad: is_grads_batched=True needs a batching transform (vmap), which dptrain does not have; call grad "
            "once for each of the grad_outputs, with retain_graph=True"
        )
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, but got: allow_unused=False."
        )
    roots = _places(outputs)
    targets = _places(inputs)
    given = (
        [grad_outputs]
        if grad_outputs is None or isinstance(grad_outputs, Tensor)
        else list(grad_outputs)
    )
    if grad_outputs is None:
        given = [None] * len(roots)
    _check_inputs(targets, "grad")
    retain = create_graph if retain_graph is None else retain_graph
    found = _walk(roots, given, retain, create_graph, targets)
    if materialize_grads:
        found = [
            namespace_of(t._array).zeros_like(t._array) if g is None else g
            for t, g in zip(targets, found, strict=True)
        ]
    for i, g in enumerate(found):
        if g is None and not allow_unused:
            raise RuntimeError(
                f"one of the differentiated Tensors (input {i}) appears to not have been used in the graph; "
                "set allow_unused=True if this is the desired behavior"
            )
    return tuple(
        g if g is None or isinstance(g, Tensor) else wrap(as_array(g).copy()) for g in found
    )


def _tensor_backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Compute the gradient of this tensor with respect to the graph's leaves; see `autograd.backward`."""
    backward(self, gradient, retain_graph, create_graph, inputs)


Tensor.backward = _tensor_backward
