"""NumPy's arrays, and the scratch of kernels, against pages that nobody may touch.

A kernel takes raw addresses, and what it reads or writes beside an array goes unseen as a rule. Here each array
ends where such a page begins ("behind"), or begins where one ends ("before"): one byte too far is a segmentation
fault, and `faulthandler` names the driver. Freed memory becomes such a page for good; new memory holds NaN.
"""

import ctypes
import mmap

import numba
import numpy as np
from numba import types

from dptrain.core.kernels import memory
from dptrain.core.kernels.memory import address, lines

array_at = memory.array_at.made
PAGE = mmap.PAGESIZE
#: Addresses, which take no memory until they are written to; none is given out twice.
_PAGES = 1 << 28
_READ_AND_WRITE, _NOTHING, _NO_RESERVE, _DONT_NEED = 3, 0, 0x4000, 4
#: In NumPy's table of C functions.
_SET_HANDLER = 304


_int, _word = types.int32, types.int64
_protect = types.ExternalFunction("mprotect", _int(_word, _word, _int))
_advise = types.ExternalFunction("madvise", _int(_word, _word, _int))
_fill = types.ExternalFunction("memset", _word(_word, _int, _word))
_copy = types.ExternalFunction("memcpy", _word(_word, _word, _word))


class _Handler(ctypes.Structure):
    """`PyDataMem_Handler` of NumPy's C interface."""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        *(
            (function, ctypes.c_void_p)
            for function in ("ctx", "malloc", "calloc", "realloc", "free")
        ),
    ]


def _reserve(nbytes, protection):
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype, function.argtypes = ctypes.c_void_p, [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    ]  # fmt: skip
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    place = function(None, nbytes, protection, flags, -1, 0)
    if place == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no addresses for guarded memory")
    return place


def _functions(behind):
    """malloc, calloc, realloc, free; their context is (first address, sizes by page, next page)."""

    @numba.njit
    def give(context, size, byte):
        facts = array_at(context, (3,), np.int64)
        nbytes = max(1, -(-size // PAGE)) * PAGE
        start = facts[0] + facts[2] * PAGE
        if _protect(start, nbytes, _READ_AND_WRITE) != 0:
            return 0
        facts[2] += nbytes // PAGE + 1
        _fill(start, byte, nbytes)
        place = start + (nbytes - size if behind else 0)
        array_at(facts[1], (_PAGES,), np.int64)[(place - facts[0]) // PAGE] = size
        return place

    @numba.njit
    def size_of(context, place):
        facts = array_at(context, (3,), np.int64)
        return array_at(facts[1], (_PAGES,), np.int64)[(place - facts[0]) // PAGE]

    @numba.njit
    def take(context, place):
        size = size_of(context, place)
        nbytes = max(1, -(-size // PAGE)) * PAGE
        start = place + size - nbytes if behind else place
        _advise(start, nbytes, _DONT_NEED)
        _protect(start, nbytes, _NOTHING)

    @numba.cfunc("int64(int64, int64)")
    def malloc(context, size):
        return give(context, size, 255)

    @numba.cfunc("int64(int64, int64, int64)")
    def calloc(context, count, size):
        return give(context, count * size, 0)

    @numba.cfunc("int64(int64, int64, int64)")
    def realloc(context, place, size):
        new = give(context, size, 255)
        if new != 0 and place != 0:
            _copy(new, place, min(size, size_of(context, place)))
            take(context, place)
        return new

    @numba.cfunc("void(int64, int64, int64)")
    def free(context, place, size):
        if place != 0:
            take(context, place)

    return malloc, calloc, realloc, free


class _TightScratch(memory._Scratch):
    """Other memory for each kernel, no larger than what it asked for; `guard` is called in each thread."""

    def __init__(self, guard):
        guard()
        super().__init__()

    def provide(self, nbytes):
        self.held, self.size = np.empty(lines(max(nbytes, 1)), np.uint8), -1
        self.start = address(self.held)


def install(where):
    """Guard arrays that are made from now on; in other threads, those after the first scratch.

    Args:
        where: "before" or "behind".
    """
    functions = _functions({"before": False, "behind": True}[where])
    facts = (ctypes.c_int64 * 3)(
        _reserve(_PAGES * PAGE, _NOTHING), _reserve(_PAGES * 8, _READ_AND_WRITE), 1
    )
    handler = _Handler(b"guarded", 1, ctypes.addressof(facts), *(f.address for f in functions))
    name = ctypes.c_char_p(b"mem_handler")
    new = ctypes.PYFUNCTYPE(ctypes.py_object, *[ctypes.c_void_p] * 3)
    capsule = new(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(handler), name, None)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    table = pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(
        np._core._multiarray_umath._ARRAY_API, None
    )
    word = ctypes.sizeof(ctypes.c_void_p)
    entry = ctypes.c_void_p.from_address(table + _SET_HANDLER * word).value
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(entry)
    # Arrays are freed until the very end of the process.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object((functions, facts, handler, name)))
    memory._scratch = _TightScratch(lambda: set_handler(capsule))
