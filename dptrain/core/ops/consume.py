"""Operations that compute the values of a pending result together with their own; see `core/pending.py`."""

from __future__ import annotations

from typing import Any

from dptrain.core.autocast import lower_types
from dptrain.core.ops.activation import Relu
from dptrain.core.ops.elementwise import Add
from dptrain.core.ops.norm import Normalising
from dptrain.core.pending import Pending, record, replace_values
from dptrain.core.tensor import Tensor, catch_up

#: Its methods are bound by `export`.
_plain: Any = Tensor


def _sum(pending: Pending, other: Any) -> Tensor | None:
    """pending + other in one pass, or None."""
    if not isinstance(other, Tensor) or other is pending or lower_types():
        return None
    if other._base is not None:
        catch_up(other)
    more = other._array
    if type(pending) is not Pending or not isinstance(pending._wait, Normalising):
        return None  # `other` may have been what it waited for
    if not pending._wait.takes(more):
        return None
    return record(Add(), pending._wait.values(more=more), pending, other)


def _add(self: Pending, other: Any) -> Any:
    found = _sum(self, other)
    return _plain.__add__(self, other) if found is None else found


def _radd(self: Pending, other: Any) -> Any:
    found = _sum(self, other)
    return _plain.__radd__(self, other) if found is None else found


def _iadd(self: Pending, other: Any) -> Any:
    found = _sum(self, other)
    return _plain.__iadd__(self, other) if found is None else replace_values(self, found)


def _relu_(self: Pending) -> Tensor:
    if not isinstance(self._wait, Normalising):
        found: Tensor = _plain.relu_(self)
        return found
    return replace_values(self, Relu.apply(self))


Pending.__iadd__ = _iadd  # type: ignore[attr-defined]
Pending.relu_ = _relu_  # type: ignore[attr-defined]
Pending.__add__, Pending.__radd__ = _add, _radd  # type: ignore[method-assign, assignment]
