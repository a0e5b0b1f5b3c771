"""Whether running a module does nothing but compute with tensors, as far as its code shows.

Owns: `why_not_plain`. Must not know: recordings.

A call that is replayed leaves Python out. Somebody who asks for that (`dptrain.compile`) answers for what
is left out; where it is to happen by itself, nobody must be able to tell: no printing, no counting, no
keeping of what was computed. So the code of the user's modules is read, instruction by instruction,
together with what its names stand for, and whatever is not known to be harmless makes the module one that
runs as it is. What is allowed to read state (attributes, globals, the length of a list) is guarded by the
recording's own survey.
"""

from __future__ import annotations

import builtins
import dis
from collections.abc import Iterable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from dptrain.compiler import harmless
from dptrain.compiler.state import is_foreign, is_plain
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module

_PACKAGE = "dptrain."
_GENERATORS = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR


class _Found(Exception):
    """A reason."""


def why_not_plain(module: Module) -> str | None:
    """What in a module or in those below it may do more than compute, if anything; what cannot be read, too."""
    try:
        _Reading(module).run()
    except _Found as found:
        return str(found)
    except Exception as error:  # of a property of the user's, say, or of a list that holds itself
        return f"its code cannot be read: {type(error).__name__}: {error}"
    return None


class _Reading:
    def __init__(self, module: Module) -> None:
        self._modules = list(module.modules())
        self._read: set[int] = set()
        #: What an attribute of that name may be, over all modules: no reading of types.
        self._attributes: dict[str, list[Any]] = {}
        self._methods: dict[str, list[Any]] = {}

    def run(self) -> None:
        """Look at every module.

        Raises:
            _Found: one of them may do more.
        """
        for module in self._modules:
            for name, value in vars(module).items():
                self._attributes.setdefault(name, []).append(value)
            for cls in type(module).__mro__:
                if not _is_ours(cls.__module__):
                    for name, value in vars(cls).items():
                        self._methods.setdefault(name, []).append(value)
        for module in self._modules:
            self._look_at(module)

    def _look_at(self, module: Module) -> None:
        cls, name = type(module), type(module).__name__
        own = vars(module)
        if own.get("_compiled_call_impl"):  # hooks are seen by the recording's survey
            raise _Found(f"{name} is compiled")
        if "forward" in own or cls.__call__ is not Module.__call__:
            raise _Found(f"{name} has a call of its own")
        if cls.__getattr__ is not Module.__getattr__:
            raise _Found(f"{name} has a __getattr__ of its own")
        if _is_ours(cls.__module__):
            if not cls.__module__.startswith(harmless.LAYERS):
                raise _Found(f"{name} is no layer")
            return
        # Of a layer of ours parts may have been replaced; special methods run without being named.
        every = _is_ours(cls.forward.__module__)
        for base in cls.__mro__:
            if _is_ours(base.__module__) or base is object:
                continue
            _refuse_foreign(base)
            for key, value in vars(base).items():
                special = key.startswith("__") and isinstance(value, FunctionType)
                if (every or special) and key not in harmless.UNUSED and key != "extra_repr":
                    self._attribute(key, value)
        if not every:
            self._function(cls.forward)

    def _function(self, function: Any) -> None:
        if id(function) in self._read:
            return
        self._read.add(id(function))
        if not isinstance(function, FunctionType):
            raise _Found(f"{function!r} is no function of Python")
        _refuse_foreign(function)
        named = function.__kwdefaults__ or {}
        self._all(
            f"a default of {function.__qualname__}",
            [*(function.__defaults__ or ()), *named.values()],
        )
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            if isinstance(value, ModuleType):
                self._namespace(value, function.__code__, function.__qualname__)
            elif cell is not _class_cell(function):
                self._value(f"a closure of {function.__qualname__}", value)
        self._code(function.__code__, function.__globals__, function.__qualname__)

    def _code(self, code: CodeType, names: dict[str, Any], where: str) -> None:
        inner = code.co_name in ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>", "<lambda>")
        allowed = harmless.INSTRUCTIONS | harmless.OF_GENERATORS if inner else harmless.INSTRUCTIONS
        if code.co_flags & _GENERATORS and not inner:
            raise _Found(f"{where} is a generator or a coroutine")
        for step in dis.get_instructions(code):
            own_cell = step.opname == "STORE_DEREF" and step.argval in code.co_cellvars
            if step.opname not in allowed and not own_cell:
                raise _Found(
                    f"{where} does {step.opname} in line {step.positions and step.positions.lineno}"
                )
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                self._global(step.argval, code, names, where)
            elif step.opname in harmless.ATTRIBUTES:
                self._name(step.argval, where)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant, names, where)

    def _global(self, name: str, code: CodeType, names: dict[str, Any], where: str) -> None:
        if name not in names:
            if name not in harmless.BUILTINS or not hasattr(builtins, name):
                raise _Found(f"{where} calls {name}")
            return
        value = names[name]
        if isinstance(value, ModuleType):
            self._namespace(value, code, where)
        else:
            self._value(f"{name} in {where}", value)

    def _namespace(self, module: ModuleType, code: CodeType, where: str) -> None:
        name = module.__name__
        if name == "numpy":
            for inner in _attributes_of(code) - harmless.OF_NUMPY:
                if hasattr(module, inner):
                    raise _Found(f"{where} uses numpy.{inner}")
            return
        if name not in harmless.NAMESPACES and not name.startswith(harmless.FUNCTIONS):
            raise _Found(f"{where} uses the module {name}")
        for inner in _attributes_of(code):
            value = getattr(module, inner, None)
            if isinstance(value, ModuleType):
                self._namespace(value, code, where)
            elif value is not None:
                self._value(f"{name}.{inner} in {where}", value)

    def _name(self, name: str, where: str) -> None:
        """An attribute of any object."""
        if name in harmless.KEEPS or name.startswith(harmless.STARTS_OF_KEEPS):
            raise _Found(f"{where} uses .{name}")
        for value in self._attributes.get(name, ()):
            self._value(f".{name} in {where}", value)
        for value in self._methods.get(name, ()):
            self._attribute(name, value)

    def _attribute(self, name: str, value: Any) -> None:
        """What the class of a user defines."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if isinstance(value, property):
            value = value.fget
        self._value(f".{name}", value)

    def _value(self, where: str, value: Any) -> None:
        if isinstance(value, type):  # to call it would be to run what it defines
            if not value.__module__.startswith(("dptrain.core.", "dptrain.nn.", "builtins")):
                raise _Found(f"{where} is the class {value.__name__}")
            return
        if is_plain(value) or (isinstance(value, Tensor) and _is_ours(type(value).__module__)):
            return
        if isinstance(value, Module):
            if not any(value is known for known in self._modules):
                raise _Found(f"{where} is a module outside of the tree")
        elif isinstance(value, (list, tuple)):
            self._all(where, value)
        elif isinstance(value, dict):
            self._all(where, value.values())
        elif isinstance(value, FunctionType):
            home = value.__module__ or ""
            if home in harmless.HOMES or home.startswith(harmless.FUNCTIONS):
                return
            if _is_ours(home) and value.__name__ in harmless.FACTS:
                return
            if _is_ours(home):
                raise _Found(f"{where} calls {value.__name__}")
            self._function(value)
        elif _is_record(value):
            self._all(where, vars(value).values())
        elif not (isinstance(value, BuiltinFunctionType) and value.__module__ in harmless.HOMES):
            raise _Found(f"{where} is a {type(value).__name__}")

    def _all(self, where: str, values: Iterable[Any]) -> None:
        for value in values:
            self._value(where, value)


def _is_record(value: Any) -> bool:
    """Whether an object of the user's is data alone, as configurations are: no code runs when it is read."""
    kinds = [k for k in type(value).__mro__ if k is not object]
    if any(is_foreign(k.__module__) or _is_ours(k.__module__) for k in kinds):
        return False  # whose attributes no recording looks at
    named = [(n, v) for k in kinds for n, v in vars(k).items() if n not in harmless.UNUSED]
    return hasattr(value, "__dict__") and all(
        not isinstance(v, FunctionType)
        if n.startswith("__")
        else is_plain(v) and not isinstance(v, type)
        for n, v in named
    )


def _refuse_foreign(value: Any) -> None:
    """Refuse what a recording would not look into, as it bears the name of a part of Python."""
    if is_foreign(value.__module__ or ""):
        raise _Found(f"{value.__qualname__} is in {value.__module__}, a name of Python's own")


def _attributes_of(code: CodeType) -> set[str]:
    """The names of attributes that code asks objects for."""
    return {
        step.argval for step in dis.get_instructions(code) if step.opname in harmless.ATTRIBUTES
    }


def _class_cell(function: FunctionType) -> Any:
    """The cell through which `super()` finds the class."""
    names = function.__code__.co_freevars
    return (
        function.__closure__[names.index("__class__")]
        if function.__closure__ and "__class__" in names
        else None
    )


def _is_ours(home: str) -> bool:
    return home == "dptrain" or home.startswith(_PACKAGE)
