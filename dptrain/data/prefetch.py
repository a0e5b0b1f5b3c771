"""Batches brought to a GPU while the one before is in use.

Owns: `PrefetchLoader`. Must not know: how a GPU copies (see `core/cuda_pinned.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from dptrain.core import cuda
from dptrain.core.device import as_device, device
from dptrain.core.tensor import Tensor, wrap
from dptrain.data.collate import with_fields
from dptrain.data.fetch import Exhausted
from dptrain.data.passes import Pass


class PrefetchLoader:
    """Gives the batches of a loader on a device; a GPU gets the next one while one is used.

    Batch k + 1 is taken from the loader and copied on a stream of its own before batch k is handed out, so that the
    copy runs beside the computation with batch k. With `pin_memory=True` in the loader the GPU copies from where the
    batch lies, else the host first copies it to page-locked memory. Batches are for the stream that is the current
    one when they are asked for. On other devices each batch is moved when it is asked for.

    Tensors in nested mappings, sequences and named tuples are moved; so is what has a method `to` (without being
    copied ahead); everything else stays as it is. Each `iter()` begins a pass over the loader. An error of the loader
    comes when its batch is asked for, after the batches before it.

    The position that counts is that of this loader: take `state_dict()` from it, not from the one inside, which is a
    batch ahead. The pass of a `DataLoader` ends (epoch, callbacks) when the end is asked for; another iterable that
    ends before the length that it has, or has none, notices its end one batch early.

    Args:
        loader: a `DataLoader`, or any iterable of batches.
        device: where batches go; the current GPU by default.

    Raises:
        RuntimeError: a GPU that is not there.
    """

    def __init__(self, loader: Iterable[Any], device: Any = "cuda") -> None:
        self.loader = loader
        self.device: device = as_device(device)
        #: The loader's position behind the batch handed out last, where it is ahead of that.
        self._position: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self._position = None
        batches = iter(self.loader)
        if self.device.type == "cuda":
            return _Prefetching(self, batches)
        return (_moved(batch, self.device) for batch in batches)

    def __getattr__(self, name: str) -> Any:
        """What else the loader has: `dataset`, `sampler`, `batch_size`."""
        if name == "loader":  # of an instance that is being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def state_dict(self) -> dict[str, Any]:
        """The loader's position behind the batch that was handed out last."""
        state: dict[str, Any] = self._position or self.loader.state_dict()  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass continue at a saved position."""
        self._position = None
        self.loader.load_state_dict(state)  # type: ignore[attr-defined]


class _Prefetching:
    """One pass; see `PrefetchLoader`."""

    def __init__(self, owner: PrefetchLoader, batches: Iterator[Any]) -> None:
        self._owner, self._batches = owner, batches
        self._courier = cuda.library().courier(owner.device.index or 0)
        self._ahead: tuple[Any, Any] | None = None  # the batch, and the parcel that it comes in
        self._after: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._begun = self._exhausted = self._ended = False
        # Whoever is told of the end of a pass must have used the last batch by then. A pass of a DataLoader can be asked
        # for a batch without coming to its end; of others the length says when not to ask.
        self._take = batches.take if isinstance(batches, Pass) else batches.__next__
        self._left = None if isinstance(batches, Pass) else _length(owner.loader)

    def __iter__(self) -> _Prefetching:
        return self

    def __next__(self) -> Any:
        if not self._begun:
            self._begun = True
            self._fetch()
        if self._error is not None:
            error, self._error, self._begun = self._error, None, False
            raise error
        if self._ahead is None:
            self._owner._position = None
            if self._exhausted:
                self._exhausted, self._ended = False, True
                self._batches.finish()  # type: ignore[attr-defined]
            if self._ended:
                raise StopIteration
            return _moved(next(self._batches), self._owner.device)
        (batch, parcel), self._ahead = self._ahead, None
        parcel.claim()
        self._owner._position = self._after
        self._fetch()
        return batch

    def _fetch(self) -> None:
        """Begin to copy the next batch; note an error, which belongs to that batch's turn."""
        if self._left == 0:
            return
        try:
            batch = self._take()
            if self._left is not None:
                self._left -= 1
            state = getattr(self._owner.loader, "state_dict", None)
            self._after = None if state is None else state()
            parcel = self._courier.parcel()
            self._ahead = _moved(batch, self._owner.device, parcel.add), parcel
            parcel.seal()
        except Exhausted:
            self._exhausted = True
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._error = error


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _moved(data: Any, place: device, send: Callable[[np.ndarray], Any] | None = None) -> Any:
    """A batch on a device; `send` makes arrays there of those of the host."""
    if isinstance(data, Tensor):
        plain = type(data) is Tensor and not data.requires_grad and data.numel() > 0
        if send is not None and plain and type(data._array) is np.ndarray:
            return wrap(send(data._settled()))
        return data.to(place, non_blocking=place.type == "cuda")
    if hasattr(data, "to"):
        return data.to(place)
    return with_fields(data, lambda field: _moved(field, place, send))
