"""What a step can see beside its arguments: the tensors, modules and plain values in its reach.

Owns: `survey`, which finds them, `Survey`. Must not know: recordings.

From the function: its closure, its defaults, the global names of its code, and what is behind those:
attributes of modules and other objects, items of containers, the functions they call. Each plain value
and each identity that was met becomes a guard: where one of them has changed, a recording does not stand
for the step any more.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from dptrain.core.device import device
from dptrain.core.dtypes import dtype
from dptrain.core.parts import root_of
from dptrain.core.random import Generator
from dptrain.core.tensor import Tensor
from dptrain.nn.replays import PLACES
from dptrain.optim.grad_scaler import GradScaler
from dptrain.optim.lr_scheduler import LRScheduler
from dptrain.optim.optimizer import Optimizer
from dptrain.parallel.ddp import DistributedDataParallel

_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), np.generic, type, dtype, device),
    *(np.dtype, slice, range, frozenset, type(Ellipsis), type(NotImplemented)),
)
#: Their methods run anew at each replay, whatever is inside.
_WHOLE = (Optimizer, LRScheduler, GradScaler)
_STANDARD = Path(os.__file__).parent
_HOOKS = frozenset(
    ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
)
#: What a module holds that is no part of its state.
_RECORDINGS = frozenset(["_compiled_call_impl", *PLACES.values()])
_MOST = 50_000


@dataclass
class Survey:
    """What was found.

    Attributes:
        tensors: by id.
        plain: (dict, key, value): equal values as long as the recording stands.
        same: (dict, key, object): the very object, likewise.
        sizes: (container, number of its items).
        cells: (closure cell, value).
        codes: (function, its code), which an editor may replace in a running process.
        arrays: ids of the NumPy arrays that own memory in reach.
        optimizers: those in reach.
        parallel: what connects ranks; of a wrapped module, that module is in reach.
        gradients: whether the gradients of tensors are in reach.
        reason: why nothing can be recorded, if so.
    """

    tensors: dict[int, Tensor] = field(default_factory=dict)
    plain: list[tuple[Any, Any, Any]] = field(default_factory=list)
    same: list[tuple[Any, Any, Any]] = field(default_factory=list)
    sizes: list[tuple[Any, int]] = field(default_factory=list)
    cells: list[tuple[Any, Any]] = field(default_factory=list)
    codes: list[tuple[FunctionType, CodeType]] = field(default_factory=list)
    arrays: dict[int, Any] = field(default_factory=dict)
    optimizers: list[Optimizer] = field(default_factory=list)
    parallel: list[Any] = field(default_factory=list)
    gradients: bool = True
    reason: str | None = None


def survey(roots: list[Any], gradients: bool = True) -> Survey:
    """Everything in reach of some objects.

    Args:
        roots: the objects.
        gradients: whether the `.grad` of tensors is in reach; else a call must not touch any.
    """
    found = Survey(gradients=gradients)
    walk = _Walk(found)
    for root in roots:
        walk.push(root)
    walk.run()
    return found


class _Walk:
    def __init__(self, found: Survey) -> None:
        self._found = found
        self._seen: dict[int, Any] = {}  # holds what it has seen: ids stay what they are
        self._next: list[Any] = []
        self._codes: set[CodeType] = set()

    def push(self, value: Any) -> None:
        """Look at an object later, once."""
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self._next.append(value)

    def run(self) -> None:
        """Look at everything."""
        while self._next and self._found.reason is None:
            self._look(self._next.pop())
            if len(self._seen) > _MOST:
                self._found.reason = f"more than {_MOST} objects are in reach of the function"

    def _item(self, container: Any, key: Any, value: Any) -> None:
        """A value and where it was found."""
        if is_plain(value):
            self._found.plain.append((container, key, value))
            return
        self._found.same.append((container, key, value))
        self.push(value)

    def _look(self, value: Any) -> None:
        found = self._found
        if isinstance(value, Tensor):
            found.tensors[id(value)] = value
            if value._grad is not None and found.gradients:
                self.push(value._grad)
        elif isinstance(value, np.ndarray):
            found.arrays[id(root_of(value))] = root_of(value)
        elif isinstance(value, _WHOLE):
            self._look_at_whole(value)
        elif isinstance(value, dict):
            found.sizes.append((value, len(value)))
            for key, item in list(value.items()):
                self._item(value, key, item)
        elif isinstance(value, (list, tuple)):
            found.sizes.append((value, len(value)))
            for place, item in enumerate(value):
                self._item(value, place, item)
        elif isinstance(value, FunctionType):
            self._look_at_function(value)
        elif isinstance(value, MethodType):
            self.push(value.__self__)
            self.push(value.__func__)
        elif isinstance(value, (ModuleType, BuiltinFunctionType, Generator)) or is_plain(value):
            return
        else:
            self._look_at_object(value)

    def _look_at_whole(self, value: Any) -> None:
        if isinstance(value, Optimizer):
            self._found.optimizers.append(value)
            for group in value.param_groups:
                for p in group["params"]:
                    self.push(p)
        elif isinstance(value, LRScheduler):
            self.push(value.optimizer)
        elif value._scale is not None:
            self._item(vars(value), "_scale", value._scale)

    def _look_at_object(self, value: Any) -> None:
        attributes = getattr(value, "__dict__", None)
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:
            self.push(wrapped)
        for name in ("func", "args", "keywords"):  # of functools.partial
            if hasattr(type(value), name) and not isinstance(attributes, type(None)):
                self.push(getattr(value, name))
        foreign = is_foreign(type(value).__module__)
        if (type(value).__module__).startswith("dptrain.parallel"):
            self._look_at_ranks(value)
            return
        if attributes is not None and (not foreign or _is_module(value)):
            self._found.sizes.append((attributes, len(attributes)))
            for key, item in list(attributes.items()):
                if key in _RECORDINGS:
                    continue
                if key in _HOOKS and item:
                    self._found.reason = f"a {type(value).__name__} has hooks ({key[1:]})"
                self._item(attributes, key, item)
        for name in _slots(type(value)):
            if hasattr(value, name):
                item = getattr(value, name)
                if not is_plain(item):
                    self.push(item)
        if not foreign:
            self._look_at_class(type(value))

    def _look_at_ranks(self, value: Any) -> None:
        self._found.parallel.append(value)
        if isinstance(value, DistributedDataParallel):
            self._item(vars(value), "training", value.training)
            self.push(value.module)
            for container, key in value.switches():
                self._item(container, key, container[key])

    def _look_at_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if is_foreign(base.__module__) or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            for name, item in vars(base).items():
                if isinstance(item, (staticmethod, classmethod)):
                    self.push(item.__func__)
                elif isinstance(item, property):
                    self.push(item.fget)
                elif not (name.startswith("__") and is_plain(item)):
                    self._item(vars(base), name, item)

    def _look_at_function(self, function: FunctionType) -> None:
        if is_foreign(function.__module__ or "") and (
            not function.__closure__ or function.__module__ not in ("functools", "contextlib")
        ):
            wrapped = getattr(function, "__wrapped__", None)
            if not (function.__closure__ and wrapped is not None):
                return
        self._found.codes.append((function, function.__code__))
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # empty
                continue
            self._found.cells.append((cell, value))
            if not is_plain(value):
                self.push(value)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if not is_plain(value):
                self.push(value)
        for code in _codes(function.__code__):
            self._look_at_names(code, function.__globals__)

    def _look_at_names(self, code: CodeType, names: dict[str, Any]) -> None:
        for name in code.co_names:
            if name not in names:
                continue
            value = names[name]
            self._item(names, name, value)
            if isinstance(value, type):
                if not is_foreign(value.__module__):
                    self._look_at_class(value)
            elif isinstance(value, ModuleType):
                if is_foreign(value.__name__):
                    continue
                for inner in code.co_names:
                    if inner in vars(value):
                        self._item(vars(value), inner, vars(value)[inner])


def overlaps(tensors: list[Tensor], found: Survey) -> bool:
    """Whether a copy of an argument could miss what the call does to the original."""
    memory = {id(root_of(t._array)) for t in found.tensors.values() if t._has_values}
    return any(id(t) not in found.tensors and id(root_of(t._array)) in memory for t in tensors)


@cache
def is_foreign(home: str) -> bool:
    """Whether a module is of the standard library, numerics or this package: what is in it is no state of a step.

    A package of the user's may bear the name of a part of Python (`code`, `test`).
    """
    name = home.partition(".")[0]
    if name in ("numpy", "numba", "dptrain"):
        return True
    if name == "__main__" or name not in sys.stdlib_module_names:
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", ()))
    return all(
        Path(p).is_relative_to(_STANDARD) and "site-packages" not in Path(p).parts for p in places
    )


def all_tensors() -> list[Tensor]:
    """The tensors of the process."""
    # By type: `isinstance` would ask everybody's objects for `__class__`, at which some warn.
    return [o for o in gc.get_objects() if issubclass(type(o), Tensor)]


def is_plain(value: Any) -> bool:
    """Whether a value is compared by what it is, rather than by being the same object."""
    if isinstance(value, _PLAIN):
        return True
    return type(value) is tuple and all(is_plain(v) for v in value)


def _is_module(value: Any) -> bool:
    return hasattr(value, "_parameters") and hasattr(value, "_modules")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        if is_foreign(base.__module__):
            continue
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots
