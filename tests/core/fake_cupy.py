"""A stand-in for CuPy over host memory, stricter than the original about the current GPU.

Every use of an array while another GPU is current is an error (CuPy would go on, with a slow peer
access or a result on the wrong GPU). With it the core's device guards, copies between GPUs and memory
counts are shown without a GPU; what CuPy itself does is for the tests marked `gpu`.

Where CuPy takes less than NumPy, so does the stand-in: keywords (`cupy_signatures`), methods of ufuncs,
shapes that `linalg.solve` broadcasts, NumPy's arrays among arguments.

While a stream is captured, work is noted and leaves no trace: at the end what existed before is as it was,
and what was made holds junk. A launch does the work again over the same memory. Values cannot be read
meanwhile, and the end of a capture in which that was tried is an error, as CUDA has it.
"""

import ctypes
import sys
import threading
import weakref
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType, SimpleNamespace

import fake_cublas
import ml_dtypes
import numpy as np
from cupy_signatures import FUNCTIONS, METHODS
from numpy.lib.mixins import NDArrayOperatorsMixin

_state = threading.local()
LOG = []
#: Under `installed(memory=...)`: by id of the host array that owns it, the pool's block for it.
BLOCKS = {}
#: Page-locked memory: its size by its address.
PINNED = {}
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


#: What looks at values to know its shape, and what is handed a table by the host.
_NOT_CAPTURED = ("nonzero", "flatnonzero", "argwhere", "unique", "concatenate", "stack")


def _run(function, args, kwargs):
    if getattr(function, "__name__", "") in _NOT_CAPTURED:
        _refuse_reading()
    named = {k: _open(v) for k, v in kwargs.items()}
    with np.errstate(all="ignore"):  # a GPU warns nobody
        return _close(noted(function, [_open(a) for a in args], named))


class CapturingError(RuntimeError):
    """What a capture does not permit."""


def noted(function, args, kwargs):
    """Do work over host memory, and note it if the current stream is captured."""
    stream = getattr(_state, "stream", None)
    if stream is None or not stream.capturing:
        return function(*args, **kwargs)
    return stream.recording.note(function, args, kwargs)


def _refuse_reading():
    stream = getattr(_state, "stream", None)
    if stream is not None and stream.capturing:
        stream.recording.broken = True
        raise CapturingError("operation not permitted when stream is capturing")


def _arrays_in(value):
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [a for v in value for a in _arrays_in(v)]


def _root(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Recording:
    """The work of one capture."""

    def __init__(self):
        self.work, self.before, self.made, self.broken = [], {}, {}, False

    def note(self, function, args, kwargs):
        for array in (*_arrays_in(args), *_arrays_in(kwargs)):
            root = _root(array)
            if id(root) not in self.made and id(root) not in self.before:
                self.before[id(root)] = root, root.copy()
        result = function(*args, **kwargs)
        outs = _arrays_in(result) if not isinstance(result, np.generic) else []
        if isinstance(result, np.generic):
            result = np.asarray(result)
            outs = [result]
        for out in outs:
            root = _root(out)
            if id(root) not in self.before:
                self.made[id(root)] = root
        if getattr(function, "__name__", "") not in ("empty", "empty_like"):
            self.work.append((function, args, kwargs, outs))
        return result

    def end(self):
        for root, values in self.before.values():
            if root.flags.writeable:
                root[...] = values
        for root in self.made.values():
            if root.flags.writeable:
                root.view(np.uint8 if root.flags.c_contiguous and root.ndim else root.dtype).fill(
                    77
                )
        if self.broken:
            raise CapturingError("operation failed due to a previous error during capture")

    def launch(self, stream):
        LOG.append(("launch", stream.ptr))
        for function, args, kwargs, outs in self.work:
            result = function(*args, **kwargs)
            found = [np.asarray(result)] if isinstance(result, np.generic) else _arrays_in(result)
            for old, new in zip(outs, found, strict=True):
                if not np.may_share_memory(old, new):
                    old[...] = new


def _owner(host):
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


#: Keywords of a ufunc's call, and its methods: the ufuncs that have them (None: all).
_UFUNC_KEYWORDS = {"out", "where", "dtype", "casting"}
UFUNC_METHODS = {
    "at": {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"},
    "accumulate": {"add", "multiply"},
    "reduce": {"add", "multiply"},
    "outer": None,
}
#: What CUDA adds atomically.
_ATOMIC = ("int32", "uint32", "uint64", "float16", "float32", "float64")


def _dotted(function):
    """The name of a function of NumPy below `numpy`."""
    module = getattr(function, "__module__", None) or "numpy"
    return ".".join([*module.split(".")[1:], function.__name__])


def _check_call(function, args, kwargs):
    """Refuse what CuPy's function of that name refuses.

    Raises:
        TypeError: a keyword that it lacks.
        AssertionError: a function that is not among those whose parameters are known.
    """
    if isinstance(function, np.ufunc):
        unknown = kwargs.keys() - _UFUNC_KEYWORDS
        if function is np.matmul:
            unknown = kwargs.keys() - set(FUNCTIONS["matmul"].split())
        if unknown:
            raise TypeError(f"Wrong arguments {unknown} to the ufunc {function.__name__}")
        return
    name = _dotted(function)
    if name not in FUNCTIONS:
        raise AssertionError(
            f"add CuPy's parameters of {name} to cupy_signatures.py, if CuPy has it"
        )
    unknown = kwargs.keys() - set(FUNCTIONS[name].split())
    if unknown and "**" not in FUNCTIONS[name]:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
    if name == "linalg.solve":
        a, b = (_open(v) for v in args)
        if b.ndim > 1 and a.shape[:-1] != b.shape[:-1]:
            raise ValueError("a must have (..., M, M) shape and b must have (..., M, K)")


#: Functions that CuPy does not make for bfloat16; it takes those for float32.
_NOT_IN_BFLOAT16 = {"where", "clip"}


def _promoted(function, args, result):
    """A result in bfloat16 as CuPy has it: float32 where it has no such loop, or met a Python float."""
    if getattr(result, "dtype", None) != ml_dtypes.bfloat16:
        return result
    weak = isinstance(function, np.ufunc) and any(type(a) is float for a in args)
    if weak or function.__name__ in _NOT_IN_BFLOAT16:
        return ndarray(result.host.astype(np.float32), result.device.id)
    return result


def _call(function, args, kwargs):
    _check_call(function, args, kwargs)
    try:
        return _promoted(function, args, _run(function, args, kwargs))
    except np.linalg.LinAlgError:
        if getattr(_state, "raises", False):
            raise
        return _close(np.full(args[-1].shape, np.nan, args[-1].dtype))


@contextmanager
def errstate(linalg):
    """`cupyx.errstate`: without it a matrix that no routine can take gives what it gives, here NaN."""
    _state.raises = linalg == "raise"
    try:
        yield
    finally:
        _state.raises = False


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
        base = self.host.base
        return ndarray(base, self.device.id) if isinstance(base, np.ndarray) else None

    def copy(self, order="C"):  # onto the current GPU, from any
        LOG.append(("copy", self.device.id, current()))
        return ndarray(noted(np.copy, (self.host, order), {}), current())

    def __array_ufunc__(self, ufunc, method, *args, out=None, **kwargs):
        if method != "__call__":  # only CuPy's own ufuncs have methods
            return NotImplemented
        if out is None:
            return _call(ufunc, args, kwargs)
        _call(ufunc, args, {**kwargs, "out": out})
        return out[0] if len(out) == 1 else out

    def __array_function__(self, function, types, args, kwargs):
        return _call(function, args, kwargs)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if name in ("reshape", "view", "transpose", "swapaxes"):  # share memory: no work to do
            kind = getattr(np.ndarray, name)
            return lambda *args: ndarray(noted(kind, (self.host, *args), {}), self.device.id)
        if name in ("item", "tolist"):  # CuPy goes to the array's GPU by itself
            _refuse_reading()
            return value
        if callable(value):
            return lambda *args, **kwargs: self._method(name, args, kwargs)
        return ndarray(value, self.device.id) if isinstance(value, np.ndarray) else value

    def _method(self, name, args, kwargs):
        if name not in METHODS:
            raise AttributeError(f"CuPy's arrays have no method {name!r}")
        unknown = kwargs.keys() - set(METHODS[name].split())
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        result = _run(lambda host, *a, **k: getattr(host, name)(*a, **k), (self, *args), kwargs)
        return _promoted(getattr(np.ndarray, name), args, result)

    def __getitem__(self, place):
        parts = place if isinstance(place, tuple) else (place,)
        if all(p is None or p is ... or isinstance(p, (int, slice)) for p in parts):
            return ndarray(np.asarray(self.host[place]), self.device.id)
        if any(isinstance(p, ndarray) and p.host.dtype == bool for p in parts):
            _refuse_reading()  # how many are true decides the shape
        return _close(noted(_taken, (_open(self), _open(place)), {}))

    def __setitem__(self, place, value):
        if isinstance(value, (list, tuple)):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        noted(_put, (_open(self), _open(place), _open(value)), {})

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        _refuse_reading()
        return bool(self.host)

    def __float__(self):
        _refuse_reading()
        return float(self.host)

    def __int__(self):
        _refuse_reading()
        return int(self.host)

    def __index__(self):
        _refuse_reading()
        return self.host.__index__()

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def _copied(host, dtype, order):
    return np.array(host, dtype=dtype, order=order)


def _taken(host, place):
    return np.asarray(host[place])


def _put(host, place, value):
    host[place] = value


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
        _state.stream = self
        _state.entered = (*getattr(_state, "entered", ()), self)

    def __exit__(self, *error):
        # As CuPy: what `use` chose meanwhile, or before, is forgotten.
        _state.entered = _state.entered[:-1]
        _state.stream = _state.entered[-1] if _state.entered else None

    def synchronize(self):
        LOG.append(("synchronize", self.index))

    def begin_capture(self, mode):
        LOG.append(("begin", mode))
        self.capturing, self.recording = True, _Recording()

    def end_capture(self):
        self.capturing = False
        self.recording.end()
        return self.recording

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


def _alloc_pinned(nbytes):
    LOG.append(("pinned", nbytes))
    memory = np.empty(nbytes, np.uint8)  # known by its address until nobody has it any more
    start = memory.__array_interface__["data"][0]
    PINNED[start] = nbytes
    weakref.finalize(memory, PINNED.pop, start)
    return memory


def _pointer_attributes(address):
    known = any(start <= address < start + size for start, size in list(PINNED.items()))
    return SimpleNamespace(type=1 if known else 0)


def _memcpy(dst, src, nbytes, kind, stream):
    LOG.append(("memcpy", kind, nbytes, stream))
    ctypes.memmove(dst, src, nbytes)


def make(count=2, limit=2**20):
    """A module like CuPy for a machine with `count` GPUs, with `limit` bytes in all."""
    pool, streams = Pool(limit), [_Stream(i) for i in range(count)]
    cupy = ModuleType("cupy")
    cupy.ndarray, cupy.__version__ = ndarray, "fake"
    cupy.get_default_memory_pool = lambda: pool
    cupy.get_default_pinned_memory_pool = lambda: SimpleNamespace(malloc=bytearray)
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
    runtime.memoryTypeHost, runtime.pointerGetAttributes = 1, _pointer_attributes
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
        alloc_pinned_memory=_alloc_pinned,
        Device=Device,
        runtime=runtime,
        memory=memory,
        get_current_stream=lambda: getattr(_state, "stream", None) or streams[current()],
        MemoryPool=Pool,
        using_allocator=using_allocator,
        set_allocator=lambda allocator: setattr(cupy, "allocator", allocator),
        set_pinned_memory_allocator=lambda allocator: setattr(cupy, "page_locked", allocator),
    )

    def array(value, dtype=None, copy=True, order="K", *, blocking=False):
        if type(value) is ndarray:
            return ndarray(noted(_copied, (_open(value), dtype, order), {}), current())
        made = np.array(value, dtype=dtype, order=order)
        cupy.page_locked(made.nbytes)  # through which it passes
        return ndarray(made, current())

    cupy.array = cupy.asarray = array

    def ascontiguousarray(value, dtype=None):
        if type(value) is ndarray:
            return _close(noted(np.ascontiguousarray, (_open(value), dtype), {}))
        return ndarray(np.ascontiguousarray(value, dtype), current())

    cupy.ascontiguousarray = ascontiguousarray
    cupy.__getattr__ = lambda name: _of_numpy(np, name)

    def asnumpy(a):
        _refuse_reading()
        return _open(a).copy(order="K")

    cupy.asnumpy = asnumpy
    return cupy


@cache
def _of_numpy(module, name):
    value = getattr(module, name)
    if isinstance(value, ModuleType):
        inner = ModuleType(value.__name__.replace("numpy", "cupy"))
        inner.__getattr__ = lambda below: _of_numpy(value, below)
        return inner
    return value if not callable(value) or isinstance(value, type) else _Function(value)


class _Function:
    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return _call(self.function, args, kwargs)

    def __getattr__(self, name):
        if not isinstance(self.function, np.ufunc):
            return _Function(getattr(self.function, name))
        if name in ("nin", "nout"):
            return getattr(self.function, name)
        return lambda *args, **kwargs: self._method(name, args, kwargs)

    def _method(self, name, args, kwargs):
        ufunc, having = self.function, UFUNC_METHODS[name]
        if having is not None and ufunc.__name__ not in having:
            raise NotImplementedError(f"`cupy_{ufunc.__name__}.{name}` is not supported yet")
        if name == "at" and args[0].dtype.name not in _ATOMIC:
            raise TypeError(f"scatter_add does not support {args[0].dtype}")
        return _run(getattr(ufunc, name), args, kwargs)


@contextmanager
def installed(monkeypatch, count=2, memory=None):
    """The core takes the stand-in for CuPy on a machine with `count` GPUs, and NumPy's kernels for CUDA's.

    With `memory`, arrays take theirs from the pool, which holds so many bytes.
    """
    from dptrain.core import arrays, cuda, kernels
    from dptrain.core.random import default_generator

    probe = cuda.Probe("fake", 13000, 13000, count)
    monkeypatch.setattr(cuda, "probe", lambda: probe)
    monkeypatch.setattr(cuda, "_loaded", None)
    generators = default_generator()._on_gpus
    known = dict(generators)
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(errstate=errstate))
    monkeypatch.setattr(kernels, "_cuda", over_the_stand_in)
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
        generators.clear()
        generators.update(known)
        arrays.several_gpus = False
        _state.index, _state.stream = 0, None


def real_kernels(name):
    """The CUDA kernels, which start through `launch.driver`."""
    return import_module(f"dptrain.core.kernels.{name}")


@cache
def over_the_stand_in(name):
    """The NumPy kernels in the place of the CUDA kernels, over the stand-in's arrays."""
    from dptrain.core.kernels import reference, reference_optim

    definition = reference_optim if name == "cuda.updates" else reference
    module = ModuleType(name)
    for key, function in vars(definition).items():
        if callable(function) and not key.startswith("_"):
            setattr(module, key, lambda *args, f=function, **kwargs: _run(f, args, kwargs))
    return module
