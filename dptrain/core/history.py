"""In-place changes of tensors that have a history, and of views into them.

Owns: what an in-place operation does to the graph (`Tensor._check_inplace`, `_assign_result`), how a
view follows its base. Must not know: any particular operation.

A view remembers its base and the steps (operations and their arguments) that lead from there to it.
When a view is changed, the base's history becomes `CopySlices`: the old base with the view's part
replaced. When a base's history has changed, its views take theirs from it anew, by going the steps
again. Source: PyTorch's notes on in-place operations and views (`CopySlices`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dptrain.core.arrays import address, beside, is_writeable, on_gpu
from dptrain.core.grad_mode import enable_grad, is_grad_enabled
from dptrain.core.host_array import DeviceMismatchError, mismatch
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op, edge_of
from dptrain.core.tensor import RetainGrad, Tensor, wrap


def _look(value: Any, steps: tuple[Any, ...]) -> Any:
    """Go the steps from a base to its view, on raw arrays or on Tensors."""
    way = []
    while steps:
        steps, step = steps
        way.append(step)
    for cls, args, kwargs, which in reversed(way):
        value = cls.call(value, *args, **kwargs)
        if which is not None:
            value = value[which]
    return value


class CopySlices(Op):
    """The base with the part that a view shows replaced by `value`.

    `order` is the order of the base's dimensions in memory: the steps give views only there.
    """

    name = "copy_slices"
    backward_name = "CopySlices"

    def forward(self, base: Any, value: Any, steps: Any, order: tuple[int, ...]) -> Any:
        self.steps, self.order = steps, order
        back = tuple(int(i) for i in np.argsort(order))
        out = self.xp.empty(tuple(base.shape[i] for i in order), base.dtype).transpose(back)
        out[...] = base
        _look(out, steps)[...] = value
        return out

    def backward(self, grad: Any) -> Any:
        d_base = CopySlices.call(grad, 0, self.steps, self.order) if self.needs[0] else None
        return d_base, _look(grad, self.steps) if self.needs[1] else None


class Overwrite(Op):
    """All values replaced by constants: no gradient reaches the old ones."""

    name = "overwrite"

    def forward(self, input: Any) -> Any:
        return self.xp.zeros_like(input)

    def backward(self, grad: Any) -> Any:
        return Overwrite.call(grad)


@cache
def _overwrite_class(name: str) -> type[Overwrite]:
    return type(name.strip("_").title(), (Overwrite,), {"name": name})


def follow_base(view: Tensor) -> None:
    """Take the history of a view anew if that of its base has changed since."""
    base = view._base
    if base is None or base._node is view._seen:
        return
    view._seen = base._node
    if view._steps is not None and base._requires_grad:
        with enable_grad():
            fresh = _look(base, view._steps)
        _check_place(view, fresh._array)
        _adopt(view, fresh)


def _check_place(view: Tensor, found: Any) -> None:
    """The steps must still lead to the view's memory: the base may have got another shape in place."""
    array = view._array
    if (
        found.shape != array.shape
        or found.strides != array.strides
        or address(found) != address(array)
    ):
        raise RuntimeError(
            f"a view of shape {list(array.shape)} has lost its base: the base was given another shape or other memory "
            "in place; take the view again"
        )


def _adopt(tensor: Tensor, result: Tensor) -> None:
    """Give a tensor the history of `result`; `retain_grad` follows the tensor."""
    node = tensor._node
    hooks = node.hooks.get(tensor._index, {}) if node is not None and node.hooks else {}
    retained = [k for k, h in hooks.items() if type(h) is RetainGrad and h.tensor is tensor]
    for key in retained:
        del hooks[key]
    tensor._node, tensor._index, tensor._requires_grad = result._node, result._index, True
    if retained:
        tensor.retain_grad()


def node_over(cls: type[Op], tensor: Tensor, *sources: Tensor | None) -> Any:
    """A node whose result has the shape and type of `tensor`, recorded without running it."""
    node = cls()
    node.edges = [edge_of(s) if s is not None and s._requires_grad else None for s in sources]
    node.outs = ((tensor._array.shape, tensor._array.dtype),)
    node._record((), [], tensor._array, None)
    return node


def set_history(tensor: Tensor, result: Tensor) -> None:
    """Record that `tensor` now holds `result`, whose history it takes; the base of a view hears of it."""
    base = tensor._base
    if base is None:
        if result._requires_grad:
            _adopt(tensor, result)
        return
    if not (base._requires_grad or result._requires_grad):
        return
    _check_place(tensor, _look(base._array, tensor._steps or ()))
    node = node_over(CopySlices, base, base, result)
    strides = base._array.strides
    node.steps = tensor._steps
    node.order = tuple(sorted(range(len(strides)), key=lambda i: -abs(strides[i])))
    changed = wrap(base._array)
    changed._node = node
    _adopt(base, changed)
    follow_base(tensor)


def _check_inplace(self: Tensor, name: str) -> None:
    """Refuse what would make the graph wrong, before anything is written.

    Raises:
        RuntimeError: a leaf that requires gradients, or a view of one, while recording.
    """
    if not is_grad_enabled():
        return
    follow_base(self)
    if self._requires_grad and self._node is None:
        raise RuntimeError(
            f"{name}: a leaf Variable that requires grad is being used in an in-place operation; do it "
            "under dptrain.no_grad(), or on a clone"
        )
    base = self._base
    if base is not None and self._steps is not None and base._requires_grad and base._node is None:
        raise RuntimeError(
            f"{name}: a view of a leaf Variable that requires grad is being used in an in-place operation "
            f"(view of shape {list(self.shape)}); do it under dptrain.no_grad(), or on a clone"
        )


def check_writeable(tensor: Tensor, name: str) -> None:
    """Refuse to write where elements share memory or the owner forbids it.

    Raises:
        RuntimeError: NumPy does not let the memory be written.
    """
    if not is_writeable(tensor._array):
        raise RuntimeError(
            f"{name}: unsupported operation: more than one element of the written-to tensor (shape "
            f"{list(tensor.shape)}) refers to a single memory location, or its memory is read-only. Please "
            "clone() the tensor before performing the operation."
        )


def _assign_result(self: Tensor, result: Tensor, name: str) -> None:
    """Store the result of an in-place operation here and take over its history.

    Raises:
        RuntimeError: another shape or a higher kind of type; memory that cannot be written.
    """
    if result._array.shape != self._array.shape:
        raise RuntimeError(
            f"{name}: output with shape {list(self.shape)} doesn't match the broadcast shape {list(result.shape)}"
        )
    if result.dtype.category > self.dtype.category:
        raise RuntimeError(
            f"{name}: result type {result.dtype} can't be cast to the output type {self.dtype}"
        )
    if type(result._array) is not type(self._array):
        raise DeviceMismatchError(f"{name}: {mismatch(self.device, result.device)}")
    check_writeable(self, name)
    recording = is_grad_enabled()
    if recording and result._requires_grad and self._base is not None and self._steps is None:
        raise RuntimeError(
            f"{name}: A view was created in no_grad mode and is being modified inplace with grad mode enabled. "
            "Make the view and the change both inside the no_grad block, or both outside"
        )
    overwrite_values(self, result._array)
    self._bump_version()
    if recording:
        set_history(self, result)


def overwrite_values(tensor: Tensor, values: Any) -> None:
    """Put values, which live beside the tensor, in the place of its own."""
    if type(tensor._array) is np.ndarray:
        np.copyto(tensor._array, values, casting="unsafe")
        return
    with beside(tensor._array):
        array = tensor._array
        if on_gpu(values) and values.dtype == array.dtype and values.shape == array.shape:
            kernels_for(values).assign(array, values)
        else:
            np.copyto(array, values, casting="unsafe")


def record_overwrite(tensor: Tensor, name: str) -> None:
    """Say that constants replaced all values of a tensor: a fill, random draws.

    Args:
        tensor: what was overwritten.
        name: the in-place method, e.g. "zero_"; the node shows as "ZeroBackward0".
    """
    if is_grad_enabled() and tensor._requires_grad:
        result = wrap(tensor._array)
        result._node = node_over(_overwrite_class(name), tensor, tensor)
        result._requires_grad = True
        set_history(tensor, result)


Tensor._check_inplace = _check_inplace
Tensor._assign_result = _assign_result
