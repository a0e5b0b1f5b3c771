"""Under which public names operations are found: functions, Tensor methods, in-place forms.

Owns: `export`, the registry, and the making of methods. Must not know: what an operation computes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np

from dptrain.core.autocast import lower_types
from dptrain.core.autocast_policy import casting
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.op import Op
from dptrain.core.out import store_in
from dptrain.core.tensor import Tensor, wrap

#: Public name -> operation class; the registry-walking tests read it.
REGISTRY: dict[str, type[Op]] = {}


def export(
    *names: str,
    methods: tuple[str, ...] = (),
    inplace: tuple[str, ...] = (),
    function: Callable[..., Any] | None = None,
    reflected: tuple[str, ...] = (),
) -> Callable[[type[Op]], type[Op]]:
    """Say once under which public names an operation is found.

    Args:
        names: functions of the package `dptrain`; they take `out=` unless the operation gives views. Under
            autocast they and the methods follow its table; what stores in a given tensor does not.
        methods: methods of `Tensor` with the tensor as first argument.
        inplace: methods of `Tensor` that store the result in the tensor (`add_`).
        function: the public function where the signature differs from `forward`'s (e.g. a list of
            tensors); it receives the user's arguments and calls `apply`.
        reflected: methods of `Tensor` with the tensor as second argument (`__rsub__`).
    """

    def register(cls: type[Op]) -> type[Op]:
        run = function or cls.apply
        if names and cls not in REGISTRY.values():  # later exports of one class are aliases
            cls.name = names[0]
        public = _public(cls, run, names[0] if names else cls.name, function)
        for name in names:
            REGISTRY[name] = cls
            FUNCTIONS[name] = public
        for method in methods:
            setattr(Tensor, method, _method(run, method, public))
            if not names:
                REGISTRY[f"Tensor.{method}"] = cls
        for method in reflected:
            setattr(Tensor, method, _reflected(casting(method, run), method))
        for method in inplace:
            setattr(Tensor, method, _inplace(run, method))
        return cls

    return register


#: Public name -> function; `dptrain/__init__.py` lifts these into the package.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(cls: type[Op], run: Any, name: str, function: Any) -> Callable[..., Any]:
    stores = not (cls.is_view or name.startswith("nn."))
    cast = casting(name, run)
    listed = cast is not run

    def public(*args: Any, **kwargs: Any) -> Any:
        if stores and "out" in kwargs:
            return store_in(run, name, args, kwargs)
        return (cast if listed and lower_types() else run)(*args, **kwargs)

    # Where it is found, so that it can be pickled: the activation of a layer, say.
    public.__module__, _, public.__qualname__ = f"dptrain.{name}".rpartition(".")
    public.__name__ = public.__qualname__
    public.__doc__ = (function.__doc__ if function is not None else None) or cls.__doc__
    # `inspect.signature` and `help` follow this; a bound method drops `self`.
    public.__wrapped__ = function or MethodType(cls.forward, cls)  # type: ignore[attr-defined]
    return public


def _method(run: Any, name: str, public: Callable[..., Any]) -> Callable[..., Any]:
    cast = casting(name, run)
    # Asked here rather than by one more call: most of the time no region of autocast is entered.
    listed = cast is not run
    if name in _BINARY_DUNDERS:

        def operator(self: Tensor, other: Any) -> Any:
            if not isinstance(other, _OPERANDS):
                return NotImplemented
            return (cast if listed and lower_types() else run)(self, other)

        operator.__name__ = name
        return operator

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (cast if listed and lower_types() else run)(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, public.__doc__
    return method


_OPERANDS = (Tensor, int, float, bool, np.ndarray, np.number, np.bool_)
_BINARY_DUNDERS = frozenset(
    f"__{n}__"
    for n in [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
        "radd",
        "rmul",
        "rand",
        "ror",
        "rxor",
    ]
)


def _reflected(run: Any, name: str) -> Callable[..., Any]:
    def operator(self: Tensor, other: Any) -> Any:
        return run(other, self) if isinstance(other, _OPERANDS) else NotImplemented

    operator.__name__ = name
    return operator


def _any_requires_grad(tensor: Tensor, args: tuple[Any, ...]) -> bool:
    return tensor._requires_grad or any(isinstance(a, Tensor) and a._requires_grad for a in args)


def _snapshot(tensor: Tensor) -> Tensor:
    """A copy with the same history."""
    copy = wrap(tensor._array.copy())
    copy._node, copy._index, copy._requires_grad = (
        tensor._node,
        tensor._index,
        tensor._requires_grad,
    )
    return copy


class Overwritten(Op):
    """Values that no gradient reaches (a comparison's) in the place of those that had a history."""

    def forward(self, input: Any, values: Any) -> Any:
        return np.broadcast_to(values, np.broadcast_shapes(values.shape, input.shape)).astype(
            input.dtype
        )

    def backward(self, grad: Any) -> Any:
        return grad * 0


def _inplace(run: Any, name: str) -> Callable[..., Any]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_inplace(name)
        # What backward saves of the old value must survive the change.
        operand = _snapshot(self) if is_grad_enabled() and _any_requires_grad(self, args) else self
        result = run(operand, *args, **kwargs)
        if operand is not self and operand._requires_grad and not result._requires_grad:
            result = Overwritten.apply(operand, result._array)
        self._assign_result(result, name)
        return self

    method.__name__ = name
    return method


def in_place(run: Any, name: str) -> Callable[..., Any]:
    """`run` as a function that stores its result in its first argument and returns that."""
    return _inplace(run, name)
