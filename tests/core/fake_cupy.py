"""A stand-in for CuPy over host memory, stricter than the original about the current GPU.

Every use of an array while another GPU is current is an error (CuPy would go on, with a slow peer
access or a result on the wrong GPU). With it the core's device guards, copies between GPUs and memory
counts are shown without a GPU; what CuPy itself does is for the tests marked `gpu`.
"""

import ctypes
import threading
import weakref
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import fake_cublas
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

_state = threading.local()
LOG = []
#: Under `installed(memory=...)`: by id of the host array that owns it, the pool's block for it.
BLOCKS = {}
_allocate = []


def current():
    return getattr(_state, "index", 0)


class WrongDeviceError(AssertionError):
    """Work on a GPU that is not the current one."""


def _open(value):
    if type(value) is ndarray:
        if value.device.id != current():
            raise WrongDeviceError(f"array of GPU {value.device.id}, GPU {current()} is current")
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(value)(map(_open, value)) if type(value) in (list, tuple) else value


def _close(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value), current())
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        closed = [_close(v) for v in value]
        return type(value)(*closed) if hasattr(value, "_fields") else type(value)(closed)
    return value


def _run(function, args, kwargs):
    opened = {k: _open(v) for k, v in kwargs.items()}
    return _close(function(*[_open(a) for a in args], **opened))


def _owner(host):
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


class ndarray(NDArrayOperatorsMixin):
    def __init__(self, host, index):
        self.host = host
        self.device = SimpleNamespace(id=index)
        if _allocate:
            owner = _owner(host)
            if id(owner) not in BLOCKS:
                BLOCKS[id(owner)] = _allocate[0](owner.nbytes)
                weakref.finalize(owner, BLOCKS.pop, id(owner), None)

    @property
    def data(self):
        block = BLOCKS.get(id(_owner(self.host)))
        return SimpleNamespace(
            ptr=self.host.__array_interface__["data"][0], mem=block and block.mem
        )

    @property
    def base(self):
        return self.host.base

    def copy(self, order="C"):  # onto the current GPU, from any
        LOG.append(("copy", self.device.id, current()))
        return ndarray(self.host.copy(order=order), current())

    def __array_ufunc__(self, ufunc, method, *args, out=None, **kwargs):
        if out is None:
            return _run(getattr(ufunc, method), args, kwargs)
        _run(getattr(ufunc, method), args, {**kwargs, "out": out})
        return out[0] if len(out) == 1 else out

    def __array_function__(self, function, types, args, kwargs):
        return _run(function, args, kwargs)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if name in ("reshape", "view", "transpose", "swapaxes"):  # share memory: no work to do
            return lambda *args: ndarray(value(*args), self.device.id)
        if name in ("item", "tolist"):  # CuPy goes to the array's GPU by itself
            return value
        if callable(value):
            return lambda *args, **kwargs: _run(
                lambda host, *a, **k: getattr(host, name)(*a, **k), (self, *args), kwargs
            )
        return ndarray(value, self.device.id) if isinstance(value, np.ndarray) else value

    def __getitem__(self, place):
        parts = place if isinstance(place, tuple) else (place,)
        if all(p is None or p is ... or isinstance(p, (int, slice)) for p in parts):
            return ndarray(np.asarray(self.host[place]), self.device.id)
        return _close(_open(self)[_open(place)])

    def __setitem__(self, place, value):
        _open(self)[_open(place)] = _open(value)

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        return bool(self.host)

    def __float__(self):
        return float(self.host)


class Device:
    def __init__(self, index):
        self.id = index

    def __enter__(self):
        self.before, _state.index = current(), self.id

    def __exit__(self, *error):
        _state.index = self.before


class _Stream:
    def __init__(self, index):
        self.index, self.capturing, self.ptr = index, False, 0

    def use(self):
        _state.stream = self

    def __enter__(self):
        self.before = getattr(_state, "stream", None)
        _state.stream = self

    def __exit__(self, *error):
        _state.stream = self.before

    def synchronize(self):
        LOG.append(("synchronize", self.index))

    def begin_capture(self, mode):
        LOG.append(("begin", mode))
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        return SimpleNamespace(launch=lambda stream: LOG.append(("launch", stream.ptr)))

    def is_capturing(self):
        return self.capturing

    def record(self, event=None):
        LOG.append(("record", self.index))
        found = Event() if event is None else event
        found.index = self.index
        return found

    def wait_event(self, event):
        LOG.append(("wait", self.index, event.index))


class Event:
    done = True

    def __init__(self, disable_timing=False):
        self.index = None


class OutOfMemoryError(MemoryError):
    pass


class UnownedMemory:
    def __init__(self, ptr, size, owner, device_id):
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


class _Block:
    """What a pool hands out, until nobody has it any more."""

    def __init__(self, pool, size, ptr):
        self.pool, self.size, self.ptr, self.device_id = pool, size, ptr, current()

    def __del__(self):
        self.pool.unused.append(self.size)


class Pool:
    """Rounds to 512 bytes, hands out again what came back of the same size, and holds 1 MiB at most."""

    def __init__(self, limit=2**20):
        self.limit, self.held, self.unused, self.top = limit, 0, [], 4096

    def malloc(self, nbytes):
        size = -(-nbytes // 512) * 512
        if size in self.unused:
            self.unused.remove(size)
        elif self.held + size > self.limit:
            raise OutOfMemoryError
        else:
            self.held += size
        self.top += size
        return MemoryPointer(_Block(self, size, self.top), 0)

    def total_bytes(self):
        return self.held

    def free_all_blocks(self):
        self.held -= sum(self.unused)
        self.unused.clear()


def _memcpy(dst, src, nbytes, kind, stream):
    LOG.append(("memcpy", kind, nbytes, stream))
    ctypes.memmove(dst, src, nbytes)


def make(count=2, limit=2**20):
    """A module like CuPy for a machine with `count` GPUs, with `limit` bytes in all."""
    pool, streams = Pool(limit), [_Stream(i) for i in range(count)]
    cupy = ModuleType("cupy")
    cupy.ndarray, cupy.__version__ = ndarray, "fake"
    cupy.get_default_memory_pool = lambda: pool
    runtime = SimpleNamespace(
        getDevice=current,
        getDeviceCount=lambda: count,
        memGetInfo=lambda: (limit - pool.held, limit),
        setDevice=lambda index: setattr(_state, "index", index),
    )
    memory = SimpleNamespace(
        OutOfMemoryError=OutOfMemoryError, MemoryPointer=MemoryPointer, UnownedMemory=UnownedMemory
    )
    runtime.memcpyDeviceToHost, runtime.memcpyHostToDevice = 2, 1
    runtime.memcpyAsync = _memcpy
    runtime.getDeviceProperties = lambda index: {
        "uuid": b"gpu%d" % index,
        "name": b"Stand-in",
    }
    runtime.streamCaptureModeRelaxed, runtime.deviceSynchronize = 2, lambda: None

    def stream(non_blocking=False, priority=None):
        made = _Stream(current())
        made.ptr = 64
        return made

    @contextmanager
    def using_allocator(allocator):
        before, cupy.allocator = cupy.allocator, allocator
        try:
            yield
        finally:
            cupy.allocator = before

    cupy.cuda = SimpleNamespace(
        Stream=stream,
        Event=Event,
        alloc_pinned_memory=lambda nbytes: LOG.append(("pinned", nbytes)) or bytearray(nbytes),
        Device=Device,
        runtime=runtime,
        memory=memory,
        get_current_stream=lambda: getattr(_state, "stream", None) or streams[current()],
        MemoryPool=Pool,
        using_allocator=using_allocator,
        set_allocator=lambda allocator: setattr(cupy, "allocator", allocator),
    )

    def array(value, dtype=None, copy=True, order="K", *, blocking=False):
        host = _open(value) if type(value) is ndarray else value
        return ndarray(np.array(host, dtype=dtype, order=order), current())

    cupy.array = cupy.asarray = array
    cupy.asnumpy = lambda a: _open(a).copy(order="K")

    def find(name):
        value = getattr(np, name)
        if not callable(value) or isinstance(value, type):
            return value
        return _Function(value)

    cupy.__getattr__ = find
    return cupy


class _Function:
    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return _run(self.function, args, kwargs)

    def __getattr__(self, name):
        return _Function(getattr(self.function, name))


@contextmanager
def installed(monkeypatch, count=2, memory=None):
    """The core takes the stand-in for CuPy on a machine with `count` GPUs.

    With `memory`, arrays take theirs from the pool, which holds so many bytes.
    """
    from dptrain.core import arrays, cuda

    probe = cuda.Probe("fake", 13000, 13000, count)
    monkeypatch.setattr(cuda, "probe", lambda: probe)
    monkeypatch.setattr(cuda, "_loaded", None)
    LOG.clear()
    library = cuda.load(make(count, memory or 2**20))
    if memory:
        _allocate[:] = [library.cupy.allocator]
    try:
        with fake_cublas.installed(monkeypatch):
            yield library
    finally:
        _allocate.clear()
        arrays.REMOTE.pop(ndarray, None)
        arrays.several_gpus = False
        _state.index, _state.stream = 0, None
