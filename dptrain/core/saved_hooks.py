"""What becomes of saved values where the user says: `saved_tensors_hooks` and what is made of it.

Owns: the hooks' scope, packed values in the place of saved ones. Must not know: how operations run.

Entered hooks watch the recording (`observe_recording`), so that they cost nothing where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

from dptrain.core.arrays import is_array
from dptrain.core.cuda import cannot_look
from dptrain.core.device import host_device
from dptrain.core.grad_mode import no_grad, observe_recording
from dptrain.core.history import node_over
from dptrain.core.op import Op
from dptrain.core.saved import Deferred, SavedValues
from dptrain.core.tensor import Tensor, wrap_computed

#: How to pack and how to unpack.
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

_depth: ContextVar[int] = ContextVar("saved_tensors_hooks", default=0)
_refusal: ContextVar[str | None] = ContextVar("saved_tensors_hooks_refused", default=None)


class PackedTensor:
    """What a user's function has made of a tensor, to be turned into a tensor again by another one.

    Args:
        tensor: without history.
        hooks: the two functions; the first is called here.

    Raises:
        RuntimeError: it changed the tensor in place.
    """

    def __init__(self, tensor: Tensor, hooks: Hooks) -> None:
        pack, self._unpack = hooks
        self._facts = tensor.shape, tensor.device
        self._dtype = tensor.dtype
        with no_grad():
            self._packed = pack(tensor)
        if tensor._version:
            raise RuntimeError(
                "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack hook "
                "cannot be modified by in-place operations, as the forward pass goes on with them"
            )

    def __call__(self) -> Tensor:
        """The tensor, of the type that was packed.

        Raises:
            TypeError: the user's function gave something else.
            RuntimeError: it gave a tensor of another shape, or on another device.
        """
        found = self._unpack(self._packed)
        if not isinstance(found, Tensor):
            raise TypeError(
                "Output of saved tensor unpack_hook expected to be a Tensor but got result of type "
                f"{type(found).__name__}"
            )
        if (found.shape, found.device) != self._facts:
            raise RuntimeError(
                f"the saved tensor unpack_hook returned a tensor of shape {list(found.shape)} on {found.device}; what "
                f"was packed has shape {list(self._facts[0])} on {self._facts[1]}"
            )
        return found.detach().to(self._dtype)


class Packed(Deferred):
    """In the place of a node's saved values: some of them packed."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def values_of(self, node: SavedValues) -> Any:
        """The saved values, unpacked anew."""
        return tuple(v()._array if type(v) is PackedTensor else v for v in self._values)

    def stand_in(self, leaf: Tensor, value: Any) -> Tensor:
        """The values that were unpacked, whose gradient goes to the leaf."""
        return stand_in(leaf, value)


class _StandIn(Op):
    """The identity."""

    name = "stand_in"

    def forward(self, input: Any) -> Any:
        return input

    def backward(self, grad: Any) -> Any:
        return grad


def stand_in(leaf: Tensor, value: Any) -> Tensor:
    """A Tensor of other values whose gradient goes to `leaf`."""
    tensor = wrap_computed(value)
    tensor._node, tensor._requires_grad = node_over(_StandIn, tensor, leaf), True
    return tensor


def _pack(hooks: Hooks, node: Any) -> None:
    """Watch a node being recorded."""
    if type(node.saved) is not tuple:
        return  # inner hooks, or an inner checkpoint, have taken it
    if hasattr(node, "take_saved_hooks"):
        node.take_saved_hooks(hooks)
        return
    values: list[Any] = []
    for (position, _), value, version in zip(
        node._saved_names, node.saved, node.versions, strict=True
    ):
        # Those that have a version were tensors, rather than numbers.
        tensor = is_array(value) and (position < 0 or version is not None)
        values.append(PackedTensor(wrap_computed(value), hooks) if tensor else value)
    if any(type(v) is PackedTensor for v in values):
        node.saved, node.versions = Packed(values), ()


class saved_tensors_hooks:
    """Let functions of the user say how saved tensors are kept between the forward and backward pass.

    Inside the block `pack_hook(tensor)` is called with each tensor that an operation saves, that is, with
    the arguments and the result that its derivative is made of, and with what a `Function` gives to
    `save_for_backward`; `unpack_hook` is called with what it returned each time a backward pass asks. Of
    nested hooks the innermost apply. What an operation keeps beside its arguments and its result (masks,
    places of maxima, statistics) is not packed.

    An unpacked tensor is taken as it is: whether it was changed in place since is not checked, as in
    PyTorch. It is brought to the type of what was packed.

    Args:
        pack_hook: gets a tensor without history, which it must not change; returns anything.
        unpack_hook: makes of that a tensor of the same values, shape and device.

    Raises:
        RuntimeError: on entry, hooks are disabled; from the operation, `pack_hook` changed its argument.
        TypeError: from backward, `unpack_hook` returned no tensor.
    """

    def __init__(
        self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]
    ) -> None:
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        refusal = _refusal.get()
        if refusal is not None:
            raise RuntimeError(refusal)
        watch = observe_recording(partial(_pack, (self.pack_hook, self.unpack_hook)))
        watch.__enter__()
        self._entered.append(watch)
        _depth.set(_depth.get() + 1)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _depth.set(_depth.get() - 1)
        self._entered.pop().__exit__(None, None, None)


class save_on_cpu(saved_tensors_hooks):
    """Keep saved tensors in the memory of the host, and bring them back for backward.

    Args:
        pin_memory: keep those of a GPU in page-locked memory, and wait for no copy; each is behind the work of the
            stream that is the current one, which has to be the same in forward and backward.
        device_type: accepted as in PyTorch, where it says what memory is pinned for.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        def pack(tensor: Tensor) -> Any:
            # While a CUDA graph is recorded nothing can be fetched: the copy that is waited for says so.
            unwaited = pin_memory and tensor.is_cuda and not cannot_look()
            return tensor.device, tensor.to(host_device(0), non_blocking=unwaited)

        def unpack(packed: Any) -> Tensor:
            home, kept = packed
            moved: Tensor = kept.to(home, non_blocking=pin_memory)
            return moved

        super().__init__(pack, unpack)


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse `saved_tensors_hooks` inside the block.

    Args:
        error_message: of the error that they raise.

    Raises:
        RuntimeError: hooks are active already.
    """
    if _depth.get():
        raise RuntimeError(error_message)
    token = _refusal.set(error_message)
    try:
        yield
    finally:
        _refusal.reset(token)
