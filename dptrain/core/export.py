"""Under which public names operations are found: functions, Tensor methods, in-place forms.

Owns: `export`, the registry, and the making of methods. Must not know: what an operation computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import MethodType
from typing import Any

import numpy as np

from dptrain.core import arrays
from dptrain.core.arguments import FAILURES, Signature
from dptrain.core.autocast import lower_types
from dptrain.core.autocast_policy import casting
from dptrain.core.dtypes import dtype
from dptrain.core.element_types import Rules
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.node_names import named
from dptrain.core.older_forms import in_order
from dptrain.core.op import Op, OpName
from dptrain.core.out import store_in
from dptrain.core.tensor import Tensor, wrap
from dptrain.core.typed import check_tensor

#: Public name -> operation class; the registry-walking tests read it.
REGISTRY: dict[str, type[Op]] = {}


def export(
    *names: str,
    methods: tuple[str, ...] = (),
    inplace: tuple[str, ...] = (),
    function: Callable[..., Any] | None = None,
    reflected: tuple[str, ...] = (),
    tensors: int | None = None,
    kinds: dict[str, str] | None = None,
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
        tensors: how many leading arguments of `function` must be tensors; by default 1 if the first is
            called `input`, else 0. Operations without `function` say so by `num_tensors`.
        kinds: parameters of other kinds than annotations and names say, `""` for any; see
            `core/arguments.py`.
    """

    def register(cls: type[Op]) -> type[Op]:
        run = cls.apply if function is None else _checked(function, cls, names, tensors)
        if names and cls not in REGISTRY.values():  # later exports of one class are aliases
            cls.name = OpName(names[0])
        label = names[0] if names else next(iter((*methods, *inplace)), cls.name)
        signature = (
            Signature(label, cls.forward, 1, kinds, max(cls.num_tensors, cls.promotes))
            if function is None
            else Signature(label, function, 0, kinds, _leading_tensors(function, tensors))
        )
        of_function = signature
        if signature.gathers and function is not None:
            of_function = Signature(
                label, function, 0, kinds, _leading_tensors(function, tensors), method=False
            )
        public = _public(cls, run, names[0] if names else cls.name, function, of_function)
        for name in names:
            REGISTRY[name] = cls
            FUNCTIONS[name] = (
                public
                if name == names[0]
                else _public(cls, run, names[0], function, of_function.under(name))
            )
        for method in methods:
            setattr(Tensor, method, _method(run, method, public, signature.under(method)))
            if not names:
                REGISTRY[f"Tensor.{method}"] = cls
        for method in reflected:
            setattr(Tensor, method, _reflected(casting(method, run), method))
        for method in inplace:
            setattr(Tensor, method, _inplace(run, method, signature.under(method)))
        return cls

    return register


def _leading_tensors(function: Callable[..., Any], tensors: int | None) -> int:
    """How many leading arguments of `function` must be tensors."""
    return int(function.__code__.co_varnames[:1] == ("input",)) if tensors is None else tensors


def _checked(
    function: Callable[..., Any], cls: type[Op], names: tuple[str, ...], tensors: int | None
) -> Callable[..., Any]:
    """`function` behind a check that its leading arguments are tensors."""
    leading = function.__code__.co_varnames[: _leading_tensors(function, tensors)]
    if not leading:
        return function
    label = names[0] if names else cls.name
    one = len(leading) == 1

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if one and args and isinstance(args[0], Tensor):  # nearly every call
            return function(*args, **kwargs)
        for i, name in enumerate(leading):
            value = args[i] if i < len(args) else kwargs.get(name, _MISSING)
            if not isinstance(value, Tensor) and value is not _MISSING:
                raise TypeError(
                    f"{label}(): argument {name!r} (position {i + 1}) must be Tensor, not {type(value).__name__}"
                )
        return function(*args, **kwargs)

    return run


_MISSING = object()

#: Public name -> function; `dptrain/__init__.py` lifts these into the package.
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _public(
    cls: type[Op], run: Any, name: str, function: Any, signature: Signature
) -> Callable[..., Any]:
    stores = not (cls.is_view or name.startswith("nn."))
    public = _guarded(run, signature, name, stores)
    # Where it is found, so that it can be pickled: the activation of a layer, say.
    public.__module__, _, public.__qualname__ = f"dptrain.{signature.label}".rpartition(".")
    public.__name__ = public.__qualname__
    public.__doc__ = (function.__doc__ if function is not None else None) or cls.__doc__
    # `inspect.signature` and `help` follow this; a bound method drops `self`.
    public.__wrapped__ = function or MethodType(cls.forward, cls)  # type: ignore[attr-defined]
    return public


def _guarded(run: Any, signature: Signature, name: str, stores: bool) -> Callable[..., Any]:
    """`run` with `out=`, and errors that name the argument at fault."""
    strict_from, has_passed = signature.strict_from, signature.has_passed
    rules = Rules(name)
    typed = bool(rules)
    run = named(name, run)
    cast = casting(name, run)
    # Asked here rather than by one more call: most of the time no region of autocast is entered.
    listed = cast is not run

    def call(*args: Any, **kwargs: Any) -> Any:
        if arrays.several_gpus:
            guard = arrays.elsewhere(_arrays_of((*args, *kwargs.values())))
            if guard is not None:
                with guard:
                    return call(*args, **kwargs)
        if (kwargs or len(args) > strict_from) and not has_passed(args, kwargs):
            args, kwargs = signature.check(args, kwargs)
        if typed and not lower_types():  # autocast brings them to one type
            rules.check(signature.names, args, kwargs)
        try:
            if not kwargs:
                return (cast if listed and lower_types() else run)(*args)
            if stores and "out" in kwargs:
                return store_in(run, name, args, kwargs)
            return (cast if listed and lower_types() else run)(*args, **kwargs)
        except FAILURES as error:
            older = in_order(name, args)
            if older is not None:
                return call(*older[0], **older[1], **kwargs)
            found = signature.blame(args, kwargs, error)
            if found is error:
                raise
            raise found from None

    call.__name__ = call.__qualname__ = name
    return call


def public(
    function: Callable[..., Any], prefix: str = "", name: str | None = None, **kinds: str
) -> Callable[..., Any]:
    """A function that is written with public ones, with their checks of arguments and their errors.

    Args:
        function: receives the user's arguments.
        prefix: of its public name, which decides what autocast casts (`"nn.functional."`).
        name: its public name; that of `function` by default.
        kinds: parameters of other kinds than annotations and names say; see `core/arguments.py`.
    """
    name = name or function.__name__
    call = _guarded(function, Signature(name, function, 0, kinds), prefix + name, stores=False)
    call.__name__ = call.__qualname__ = name
    call.__doc__, call.__wrapped__ = function.__doc__, function  # type: ignore[attr-defined]
    return call


def _arrays_of(values: Iterable[Any]) -> Iterator[Any]:
    """The arrays of the tensors among arguments, those in lists too."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _arrays_of(value)
        elif isinstance(value, Tensor):
            yield value._array


def _method(
    run: Any, name: str, public: Callable[..., Any], signature: Signature
) -> Callable[..., Any]:
    if name in _BINARY_DUNDERS:
        cast = casting(name, run)
        listed = cast is not run

        def operator(self: Tensor, other: Any) -> Any:
            if not isinstance(other, _OPERANDS):
                if not arrays.is_array(other):
                    return NotImplemented
                other = wrap(other)
            return (cast if listed and lower_types() else run)(self, other)

        operator.__name__ = operator.__qualname__ = name
        return operator
    method = _guarded(run, signature, name, stores=False)
    method.__doc__ = public.__doc__
    return method


_OPERANDS = (Tensor, int, float, bool, np.number, np.bool_)
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
        if not isinstance(other, _OPERANDS):
            if not arrays.is_array(other):
                return NotImplemented
            other = wrap(other)
        return run(other, self)

    operator.__name__ = operator.__qualname__ = name
    return operator


def _any_requires_grad(tensor: Tensor, args: tuple[Any, ...]) -> bool:
    return tensor._requires_grad or any(isinstance(a, Tensor) and a._requires_grad for a in args)


def _snapshot(tensor: Tensor) -> Tensor:
    """A copy with the same history."""
    copy = wrap(tensor._array.copy(order="K"))
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
        from dptrain.core.ops.compare import zeros_for

        return zeros_for(grad)


def _inplace(run: Any, name: str, signature: Signature | None = None) -> Callable[..., Any]:
    # What backward saves of the old value must survive the change.
    copies = not getattr(getattr(run, "__self__", None), "forgets", False)
    run = run if signature is None else _guarded(run, signature, name, stores=False)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_inplace(name)
        if isinstance(kwargs.get("dtype"), dtype) and kwargs["dtype"] is not self.dtype:
            raise RuntimeError(
                f"{name}: Bad in-place call: input tensor dtype {self.dtype} and output tensor dtype "
                f"{kwargs['dtype']} should match"
            )
        recorded = is_grad_enabled() and _any_requires_grad(self, args)
        operand = _snapshot(self) if copies and recorded else self
        result = run(operand, *args, **kwargs)
        if recorded and operand._requires_grad and not result._requires_grad:
            result = Overwritten.apply(operand, result._array)
        self._assign_result(result, name)
        if result._node is not None and result._array.dtype == self._array.dtype:
            result._node.save_result_in(result._array, self)
        return self

    method.__name__ = name
    return method


_IN_PLACE_NAME = re.compile(r"[a-z]\w*[a-z0-9]_\Z")


def in_place_functions() -> dict[str, Callable[..., Any]]:
    """Every in-place method of `Tensor` as a function whose first argument is the tensor."""
    return {name: _of_method(name) for name in dir(Tensor) if _IN_PLACE_NAME.match(name)}


def _of_method(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        check_tensor(name, input)
        return method(input, *args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = method.__doc__
    return function


def in_place(run: Any, name: str) -> Callable[..., Any]:
    """`run` as a function that stores its result in its first argument and returns that."""
    return _inplace(run, name)
