"""What kinds of values the arguments of public functions may have, read off their signatures.

Owns: `Signature`: the check of flags and ints before a call, and the naming of the argument at fault
after one that failed. Must not know: any particular operation.

PyTorch calls one thing by one name in all its functions, so that the name of a parameter (or a default
of True or False) tells its kind. The check before a call covers what Python would let through: a flag
that is no bool, a dimension that is a float or a bool. Everything else costs nothing until a call
fails: then the arguments are compared with their kinds, and the first that does not fit is named.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

import numpy as np

from dptrain.core.tensor import Tensor

_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_int(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value._array.size == 1 and value._array.dtype.kind in "iu"
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_ints(value: Any) -> bool:
    if type(value) is int:
        return True
    return _is_int(value) or (isinstance(value, (tuple, list)) and all(map(_is_int, value)))


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value._array.ndim == 0
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_tensor_or_number(value: Any) -> bool:
    return isinstance(value, Tensor) or _is_number(value)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and all(map(_is_tensor, value))
    )


#: Words for the error -> test, and the parameters of that kind.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (_is_flag, ""),
    "int": (
        _is_int,
        "dim0 dim1 dim2 dimension step n k chunks groups start_dim end_dim num_samples minlength bins r decimals length offset "
        "diagonal storage_offset",
    ),
    "int or tuple of ints": (
        _is_ints,
        "dim dims kernel_size stride dilation output_padding shifts size sizes shape split_sizes destination",
    ),
    "Number": (
        _is_number,
        "nan posinf neginf alpha beta lambd negative_slope min_val max_val threshold eps rtol atol",
    ),
    "Tensor": (
        _is_tensor,
        "self A B mat mat1 mat2 vec vec1 vec2 batch1 batch2 tensor1 tensor2 mask src bias boundaries target x1 x2 index source sorted_sequence",
    ),
    "Tensor or Number": (
        _is_tensor_or_number,
        "input other value exponent weight min max elements test_elements",
    ),
    "tuple of Tensors": (_is_tensors, "tensors"),
}
_KIND_OF = {name: kind for kind, (_, names) in _KINDS.items() for name in names.split()}
#: Words of NumPy and Python, and of operations that know their dtypes -> PyTorch's kind of exception.
_FOREIGN: dict[str, type[Exception]] = {
    "invalid literal for int()": TypeError,
    "could not convert string": TypeError,
    "did not contain a loop with signature": TypeError,
    "operands could not be broadcast": RuntimeError,
    "tuple index out of range": RuntimeError,
    "not implemented for": NotImplementedError,
}
#: Kinds that are checked before the call.
_STRICT = frozenset(("bool", "int", "int or tuple of ints"))


class Signature:
    """The parameters of a public function and their kinds.

    Args:
        label: the public name, for messages.
        function: the function that receives the arguments, or a method whose `self` is left out.
        skip: how many leading parameters are not the user's.
        free: parameters that are of another kind here than their names say elsewhere.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., Any],
        skip: int = 0,
        free: tuple[str, ...] = (),
    ) -> None:
        code: CodeType = function.__code__
        self.label = label
        self.names = code.co_varnames[skip : code.co_argcount]
        only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        given = function.__defaults__ or ()
        defaults = dict(zip(self.names[len(self.names) - len(given) :], given, strict=True))
        defaults.update(function.__kwdefaults__ or {})
        self.keywords = frozenset((*self.names, *only, *_ALIASES, "out"))
        self.gathers = bool(code.co_flags & 4)
        self.open = bool(code.co_flags & 8)  # takes keywords of any name
        self.required = [n for n in self.names if n not in defaults]
        self.kinds: dict[str, tuple[str, bool]] = {}
        for name in (*self.names, *only):
            default = defaults.get(name)
            kind = "bool" if isinstance(default, bool) else _KIND_OF.get(name)
            if kind is not None and name not in free:
                optional = name in defaults and default is None
                self.kinds[name] = kind, optional
        #: (position, name, the type that needs no closer look) of what is checked before the call.
        self.strict = [
            (position, name, bool if self.kinds[name][0] == "bool" else int)
            for position, name in enumerate((*self.names, *only))
            if name in self.kinds and self.kinds[name][0] in _STRICT
        ]
        #: A call with fewer positional arguments, and no others, needs no check.
        self.strict_from = min((position for position, _, _ in self.strict), default=1 << 30)
        self._exact = {name: exact for _, name, exact in self.strict}
        self._exact.update({k: self._exact[v] for k, v in _ALIASES.items() if v in self._exact})

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse flags and ints of another kind.

        Raises:
            TypeError: naming the function, the argument, what was expected and what came.
        """
        count = min(len(args), len(self.names))
        for position, name, exact in self.strict:
            if position >= count:
                break
            if type(args[position]) is not exact:
                self._refuse(name, position, args[position])
        for name, value in kwargs.items():
            wanted = self._exact.get(name)
            if wanted is not None and type(value) is not wanted:
                self._refuse(_ALIASES.get(name, name), None, value)

    def _refuse(self, name: str, position: int | None, value: Any) -> None:
        kind, optional = self.kinds[name]
        if (value is None and optional) or _KINDS[kind][0](value):
            return
        where = "" if position is None else f" (position {position + 1})"
        wanted = kind.removesuffix(" or Number")
        raise TypeError(
            f"{self.label}(): argument {name!r}{where} must be {wanted}, not {type(value).__name__}"
        )

    def blame(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Exception:
        """The error to show for a call that failed: the argument at fault, if one is of a wrong kind."""
        try:
            self._check_all(args, kwargs)
        except TypeError as found:
            return found
        if type(error) is AttributeError:
            return TypeError(f"{self.label}(): {self._likely(args) or error}")
        text = str(error)
        if type(error) is TypeError and ".forward() " in text:
            return TypeError(f"{self.label}() {text.partition('.forward() ')[2]}")
        for foreign, kind in _FOREIGN.items():
            if foreign in text and type(error) is not kind:
                return kind(text if text.startswith(self.label) else f"{self.label}: {text}")
        return error

    def _likely(self, args: tuple[Any, ...]) -> str | None:
        """A number in the place of a tensor that most functions, but not all, want there."""
        for position, (name, value) in enumerate(zip(self.names, args, strict=False)):
            kind = self.kinds.get(name)
            if kind == ("Tensor or Number", False) and not isinstance(value, Tensor):
                return f"argument {name!r} (position {position + 1}) must be Tensor, not {type(value).__name__}"
        return None

    def _check_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = {_ALIASES.get(k, k) for k in kwargs}
        if not self.open:
            for name in kwargs:
                if name not in self.keywords:
                    raise TypeError(f"{self.label}() got an unexpected keyword argument {name!r}")
            for name in self.required[len(args) :]:
                if name not in names:
                    raise TypeError(f"{self.label}() missing required argument: {name!r}")
            if len(args) > len(self.names) and not self.gathers:
                raise TypeError(
                    f"{self.label}() takes {len(self.names)} positional arguments but {len(args)} were given"
                )
        for position, (name, value) in enumerate(zip(self.names, args, strict=False)):
            if name in self.kinds:
                self._refuse(name, position, value)
        for name, value in kwargs.items():
            name = _ALIASES.get(name, name)
            if name in self.kinds:
                self._refuse(name, None, value)
