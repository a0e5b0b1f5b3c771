"""How the failed call of a layer, an optimizer or a function of theirs is told.

Owns: `told`, and the wrappers that use it. Must not know: any particular layer.

Operations look at their arguments before they compute (`core/arguments.py`). What is built of them asks
for attributes, compares and divides first, so that a wrong argument shows as an error of Python or NumPy
about something that the user has never heard of. Only after such a failure is the call looked at again:
a call that goes well pays nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dis import opmap
from functools import wraps
from inspect import unwrap
from itertools import chain
from types import NoneType, TracebackType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from dptrain.core.argument_kinds import is_number, wrong_kind
from dptrain.core.arguments import FAILURES, FOREIGN, Signature
from dptrain.core.cuda import refuse_exhaustion

_PACKAGE = __name__.partition(".")[0]
#: Whose frames say nothing of the user's code.
_BENEATH = frozenset((_PACKAGE, "numpy", "ml_dtypes", *sys.stdlib_module_names)) - {"__main__"}
#: A text that begins with the name of a function, a layer or a rank.
_NAMED = re.compile(r"[\w.]+\(\)|[\w.]+: |\[rank ")
_RAISE = opmap["RAISE_VARARGS"]
#: What Python raises where it meets another kind of value than expected -> PyTorch's kind for that.
_OF_WRONG_KINDS: dict[type[Exception], type[Exception]] = {
    TypeError: TypeError,
    AttributeError: TypeError,
    OverflowError: RuntimeError,  # an integer that is too large
}
_KINDS = (*FAILURES, AssertionError, KeyError, NotImplementedError, OverflowError)


def told(
    error: Exception,
    label: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    skip: int = 0,
    name_all: bool = False,
    owner: Any = None,
) -> Exception:
    """The error to show for a failed call: `error` itself if it says what was called.

    What was raised in code of the user (a layer in a container, a function that was handed over) and
    what is of a kind of its own is left as it is.

    Args:
        error: what the call raised.
        label: the public name.
        function: that failed; its annotations say of which kinds its arguments are.
        args, kwargs: of the call.
        skip: how many leading parameters are not among `args`.
        name_all: put the name before words of this package too: which of many layers it was.
        owner: the object whose method failed: what its constructor was given is looked at too.

    Raises:
        OutOfMemoryError: a CUDA library had no memory.
    """
    refuse_exhaustion(error)
    if (
        type(error) not in _KINDS
        or not (function.__module__ or "").startswith(_PACKAGE)
        or not _only_beneath(error.__traceback__)
    ):
        return error
    text = str(error.args[0]) if type(error) is KeyError and error.args else str(error)
    kind = next((k for words, k in FOREIGN.items() if words in text), type(error))
    named = _NAMED.match(text) is not None
    meant = _raised_here(error.__traceback__)
    # An array has the attributes that are asked for, until something is refused for its shape.
    given = chain.from_iterable(
        a if isinstance(a, tuple) else (a,) for a in (*args, *kwargs.values())
    )
    foreign = name_all and any(isinstance(a, (np.ndarray, np.generic)) for a in given)
    unclear = kind in _OF_WRONG_KINDS or kind is not type(error)
    if foreign or (unclear and (named or not meant or kind is AttributeError)):
        try:
            Signature(label, function, skip).check_all(args, kwargs)
            _check_annotations(label, function, args, kwargs, skip)
            if owner is not None and not named:
                _check_options(owner)
        except TypeError as found:
            return found
    if not meant:
        kind = _OF_WRONG_KINDS.get(kind, kind)
    complete = named or (meant and not name_all) or kind in (KeyError, AttributeError)
    if kind is type(error) and complete:
        return error
    return kind(text if named else f"{label}: {text}")


def _check_options(owner: Any) -> None:
    """Refuse an option of an object that its constructor took without looking at it."""
    label, init = type(owner).__name__, type(owner).__init__
    signature = Signature(label, init, 1)
    # Those of an optimizer are in its groups.
    for held in getattr(owner, "param_groups", None) or [vars(owner)]:
        options = {name: held[name] for name in signature.names if name in held}
        signature.check((), options)
        _check_annotations(label, init, (), options, 1)


def _check_annotations(
    label: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    skip: int,
) -> None:
    """Refuse what does not fit an annotation that `Signature` knows nothing of: other classes, collections."""
    bare = unwrap(function)
    try:
        hints = get_type_hints(bare)
    except NameError:  # a name that only type checkers import
        return
    given = zip(bare.__code__.co_varnames[skip : bare.__code__.co_argcount], args, strict=False)
    for position, (name, value) in chain(
        enumerate(given), ((None, named) for named in kwargs.items())
    ):
        if not _fits(value, hints.get(name, Any)):
            raise wrong_kind(label, name, position, _words(hints[name]), value)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return _fits(value, hint.__bound__ or Any)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if hint is float or hint is int:
        return is_number(value)
    if origin is None:
        return hint in (Any, bool) or not isinstance(hint, type) or isinstance(value, hint)
    if not isinstance(origin, type):
        return True
    if isinstance(value, str) or not isinstance(value, Sequence if origin is tuple else origin):
        return False
    if not isinstance(value, (tuple, list)):  # an iterator would be used up
        return True
    if origin is tuple and ... not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(v, inner[0]) for v in value)


def _words(hint: Any) -> str:
    """An annotation for the reader of a message: `Tensor or Iterable of Tensor`."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return _words(hint.__bound__)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in inner if part is not NoneType)
    name: str = getattr(origin or hint, "__name__", str(hint))
    if origin is None or hint in (Any, ...) or origin is Callable:
        return name
    parts = dict.fromkeys(_words(part) for part in inner if part is not ...)
    return f"{name} of {', '.join(parts)}"


def _only_beneath(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _BENEATH:
            return False
        trace = trace.tb_next
    return True


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether a statement of this package raised the error, with words of its own, or Python or NumPy did."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    raises: bool = frame.f_code.co_code[trace.tb_lasti] == _RAISE
    return raises and frame.f_globals.get("__name__", "").startswith(_PACKAGE)


_F = TypeVar("_F", bound=Callable[..., Any])


def telling(function: _F) -> _F:
    """`function` with errors that name it and the argument at fault."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            found = told(error, function.__name__, function, args, kwargs)
            if found is error:
                raise
            raise found from None

    return cast("_F", call)


def telling_method(method: _F) -> _F:
    """`method` with errors that name it, its class and the argument or option at fault."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            label = f"{type(self).__name__}.{method.__name__}"
            found = told(error, label, method, args, kwargs, skip=1, owner=self)
            if found is error:
                raise
            raise found from None

    return cast("_F", call)


def telling_constructor(cls: type) -> None:
    """Have the constructor that `cls` defines, if it is one of this package, name the class in errors."""
    init: Callable[..., Any] | None = cls.__dict__.get("__init__")
    if init is None or not _is_ours(cls):
        return
    made = init

    @wraps(made)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            made(self, *args, **kwargs)
        except Exception as error:
            if cls is not _first_of_ours(type(self)):
                raise  # another constructor has called this one, with arguments of its own
            # A class of the user's hands on arguments of its own: the names are those of `cls`.
            called = type(self) if _is_ours(type(self)) or cls.__name__[0] == "_" else cls
            label = called.__name__
            found = told(error, label, made, args, kwargs, skip=1)
            if found is error:
                raise
            raise found from None

    cls.__init__ = construct  # type: ignore[misc]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _PACKAGE


def _first_of_ours(cls: type) -> type | None:
    return next((c for c in cls.__mro__ if _is_ours(c) and "__init__" in c.__dict__), None)
