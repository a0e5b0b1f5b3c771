"""Making ranks equal: the checks that models agree, and sending the state of one rank to all.

Owns: the checks, the broadcasts, `LatestBuffers`. Must not know: backends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.comm.gpus import seat, tell_sharing
from dptrain.core.arrays import beside, namespace_of, to_host
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.parallel.shared_state import shared_buffers, shared_parameters

_DIGEST_NBYTES = 16
_Description = list[tuple[str, tuple[int, ...], str, bool]]


def _describe(module: Any) -> _Description:
    parameters = [
        (f"parameter {n!r}", tuple(p.shape), p.dtype.name, p.requires_grad)
        for n, p in shared_parameters(module)
    ]
    buffers = [
        (f"buffer {n!r}", tuple(b.shape), b.dtype.name, False) for n, b in shared_buffers(module)
    ]
    return parameters + buffers


def _text(entry: tuple[str, tuple[int, ...], str, bool]) -> str:
    name, shape, dtype, requires_grad = entry
    return f"{name} {dtype}{list(shape)} requires_grad={requires_grad}"


def _seat(module: Any) -> Any:
    """Which GPU a module lives on; None if it lives on none."""
    places = (p.device for _, p in shared_parameters(module))
    return next((seat(place.index or 0) for place in places if place.type == "cuda"), None)


def check_models_agree(module: Any, communicator: Communicator) -> None:
    """Compare names, shapes, dtypes and `requires_grad` of all parameters and buffers over the ranks.

    Rank 0 says where ranks share a GPU.

    Raises:
        RuntimeError: on every rank, naming the first difference.
    """
    mine = _describe(module)
    digest = hashlib.sha256(repr(mine).encode()).hexdigest()
    told = communicator.all_gather_object((digest, _seat(module)), name="model check")
    digests, seats = zip(*told, strict=True)
    if communicator.rank == 0:
        tell_sharing(seats)
    if len(set(digests)) == 1:
        return
    # Only now the whole lists: they can be long.
    models = communicator.all_gather_object(mine, name="model check details")
    other = next(r for r, d in enumerate(digests) if d != digests[0])
    raise RuntimeError(
        f"[rank {communicator.rank}/{communicator.world_size}] the ranks' models differ: "
        f"{_first_difference(models[0], models[other], other)}. Build the same model on every rank "
        "before DistributedDataParallel"
    )


def _first_difference(first: _Description, second: _Description, rank: int) -> str:
    for a, b in zip(first, second, strict=False):
        if a != b:
            return f"rank 0 has {_text(a)}, rank {rank} has {_text(b)}"
    longer, missing = (0, rank) if len(first) > len(second) else (rank, 0)
    extra = (first if longer == 0 else second)[min(len(first), len(second))]
    return f"rank {longer} has {_text(extra)}, rank {missing} has no such entry ({len(first)} and {len(second)} in all)"


def check_replicas_equal(module: Any, communicator: Communicator) -> None:
    """Raise if the values of the ranks' parameters are not the same, bit for bit. Collective.

    A digest of each parameter travels, not the parameter. Buffers may differ.

    Raises:
        RuntimeError: on every rank, with the first parameter that differs, and on which ranks.
    """
    named = shared_parameters(module)
    digests = np.empty((len(named), _DIGEST_NBYTES), np.uint8)
    for row, (_, p) in zip(digests, named, strict=True):
        digest = hashlib.blake2b(to_host(p._array).tobytes(), digest_size=_DIGEST_NBYTES).digest()
        row[:] = np.frombuffer(digest, np.uint8)
    size = communicator.world_size
    everyones = np.empty((size, *digests.shape), np.uint8)
    communicator.all_gather(everyones, digests, name="check_replicas").wait()
    differs = (everyones != everyones[0]).any(axis=2)
    if not differs.any():
        return
    at = int(np.argmax(differs.any(axis=0)))
    ranks = [int(r) for r in np.flatnonzero(differs[:, at])]
    raise RuntimeError(
        f"[rank {communicator.rank}/{size}] the ranks' parameters differ, {int(differs.any(axis=0).sum())} of "
        f"{len(named)}: the first is {named[at][0]!r}, which rank 0 has otherwise than ranks {ranks}"
    )


def broadcast_arrays(
    arrays: Iterable[np.ndarray], communicator: Communicator, root: int, name: str
) -> None:
    """Send contiguous arrays of rank `root` to all, one after another."""
    for array in arrays:
        communicator.broadcast(array, root, name=name, async_op=False)


def broadcast_buffers(
    buffers: Sequence[Tensor], communicator: Communicator, root: int | None, name: str
) -> None:
    """Send the values of a module's buffers to all ranks, one message per device.

    Args:
        root: the source; None: the lowest rank that has data.
    """
    for members, flat in _sent(buffers, communicator, root, name):
        _take(members, flat)


def _sent(
    buffers: Sequence[Tensor], communicator: Communicator, root: int | None, name: str
) -> Iterator[tuple[list[Tensor], Any]]:
    """Buffers of one device, and the bytes that the source has of them, one after another."""
    by_device: dict[Any, list[Tensor]] = {}
    # The widest first, so that each lies in the message as its type has to lie in memory.
    for buffer in sorted(buffers, key=lambda b: -b._array.itemsize):
        by_device.setdefault(buffer.device, []).append(buffer)
    for members in by_device.values():
        with beside(members[0]._array):
            xp = namespace_of(members[0]._array)
            flat = xp.concatenate([b._array.ravel().view(np.uint8) for b in members])
            communicator.broadcast(flat, root, name=name, joinable=root is None, async_op=False)
        yield members, flat


def _take(members: Sequence[Tensor], flat: Any, wanted: Sequence[bool] | None = None) -> None:
    start = 0
    with beside(flat):
        for i, b in enumerate(members):
            stop = start + b._array.nbytes
            if wanted is None or wanted[i]:
                found = flat[start:stop].view(b._array.dtype)
                np.copyto(b._array, found.reshape(b._array.shape))
            start = stop


class LatestBuffers:
    """The buffers that the first rank had after the last averaged backward, for evaluation.

    Every forward begins with that rank's buffers. Before a training forward the ranks send them; a rank
    that evaluates, perhaps alone or other batches than the others, takes what it was sent before.

    Args:
        module: whose buffers.
        communicator: how to reach the other ranks.
        name: of the collective.
    """

    def __init__(self, module: Module, communicator: Communicator, name: str) -> None:
        self._module, self._communicator, self._name = module, communicator, name
        self._kept: list[tuple[list[Tensor], list[int], Any]] = []

    def keep(self) -> None:
        """Send them, and remember what came. Collective."""
        if self._module.training:
            buffers = [b for _, b in shared_buffers(self._module)]
            sent = _sent(buffers, self._communicator, None, self._name)
            self._kept = [([*m], [b._version for b in m], flat) for m, flat in sent]

    def again(self) -> Callable[[], None]:
        """What remembers that a recorded step has sent them anew."""
        kept = [(members, flat) for members, _, flat in self._kept]

        def remember() -> None:
            self._kept = [(members, [b._version for b in members], flat) for members, flat in kept]

        return remember

    def bring(self) -> None:
        """Put them into the buffers that nothing else has changed since."""
        for members, versions, flat in self._kept:
            _take(members, flat, [b._version == v for b, v in zip(members, versions, strict=True)])
        self._kept = []


def average_buffers(buffers: Sequence[Tensor], communicator: Communicator, name: str) -> None:
    """Replace floating point buffers by the mean over the ranks that have data; send the others."""
    floating = [b for b in buffers if b.is_floating_point()]
    for buffer in floating:
        with beside(buffer._array):
            array = namespace_of(buffer._array).ascontiguousarray(buffer._array)
            communicator.all_reduce(array, "avg", name=name, joinable=True, async_op=False)
            np.copyto(buffer._array, array.reshape(buffer._array.shape))
    others = [b for b in buffers if not b.is_floating_point()]
    broadcast_buffers(others, communicator, None, name)
