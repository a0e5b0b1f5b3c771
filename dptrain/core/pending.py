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

from sys import getrefcount
from typing import Any
from weakref import ref

import numpy as np

from dptrain.core.capturing import recorder, watcher
from dptrain.core.dtypes import FROM_NUMPY, dtype
from dptrain.core.grad_mode import is_grad_enabled, record_observer
from dptrain.core.history import set_history
from dptrain.core.op import Op, edge_of
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor, wrap_computed


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


class Wait:
    """What the values of a pending tensor come from.

    Args:
        node: the operation whose result the tensor is.
        source: the array of its first argument.
    """

    def __init__(self, node: Op, source: np.ndarray) -> None:
        self.node, self.source = node, source

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return self.source.shape

    def values(self) -> Any:
        """The values, in memory of their own."""
        raise NotImplementedError

    @staticmethod
    def over(node: Any, source: np.ndarray, tensor: Tensor | None) -> None:
        """`source` may change from here on.

        Args:
            node, source: as given.
            tensor: the tensor that was pending, with its values now; None if it does not exist any more.
        """


class Pending(_Guarded):
    """A tensor without values so far."""

    _wait: Any

    # What can be said of it without its values.

    @property
    def shape(self) -> Size:
        return Size(self._wait.shape)

    @property
    def ndim(self) -> int:
        return len(self._wait.shape)

    @property
    def dtype(self) -> dtype:
        return FROM_NUMPY[self._wait.source.dtype]

    def _shows(self, order: tuple[int, ...]) -> bool:
        # Its values will lie with the channels last, as does what is computed with them.
        return True

    def _make_plain(self) -> Any:
        wait = self.__dict__.pop("_wait")
        _become(self, Tensor)
        self._array = array = wait.values()
        wait.node.__dict__["only"] = None  # whoever has asked may be another consumer
        wait.over(wait.node, wait.source, self)
        return array


class _Lent(_Guarded):
    """A tensor that a pending one is computed from."""

    def _make_plain(self) -> Any:
        array, to, by, over = self.__dict__.pop("_lent")
        _become(self, Tensor)
        self._array = array
        reader, node = to(), by()
        if type(reader) is Pending:
            reader._make_plain()
        elif reader is None and node is not None:
            over(node, array, None)
        return array


for _kind in (Pending, _Lent):  # in messages they are what they are to become
    _kind.__name__, _kind.__qualname__ = Tensor.__name__, Tensor.__qualname__


def can_wait(source: Tensor) -> bool:
    """Whether a result of `source` may be pending, if it is recorded: channels last, one owner."""
    if type(source) is not Tensor or source._node is None or source._base is not None:
        return False
    if not is_grad_enabled() or record_observer() is not None or recorder() is not None:
        return False
    if watcher() is not None:  # a profile is to show what took how long
        return False
    array = source._array
    owner = array.base
    if type(array) is not np.ndarray or type(owner) is not np.ndarray or owner.base is not None:
        return False
    # Of the array: the tensor, this variable, the argument of the call. Of its owner, likewise.
    alone = getrefcount(array) <= 3 and getrefcount(owner) <= 3
    return alone and bool(array.transpose(0, *range(2, array.ndim), 1).flags.c_contiguous)


def postpone(result: Tensor, source: Tensor, wait: Wait) -> Pending:
    """Make `result` pending.

    Args:
        result: just recorded; its array may be anything.
        source: what it is computed from; `can_wait` was true.
        wait: computes the values.
    """
    del result._array
    result.__dict__["_wait"] = wait
    _become(result, Pending)
    # Weakly, so that what nobody uses any more goes at once.
    lent = source.__dict__.pop("_array"), ref(result), ref(wait.node), wait.over
    source.__dict__["_lent"] = lent
    _become(source, _Lent)
    pending: Any = result
    return pending


def replace_values(pending: Pending, result: Tensor) -> Tensor:
    """An in-place operation: the pending tensor gets the values and the history of `result`, which nobody else has."""
    pending.__dict__.pop("_wait")
    _become(pending, Tensor)
    array = pending._array = result._array
    pending._unseen = None if result._unseen is None else [ref(pending)]
    pending._bump_version()
    if is_grad_enabled():
        set_history(pending, result)
    if result._node is not None:
        result._node.save_result_in(array, pending)
    return pending


def record(op: Op, array: Any, *args: Tensor) -> Tensor:
    """The result of an operation that has run, recorded as `Op.apply` does; a pending argument stays so.

    Args:
        op: saves no argument.
        array: its result.
        *args: its arguments.
    """
    result = wrap_computed(array, args)
    edges = [edge_of(a) if a._requires_grad else None for a in args]
    if edges.count(None) < len(edges) and is_grad_enabled():
        op.edges = edges
        op.outs = ((array.shape, array.dtype),)
        op._record(args, [None] * len(args), array, result)
        result._node, result._requires_grad = op, True
        if type(args[0]) is Pending:
            # The only consumer of the node's result, unless there was one before.
            facts = args[0]._wait.node.__dict__
            facts["only"] = None if "only" in facts else op.sequence
    return result
