"""The reverse pass: one iterative walk that announces each leaf's gradient the moment it is final.

Owns: `backward`, `autograd.grad`, the undoing of broadcasting and promotion, end-of-pass callbacks.
Must not know: any particular operation, processes.

Order: nodes run by falling creation number, which is a topological order (a consumer is always
created after its producers) and the exact reverse of the forward pass. Leaves count their
consumers, so that a gradient is announced during the walk: that is what lets communication overlap
with the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from dptrain.core.grad_mode import enable_grad, no_grad
from dptrain.core.op import Op
from dptrain.core.ops.shape import SumToSize
from dptrain.core.tensor import Tensor, wrap

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


class _Pass:
    """One reverse pass: gradients on their way and the leaves that still wait for some."""

    def __init__(
        self, create_graph: bool, retain_graph: bool, wanted: dict[int, Tensor] | None
    ) -> None:
        self.create_graph = create_graph
        self.retain_graph = retain_graph
        self.wanted = wanted  # None: accumulate into every leaf
        self.captured: dict[Any, Any] = {}  # by id(leaf) or (id(node), output)
        self.node_grads: dict[Op, Any] = {}
        self.leaf_grads: dict[int, Any] = {}
        self.leaf_consumers: dict[int, int] = {}
        self.leaves: dict[int, Tensor] = {}

    def add_root(self, tensor: Tensor, grad: Any) -> None:
        if tensor._node is None:
            self._count_leaf(tensor)
            self._arrive_at_leaf(tensor, grad)
        else:
            self._arrive_at_node(tensor._node, tensor._index, grad)

    def order(self) -> list[Op]:
        """All nodes behind the roots, latest first; counts the consumers of each leaf."""
        seen = set(self.node_grads)
        stack = list(seen)
        while stack:
            node = stack.pop()
            if node.saved is None:
                raise RuntimeError(
                    f"trying to backward through the graph a second time ({node.grad_name}): its saved values "
                    "have already been freed. Specify retain_graph=True in the first backward() if you need two"
                )
            for edge in node.edges:
                if edge is None:
                    continue
                source, index = edge
                if index is None:
                    self._count_leaf(source)
                elif source not in seen:
                    seen.add(source)
                    stack.append(source)
        return sorted(seen, key=lambda node: node.sequence, reverse=True)

    def _count_leaf(self, leaf: Tensor) -> None:
        key = id(leaf)
        self.leaves[key] = leaf
        self.leaf_consumers[key] = self.leaf_consumers.get(key, 0) + 1

    def run(self, nodes: list[Op]) -> None:
        for node in nodes:
            grads = self._node_gradients(node)
            for position, edge in enumerate(node.edges):
                if edge is None:
                    continue
                source, index = edge
                grad = grads[position] if position < len(grads) else None
                if index is None:
                    self._arrive_at_leaf(source, grad)
                elif grad is not None:
                    self._arrive_at_node(source, index, grad)

    def _node_gradients(self, node: Op) -> tuple[Any, ...]:
        incoming = self.node_grads.pop(node, None)
        if incoming is None:
            return ()
        for index, hooks in (node.hooks or {}).items():
            if incoming[index] is not None:
                incoming[index] = self._run_hooks(hooks, incoming[index])
        if self.wanted is not None:
            for index, grad in enumerate(incoming):
                if (id(node), index) in self.captured:
                    self.captured[id(node), index] = grad
        if node.direct is not None and not self.create_graph:
            node.target = self._free_slot(node.edges[node.direct])
        saved = node.saved_tensors() if self.create_graph else node.saved_arrays()
        grads = node.backward(incoming[0] if len(incoming) == 1 else incoming, *saved)
        if not self.retain_graph:
            node.release()
        return grads if type(grads) is tuple else (grads,)

    def _free_slot(self, edge: Any) -> Any:
        """The gradient slot of a leaf, if the node's gradient will be all that goes there."""
        if edge is None or edge[1] is not None or self.wanted is not None:
            return None
        leaf = edge[0]
        alone = self.leaf_consumers[id(leaf)] == 1 and id(leaf) not in self.leaf_grads
        free = leaf._slot is not None and leaf._grad is None and not leaf._hooks
        return leaf._slot._array if alone and free else None

    def _run_hooks(self, hooks: dict[int, Any], grad: Any) -> Any:
        as_tensor = grad if isinstance(grad, Tensor) else wrap(np.asarray(grad))
        for hook in tuple(hooks.values()):
            replaced = hook(as_tensor)
            if replaced is not None:
                as_tensor = replaced
        return as_tensor if isinstance(grad, Tensor) else as_tensor._array

    def _arrive_at_node(self, node: Op, index: int, grad: Any) -> None:
        shape, kind = node.outs[index]
        grad = _fit(grad, shape, kind)
        held = self.node_grads.get(node)
        if held is None:
            held = self.node_grads[node] = [None] * len(node.outs)
        held[index] = grad if held[index] is None else held[index] + grad

    def _arrive_at_leaf(self, leaf: Tensor, grad: Any) -> None:
        key = id(leaf)
        if grad is not None:
            grad = _fit(grad, leaf._array.shape, leaf._array.dtype)
            held = self.leaf_grads.get(key)
            self.leaf_grads[key] = grad if held is None else held + grad
        self.leaf_consumers[key] -= 1
        if self.leaf_consumers[key] == 0:
            self._announce(leaf, self.leaf_grads.pop(key, None))

    def _announce(self, leaf: Tensor, grad: Any) -> None:
        if grad is None:
            return
        if leaf._hooks:
            grad = self._run_hooks(leaf._hooks, grad)
        if self.wanted is None:
            leaf._accumulate_grad(grad)
        elif id(leaf) in self.wanted:
            self.captured[id(leaf)] = grad


def _fit(grad: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> Any:
    """Undo broadcasting and promotion: a gradient has the shape and type of its value."""
    if grad.shape != shape:
        grad = SumToSize.call(grad, shape)
    if isinstance(grad, Tensor):
        return grad if grad._array.dtype == kind else grad.to(kind)
    return grad if grad.dtype == kind else grad.astype(kind)


def _root_gradient(tensor: Tensor, grad: Any, create_graph: bool) -> Any:
    if grad is None:
        if tensor._array.size != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs; this one has shape {list(tensor.shape)}: "
                "pass gradient=, or reduce it to a scalar first"
            )
        grad = wrap(np.ones_like(tensor._array))
    if not isinstance(grad, Tensor):
        raise TypeError(f"gradients can be either Tensors or None, but got {type(grad).__name__}")
    if grad._array.shape != tensor._array.shape:
        raise RuntimeError(
            f"mismatch in shape: the gradient has shape {list(grad.shape)} and the tensor {list(tensor.shape)}"
        )
    return grad if create_graph else grad._array


@np.errstate(all="ignore")
def _walk(
    tensors: Sequence[Tensor],
    grads: Sequence[Any],
    retain_graph: bool,
    create_graph: bool,
    wanted: Sequence[Tensor] | None,
) -> list[Any]:
    run = _Pass(create_graph, retain_graph, None if wanted is None else {id(t): t for t in wanted})
    keys: list[Any] = []
    for t in wanted or ():
        keys.append(id(t) if t._node is None else (id(t._node), t._index))
        run.captured[keys[-1]] = None
    for tensor, grad in zip(tensors, grads, strict=True):
        if not tensor._requires_grad:
            raise RuntimeError(
                "element 0 of tensors does not require grad and does not have a grad_fn"
            )
        run.add_root(tensor, _root_gradient(tensor, grad, create_graph))
    callbacks: list[Callable[[], None]] = []
    token = _callbacks.set(callbacks)
    try:
        with enable_grad() if create_graph else no_grad():
            run.run(run.order())
            for callback in callbacks:  # may queue no further ones
                callback()
    finally:
        _callbacks.reset(token)
    return [run.captured[k] for k in keys]


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
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
    roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
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
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for target, grad in zip(
        targets, _walk(roots, grad_list, retain, create_graph, targets), strict=True
    ):
        if grad is not None:
            target._accumulate_grad(grad)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any `.grad`.

    Raises:
        RuntimeError: as `backward`; or an input that the outputs do not depend on, unless
            `allow_unused`.
    """
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    given = (
        [grad_outputs]
        if grad_outputs is None or isinstance(grad_outputs, Tensor)
        else list(grad_outputs)
    )
    if grad_outputs is None:
        given = [None] * len(roots)
    for i, target in enumerate(targets):
        if not target._requires_grad:
            raise RuntimeError(f"input {i} of autograd.grad does not require grad")
    retain = create_graph if retain_graph is None else retain_graph
    found = _walk(roots, given, retain, create_graph, targets)
    for i, g in enumerate(found):
        if g is None and not allow_unused:
            raise RuntimeError(
                f"one of the differentiated Tensors (input {i}) appears to not have been used in the graph; "
                "set allow_unused=True if this is the desired behavior"
            )
    return tuple(g if g is None or isinstance(g, Tensor) else wrap(np.array(g)) for g in found)


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
