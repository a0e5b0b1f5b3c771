"""Sums over the GPUs of one process, by NCCL.

Owns: `sum_on`, and NCCL's communicators between this process's GPUs. Must not know: what is added up,
other processes.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from dptrain.comm.default import nccl_trouble
from dptrain.comm.nccl_types import native
from dptrain.comm.reduction import ReduceOp
from dptrain.core.arrays import address, device_of, namespace_on
from dptrain.core.device import device

_connecting = threading.Lock()


def sum_on(home: device, arrays: Sequence[Any]) -> Any:
    """The sum of equal arrays of several GPUs, on another one, in the order of NCCL.

    Args:
        home: where the sum is to be.
        arrays: C-contiguous, of one shape and type, each on a GPU of its own, none on `home`.

    Returns:
        The sum; None where NCCL does not serve: not all are GPUs, or there is no NCCL. Nothing was done
        then.
    """
    places = [home, *(device_of(array) for array in arrays)]
    if any(place.type != "cuda" for place in places) or len(set(places)) != len(places):
        return None
    found = native(ReduceOp.SUM, arrays[0].dtype)
    comms = None if found is None else _communicators(tuple(place.index or 0 for place in places))
    if comms is None or found is None:
        return None
    nccl, ranks = comms
    kind, op = (int(getattr(nccl, name)) for name in found)
    total = namespace_on(home).zeros(arrays[0].shape, arrays[0].dtype)
    from dptrain.core.cuda import library  # CuPy is loaded: there are its arrays

    cuda = library()
    nccl.groupStart()
    try:
        for place, comm, array in zip(places, ranks, [total, *arrays], strict=True):
            with cuda.on(place.index or 0):
                stream = cuda.cupy.cuda.get_current_stream().ptr
                at = address(array)
                comm.reduce(at, at if array is total else 0, array.size, kind, op, 0, stream)
    finally:
        nccl.groupEnd()
    return total


def _communicators(indices: tuple[int, ...]) -> tuple[Any, list[Any]] | None:
    with _connecting:  # NCCL connects GPUs one group at a time
        return _connected(indices)


@cache
def _connected(indices: tuple[int, ...]) -> tuple[Any, list[Any]] | None:
    if nccl_trouble() is not None:
        return None
    from dptrain.comm.nccl import binding

    nccl = binding()
    try:
        return nccl, nccl.NcclCommunicator.initAll(list(indices))
    except nccl.NcclError as error:
        named = ", ".join(f"cuda:{index}" for index in indices)
        warnings.warn(f"NCCL cannot connect {named} ({error}); copies do its work", stacklevel=2)
        return None
