"""The compiled kernels' drivers, once more for traced arrays: what they launch is recorded.

Owns: `kernels_of`. Must not know: any particular kernel.

A driver is Python code that makes arrays with NumPy and hands their addresses to a kernel. Its twin has
the same code and other globals: `np` is the recording's namespace, `address`, `addresses` and `scratch` tell the
recording whose memory a kernel gets, `pool.run` keeps the launch. So every call of NumPy in a driver is
recorded like any other, and a replay launches kernels over the same memory without running the driver.

What a driver caches (plans, tables) depends on shapes and types only. It is made by the function itself,
outside of the recording, and a twin sees it with traced arrays in it and with methods that are twins.
"""

from __future__ import annotations

import sys
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.compiler.arrays import Address, TracedArray, TracedFunction
from dptrain.core.flat import aligned_empty
from dptrain.core.kernels import memory
from dptrain.core.kernels.deferred import ArrayFunction, Deferred
from dptrain.core.parts import root_of

if TYPE_CHECKING:
    from dptrain.compiler.trace import Trace

_PACKAGE = "dptrain.core.kernels"


def kernels_of(trace: Trace, module: ModuleType) -> Any:
    """The functions of a module of kernels as they are called with traced arrays.

    Functions of the package are twins. Those of another one (NumPy's, numba's) are calls to record.
    """
    return _Twins(trace).module(module)


class _Names(dict[str, Any]):
    """Global names of twins, each made when it is first looked up."""

    def __init__(self, twins: _Twins, names: dict[str, Any]) -> None:
        super().__init__(
            __name__=names["__name__"]
        )  # which functions take from here as they are made
        self._twins, self._originals = twins, names

    def __missing__(self, name: str) -> Any:
        found = self[name] = self._twins.twin(self._originals[name])
        return found


class _Module:
    """Likewise a module."""

    def __init__(self, twins: _Twins, module: ModuleType) -> None:
        self._twins, self._original = twins, module

    def __getattr__(self, name: str) -> Any:
        found = self._twins.twin(getattr(self._original, name))
        setattr(self, name, found)
        return found


class _Twins:
    """Copies of the package's functions over globals of their own, made as they are needed."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._globals: dict[str, dict[str, Any]] = {}
        self._modules: dict[str, Any] = {}
        self._classes: dict[type, Any] = {}
        #: By the id of a function, or of what a driver has cached; the latter is held, too.
        self._functions: dict[int, Any] = {}
        self._shown: dict[int, tuple[Any, Any]] = {}

    def module(self, module: ModuleType) -> Any:
        """What stands for a module of the package."""
        name = module.__name__
        found = self._modules.get(name)
        if found is None:
            # Nothing of the pool is to be recorded but what it is asked to run.
            is_pool = name == f"{_PACKAGE}.pool"
            found = SimpleNamespace(**self._of_pool(module)) if is_pool else _Module(self, module)
            self._modules[name] = found
        return found

    def _of_pool(self, pool: ModuleType) -> dict[str, Any]:
        own = {k: v for k, v in vars(pool).items() if isinstance(v, FunctionType)}
        return {
            **{k: v for k, v in own.items() if v.__module__ == pool.__name__},
            "run": partial(_launch, self._trace, pool.run),
            "run_packed": partial(_launch_packed, self._trace, pool.run_packed),
        }

    def _names(self, module: str) -> dict[str, Any]:
        """The globals of the twins of a module."""
        found = self._globals.get(module)
        if found is None:
            found = self._globals[module] = _Names(self, vars(sys.modules[module]))
        return found

    def twin(self, value: Any) -> Any:
        """What stands for a value that drivers know by a name."""
        if value is np:
            return self._trace.namespace
        if isinstance(value, ModuleType):
            inside = value.__name__.startswith(_PACKAGE + ".")
            return self.module(value) if inside else value
        if isinstance(value, Deferred):  # what stands for numba's objects
            own = isinstance(value, ArrayFunction)
            return partial(_compiled, self._trace, value) if own else value
        if isinstance(value, partial):
            named = {k: self.twin(v) for k, v in value.keywords.items()}
            return partial(self.twin(value.func), *map(self.twin, value.args), **named)
        home = getattr(value, "__module__", None) or ""
        if home.startswith("numpy.") and isinstance(value, FunctionType):
            return TracedFunction(self._trace, value)
        if not home.startswith(_PACKAGE):
            return value
        if hasattr(value, "cache_info"):
            return partial(self._cached, value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type) and value.__bases__ == (object,) and _has_methods(value):
            return self._class(value)
        return value

    def _function(self, function: FunctionType) -> Any:
        home, name = function.__module__, function.__name__
        if getattr(function, "one_call", False):
            return TracedFunction(self._trace, function)
        if function is memory.address:
            return partial(_address, self._trace)
        if function is memory.addresses:
            return partial(_addresses, self._trace)
        if function is memory.scratch:
            return partial(_scratch, self._trace)
        if home == f"{_PACKAGE}.pool":
            return getattr(self.module(sys.modules[home]), name, function)
        found = self._functions.get(id(function))
        if found is None:
            cells = tuple(CellType() for _ in function.__closure__ or ())
            found = FunctionType(function.__code__, self._names(home), name, None, cells or None)
            self._functions[id(function)] = found  # first, for functions that know each other
            found.__defaults__ = self._elements(function.__defaults__)
            found.__kwdefaults__ = self._elements(function.__kwdefaults__)
            for cell, original in zip(cells, function.__closure__ or (), strict=True):
                cell.cell_contents = self.twin(original.cell_contents)
        return found

    def _elements(self, values: Any) -> Any:
        if isinstance(values, dict):
            return {k: self.twin(v) for k, v in values.items()}
        return None if values is None else tuple(map(self.twin, values))

    def _class(self, cls: type) -> Any:
        found = self._classes.get(cls)
        if found is None:
            body = {
                k: self._member(v)
                for k, v in vars(cls).items()
                if k not in ("__dict__", "__weakref__")
            }
            found = self._classes[cls] = type(cls.__name__, cls.__bases__, body)
        return found

    def _member(self, value: Any) -> Any:
        if isinstance(value, (staticmethod, classmethod)):
            return type(value)(self.twin(value.__func__))
        if isinstance(value, property):
            return property(self.twin(value.fget), self.twin(value.fset), self.twin(value.fdel))
        return self.twin(value)

    def _cached(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What a driver keeps between calls."""
        if any(type(a) is TracedArray for a in (*args, *kwargs.values())):
            raise TypeError(f"{function.__name__} keeps what it makes, but is given an array")
        return self._show(function(*args, **kwargs))

    def _show(self, value: Any) -> Any:
        """What was made outside of the recording, for twins."""
        kind = type(value)
        own_class = kind.__module__.startswith(_PACKAGE)
        if not (own_class or isinstance(value, (np.ndarray, tuple, list, dict, MethodType))):
            return self.twin(value)
        found = self._shown.get(id(value))
        if found is None:
            self._trace.kept.append(value)
            found = self._shown[id(value)] = value, self._showing(value)
        return found[1]

    def _showing(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, np.ndarray):
            made = _traced(self._trace, value)
            self._trace.tables.add(made.block.number)
            self._trace.places.setdefault(made.block.number, ("table", len(self._trace.tables)))
            return made
        if isinstance(value, MethodType):
            return getattr(self._show(value.__self__), value.__name__)
        if isinstance(value, dict):
            return {k: self._show(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            elements = [self._show(v) for v in value]
            return kind(*elements) if hasattr(kind, "_fields") else kind(elements)
        like = self.twin(kind)
        if like is kind:
            return value
        made = object.__new__(like)
        vars(made).update({k: self._show(v) for k, v in vars(value).items()})
        return made


def _has_methods(cls: type) -> bool:
    return any(isinstance(v, FunctionType) for v in vars(cls).values())


def _address(trace: Trace, array: Any) -> Address:
    """Where an array lies; a kernel that gets to know it may read and write there."""
    if type(array) is not TracedArray:
        array = _traced(trace, array)
    trace.kept.append(array.host)
    if array.block.number not in trace.tables:
        trace.mark_possible(array.block)
        trace.addressed.append(array.block.number)
    start = int(array.host.__array_interface__["data"][0])
    owner = root_of(array.host) if array.block.memory is None else array.block.memory
    return Address(start, array.block.number, start - owner.__array_interface__["data"][0])


def _addresses(trace: Trace, arrays: Any) -> list[Address]:
    return [_address(trace, array) for array in arrays]


def _traced(trace: Trace, array: np.ndarray) -> Any:
    """A raw array: what a driver keeps between calls (tables), which no kernel writes to."""
    if id(root_of(array)) in trace.reachable:
        return trace.external(array)
    return trace.adopted(array)


def _scratch(trace: Trace, nbytes: int) -> Address:
    """Memory for the kernel that is called next; all of the recording's kernels share it."""
    held = trace.scratch_memory
    if not held or held[-1].nbytes < nbytes:
        held.append(aligned_empty(max(nbytes, 64)))
    return Address(int(held[-1].__array_interface__["data"][0]), 0, len(held))


def _launch(trace: Trace, run: Any, function: int, args: Any, shares: int) -> None:
    run(function, args, shares)
    if not shares:
        return
    packed = np.array(args, np.int64)
    touched = tuple(dict.fromkeys(trace.addressed))
    trace.addressed.clear()
    text = (
        "launch",
        shares,
        tuple(a.place if isinstance(a, Address) else int(a) for a in args),
    )
    trace.add(
        "launch", function, (packed, shares), {}, (), (), touched, touched, False, text
    )  # fmt: skip


def _launch_packed(trace: Trace, run: Any, function: int, place: int, shares: int) -> None:
    trace.refuse("a kernel was launched whose arguments lie in memory")
    run(function, place, shares)


def _compiled(trace: Trace, function: Any, *args: Any) -> Any:
    """A call of what numba compiled: it may write to each of its arrays."""
    hosts, touched = [], []
    for value in args:
        if type(value) is not TracedArray and isinstance(value, np.ndarray):
            value = _traced(trace, value)
        if type(value) is TracedArray:
            trace.mark_possible(value.block)
            touched.append(value.block.number)
            hosts.append(value.host)
        else:
            hosts.append(value)
    result = function(*hosts)
    numbers = tuple(touched)
    trace.add("call", function, tuple(hosts), {}, (), (), numbers, numbers, hoistable=False)
    if result is not None:
        trace.refuse("a kernel returned a value")
    return result
