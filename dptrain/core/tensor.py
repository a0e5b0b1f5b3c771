"""The Tensor: one array, and what autograd needs to know of it.

Owns: `Tensor`, version counters, leaf gradients and hooks. What it is to Python and NumPy is in
`protocols.py`. No mathematics: operations bind
their methods from `dptrain.core.ops`, and the engine binds `backward`, so that this module imports
neither.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from dptrain.core import dtypes
from dptrain.core.arrays import as_array, beside, device_of, move, to_host
from dptrain.core.capturing import recorder, recorders
from dptrain.core.device import as_device, device
from dptrain.core.dtypes import FROM_NUMPY, dtype
from dptrain.core.hooks import RemovableHandle, add_hook
from dptrain.core.memory_order import MemoryOrder, keep_unseen, no_dimension
from dptrain.core.protocols import ArrayProtocols
from dptrain.core.size import Size


class Tensor(MemoryOrder, ArrayProtocols):
    """An n-dimensional array with PyTorch's interface and reverse-mode differentiation.

    `Tensor(2, 3)` is uninitialised of that shape, `Tensor([1, 3])` holds those values, both float32;
    `dptrain.tensor` keeps the type of the data.
    """

    # Class-level defaults: an instance stores only what differs, which keeps creation cheap.
    _array: np.ndarray
    _requires_grad: bool = False
    _grad: Tensor | None = None
    _node: Any = None
    _index: int = 0
    #: A view's base, the steps from there to it as (the steps before, the last one), the first being ()
    #: (None: untracked), and the base's node when last seen.
    _base: Tensor | None = None
    _steps: tuple[Any, ...] | None = None
    _seen: Any = None
    _counter: list[int] | None = None
    _hooks: dict[int, Any] | None = None
    _post_hooks: dict[int, Any] | None = None
    #: The tensor's place in a flat gradient buffer (see core/flat.py); its first gradient goes there.
    _slot: Tensor | None = None
    #: Where the values lie in a flat storage (a core.flat.Place), if they do.
    _place: Any = None

    #: Whether gradients with a graph of their own (`create_graph`) have come to this leaf.
    _twice: bool = False

    #: False for a lazy module's parameter before the first call; see nn/parameter.py.
    _has_values: bool = True

    #: NumPy hands `ndarray + tensor` over to `Tensor.__radd__`.
    __array_priority__ = 1000

    def __init__(self, *data: Any) -> None:
        if len(data) == 1 and not isinstance(data[0], int):
            values = data[0]._array if isinstance(data[0], Tensor) else data[0]
            self._array = np.array(values, dtype=dtypes.get_default_dtype().numpy)
        else:
            self._array = np.empty(data or (0,), dtype=dtypes.get_default_dtype().numpy)

    def __array_wrap__(
        self, array: np.ndarray, context: Any = None, return_scalar: bool = False
    ) -> Any:
        """What NumPy's functions make of tensors is a tensor; truth values are bytes, as in PyTorch."""
        return wrap(array.astype(np.uint8) if array.dtype == bool else array)

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        """Sizes of the dimensions."""
        return Size(self._array.shape)

    @property
    def dtype(self) -> dtype:
        """Element type."""
        return FROM_NUMPY[self._array.dtype]

    @property
    def device(self) -> device:
        """Where the values live."""
        return device_of(self._array)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._array.ndim

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self._array.nbytes

    @property
    def is_cuda(self) -> bool:
        """Whether the values live on a GPU."""
        return self.device.type == "cuda"

    @property
    def is_leaf(self) -> bool:
        """Whether the user made it, rather than a recorded operation."""
        return self.grad_fn is None

    @property
    def grad_fn(self) -> Any:
        """The recorded operation that made this tensor, or None."""
        if self._base is not None:
            catch_up(self)
        return self._node

    @property
    def output_nr(self) -> int:
        """Which result of `grad_fn` this is."""
        return self._index

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        try:
            return self.shape if dim is None else self.shape[dim]
        except (IndexError, TypeError):
            raise no_dimension("size", dim, self._array.ndim) from None

    def dim(self) -> int:
        """Number of dimensions."""
        return self._array.ndim

    ndimension = dim

    def numel(self) -> int:
        """Number of elements."""
        return self._array.size

    nelement = numel

    def element_size(self) -> int:
        """Bytes of one element."""
        return self._array.itemsize

    def is_floating_point(self) -> bool:
        """Whether the element type is a floating point type."""
        return self.dtype.is_floating_point

    def is_inference(self) -> bool:
        """False: tensors made under `inference_mode` are ordinary ones."""
        return False

    def _is_view(self) -> bool:
        return self._base is not None

    def get_device(self) -> int:
        """Index of the GPU or of the virtual host device, -1 on the only CPU."""
        index = self.device.index
        return -1 if index is None else index

    # ---- gradients -----------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether backward computes a gradient for it."""
        if self._base is not None:
            catch_up(self)
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not isinstance(value, (bool, np.bool_)):
            raise RuntimeError(f"requires_grad must be a bool, not {type(value).__name__}")
        if value and not self.dtype.is_floating_point:
            raise RuntimeError(
                f"only Tensors of floating point dtype can require gradients; this one has dtype {self.dtype}"
            )
        if not value and self._node is not None:
            raise RuntimeError(
                "you can only change requires_grad flags of leaf variables; use var.detach() to get a "
                "tensor that does not require gradients"
            )
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` in place and return the tensor."""
        if not isinstance(requires_grad, (bool, np.bool_)):
            raise TypeError(
                "requires_grad_(): argument 'requires_grad' (position 1) must be bool, not "
                f"{type(requires_grad).__name__}"
            )
        self.requires_grad = requires_grad
        return self

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward accumulated, or None."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"assigned grad must be a Tensor or None, got {type(value).__name__}"
                )
            if value._array.shape != self._array.shape or value._array.dtype != self._array.dtype:
                raise RuntimeError(
                    f"assigned grad has shape {list(value.shape)} and dtype {value.dtype}, but the tensor has "
                    f"shape {list(self.shape)} and dtype {self.dtype}"
                )
        self._grad = value

    def _accumulate_grad(self, grad: Any, own: bool = False) -> None:
        """Add a final gradient (raw array, `own` if nobody else has it, or Tensor under create_graph) to `.grad`."""
        held = self._grad
        if isinstance(grad, Tensor):
            # A copy: backward may have handed one tensor to several leaves.
            self._grad = grad.clone() if held is None else held + grad
        elif held is not None:
            np.add(held._array, grad, out=held._array)
            held._bump_version()
        elif self._slot is not None:
            if grad is not self._slot._array:  # else the walk has asked for it
                np.copyto(self._place.storage.free_slot(self._place.position)._array, grad)
            self._grad = self._slot
        else:
            # A copy: backward may have handed one array to several leaves.
            self._grad = wrap(grad if own else as_array(grad).copy())
        if self._post_hooks:
            for hook in tuple(self._post_hooks.values()):
                hook(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook(grad)` each time the tensor's gradient is computed; its result replaces the gradient.

        Raises:
            RuntimeError: the tensor does not require gradients.
        """
        if not self.requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if self._node is None:
            if self._hooks is None:
                self._hooks = {}
            return add_hook(self._hooks, hook)
        return add_hook(self._node_hooks(), hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `hook(tensor)` during backward, the moment the leaf's `.grad` is final.

        Raises:
            RuntimeError: the tensor is not a leaf that requires gradients.
        """
        if not self._requires_grad or self._node is not None:
            raise RuntimeError(
                "post accumulate grad hooks can only be registered on leaf tensors that require grad"
            )
        if self._post_hooks is None:
            self._post_hooks = {}
        return add_hook(self._post_hooks, hook)

    @property
    def retains_grad(self) -> bool:
        """Whether `retain_grad` was called on this non-leaf."""
        hooks = self.grad_fn.hooks if self.grad_fn is not None else None
        return any(
            type(h) is RetainGrad and h.tensor is self
            for h in (hooks or {}).get(self._index, {}).values()
        )

    def retain_grad(self) -> None:
        """Keep the gradient of a non-leaf in `.grad` too."""
        if not self.requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if self._node is not None:
            hooks = self._node_hooks()
            if not any(type(h) is RetainGrad and h.tensor is self for h in hooks.values()):
                add_hook(hooks, RetainGrad(self))

    def _node_hooks(self) -> dict[int, Any]:
        if self._node.hooks is None:
            self._node.hooks = {}
        hooks: dict[int, Any] = self._node.hooks.setdefault(self._index, {})
        return hooks

    def detach(self) -> Tensor:
        """The same values (shared memory), cut off from the graph."""
        result = alias(self)
        result._counter = self._version_counter()
        return result

    def detach_(self) -> Tensor:
        """Cut this tensor off from the graph in place."""
        self._node, self._index, self._requires_grad = None, 0, False
        self._steps = None
        return self

    @property
    def data(self) -> Tensor:
        """The values without history. Assigning rebinds the tensor to other values."""
        return alias(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"Variable data has to be a tensor, but got {type(value).__name__}")
        if self._requires_grad and not value.dtype.is_floating_point:
            raise RuntimeError(
                "data set to a tensor that requires gradients must be floating point, not "
                f"{value.dtype}"
            )
        slot = self._slot
        if slot is not None and (
            slot._array.dtype != value._array.dtype or slot._array.shape != value._array.shape
        ):
            self._slot = None  # gradients are of the new type and shape from here on
        self._array = value._settled()
        self._unseen = None

    # ---- in-place changes ------------------------------------------------------------------------

    def _version_counter(self) -> list[int]:
        if self._counter is None:
            self._counter = [0]
        return self._counter

    @property
    def _version(self) -> int:
        """How often the values were changed in place."""
        return self._version_counter()[0]

    def _bump_version(self) -> None:
        bump_versions((self,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise RuntimeError(
                "only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol; "
                "use tensor.detach().clone()"
            )
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        with beside(self._array):
            result._array = self._array.copy(order="K" if self._unseen is None else "C")
        result._requires_grad = self._requires_grad
        result._grad = copy.deepcopy(self._grad, memo)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        values = np.ascontiguousarray(to_host(self._array)).reshape(self._array.shape)
        place = () if type(self._array) is np.ndarray else (str(self.device),)
        return _rebuild, (type(self), values, self._requires_grad, *place)

    if TYPE_CHECKING:  # methods that operations bind; see dptrain/core/ops
        backward: Callable[..., None]
        _check_inplace: Callable[..., None]
        _assign_result: Callable[..., None]
        T: Any
        mT: Any

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...


class RetainGrad:
    """A node hook that stores the gradient in `tensor.grad`; it runs after all others."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = ref(tensor)  # the node outlives its result, and must not keep it alive

    @property
    def tensor(self) -> Tensor | None:
        """The tensor, if it still exists."""
        return self._tensor()

    def __call__(self, grad: Tensor) -> None:
        tensor = self._tensor()
        if tensor is not None:
            held = tensor._grad
            tensor._grad = grad.clone() if held is None else held + grad


def catch_up(view: Tensor) -> None:
    """Let a view follow its base if the base's history has changed; see core/history.py."""
    assert view._base is not None
    if view._base._node is not view._seen:
        from dptrain.core.history import follow_base

        follow_base(view)


def bump_versions(tensors: Iterable[Tensor]) -> None:
    """Count a change in place of each."""
    listener = recorder() if recorders else None
    for tensor in tensors:
        counter = tensor._counter
        if counter is None:
            counter = tensor._version_counter()
        counter[0] += 1
        if listener is not None:
            listener.changed(tensor)


def wrap(array: np.ndarray) -> Tensor:
    """A Tensor around an array, nothing copied."""
    result = _new(Tensor)
    result._array = array
    return result


def alias(tensor: Tensor) -> Tensor:
    """Another Tensor around a tensor's array, without history."""
    result = wrap(tensor._array)
    result._joins(tensor)
    return result


def wrap_computed(array: Any, args: Iterable[Any] = ()) -> Tensor:
    """A Tensor around an array that an operation (of these arguments) or a derivative has just made."""
    result = wrap(array)
    if array.ndim > 2 and not array.flags.c_contiguous:
        keep_unseen(result, args)
    return result


_new = object.__new__  # the look-up would be a fifth of the cost of `wrap`


def _rebuild(cls: type[Tensor], array: np.ndarray, requires_grad: bool, place: str = "") -> Tensor:
    result = cls.__new__(cls)
    result._array = move(array, as_device(place)) if place else array
    result._requires_grad = requires_grad
    return result
