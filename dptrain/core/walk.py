"""One walk over the graph: gradients on their way, hooks, leaves announced when they are final.

Owns: `Pass`, the undoing of broadcasting and promotion. Must not know: any particular operation,
who starts the walk and what is done with the result.

Order: nodes run by falling creation number, which is a topological order (a consumer is always
created after its producers) and the exact reverse of the forward pass. Leaves count their
consumers, so that a gradient is announced during the walk: that is what lets communication overlap
with the rest of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import numpy as np

from dptrain.core.anomaly import add_origin, anomaly_mode, refuse_nan
from dptrain.core.arrays import as_array, elsewhere, is_array, on_gpu
from dptrain.core.capturing import recorders
from dptrain.core.cuda import refuse_exhaustion
from dptrain.core.half import lifted
from dptrain.core.kernels import kernels_for, total
from dptrain.core.onlookers import none_held
from dptrain.core.op import EVERY, Op, edge_of
from dptrain.core.ops.shape import SumToSize
from dptrain.core.tensor import RetainGrad, Tensor, wrap_computed

_sequence = attrgetter("sequence")


class Pass:
    """One reverse pass: gradients on their way and the leaves that still wait for some.

    Args:
        create_graph: gradients are Tensors and everything is recorded.
        retain_graph: nodes keep what they saved.
        wanted: tensors whose gradients are captured; None to accumulate into every leaf.
    """

    def __init__(
        self, create_graph: bool, retain_graph: bool, wanted: Sequence[Tensor] | None
    ) -> None:
        self.create_graph = create_graph
        self.retain_graph = retain_graph
        # By id(leaf) or (id(node), output); None: accumulate into every leaf.
        self.captured: dict[Any, Any] | None = (
            None if wanted is None else {edge_key(edge_of(t)): None for t in wanted}
        )
        self.check_nan = anomaly_mode()
        self.node_grads: dict[Op, Any] = {}
        self.leaf_grads: dict[int, Any] = {}
        self.leaf_consumers: dict[int, int] = defaultdict(int)
        #: By id(leaf): the sum that this pass has made of its gradients so far.
        self.leaf_sums: dict[int, Any] = {}
        #: By id(leaf): memory for its gradient that a node was given; nothing else goes there.
        self.given: dict[int, Any] = {}
        #: Likewise where a leaf has no slot: the memory is the gradient's alone.
        self.lent: dict[int, Any] = {}
        #: Nodes that do the work of the one before them too.
        self.joined: set[Op] = set()
        # By `edge_key`: sums of this pass's own making, to which parts may be added in place.
        self.own_sums: dict[Any, Any] = {}

    def add_root(self, tensor: Tensor, grad: Any) -> None:
        """Start at `tensor` with its gradient."""
        if tensor._node is None:
            self.leaf_consumers[id(tensor)] += 1
            self._arrive(tensor, None, grad)
        else:
            self._arrive(tensor._node, tensor._index, grad)

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
                    self.leaf_consumers[id(source)] += 1
                    if self.create_graph:
                        source._twice = True
                elif source not in seen:
                    seen.add(source)
                    stack.append(source)
        return sorted(seen, key=_sequence, reverse=True)

    def _leads_to_wanted(self, nodes: list[Op]) -> dict[Op, list[Any]]:
        """The nodes whose backward is needed for the gradients that are asked for, and their edges that are."""
        captured: Any = self.captured
        found: dict[Op, list[Any]] = {}
        for node in reversed(nodes):  # producers come before their consumers
            edges = [
                e
                if e is not None
                and ((e[1] is not None and e[0] in found) or edge_key(e) in captured)
                else None
                for e in node.edges
            ]
            if edges.count(None) < len(edges):
                found[node] = node.edges if edges == node.edges else edges
        return found

    def run(self, nodes: list[Op]) -> None:
        """Run the nodes of `order()`."""
        needed = None if self.captured is None else self._leads_to_wanted(nodes)
        for node in nodes:
            incoming = self.node_grads.pop(node, None)
            if incoming is None:
                self._pass_by(node)
                continue
            if self.own_sums:
                for index in range(len(incoming)):
                    self.own_sums.pop((id(node), index), None)
            if node.hooks:
                asked = needed is None or node in needed or self._is_captured(node, len(incoming))
                for index, hooks in node.hooks.items() if asked else ():
                    if incoming[index] is not None:
                        incoming[index] = self._run_hooks(hooks, incoming[index])
            if needed is None:
                edges = node.edges
            else:
                self._capture(node, incoming)
                if node not in needed:
                    continue
                edges = needed[node]
                if edges is not node.edges:
                    node.narrowed = edges
            if node.takes_part and self._add_part(node, incoming[0]):
                continue
            guard = None if type(incoming[0]) is np.ndarray else elsewhere(incoming)
            try:
                if guard is None:
                    grads = self._node_gradients(node, incoming)
                else:
                    with guard:
                        grads = self._node_gradients(node, incoming)
            except Exception as error:
                if self.check_nan is not None:
                    add_origin(error, node)
                refuse_exhaustion(error)
                raise
            finally:
                if node.narrowed is not None:
                    del node.narrowed
            count = len(grads)
            for position, edge in enumerate(edges):
                if edge is None:
                    continue
                source, place = edge
                grad = grads[position] if position < count else None
                if type(grad) is not np.ndarray and type(grad) is not Tensor:
                    self._arrive(source, place, grad)
                elif place is not None:
                    self._arrive_at_node(source, place, grad)
                elif self.given.pop(id(source), None) is grad:
                    self._announce(source, grad)
                else:
                    self._arrive_at_leaf(source, grad)
                if node.takes_part and grad is not None:
                    self.own_sums[edge_key(edge)] = self._on_its_way(edge)

    def _pass_by(self, node: Op) -> None:
        """Tell the leaves behind a node that no gradient has reached not to wait for it."""
        for edge in node.edges:
            if edge is not None and edge[1] is None:
                self._arrive_at_leaf(edge[0], None)

    def _on_its_way(self, edge: Any) -> Any:
        """The gradient that has come so far for an edge, or None."""
        source, place = edge
        if place is None:
            return self.leaf_grads.get(id(source))
        held = self.node_grads.get(source)
        return None if held is None else held[place]

    def _add_part(self, node: Op, grad: Any) -> bool:
        """Add the gradient of a part to the sum for the whole, if there is one that may be changed.

        Else the parts of a tensor, of which there may be one for each step of a loop, would each be
        embedded in zeros of the size of the whole.
        """
        edge: Any = node.edges[0]
        if edge is None or self.create_graph or self.check_nan:
            return False
        own = self.own_sums.get(edge_key(edge))
        if not is_array(own) or own is not self._on_its_way(edge):
            return False
        guard = None if type(own) is np.ndarray else elsewhere((own, grad))
        with guard or nullcontext():
            own[node.index] += grad  # type: ignore[attr-defined]
        if not self.retain_graph:
            node.release()
        source, place = edge
        self._arrive(source, place, None)
        return True

    def may_join(self, node: Op) -> bool:
        """Whether nobody looks at the gradient of the node's result, or adds to it."""
        seen = self.captured is not None and (id(node), 0) in self.captured
        return not (seen or node.hooks or self.check_nan or node in self.node_grads)

    def _is_captured(self, node: Op, count: int) -> bool:
        captured: Any = self.captured
        return any((id(node), index) in captured for index in range(count))

    def _capture(self, node: Op, incoming: list[Any]) -> None:
        captured: Any = self.captured
        for index, grad in enumerate(incoming):
            if (id(node), index) in captured:
                captured[id(node), index] = grad

    def _node_gradients(self, node: Op, incoming: list[Any]) -> tuple[Any, ...]:
        if node.direct is not None and not self.create_graph:
            if node.direct is EVERY:
                node.target = self._free_slots(node.edges)
            else:
                node.target = self._free_slot(node.edges[node.direct])
        saved = node.saved_tensors() if self.create_graph else node.saved_arrays()
        if node.in_float32 and not (node.halves_on_gpu and any(map(on_gpu, incoming))):
            # What it returns is brought to the types of its arguments on arrival.
            incoming, saved = lifted(incoming), lifted(saved)
        if node.joins and not self.create_graph and node.joined(self):
            grads = incoming[0]
        else:
            grads = node.backward(incoming[0] if len(incoming) == 1 else incoming, *saved)
        if node.direct is not None:
            node.target = None  # a graph that is retained would look into the slot
        if type(grads) is not tuple:
            grads = (grads,)
        if self.check_nan:
            refuse_nan(node, grads)
        if not self.retain_graph:
            node.release()
        return grads

    def _is_alone(self, edge: Any) -> bool:
        """Whether the gradient that goes along an edge is all that its leaf gets, as the node makes it."""
        if edge is None or edge[1] is not None or self.captured is not None:
            return False
        leaf, key = edge[0], id(edge[0])
        waits = self.leaf_consumers[key] != 1 or key in self.leaf_grads
        return not (waits or leaf._grad is not None or leaf._hooks)

    def _free_slot(self, edge: Any) -> Any:
        """Memory for the gradient of a leaf, if the node's gradient will be all that goes there."""
        if not self._is_alone(edge):
            return None
        leaf = edge[0]
        if leaf._slot is not None:
            made = leaf._place.storage.free_slot(leaf._place.position)._array
        else:
            array = leaf._array
            if recorders or type(array) is not np.ndarray or not array.flags.c_contiguous:
                return None
            made = self.lent[id(leaf)] = np.empty_like(array)
        self.given[id(leaf)] = made
        return made

    def _free_slots(self, edges: Sequence[Any]) -> list[Any]:
        """The memory for the gradients of all leaves, where there is."""
        slots = [edge[0]._slot if self._is_alone(edge) else None for edge in edges]
        # Held by the storage, by the parameter, and by this list.
        if none_held([slot for slot in slots if slot is not None], 3):
            free = []
            for edge, slot in zip(edges, slots, strict=True):
                if slot is None:
                    free.append(self._free_slot(edge))
                else:
                    memory = self.given[id(edge[0])] = slot._array
                    free.append(memory)
            return free
        del slots  # counts as a holder
        free = [self._free_slot(edge) for edge in edges]
        # Asked for again: the buffer behind them moves when one of its gradients turns out to be held.
        return [
            f if f is None or e[0]._slot is None else e[0]._slot._array
            for e, f in zip(edges, free, strict=True)
        ]

    def _run_hooks(self, hooks: dict[int, Any], grad: Any) -> Any:
        as_tensor = grad if isinstance(grad, Tensor) else wrap_computed(as_array(grad))
        # A copy: hooks may come and go while they run. Those of retain_grad see what the others made.
        for hook in sorted(hooks.values(), key=lambda h: type(h) is RetainGrad):
            replaced = hook(as_tensor)
            if replaced is not None:
                as_tensor = _checked_replacement(hook, replaced, as_tensor)
        return as_tensor if isinstance(grad, Tensor) else as_tensor._array

    def _arrive(self, source: Any, place: int | None, grad: Any) -> None:
        guard = None if type(grad) is np.ndarray else elsewhere((grad,))
        if guard is not None:  # it left the GPU of the node that sent it
            with guard:
                self._arrive(source, place, grad)
        elif place is None:
            self._arrive_at_leaf(source, grad)
        elif grad is not None:
            self._arrive_at_node(source, place, grad)

    def _arrive_at_node(self, node: Op, index: int, grad: Any) -> None:
        shape, kind = node.outs[index]
        array = grad._array if type(grad) is Tensor else grad
        if array.shape != shape or array.dtype is not kind:
            grad = fit(grad, shape, kind)
        held = self.node_grads.get(node)
        if held is None:
            self.node_grads[node] = held = [None] * len(node.outs)
        held[index] = grad if held[index] is None else total(held[index], grad)

    def _arrive_at_leaf(self, leaf: Tensor, grad: Any) -> None:
        key = id(leaf)
        held = self.leaf_grads.pop(key, None)
        if grad is None:
            grad = held
        else:
            own = leaf._array
            array = grad._array if type(grad) is Tensor else grad
            if array.shape != own.shape or array.dtype is not own.dtype:
                grad = fit(grad, own.shape, own.dtype)
            if held is not None:
                grad = self._leaf_sum(key, held, grad)
        self.leaf_consumers[key] = missing = self.leaf_consumers[key] - 1
        if grad is None:
            return
        if missing:
            self.leaf_grads[key] = grad
        else:
            self._announce(leaf, grad)

    def _leaf_sum(self, key: int, held: Any, grad: Any) -> Any:
        """The sum of a leaf's gradients, in place from the third on: a weight of a loop gets one from each step."""
        if self.leaf_sums.get(key) is held:
            held += grad
            return held
        made = total(held, grad)
        if not self.create_graph:
            self.leaf_sums[key] = made
        return made

    def _announce(self, leaf: Tensor, grad: Any) -> None:
        if self.captured is not None and id(leaf) not in self.captured:
            return
        if leaf._hooks:
            grad = self._run_hooks(leaf._hooks, grad)
        if self.captured is None:
            leaf._accumulate_grad(grad, self.lent.pop(id(leaf), None) is grad)
        else:
            self.captured[id(leaf)] = grad


def edge_key(edge: tuple[Any, int | None]) -> Any:
    """What a captured gradient is filed under: the leaf, or the node and its output."""
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


def fit(grad: Any, shape: tuple[int, ...], kind: np.dtype[Any]) -> Any:
    """Undo broadcasting and promotion: a gradient has the shape and type of its value."""
    if grad.shape != shape:
        grad = SumToSize.call(grad, shape)
    if isinstance(grad, Tensor):
        return grad if grad._array.dtype == kind else grad.to(kind)
    if grad.dtype == kind:
        return grad
    return kernels_for(grad).convert(grad, kind) if on_gpu(grad) else grad.astype(kind)
