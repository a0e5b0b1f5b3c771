"""The compiled kernels' drivers, once more for traced arrays: what they launch is recorded.

Owns: `kernels_of`. Must not know: any particular kernel.

A driver is Python code that makes arrays with NumPy and hands their addresses to a kernel. Its twin has
the same code and other globals: `np` is the recording's namespace, `address` and `scratch` tell the
recording whose memory a kernel gets, `pool.run` keeps the launch. So every call of NumPy in a driver is
recorded like any other, and a replay launches kernels over the same memory without running the driver.
"""

from __future__ import annotations

import sys
from functools import partial
from types import FunctionType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.compiler.arrays import TracedArray
from dptrain.core.flat import aligned_empty
from dptrain.core.kernels import memory
from dptrain.core.parts import root_of

if TYPE_CHECKING:
    from dptrain.compiler.trace import Trace

_PACKAGE = "dptrain.core.kernels"


class Address(int):
    """An address that knows whose it is, so that two recordings can be compared."""

    block: int
    offset: int

    def __new__(cls, value: int, block: int, offset: int) -> Address:
        made = super().__new__(cls, value)
        made.block, made.offset = block, offset
        return made

    def __add__(self, other: int) -> Address:
        return Address(int(self) + int(other), self.block, self.offset + int(other))

    __radd__ = __add__


def kernels_of(trace: Trace, module: ModuleType) -> Any:
    """The functions of a module of kernels as they are called with traced arrays.

    Functions of the package are twins. Those of another one (NumPy's, numba's) are calls to record.
    """
    return _Twins(trace).module(module)


class _Twins:
    """Copies of the package's functions over globals of their own, made as they are needed."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._globals: dict[str, dict[str, Any]] = {}
        self._modules: dict[str, Any] = {}
        self._classes: dict[type, Any] = {}

    def module(self, module: ModuleType) -> Any:
        """What stands for a module of the package."""
        name = module.__name__
        if name == f"{_PACKAGE}.pool":
            return SimpleNamespace(
                **{**vars(module), "run": partial(_launch, self._trace, module.run)}
            )
        found = self._modules.get(name)
        if found is None:
            found = self._modules[name] = SimpleNamespace()
            vars(found).update(self._names(name))
        return found

    def _names(self, module: str) -> dict[str, Any]:
        """The globals of the twins of a module."""
        found = self._globals.get(module)
        if found is None:
            found = self._globals[module] = {}  # first, for modules that import each other
            for name, value in vars(sys.modules[module]).items():
                found[name] = self._twin(value)
        return found

    def _twin(self, value: Any) -> Any:
        home = getattr(value, "__module__", None) or ""
        if value is np:
            return self._trace.namespace
        if isinstance(value, ModuleType):
            inside = value.__name__.startswith(_PACKAGE + ".")
            return self.module(value) if inside else value
        if hasattr(value, "py_func"):  # compiled by numba for any arguments
            return partial(_compiled, self._trace, value)
        if not home.startswith(_PACKAGE):
            return value
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type) and value.__bases__ == (object,) and _has_methods(value):
            return self._class(value)
        return value

    def _function(self, function: FunctionType) -> Any:
        home, name = function.__module__, function.__name__
        if function is memory.address:
            return partial(_address, self._trace)
        if function is memory.scratch:
            return partial(_scratch, self._trace)
        twin = FunctionType(
            function.__code__,
            self._names(home),
            name,
            function.__defaults__,
            function.__closure__,
        )
        twin.__kwdefaults__ = function.__kwdefaults__
        return twin

    def _class(self, cls: type) -> Any:
        found = self._classes.get(cls)
        if found is None:
            body = {
                k: self._function(v) if isinstance(v, FunctionType) else v
                for k, v in vars(cls).items()
                if k not in ("__dict__", "__weakref__")
            }
            found = self._classes[cls] = type(cls.__name__, cls.__bases__, body)
        return found


def _has_methods(cls: type) -> bool:
    return any(isinstance(v, FunctionType) for v in vars(cls).values())


def _address(trace: Trace, array: Any) -> Address:
    """Where an array lies; a kernel that gets to know it may read and write there."""
    if type(array) is not TracedArray:
        array = _traced(trace, array)
    trace.mark_possible(array.block)
    trace.kept.append(array.host)
    trace.addressed.append(array.block.number)
    start = int(array.host.__array_interface__["data"][0])
    owner = root_of(array.host) if array.block.memory is None else array.block.memory
    return Address(start, array.block.number, start - owner.__array_interface__["data"][0])


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
        tuple(("at", a.block, a.offset) if isinstance(a, Address) else int(a) for a in args),
    )
    trace.add(
        "launch", function, (packed, shares), {}, (), (), touched, touched, False, text
    )  # fmt: skip


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
        trace.refuse(f"a kernel returned a value ({function.__name__})")
    return result
