"""Whether anything else looks into the memory of a tensor, and would notice that it moved.

Owns: that question. Must not know: why somebody wants to move the memory.

A view, a detached tensor, a NumPy array, an array lent to another library: each keeps a reference to the
array that owns the memory (or is a Tensor around the very same array), so that counting references finds
them without a list that would have to be kept on every operation. What another library or the operating
system owns (memory shared by processes, a buffer of Python) cannot be counted and is always looked at.
"""

from __future__ import annotations

from operator import attrgetter
from sys import getrefcount
from typing import Any

import numpy as np

from dptrain.core.arrays import is_array
from dptrain.core.storage import PrivateMap
from dptrain.core.tensor import Tensor, wrap


def _references(thing: Any) -> int:
    """References to an object for which the caller has a name."""
    return getrefcount(thing)


def _references_of_one() -> int:
    holder = [object()]
    thing = holder[0]
    return _references(thing)


#: What `_references` says of an object with one holder: Python's versions count calls differently.
_ONE = _references_of_one()


def held_by_others(thing: Any, holders: int) -> bool:
    """Whether an object, for which the caller has one name, has more than `holders` holders beside that."""
    # One more here: this function's name for it.
    return _references(thing) > _ONE + holders


def _holders(tensor: Tensor) -> tuple[int, int]:
    """References to a tensor for which the caller has a name, and to its array."""
    return getrefcount(tensor), getrefcount(tensor._array)


def _holders_of_one() -> tuple[int, int]:
    holder = [wrap(np.empty(0))]
    tensor = holder[0]
    return _holders(tensor)


_ONE_AND_ITS_ARRAY = _holders_of_one()


def is_held(tensor: Tensor, holders: int) -> bool:
    """Whether a tensor, for which the caller has a name, has more than `holders` others, or its array more than it.

    `held_by_others` of both; each gradient asks it at each step.
    """
    own, of_array = getrefcount(tensor), getrefcount(tensor._array)
    return own >= _ONE_AND_ITS_ARRAY[0] + holders or of_array > _ONE_AND_ITS_ARRAY[1]


_array_of = attrgetter("_array")


def _most_holders(tensors: list[Tensor]) -> tuple[int, int]:
    """The most references to one of the tensors in a list, and to one of their arrays."""
    return max(map(getrefcount, tensors)), max(map(getrefcount, list(map(_array_of, tensors))))


_ONE_IN_A_LIST = _most_holders([wrap(np.empty(0))])


def none_held(tensors: list[Tensor], holders: int) -> bool:
    """Whether none of the tensors has more than `holders` holders beside the list, or its array more than it.

    `is_held` of each, by loops that run inside of Python.
    """
    if not tensors:
        return True
    most, most_of_array = _most_holders(tensors)
    return most <= _ONE_IN_A_LIST[0] + holders and most_of_array <= _ONE_IN_A_LIST[1]


def has_onlookers(tensor: Tensor) -> bool:
    """Whether anything but this tensor looks into the memory of its array.

    A graph that saved the array counts, as it has to see its values.
    """
    base = tensor._base
    if base is not None and held_by_others(base, 1):
        return True
    array: Any = tensor._array
    while True:
        # Held by the tensor, or by the array before it in the chain; and by the tensor of which it is a view.
        if _references(array) > _ONE + (base is not None and array is base._array):
            return True
        array = getattr(array, "host", array.base)
        if array is None:
            return False
        if not is_array(array):
            memory = array.obj if isinstance(array, memoryview) else array
            return not isinstance(memory, PrivateMap)
