"""Results whose values are computed when something asks for them.

Owns: `postpone`, `Pending`, what consumers of pending results call. Must not know: any operation.

A result of batch norm is mostly read once, by a ReLU or an addition that could compute it on the way:
one pass over the memory instead of two, and one array less. So it is handed out pending. Whatever else
asks for its array finds the values computed, and the tensor an ordinary one from there on.

What keeps the values right: the tensor they are computed from is lent out meanwhile, that is, asking
for its array too lets the pending values be computed first, before anybody can change what they depend
on. Only a tensor is lent whose memory nobody else sees: no view, no NumPy array, no node of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import getrefcount
from typing import Any
from weakref import ref

import numpy as np

from dptrain.core.grad_mode import is_grad_enabled, record_observer
from dptrain.core.op import Op, edge_of
from dptrain.core.tensor import Tensor, wrap

#: Writes the values into a contiguous channels-last array; takes what `normalise` of
#: `kernels/reference.py` takes after it.
Write = Callable[..., None]


def _become(tensor: Tensor, kind: type[Tensor]) -> None:
    tensor.__class__ = kind


class _Guarded(Tensor):
    """A tensor that has something to do when its array is asked for, and is a plain `Tensor` then."""

    def _make_plain(self) -> Any:
        raise NotImplementedError

    @property
    def _array(self) -> Any:
        return self._make_plain()

    @_array.setter
    def _array(self, value: Any) -> None:
        self._make_plain()
        self._array = value  # no longer this property

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        self._make_plain()
        return Tensor.__deepcopy__(self, memo)


@dataclass(slots=True)
class _Wait:
    """What a pending tensor's values come from, and the node of the graph that it is the result of."""

    write: Write
    node: Op
    #: The memory that waits for the values; None if a consumer has taken it.
    array: Any
    shape: tuple[int, ...]
    kind: np.dtype[Any]

    def memory(self) -> Any:
        """Memory for values, behind a view with channels first."""
        array, self.array = self.array, None
        if array is None:
            n, c, *sizes = self.shape
            array = np.empty((n, *sizes, c), self.kind)
            array = array.transpose(0, len(sizes) + 1, *range(1, len(sizes) + 1))
        return array

    def fill(self, array: Any, **how: Any) -> None:
        """Compute the values."""
        self.write(_channels_last(array), **how)


class Pending(_Guarded):
    """A tensor without values so far."""

    _wait: _Wait

    def _make_plain(self) -> Any:
        wait: _Wait = self.__dict__.pop("_wait")
        _become(self, Tensor)
        self._array = array = wait.memory()
        wait.fill(array)
        wait.node.__dict__["only"] = None  # whoever has asked may be another consumer
        return array


class _Lent(_Guarded):
    """A tensor that a pending one is computed from."""

    def _make_plain(self) -> Any:
        reader = self.__dict__.pop("_reader")()
        _become(self, Tensor)
        self._array = array = self.__dict__.pop("_lent")
        if type(reader) is Pending:
            reader._make_plain()
        return array


for _kind in (Pending, _Lent):  # in messages they are what they are to become
    _kind.__name__, _kind.__qualname__ = Tensor.__name__, Tensor.__qualname__


def _channels_last(array: Any) -> Any:
    return array.transpose(0, *range(2, array.ndim), 1)


def can_wait(source: Tensor) -> bool:
    """Whether a result of `source` may be pending, if it is recorded: channels last, one owner."""
    if type(source) is not Tensor or source._node is None or source._base is not None:
        return False
    if not is_grad_enabled() or record_observer() is not None:
        return False
    array = source._array
    owner = array.base
    if type(array) is not np.ndarray or type(owner) is not np.ndarray or owner.base is not None:
        return False
    # Of the array: the tensor, this variable, the argument of the call. Of its owner, likewise.
    alone = getrefcount(array) <= 3 and getrefcount(owner) <= 3
    return alone and bool(_channels_last(array).flags.c_contiguous)


def postpone(result: Tensor, source: Tensor, write: Write) -> None:
    """Make `result` pending.

    Args:
        result: just recorded; its array has memory, but no values.
        source: what it is computed from; `can_wait` was true.
        write: computes the values.
    """
    array = result.__dict__.pop("_array")
    result.__dict__["_wait"] = _Wait(write, result._node, array, array.shape, array.dtype)
    _become(result, Pending)
    source.__dict__.update(_reader=ref(result), _lent=source.__dict__.pop("_array"))
    _become(source, _Lent)


def consumed(pending: Pending, op: Op, second: Tensor | None = None, **how: Any) -> Tensor:
    """The result of an operation of a pending tensor, computed together with its values.

    Args:
        pending: it stays so.
        op: saves no argument.
        second: its second argument.
        **how: for the `Write`.
    """
    wait = pending._wait
    array = wait.memory()
    wait.fill(array, **how)
    result = wrap(array)
    if is_grad_enabled() and (
        pending._requires_grad or (second is not None and second._requires_grad)
    ):
        op.edges = [
            edge_of(t) if t._requires_grad else None for t in (pending, second) if t is not None
        ]
        op.outs = ((array.shape, array.dtype),)
        op._record((pending, second), [None, None], array, result)
        result._node, result._requires_grad = op, True
        # The node's only consumer, unless there was one before.
        facts = wait.node.__dict__
        facts["only"] = None if "only" in facts else op.sequence
    return result


def may_add(pending: Pending, more: Any) -> bool:
    """Whether an array can be added while the values are computed."""
    wait = pending._wait
    if type(more) is not np.ndarray or more.dtype != wait.kind or more.shape != wait.shape:
        return False
    return bool(_channels_last(more).flags.c_contiguous)
