"""A stand-in for CuPy's binding of NCCL: ranks are threads, arrays are those of `fake_cupy`.

It moves the bytes that it is told to move, by address and count, and keeps a list of the calls. With it
the contract of the communicators is run over `NcclTransport` without a GPU: counts, offsets, peers,
groups, streams and element types are shown to be right. It is no NCCL: what NCCL does with these calls is
for the tests marked `gpu`.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import threading
from types import SimpleNamespace

import fake_cupy
import ml_dtypes
import numpy as np

LIMIT_S = 20.0
#: As in NCCL's header, and in the binding (which `test_nccl.py` compares).
CONSTANTS = {
    "NCCL_SUM": 0,
    "NCCL_PROD": 1,
    "NCCL_MAX": 2,
    "NCCL_MIN": 3,
    "NCCL_AVG": 4,
    "NCCL_INT8": 0,
    "NCCL_UINT8": 1,
    "NCCL_INT32": 2,
    "NCCL_UINT32": 3,
    "NCCL_INT64": 4,
    "NCCL_UINT64": 5,
    "NCCL_FLOAT16": 6,
    "NCCL_FLOAT32": 7,
    "NCCL_FLOAT64": 8,
    "NCCL_BFLOAT16": 9,
}
_KINDS = [
    np.int8,
    np.uint8,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    np.float16,
    np.float32,
    np.float64,
    ml_dtypes.bfloat16,
]
_local = threading.local()


class NcclError(RuntimeError):
    pass


class _World:
    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots = [None] * size
        self.mail = {pair: queue.SimpleQueue() for pair in itertools.product(range(size), repeat=2)}


class Library:
    """One "libnccl": the worlds by unique id, and what was called."""

    available = True
    NcclError = NcclError

    def __init__(self):
        self.__dict__.update(CONSTANTS)
        self.calls = []
        self.trouble = None
        self._worlds, self._lock, self._count = {}, threading.Lock(), 0
        self.NcclCommunicator = lambda *args: _Communicator(self, *args)

    def get_version(self):
        return 22707

    def get_unique_id(self):
        with self._lock:
            self._count += 1
            return self._count.to_bytes(128, "little")

    def world(self, size, identity):
        assert len(identity) == 128
        with self._lock:
            return self._worlds.setdefault(identity, _World(size))

    def groupStart(self):
        assert getattr(_local, "group", None) is None
        _local.group = []

    def groupEnd(self):
        posted, _local.group = _local.group, None
        for run in [run for late, run in posted if not late] + [
            run for late, run in posted if late
        ]:
            run()

    def record(self, rank, name, **what):
        self.calls.append((rank, name, what))


def _memory(ptr, nbytes):
    assert ptr
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(ptr), np.uint8)


def _array(ptr, count, kind):
    dtype = np.dtype(_KINDS[kind])
    return _memory(ptr, count * dtype.itemsize).view(dtype)


def _combine(arrays, op):
    kind = arrays[0].dtype
    if op == CONSTANTS["NCCL_AVG"]:
        factor = np.asarray(1 / len(arrays), kind)
        arrays, op = [(a * factor).astype(kind) for a in arrays], CONSTANTS["NCCL_SUM"]
    step = [np.add, np.multiply, np.fmax, np.fmin][op]
    total = arrays[0].copy()
    with np.errstate(all="ignore"):
        for array in arrays[1:]:
            total = step(total, array).astype(kind)
    return total


class _Communicator:
    def __init__(self, library, size, identity, rank):
        self._library, self._rank, self._gpu = library, rank, fake_cupy.current()
        self._world = library.world(size, identity)
        self.ended = None
        library.record(rank, "NcclCommunicator", size=size, gpu=self._gpu)
        self._world.barrier.wait(LIMIT_S)

    def _meet(self, name, stream, send, equal, work):
        assert getattr(_local, "group", None) is None
        self._check(stream)
        self._library.record(self._rank, name, stream=stream, **equal)
        slots, barrier = self._world.slots, self._world.barrier
        slots[self._rank] = (name, equal, send)
        try:
            barrier.wait(LIMIT_S)
            told = list(slots)
            assert all(one[:2] == (name, equal) for one in told), told
            barrier.wait(LIMIT_S)
            work([one[2] for one in told])
            barrier.wait(LIMIT_S)
        except threading.BrokenBarrierError:  # a GPU would wait in vain, until somebody aborts
            raise NcclError("a peer has aborted") from None

    def _check(self, stream):
        assert self.ended is None
        assert fake_cupy.current() == self._gpu, "another GPU is current"
        assert stream == 64, "not on a stream of its own"

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        def work(sent):
            _array(recvbuf, count, datatype)[:] = _combine(sent, op)

        equal = {"count": count, "datatype": datatype, "op": op}
        self._meet("allReduce", stream, _array(sendbuf, count, datatype).copy(), equal, work)

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        def work(sent):
            if self._rank == root:
                _array(recvbuf, count, datatype)[:] = _combine(sent, op)

        equal = {"count": count, "datatype": datatype, "op": op, "root": root}
        self._meet("reduce", stream, _array(sendbuf, count, datatype).copy(), equal, work)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        def work(sent):
            _array(recvbuff, count, datatype)[:] = sent[root]

        send = _array(sendbuff, count, datatype).copy() if self._rank == root else None
        equal = {"count": count, "datatype": datatype, "root": root}
        self._meet("broadcast", stream, send, equal, work)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        def work(sent):
            _array(recvbuf, count * len(sent), datatype)[:] = np.concatenate(sent)

        equal = {"count": count, "datatype": datatype}
        self._meet("allGather", stream, _array(sendbuf, count, datatype).copy(), equal, work)

    def reduceScatter(self, sendbuf, recvbuf, recvcount, datatype, op, stream):
        def work(sent):
            part = slice(self._rank * recvcount, (self._rank + 1) * recvcount)
            _array(recvbuf, recvcount, datatype)[:] = _combine([one[part] for one in sent], op)

        send = _array(sendbuf, recvcount * self._world.size, datatype).copy()
        equal = {"count": recvcount, "datatype": datatype, "op": op}
        self._meet("reduceScatter", stream, send, equal, work)

    def send(self, sendbuf, count, datatype, peer, stream):
        self._check(stream)
        self._library.record(self._rank, "send", count=count, peer=peer, stream=stream)
        box = self._world.mail[self._rank, peer]
        _local.group.append((False, lambda: box.put(_array(sendbuf, count, datatype).copy())))

    def recv(self, recvbuf, count, datatype, peer, stream):
        self._check(stream)
        self._library.record(self._rank, "recv", count=count, peer=peer, stream=stream)
        box = self._world.mail[peer, self._rank]

        def receive():
            letter = box.get(timeout=LIMIT_S)
            assert letter.size == count
            _array(recvbuf, count, datatype)[:] = letter

        _local.group.append((True, receive))

    def check_async_error(self):
        if self._library.trouble is not None:
            raise NcclError(self._library.trouble)

    def abort(self):
        self.ended = "abort"
        self._library.record(self._rank, "abort")
        self._world.barrier.abort()

    def destroy(self):
        self.ended = "destroy"
        self._library.record(self._rank, "destroy")


def calls_of(library, rank, *names):
    """The recorded calls of a rank, as namespaces with `name`."""
    return [
        SimpleNamespace(name=name, **what)
        for who, name, what in library.calls
        if who == rank and (not names or name in names)
    ]
