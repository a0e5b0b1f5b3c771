"""What a communication hook sees of a bucket, and what it may return.

Owns: `GradBucket`, the checks of hooks and of their results. Must not know: the reducer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.flat import Place
from dptrain.core.tensor import Tensor, wrap
from dptrain.futures import Future

#: Takes a state of the user's and a bucket; returns a future of the bucket's averaged gradients.
CommHook = Callable[[Any, "GradBucket"], Future[Any]]


class GradBucket:
    """A bucket of gradients on its way to a communication hook.

    Args:
        index: number of the bucket, in launch order.
        last: whether no bucket follows.
        array: its gradients, one-dimensional; between parameters there may be gaps, which a hook does
            not see: a mean or a number of elements is that of the gradients.
        params: its parameters.
        places: where each of them lies in the storage.
        start: the element of the storage at which `array` begins.
    """

    def __init__(
        self,
        index: int,
        last: bool,
        array: np.ndarray,
        params: Sequence[Tensor],
        places: Sequence[Place],
        start: int,
    ) -> None:
        self._index, self._last = index, last
        self._params = list(params)
        self._home = array
        self._places = [slice(q.start - start, q.stop - start) for q in places]
        sizes = [place.stop - place.start for place in self._places]
        self._begins = list(accumulate(sizes, initial=0))
        self._size = self._begins.pop()
        self._in_place = array.size == self._size
        if self._in_place:
            self._begins = [place.start for place in self._places]
        else:
            array = namespace_of(array).concatenate([array[place] for place in self._places])
        self._buffer = wrap(array)

    def index(self) -> int:
        """The bucket's number; buckets are launched in this order on every rank."""
        return self._index

    def is_last(self) -> bool:
        """Whether this is the last bucket of the backward pass."""
        return self._last

    def buffer(self) -> Tensor:
        """All gradients of the bucket, one-dimensional, this rank's and not divided by anything."""
        return self._buffer

    def set_buffer(self, buffer: Tensor) -> None:
        """Put another tensor in the place of the buffer.

        Raises:
            TypeError, ValueError: no tensor, or another number of elements.
        """
        self._buffer = as_buffer(buffer, self._size, "GradBucket.set_buffer")

    def parameters(self) -> list[Tensor]:
        """The parameters whose gradients the bucket holds."""
        return list(self._params)

    def gradients(self) -> list[Tensor]:
        """The gradients of these parameters, as views of the buffer."""
        flat = self._buffer._array
        return [
            wrap(flat[begin : begin + p._array.size].reshape(p._array.shape))
            for p, begin in zip(self._params, self._begins, strict=True)
        ]

    def bring_home(self, value: Any) -> None:
        """Put what a hook made of the bucket into the place of its gradients.

        Raises:
            TypeError, ValueError: no tensor, or another number of elements.
        """
        found = as_buffer(value, self._size, "Communication hook")._array
        if not self._in_place:
            for place, begin in zip(self._places, self._begins, strict=True):
                part = found[begin : begin + place.stop - place.start]
                np.copyto(self._home[place], part, casting="same_kind")
        elif address(found) != address(self._home):
            np.copyto(self._home, found, casting="same_kind")


def as_buffer(value: Any, size: int, who: str) -> Tensor:
    """`value` (or the only tensor in it, as PyTorch's futures have it) as a buffer of `size` elements.

    Raises:
        TypeError: no tensor.
        ValueError: another number of elements.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: expected a Tensor, got {type(value).__name__}")
    if value._array.size != size:
        raise ValueError(
            f"{who}: expected a tensor of {size} elements, like the bucket, got {value._array.size}"
        )
    return value if value._array.ndim == 1 else value.reshape(-1)


def check_hook(hook: Any) -> None:
    """Refuse what cannot be called as `hook(state, bucket)`.

    Raises:
        TypeError: not callable.
        ValueError: its annotations ask for something else.
    """
    if not callable(hook):
        raise TypeError("Communication hook must be callable.")
    signature = inspect.signature(hook)
    given = signature.parameters.get("bucket")
    if given is not None and given.annotation not in (
        inspect.Parameter.empty,
        GradBucket,
        "GradBucket",
    ):
        text = given.annotation if isinstance(given.annotation, str) else given.annotation.__name__
        if not text.endswith("GradBucket"):
            raise ValueError(
                f"Communication hook: bucket annotation should be dist.GradBucket, got {text}."
            )
