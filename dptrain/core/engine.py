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
from operator import attrgetter
from typing import Any

import numpy as np

from dptrain.core.anomaly import add_origin, anomaly_mode, refuse_nan
from dptrain.core.grad_mode import enable_grad, no_grad
from dptrain.core.op import Op, edge_of
from dptrain.core.ops.shape import SumToSize
from dptrain.core.tensor import RetainGrad, Tensor, wrap

_sequence = attrgetter("sequence")
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
        self, create_graph: bool, retain_graph: bool, wanted: Sequence[Tensor] | None
    ) -> None:
        self.create_graph = create_graph
        self.retain_graph = retain_graph
        # By id(leaf) or (id(node), output); None: accumulate into every leaf.
        self.captured: dict[Any, Any] | None = (
            None if wanted is None else {_key(edge_of(t)): None for t in wanted}
        )
        self.check_nan = anomaly_mode()
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
        return sorted(seen, key=_sequence, reverse=True)

    def _count_leaf(self, leaf: Tensor) -> None:
        key = id(leaf)
        self.leaves[key] = leaf
        self.leaf_consumers[key] = self.leaf_consumers.get(key, 0) + 1

    def _leads_to_wanted(self, nodes: list[Op]) -> set[Op]:
        """The nodes whose backward is needed for the gradients that are asked for."""
        captured: Any = self.captured
        found: set[Op] = set()
        for node in reversed(nodes):  # producers come before their consumers
            if any(
                e is not None and (_key(e) in captured or (e[1] is not None and e[0] in found))
                for e in node.edges
            ):
                found.add(node)
        return found

    def run(self, nodes: list[Op]) -> None:
        needed = None if self.captured is None else self._leads_to_wanted(nodes)
        for node in nodes:
            incoming = self.node_grads.pop(node, None)
            if incoming is None:
                continue
            if node.hooks:
                for index, hooks in node.hooks.items():
                    if incoming[index] is not None:
                        incoming[index] = self._run_hooks(hooks, incoming[index])
            if needed is not None:
                self._capture(node, incoming)
                if node not in needed:
                    continue
            try:
                grads = self._node_gradients(node, incoming)
            except Exception as error:
                if self.check_nan is not None:
                    add_origin(error, node)
                raise
            for position, edge in enumerate(node.edges):
                if edge is None:
                    continue
                source, place = edge
                grad = grads[position] if position < len(grads) else None
                if place is None:
                    self._arrive_at_leaf(source, grad)
                elif grad is not None:
                    self._arrive_at_node(source, place, grad)

    def _capture(self, node: Op, incoming: list[Any]) -> None:
        captured: Any = self.captured
        for index, grad in enumerate(incoming):
            if (id(node), index) in captured:
                captured[id(node), index] = grad

    def _node_gradients(self, node: Op, incoming: list[Any]) -> tuple[Any, ...]:
        if node.direct is not None and not self.create_graph:
            node.target = self._free_slot(node.edges[node.direct])
        saved = node.saved_tensors() if self.create_graph else node.saved_arrays()
        grads = node.backward(incoming[0] if len(incoming) == 1 else incoming, *saved)
        if type(grads) is not tuple:
            grads = (grads,)
        if self.check_nan:
            refuse_nan(node, grads)
        if not self.retain_graph:
            node.release()
        return grads

    def _free_slot(self, edge: Any) -> Any:
        """The gradient slot of a leaf, if the node's gradient will be all that goes there."""
        if edge is None or edge[1] is not None or self.captured is not None:
            return None
        leaf = edge[0]
        alone = self.leaf_consumers[id(leaf)] == 1 and id(leaf) not in self.leaf_grads
        free = leaf._slot is not None and leaf._grad is None and not leaf._hooks
        return leaf._slot._array if alone and free else None

    def _run_hooks(self, hooks: dict[int, Any], grad: Any) -> Any:
        as_tensor = grad if isinstance(grad, Tensor) else wrap(np.asarray(grad))
        # A copy: hooks may come and go while they run. Those of retain_grad see what the others made.
        for hook in sorted(hooks.values(), key=lambda h: type(h) is RetainGrad):
            replaced = hook(as_tensor)
            if replaced is not None:
                as_tensor = _checked_replacement(hook, replaced, as_tensor)
        return as_tensor if isinstance(grad, Tensor) else as_tensor._array

    def _arrive_at_node(self, node: Op, index: int, grad: Any) -> None:
        shape, kind = node.outs[index]
        if grad.shape != shape or grad.dtype is not kind:
            grad = _fit(grad, shape, kind)
        held = self.node_grads.get(node)
        if held is None:
            self.node_grads[node] = held = [None] * len(node.outs)
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
        if grad is None or (self.captured is not None and id(leaf) not in self.captured):
            return
        if leaf._hooks:
            grad = self._run_hooks(leaf._hooks, grad)
        if self.captured is None:
            leaf._accumulate_grad(grad)
        else:
            self.captured[id(leaf)] = grad


def _key(edge: tuple[Any, int | None]) -> Any:
    return id(edge[0]) if edge[1] is None else (id(edge[0]), edge[1])


def _checked_replacement(hook: Any, replaced: Any, grad: Tensor) -> Tensor:
    name = getattr(hook, "__name__", type(hook).__name__)
    if not isinstance(replaced, Tensor):
        raise TypeError(
            f"expected Variable, but hook '{name}' returned '{type(replaced).__name__}'"
        )
    if replaced._array.shape != grad._array.shape:
        raise RuntimeError(
            f"hook '{name}' has changed the size of value: {list(grad.shape)} became {list(replaced.shape)}"
        )
    return replaced


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
    for i, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            raise RuntimeError(
                f"element {i} of tensors does not require grad and does not have a grad_fn"
            )
    run = _Pass(create_graph, retain_graph, wanted)
    for tensor, grad in zip(tensors, grads, strict=True):
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
    found = run.captured
    return [] if found is None else [found[_key(edge_of(t))] for t in wanted or ()]


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
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
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
    roots = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    targets = [inputs] if isinstance(inputs, Tensor) else list(inputs)
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
            np.zeros_like(t._array) if g is None else g for t, g in zip(targets, found, strict=True)
        ]
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
