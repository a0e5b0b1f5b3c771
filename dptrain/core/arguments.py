"""What kinds of values the arguments of public functions may have, read off their signatures.

Owns: `Signature`: the check of arguments before a call, and the naming of the function and the argument
at fault after one that failed. Must not know: any particular operation.

A parameter's annotation tells its kind (`dim: int`, `p: float`). Where it says nothing (`Any`, of what
has several forms), the name does, as PyTorch calls one thing by one name in all its functions; and a
default of True or False makes a flag. The kinds are PyTorch's, down to what else it takes for an int (a
NumPy integer, a tensor of one; no bool), so that a value of another kind is refused before anything is
computed. What the check leaves to the operations is the number of tensors in front, which they look at
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from types import CodeType
from typing import Any

import numpy as np

from dptrain.core.dtypes import dtype
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.forms import ALIASES, Forms
from dptrain.core.tensor import Tensor

_ARE_INTS = frozenset([int])


def _is_flag(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def is_int(value: Any) -> bool:
    """Whether PyTorch takes `value` for an int: no bool, but a tensor of one integer."""
    if isinstance(value, Tensor):
        return value._array.ndim == 0 and value._array.dtype.kind in "iu"
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    """Whether PyTorch takes `value` for a size or a place: what has an index, a tensor of one element too."""
    if isinstance(value, Tensor):
        return value._array.size == 1 and value._array.dtype.kind in "iu"
    return is_int(value)


def _is_ints(value: Any) -> bool:
    """A sequence whose first entry is an int; after it a bool counts as one, as in PyTorch."""
    if not isinstance(value, (tuple, list)):
        return False
    return all(is_int(v) or (i and _is_flag(v)) for i, v in enumerate(value))


def is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value._array.ndim == 0 and not value._requires_grad
    return isinstance(value, (int, float, np.number, np.bool_))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(is_number, value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_is_tensor, value))


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value


def _numbers(value: Any) -> Any:
    if type(value) in (tuple, list) and _ARE_INTS.issuperset(map(type, value)):
        return value
    return tuple(int(v) if _is_flag(v) else _number(v) for v in value)


def _same(value: Any) -> Any:
    return value


#: A kind's word -> test; how such a value reaches the function; types that need no closer look.
_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any], tuple[type, ...]]] = {
    "Tensor": (_is_tensor, _same, (Tensor,)),
    "Number": (is_number, _number, (float, int)),
    "int": (is_int, _number, (int,)),
    "size": (_is_size, _number, (int,)),
    "flag": (lambda value: value is None or _is_flag(value), bool, (bool,)),
    "bool": (_is_flag, bool, (bool,)),
    "str": (lambda value: isinstance(value, str), _same, (str,)),
    "dtype": (lambda value: any(value is kind for kind in (float, int, bool)), _same, (dtype,)),
    "tuple of ints": (_is_ints, _numbers, ()),
    "tuple of Numbers": (_is_numbers, _numbers, ()),
    "tuple of Tensors": (_is_tensors, _same, ()),
    "None": (lambda value: value is None, _same, (type(None),)),
}
#: Kinds -> the parameters that are of them in all functions whose annotations say no more.
_NAMED = {
    "int": "dim0 dim1 dim2 dimension step n k chunks groups start_dim end_dim num_samples minlength bins r decimals length "
    "offset diagonal storage_offset",
    "int | tuple of ints": "dim dims kernel_size stride dilation padding output_padding shifts size sizes shape "
    "destination split_size_or_sections indices_or_sections",
    "tuple of ints": "split_sizes",
    "Number": "nan posinf neginf alpha beta lambd negative_slope min_val max_val threshold eps rtol atol",
    "Tensor": "self A B L LD LU LU_data LU_pivots a b mat mat1 mat2 vec vec1 vec2 batch1 batch2 tensor1 tensor2 mask src bias "
    "boundaries target x1 x2 x y index source sorted_sequence sorter tau pivots prepend append fweights aweights weights",
    "Number | Tensor": "lr",
    "tuple of Numbers": "betas",
    "Tensor | Number": "input other value exponent weight min max elements test_elements end",
    "tuple of Tensors": "tensors",
    "str": "reduction",
    "dtype": "dtype",
}
_KIND_OF = {name: kind for kind, names in _NAMED.items() for name in names.split()}
_ANNOTATED = {
    "Tensor": "Tensor",
    "float": "Number",
    "int": "int",
    "bool": "bool",
    "str": "str",
    "None": "None",
    "tuple[int, ...]": "tuple of ints",
    "Sequence[int]": "tuple of ints",
    "Sequence[float]": "tuple of Numbers",
    "Sequence[Tensor]": "tuple of Tensors",
}
#: Words of NumPy and Python, and of operations that know their dtypes -> PyTorch's kind of exception.
FOREIGN: dict[str, type[Exception]] = {
    "invalid literal for int()": TypeError,
    "could not convert string": TypeError,
    "did not contain a loop with signature": TypeError,
    "operands could not be broadcast": RuntimeError,
    "array is too big": RuntimeError,
    "is out of bounds for a": IndexError,
    "truth value of an array": TypeError,
    "truth value of an empty array": TypeError,
    "setting an array element with a sequence": TypeError,
    "could not broadcast input array": RuntimeError,
    "not implemented for": NotImplementedError,
    "is too big": RuntimeError,
    "Maximum allowed dimension exceeded": RuntimeError,
    "is unsupported in linalg": RuntimeError,
}
#: How a complaint in a function's name goes on.
_COMPLAINTS = (":", " missing ", " takes ", " got ", " received ")
#: What Python says of the shape of a tensor that has another number of dimensions than the function unpacks.
_OF_SHAPES = (
    "tuple index out of range",
    "not enough values to unpack",
    "too many values to unpack",
)
#: What a wrong argument leads to somewhere inside.
FAILURES = (
    *(TypeError, AttributeError, IndexError, ValueError, RuntimeError),
    *(OverflowError, ZeroDivisionError, MemoryError),
)
#: Exceptions that are what their text says, so that they can be made anew with more of it.
_PLAIN = (TypeError, RuntimeError, ValueError, IndexError, NotImplementedError)


#: Kinds that differ from another one only in what else they take -> the word for messages.
_SHOWN = {"size": "int", "flag": "bool"}
#: Ints for which PyTorch takes a tensor of one element of any shape, as for sizes.
_SIZES = frozenset(
    [
        "n",
        "groups",
        "num_samples",
        "length",
        "storage_offset",
        "size",
        "output_size",
        "step",
        "k",
        "diagonal",
        "low",
        "high",
        "ignore_index",
        "index",
        "start",
        "end",
    ]
)


class _Kind:
    """The kinds of values that one parameter takes."""

    __slots__ = ("exact", "ints", "parts", "tensors", "words")

    def __init__(self, words: str) -> None:
        names = words.split(" | ")
        if "tuple of ints" in names:  # in the place of a sequence of sizes one of them
            names = ["size" if name == "int" else name for name in names]
        self.parts = [_KINDS[name][:2] for name in names]
        self.exact = frozenset(t for name in names for t in _KINDS[name][2])
        self.tensors, self.ints = names[0] == "Tensor", "tuple of ints" in names
        shown = [_SHOWN.get(n, n) for n in names if n != "None"] or names
        # A number in the place of a tensor is a convenience, a tensor what is asked for.
        self.words = "Tensor" if shown == ["Tensor", "Number"] else " or ".join(shown)

    def take(self, value: Any) -> Any:
        """`value` as the function is to see it; `_REFUSED` if it is of another kind."""
        if type(value) in self.exact:
            return value
        # Parameters, and sizes as modules keep them: the cases of nearly every call.
        if self.tensors and isinstance(value, Tensor):
            return value
        if self.ints and type(value) is tuple and _ARE_INTS.issuperset(map(type, value)):
            return value
        for fits, convert in self.parts:
            if fits(value):
                return convert(value)
        return _REFUSED


_REFUSED: Any = object()


def wrong_kind(label: str, name: str, position: int | None, words: str, value: Any) -> TypeError:
    """The error for an argument of another kind: the function, the argument, what was expected, what came."""
    where = "" if position is None else f" (position {position + 1})"
    found = type(value).__name__
    if isinstance(value, (tuple, list)):
        inner = sorted({type(v).__name__ for v in value})
        found = f"{found} of {', '.join(inner)}" if inner else f"an empty {found}"
    elif isinstance(value, Tensor):
        found = f"Tensor of shape {list(value._array.shape)} and type {value.dtype}"
    return TypeError(f"{label}(): argument {name!r}{where} must be {words}, not {found}")


def _words(
    name: str, annotation: str, has_default: bool, default: Any, kinds: dict[str, str]
) -> str | None:
    """The kinds of one parameter in words; None where nothing is known."""
    if name == "inplace":
        return None  # asked for its truth, whatever it is, as PyTorch does
    if name == "requires_grad":
        return "flag"
    if name in kinds:
        words: str | None = kinds[name]
    else:
        parts = [_ANNOTATED.get(part) for part in str(annotation).split(" | ")]
        if None not in parts:
            words = " | ".join(part for part in parts if part is not None)
        else:
            words = "bool" if isinstance(default, bool) else _KIND_OF.get(name)
    if not words:
        return None
    if name in _SIZES:
        words = " | ".join("size" if word == "int" else word for word in words.split(" | "))
    if words.endswith("!"):
        return words[:-1]
    if has_default and default in (None, ()) and "None" not in words:
        words += " | None"
    return words


class Signature:
    """The parameters of a public function and their kinds.

    Args:
        label: the public name, for messages.
        function: the function that receives the arguments, or a method whose `self` is left out.
        skip: how many leading parameters are not the user's.
        kinds: parameters that are of another kind here than annotations and names say, `""` for any; with `!`
            at the end None is not taken, though it is the default; under `name=` where it is another one given by name.
        covered: how many leading arguments the function looks at itself.
        method: of a method, which takes sizes one by one too (`x.view(2, 3)`); a function takes a sequence.
    """

    def __init__(
        self,
        label: str,
        function: Callable[..., Any],
        skip: int = 0,
        kinds: dict[str, str] | None = None,
        covered: int = 0,
        method: bool = True,
    ) -> None:
        function = getattr(function, "__wrapped__", function)
        code: CodeType = function.__code__
        positional, keyword = code.co_argcount, code.co_kwonlyargcount
        self.label = label
        self.names = code.co_varnames[skip:positional]
        only = code.co_varnames[positional : positional + keyword]
        given = function.__defaults__ or ()
        defaults = dict(zip(self.names[len(self.names) - len(given) :], given, strict=True))
        defaults.update(function.__kwdefaults__ or {})
        self.keywords = frozenset((*self.names, *only, *ALIASES, "out"))
        self.gathers = bool(code.co_flags & 4)
        self.open = bool(code.co_flags & 8)  # takes keywords of any name
        self.required = [n for n in self.names if n not in defaults]
        annotations = function.__annotations__
        gathered = code.co_varnames[positional + keyword] if self.gathers else None
        self.kinds: dict[str, _Kind] = {}
        for name in (*self.names, *only, *([gathered] if gathered else ())):
            words = _words(
                name, annotations.get(name, ""), name in defaults, defaults.get(name), kinds or {}
            )
            if words is not None:
                if name == gathered and words == "tuple of Tensors":
                    words = "Tensor | tuple of Tensors"
                if name == gathered and not method:
                    words = words.removeprefix("int | ")
                self.kinds[name] = _Kind(words)
        self.gathered = self.kinds.get(gathered) if gathered else None
        self.gathered_name = gathered or ""
        #: Whether what is gathered must be one sequence.
        self.whole = self.gathered is not None and self.gathered.words == "tuple of ints"
        #: (position, name, kind) of what is checked before the call.
        self.strict = [
            (position, name, self.kinds[name])
            for position, name in enumerate(self.names)
            if name in self.kinds and position >= covered
        ]
        #: A call with fewer positional arguments, and no others, needs no check.
        self.strict_from = min((position for position, _, _ in self.strict), default=1 << 30)
        if self.gathered is not None:
            self.strict_from = min(self.strict_from, len(self.names) - self.whole)
        self.forms = Forms.of(label)
        self._of_keyword = {n: k for n, k in self.kinds.items() if n != gathered}
        for name, words in (kinds or {}).items():
            if name.endswith("="):
                self._of_keyword[name[:-1]] = _Kind(words)
        self._of_keyword.update(
            {k: self.kinds[v] for k, v in ALIASES.items() if v in self._of_keyword}
        )

    def under(self, label: str) -> Signature:
        """The same for another name of the function."""
        alias = copy(self)
        alias.label = label
        return alias

    def check(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with numbers of other origins (NumPy's, tensors of one) as Python's.

        Raises:
            TypeError: one is of another kind; naming the function, the argument, what was expected and
                what came.
        """
        if self.gathered is not None and self.gathered_name in kwargs:
            args = (*args, kwargs[self.gathered_name])
            kwargs = {k: v for k, v in kwargs.items() if k != self.gathered_name}
        count = len(args)
        for position, name, kind in self.strict:
            if position >= count:
                break
            value = args[position]
            if type(value) not in kind.exact:
                taken = kind.take(value)
                if taken is _REFUSED:
                    self._refuse(kind, name, position, value)
                if taken is not value:
                    args = (*args[:position], taken, *args[position + 1 :])
        if self.whole and count == len(self.names) and not kwargs:
            raise TypeError(f"{self.label}() missing required argument: {self.gathered_name!r}")
        if self.gathered is not None:
            exact = self.gathered.exact
            for value in args[len(self.names) :]:
                if type(value) not in exact:
                    args = self._check_gathered(args, self.gathered)
                    break
        for name, value in kwargs.items():
            wanted = self._of_keyword.get(name)
            if wanted is not None and type(value) not in wanted.exact:
                taken = self._take(wanted, ALIASES.get(name, name), None, value)
                if taken is not value:
                    kwargs = {**kwargs, name: taken}
        if self.forms is not None and (count, *kwargs) not in self.forms.fitting:
            self.forms.check(self.label, self.names, count, tuple(kwargs))
        return args, kwargs

    def _check_gathered(self, args: tuple[Any, ...], kind: _Kind) -> tuple[Any, ...]:
        """The check of `*size`: ints, or one sequence of them."""
        start = len(self.names)
        if self.whole and len(args) > start + 1:
            raise TypeError(
                f"{self.label}() takes {start + 1} positional arguments but {len(args)} were given; "
                f"{self.gathered_name!r} is one sequence"
            )
        for position in range(start, len(args)):
            value = args[position]
            if type(value) in kind.exact:
                continue
            if isinstance(value, (tuple, list)) and len(args) > start + 1:
                self._refuse(kind, self.gathered_name, position, value)
            taken = self._take(kind, self.gathered_name, position, value)
            if taken is not value:
                args = (*args[:position], taken, *args[position + 1 :])
        return args

    def _take(self, kind: _Kind, name: str, position: int | None, value: Any) -> Any:
        taken = kind.take(value)
        if taken is _REFUSED:
            self._refuse(kind, name, position, value)
        return taken

    def _refuse(self, kind: _Kind, name: str, position: int | None, value: Any) -> None:
        raise wrong_kind(self.label, name, position, kind.words, value)

    # ---- after a call that failed ----------------------------------------------------------------

    def blame(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Exception:
        """The error to show for a call that failed: it names the function and what is wrong."""
        try:
            self.check_all(args, kwargs)
        except TypeError as found:
            return found
        text = str(error)
        if type(error) is AttributeError:
            return TypeError(f"{self.label}(): {self._likely(args) or text}")
        if type(error) is TypeError and ".forward() " in text:
            return TypeError(f"{self.label}() {text.partition('.forward() ')[2]}")
        called, _, rest = text.partition("()")
        if type(error) is TypeError and " " not in called and rest.startswith(_COMPLAINTS):
            # What it is made of complains: its other name, or the operation inside.
            return error if called == self.label else TypeError(f"{self.label}(){rest}")
        if text.startswith(_OF_SHAPES):
            return RuntimeError(
                f"{self.label}(): expected tensors with another number of dimensions, got shapes "
                f"{', '.join(str(list(v.shape)) for v in (*args, *kwargs.values()) if isinstance(v, Tensor))}"
            )
        kind = type(error)
        if kind in (OverflowError, ZeroDivisionError) or text.startswith("Unable to allocate"):
            kind = RuntimeError  # of a host without memory too, as in PyTorch
        for foreign, pytorchs in FOREIGN.items():
            if foreign in text:
                kind = pytorchs
        named = self.label.rpartition(".")[2].rstrip("_") in text
        if kind is type(error) and (named or kind not in _PLAIN):
            return error
        return kind(text if named else f"{self.label}(): {text}")

    def _likely(self, args: tuple[Any, ...]) -> str | None:
        """A number in the place of a tensor that most functions, but not all, want there."""
        for position, (name, value) in enumerate(zip(self.names, args, strict=False)):
            kind = self.kinds.get(name)
            if kind is not None and kind.words == "Tensor" and not isinstance(value, Tensor):
                return f"argument {name!r} (position {position + 1}) must be Tensor, not {type(value).__name__}"
        return None

    def check_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at every argument of a call that failed, those in front too.

        Raises:
            TypeError: one is unknown, missing or of another kind.
        """
        names = {ALIASES.get(k, k) for k in kwargs}
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
                self._take(self.kinds[name], name, position, value)
        for name, value in kwargs.items():
            name = ALIASES.get(name, name)
            if name in self.kinds:
                self._take(self.kinds[name], name, None, value)


def in_our_words(error: Exception) -> str:
    """NumPy's text of an error about an index."""
    return str(error).replace("axis", "dimension").replace("array", "tensor")


def guarded(function: Callable[..., Any], **kinds: str) -> Callable[..., Any]:
    """`function` behind the check of its arguments, and with errors that name it.

    Args:
        function: a public function that is no operation (autocast and devices are no concern of it).
        kinds: parameters of other kinds than annotations and names say.
    """
    signature = Signature(function.__name__.lstrip("_"), function, 0, kinds)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = signature.check(args, kwargs)
        token = ignore_float_errors()
        try:
            return function(*args, **kwargs)
        except FAILURES as error:
            found = signature.blame(args, kwargs, error)
            if found is error:
                raise
            raise found from None
        finally:
            restore_float_errors(token)

    return call
