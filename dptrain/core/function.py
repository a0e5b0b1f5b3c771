"""`autograd.Function`: operations whose derivative the user writes.

Owns: `Function`, its context, its node in the graph, `once_differentiable`. Must not know: the engine,
which runs the node as it runs every other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import ref

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.capturing import recorders, watcher
from dptrain.core.grad_mode import is_grad_enabled, no_grad
from dptrain.core.history import set_history
from dptrain.core.op import Op, edge_of
from dptrain.core.saved import SavedTensorError
from dptrain.core.saved_hooks import Hooks, PackedTensor, stand_in
from dptrain.core.tensor import Tensor, alias, wrap, wrap_computed


class FunctionCtx:
    """What `forward` leaves for `backward`; free for attributes of the user.

    Attributes:
        needs_input_grad: for each argument of `apply`, whether its gradient is wanted.
    """

    needs_input_grad: tuple[bool, ...] = ()

    def __init__(self, node: FunctionNode) -> None:
        self._to_save: tuple[Any, ...] = ()
        self._saved: list[Any] | None = []
        self._dirty: tuple[Any, ...] = ()
        self._constant: tuple[Any, ...] = ()
        self._materialize = True
        self._hooks: Hooks | None = None
        self._name = node.grad_name

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs, outputs or other tensors for `backward`, guarded against in-place changes.

        Raises:
            TypeError: something is neither a tensor nor None.
        """
        for i, t in enumerate(tensors):
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument {i} is of type {type(t).__name__}"
                )
        self._to_save = tensors

    def mark_dirty(self, *args: Tensor) -> None:
        """Say which inputs `forward` changed in place; they must be among its outputs."""
        self._dirty = args

    def mark_non_differentiable(self, *args: Tensor) -> None:
        """Say which outputs have no derivative."""
        self._constant = args

    def set_materialize_grads(self, value: bool) -> None:
        """Whether `backward` gets zeros (default) or None for outputs that were not used."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What `save_for_backward` kept.

        Raises:
            RuntimeError: it was freed by an earlier backward, or changed in place.
        """
        if self._saved is None:
            raise RuntimeError(
                f"trying to backward through the graph a second time ({self._name}): its saved values have already "
                "been freed. Specify retain_graph=True in the first backward() if you need two"
            )
        return tuple(None if s is None else s(self._name) for s in self._saved)


class _Saved:
    """A tensor, and the version at which it was saved."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version_counter()[0]

    def __call__(self, name: str) -> Tensor:
        counter = self._tensor._version_counter()
        if counter[0] != self._version:
            raise SavedTensorError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{self._tensor.dtype.name} {list(self._tensor.shape)}], saved by {name}, is at version "
                f"{counter[0]}; expected version {self._version} instead"
            )
        return self._tensor


class _SavedOutput(_Saved):
    """An output, kept without the reference to the node that would tie the two into a cycle."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(_alias(tensor))
        self._index = tensor._index if tensor._node is not None else None
        self.node: Callable[[], Any] = lambda: None

    def __call__(self, name: str) -> Tensor:
        tensor = super().__call__(name)
        if self._index is None:
            return tensor
        result = _alias(tensor)
        result._node, result._index, result._requires_grad = self.node(), self._index, True
        return result


class _Packed:
    """What `saved_tensors_hooks` made of an input or output, and where its gradient goes."""

    def __init__(self, tensor: Tensor, hooks: Hooks, of: FunctionNode | None) -> None:
        self._values = PackedTensor(alias(tensor), hooks)
        self._edge = edge_of(tensor) if of is None and tensor._requires_grad else None
        self._output = None if of is None or tensor._node is not of else (ref(of), tensor._index)

    def __call__(self, name: str) -> Tensor:
        result = alias(self._values())
        edge = self._edge
        if self._output is not None:
            edge = self._output[0](), self._output[1]
        if edge is None:
            return result
        if edge[1] is None:
            return stand_in(edge[0], result._array)
        result._node, result._index, result._requires_grad = edge[0], edge[1], True
        return result


def _alias(tensor: Tensor) -> Tensor:
    result = alias(tensor)
    result._counter = tensor._version_counter()
    return result


class FunctionNode(Op):
    """The graph node of one application of a `Function`."""

    function: type[Function]
    ctx: FunctionCtx
    shapes: list[tuple[int, ...]]
    #: What makes arrays where each output lives.
    spaces: tuple[Any, ...]
    #: Its context comes from a second run (core/recompute.py) and is connected to that one's graph.
    recomputed: bool = False

    def backward(self, grad: Any) -> Any:
        recording = is_grad_enabled()
        if recording and self.recomputed:
            raise RuntimeError(
                f"{self.grad_name}: a Function inside a checkpointed segment cannot be differentiated twice; call "
                "backward without create_graph, or take the checkpoint away"
            )
        incoming = grad if isinstance(grad, list) else [grad]
        grads = [self._incoming(i, g) for i, g in enumerate(incoming)]
        custom = self.function.backward is not Function.backward
        found = (self.function.backward if custom else self.function.vjp)(self.ctx, *grads)
        found = found if isinstance(found, tuple) else (found,)
        wanted = len(self.edges)
        if len(found) < wanted or any(g is not None for g in found[wanted:]):
            raise RuntimeError(
                f"function {self.grad_name} returned an incorrect number of gradients (expected {wanted}, got {len(found)})"
            )
        return tuple(
            self._outgoing(i, g, recording) if self.needs[i] else None
            for i, g in enumerate(found[:wanted])
        )

    def _incoming(self, index: int, grad: Any) -> Tensor | None:
        if grad is None:
            shape, kind = self.outs[index]
            return wrap(self.spaces[index].zeros(shape, kind)) if self.ctx._materialize else None
        return grad if isinstance(grad, Tensor) else wrap_computed(as_array(grad))

    def _outgoing(self, index: int, grad: Any, recording: bool) -> Any:
        if grad is None:
            return None
        if not isinstance(grad, Tensor):
            raise TypeError(f"expected Variable or None (got {type(grad).__name__})")
        expected = self.shapes[index]
        got = grad._array.shape
        tail = got[len(got) - len(expected) :]
        if len(got) < len(expected) or any(
            e not in (1, g) for e, g in zip(expected, tail, strict=True)
        ):
            raise RuntimeError(
                f"Function {self.grad_name} returned an invalid gradient at index {index} - got {list(got)} but expected "
                f"shape compatible with {list(expected)}"
            )
        return grad if recording else grad._array

    def take_saved_hooks(self, hooks: Hooks) -> None:
        """Pack with these hooks what is saved; the innermost come first."""
        if self.ctx._hooks is None:
            self.ctx._hooks = hooks

    def release(self) -> None:
        """Free the saved tensors; the user's attributes stay, as in PyTorch."""
        if self.ctx._saved:
            self.ctx._saved = None


class Function:
    """Base class of operations with a derivative of their own.

    A subclass defines the static methods `forward(ctx, *args)` and `backward(ctx, *grads)`, or
    `forward(*args)` with `setup_context(ctx, inputs, output)`, and is used through `apply`. `backward`
    returns one gradient (or None) per argument of `forward`; written with differentiable operations,
    it can be differentiated again.
    """

    _node_type: type[FunctionNode] = FunctionNode

    def __init_subclass__(cls) -> None:
        name = f"{cls.__name__}Backward"
        cls._node_type = type(name, (FunctionNode,), {"backward_name": name, "function": cls})

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the result; nothing in it is recorded."""
        raise NotImplementedError(
            "You must implement the forward function for custom autograd.Function."
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Keep what `backward` needs, where `forward` takes no context."""
        raise NotImplementedError("setup_context is not implemented.")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The gradients of the arguments of `forward` from those of its outputs."""
        raise NotImplementedError(
            "You must implement either the backward or vjp method for your custom autograd.Function to use it "
            "with backward mode AD."
        )

    #: Another name of `backward`.
    vjp = backward

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run `forward` and record the result.

        Raises:
            RuntimeError: a leaf that requires gradients was marked dirty.
        """
        if recorders and (watch := watcher()) is not None and watch.counts():
            again = Function.apply.__func__  # type: ignore[attr-defined]
            return watch.operation(cls.__name__, args, lambda: again(cls, *args))
        node = cls._node_type()
        node.ctx = ctx = FunctionCtx(node)
        wants = [isinstance(a, Tensor) and a.requires_grad for a in args]
        recording = is_grad_enabled() and any(wants)
        node.edges = [edge_of(a) if w else None for a, w in zip(args, wants, strict=True)]
        node.shapes = [a._array.shape if isinstance(a, Tensor) else () for a in args]
        ctx.needs_input_grad = tuple(wants)  # under no_grad too, as in PyTorch
        with no_grad():
            if cls.setup_context is Function.setup_context:
                output = cls.forward(ctx, *args)
            else:
                output = cls.forward(*args)
                cls.setup_context(ctx, args, output)
        outputs = output if isinstance(output, tuple) else (output,)
        results = tuple(_result(o, args, ctx) for o in outputs)
        if recording:
            _record(node, ctx, results)
            _keep(node, ctx, outputs, results)
        return results if isinstance(output, tuple) else results[0]


def _among(tensor: Any, group: tuple[Any, ...]) -> bool:
    return any(tensor is g for g in group)


def _result(output: Any, args: tuple[Any, ...], ctx: FunctionCtx) -> Any:
    """The tensor to hand out: an argument that was not changed comes back as another tensor."""
    if not isinstance(output, Tensor) or _among(output, ctx._dirty):
        return output
    if _among(output, args) or output._requires_grad:
        return _alias(output)
    return output


def _record(node: FunctionNode, ctx: FunctionCtx, results: tuple[Any, ...]) -> None:
    empty = np.empty(0, np.float32)  # in the place of outputs that are no tensors
    arrays = tuple(r._array if isinstance(r, Tensor) else empty for r in results)
    node.outs = tuple((array.shape, array.dtype) for array in arrays)
    node.spaces = tuple(namespace_of(array) for array in arrays)
    node._record((), [], None, None)
    for i, r in enumerate(results):
        if not isinstance(r, Tensor) or _among(r, ctx._constant) or not r.dtype.is_floating_point:
            continue
        history = wrap(r._array)
        history._node, history._index, history._requires_grad = node, i, True
        if _among(r, ctx._dirty):
            if r._requires_grad and r._node is None:
                raise RuntimeError(
                    f"{node.grad_name}: a leaf Variable that requires grad is being used in an in-place operation."
                )
            set_history(r, history)
        else:
            r._node, r._index, r._requires_grad = node, i, True


def _keep(
    node: FunctionNode, ctx: FunctionCtx, outputs: tuple[Any, ...], results: tuple[Any, ...]
) -> None:
    saved: list[Any] = []
    for t in ctx._to_save:
        if t is None:
            saved.append(None)
            continue
        place = next((i for i, o in enumerate(outputs) if o is t), None)
        if ctx._hooks is not None:
            kept_of = (t, ctx._hooks, None) if place is None else (results[place], ctx._hooks, node)
            saved.append(_Packed(*kept_of))
        elif place is None:
            saved.append(_Saved(t))
        else:
            kept = _SavedOutput(results[place])
            kept.node = ref(node)
            saved.append(kept)
    ctx._saved, ctx._to_save = saved, ()
    ctx._dirty = ctx._constant = ()


class _Once(Op):
    """The identity, whose derivative is refused."""

    name = "once_differentiable"

    def forward(self, input: Any) -> Any:
        return input

    def backward(self, grad: Any) -> Any:
        raise RuntimeError(
            "trying to differentiate twice a function that was marked with @once_differentiable"
        )


def once_differentiable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a `backward` that cannot be differentiated itself: a second derivative is an error."""

    @wraps(fn)
    def wrapper(ctx: Any, *args: Any) -> Any:
        with no_grad():
            found = fn(ctx, *args)
        if not is_grad_enabled() or not any(
            isinstance(a, Tensor) and a.requires_grad for a in args
        ):
            return found
        grads = found if isinstance(found, tuple) else (found,)
        return tuple(
            _Once.apply(g.detach().requires_grad_())
            if isinstance(g, Tensor) and g.is_floating_point()
            else g
            for g in grads
        )

    return wrapper
