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

from dptrain.core.argument_kinds import REFUSED, Kind, words_of, wrong_kind
from dptrain.core.float_errors import ignore_float_errors, restore_float_errors
from dptrain.core.forms import ALIASES, Forms
from dptrain.core.tensor import Tensor

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
        self.kinds: dict[str, Kind] = {}
        for name in (*self.names, *only, *([gathered] if gathered else ())):
            words = words_of(
                name, annotations.get(name, ""), name in defaults, defaults.get(name), kinds or {}
            )
            if words is not None:
                if name == gathered and words == "tuple of Tensors":
                    words = "Tensor | tuple of Tensors"
                if name == gathered and not method:
                    words = words.removeprefix("int | ")
                self.kinds[name] = Kind(words)
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
        #: Types of arguments, and names and types of those given by name, of calls that need no further check.
        self.passed: set[tuple[Any, ...]] = set()
        self._of_keyword = {n: k for n, k in self.kinds.items() if n != gathered}
        for name, words in (kinds or {}).items():
            if name.endswith("="):
                self._of_keyword[name[:-1]] = Kind(words)
        self._of_keyword.update(
            {k: self.kinds[v] for k, v in ALIASES.items() if v in self._of_keyword}
        )

    def under(self, label: str) -> Signature:
        """The same for another name of the function."""
        alias = copy(self)
        alias.label = label
        alias.passed = set()
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
        by_type = True  # nothing but types was looked at, those of items too
        for position, name, kind in self.strict:
            if position >= count:
                break
            value = args[position]
            if type(value) not in kind.exact:
                taken = kind.take(value)
                if taken is REFUSED:
                    self._refuse(kind, name, position, value)
                by_type = by_type and taken is value and _is_known_by_items(value)
                if taken is not value:
                    args = (*args[:position], taken, *args[position + 1 :])
        if self.whole and count == len(self.names) and not kwargs:
            raise TypeError(f"{self.label}() missing required argument: {self.gathered_name!r}")
        if self.gathered is not None:
            exact = self.gathered.exact
            for value in args[len(self.names) :]:
                if type(value) not in exact:
                    by_type = False
                    args = self._check_gathered(args, self.gathered)
                    break
        for name, value in kwargs.items():
            wanted = self._of_keyword.get(name)
            if wanted is None:
                by_type = False
            elif type(value) not in wanted.exact:
                taken = self._take(wanted, ALIASES.get(name, name), None, value)
                by_type = by_type and taken is value and _is_known_by_items(value)
                if taken is not value:
                    kwargs = {**kwargs, name: taken}
        if self.forms is not None and (count, *kwargs) not in self.forms.fitting:
            self.forms.check(self.label, self.names, count, tuple(kwargs))
        if by_type:
            self.passed.add(kinds_of(args, kwargs))
        return args, kwargs

    def has_passed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call needs no check, as one with values of the same types has passed it."""
        types = types_of(args, kwargs) if kwargs else tuple(map(type, args))
        if types in self.passed:
            return True
        return (tuple in types or list in types) and kinds_of(args, kwargs) in self.passed

    def _check_gathered(self, args: tuple[Any, ...], kind: Kind) -> tuple[Any, ...]:
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

    def _take(self, kind: Kind, name: str, position: int | None, value: Any) -> Any:
        taken = kind.take(value)
        if taken is REFUSED:
            self._refuse(kind, name, position, value)
        return taken

    def _refuse(self, kind: Kind, name: str, position: int | None, value: Any) -> None:
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


def types_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What `Signature.passed` knows of a call."""
    return (*map(type, args), *kwargs, *map(type, kwargs.values()))


_SEQUENCES = frozenset([tuple, list])
#: Types of items by which all that a check looks at in a sequence is known.
_ITEMS = frozenset([int, Tensor])


def _is_known_by_items(value: Any) -> bool:
    return type(value) in _SEQUENCES and _ITEMS.issuperset(map(type, value))


def kinds_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """As `types_of`, with the types of items in the place of that of a tuple or list."""
    values = (*args, *kwargs.values()) if kwargs else args
    kinds = [frozenset(map(type, v)) if type(v) in _SEQUENCES else type(v) for v in values]
    return (*kinds[: len(args)], *kwargs, *kinds[len(args) :]) if kwargs else tuple(kinds)


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
    has_passed = signature.has_passed

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not has_passed(args, kwargs):
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
