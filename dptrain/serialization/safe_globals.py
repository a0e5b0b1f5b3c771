"""What a file may name when it is loaded with `weights_only=True`.

Owns: the built-in list, the user's additions to it. Must not know: opcodes, file formats.

Values that the file counts on to be made by functions of Python's are made by functions of this
module, which refuse what would cost more than the file itself (`bytearray(10**12)`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from dptrain.core.device import device
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor
from dptrain.serialization.names import layout_by_name, parameter_class, value_globals
from dptrain.serialization.rebuild import REBUILD

#: Modules from which nothing is taken even if the user allows it.
BLOCKED_MODULES = frozenset(["sys", "os", "posix", "nt"])

_MAX_KEY_NODES = 1000
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None), complex)

_added: dict[str, Any] = {}


def add_safe_globals(
    safe_globals: list[Callable[..., Any] | tuple[Callable[..., Any], str]],
) -> None:
    """Allow classes and functions in files that are loaded with `weights_only=True`.

    Args:
        safe_globals: each a class or function, or a pair of it and the full name that files use for it.

    Raises:
        ValueError: a tuple that is no pair.
        TypeError: a pair whose second item is no string.
    """
    for item in safe_globals:
        name, value = _named(item)
        _added[name] = item
        _values[name] = value


_values: dict[str, Any] = {}


def _named(item: Any) -> tuple[str, Any]:
    if not isinstance(item, tuple):
        return f"{item.__module__}.{item.__qualname__}", item
    if len(item) != 2:
        raise ValueError(
            "Expected tuple of length 2 (global, str of callable full path), but got tuple of length: "
            f"{len(item)}"
        )
    if not isinstance(item[1], str):
        raise TypeError(
            f"Expected second item in tuple to be str of callable full path, but got: {type(item[1])}"
        )
    return item[1], item[0]


def get_safe_globals() -> list[Any]:
    """What the user allowed, in the form in which it was given."""
    return list(_added.values())


def clear_safe_globals() -> None:
    """Take back all that the user allowed."""
    _added.clear()
    _values.clear()


class safe_globals:
    """Allow classes and functions within a `with` block; see `add_safe_globals`."""

    def __init__(self, safe_globals: list[Any]) -> None:
        self.safe_globals = safe_globals

    def __enter__(self) -> None:
        add_safe_globals(self.safe_globals)

    def __exit__(self, *exc_info: object) -> None:
        for item in self.safe_globals:
            name, _ = _named(item)
            _added.pop(name, None)
            _values.pop(name, None)


def find_safe(name: str) -> Any:
    """What a full name stands for, or None if it is not allowed."""
    found = built_in().get(name)
    return _values.get(name) if found is None else found


def is_built_in(value: Any) -> bool:
    """Whether it is on the list by itself; by identity, as values may compare as they like."""
    return any(value is known for known in built_in().values())


def is_users(value: Any) -> bool:
    """Whether the user allowed it."""
    return any(value is known for known in _values.values())


@cache
def built_in() -> dict[str, Any]:
    """Full name -> what it stands for, without the user's additions."""
    return {
        "collections.OrderedDict": OrderedDict,
        "collections.Counter": Counter,
        "torch.nn.parameter.Parameter": parameter_class(),
        "torch.serialization._get_layout": layout_by_name,
        "torch.Size": _make_size,
        "torch.Tensor": Tensor,
        "torch.device": _make_device,
        "_codecs.encode": _make_bytes,
        "builtins.bytearray": _make_bytearray,
        "builtins.set": _make_set,
        "builtins.complex": complex,
        **value_globals(),
        **REBUILD,
    }


def check_key(key: Any) -> None:
    """Refuse keys whose hash is dear: a tuple that holds itself twice, forty times over, is small in a file.

    Raises:
        ValueError: a nested key of more than a thousand parts.
    """
    if type(key) in _PLAIN_KEYS:
        return
    parts = [key]
    for part in parts:  # which grows on the way
        if isinstance(part, tuple):
            if len(parts) + len(part) > _MAX_KEY_NODES:
                raise ValueError("a key of a dict or set has too many parts")
            parts += part


def _checked(items: Iterable[Any]) -> list[Any]:
    if not isinstance(items, (list, tuple, set, frozenset, dict)):
        raise TypeError(f"expected a list or a tuple, got {type(items).__name__}")
    held = list(items)
    for item in held:
        check_key(item)
    return held


def _make_set(items: Any = ()) -> set[Any]:
    return set(_checked(items))


def _make_size(items: Any = ()) -> Size:
    if not isinstance(items, (list, tuple)) or not all(type(n) is int for n in items):
        raise TypeError("torch.Size() takes an iterable of 'int'")
    return Size(items)


def _make_device(kind: Any, index: Any = None) -> device:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise TypeError("torch.device() takes a str and an int")
    return device(kind, index)


def _make_tensor(*args: Any) -> Any:
    """The class is in files as an argument; called with sizes it would ask for any amount of memory."""
    raise TypeError("torch.Tensor cannot be called from a file")


def _make_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """What `_codecs.encode` is for: bytes, which protocol 2 writes as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise TypeError("_codecs.encode is allowed for bytes written as latin1 text")
    return text.encode(encoding)


def _make_bytearray(data: Any = b"", encoding: Any = None) -> bytearray:
    if isinstance(data, str) and encoding is not None:
        return bytearray(_make_bytes(data, encoding))
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError("bytearray in a file has to be made from bytes")
    return bytearray(data)


def _make_ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    pairs = list(items.items()) if isinstance(items, dict) else _checked(items)
    for key, _ in pairs:
        check_key(key)
    return OrderedDict(pairs)


def _make_counter(items: Any = ()) -> Counter[Any]:
    return Counter(items if isinstance(items, dict) else _checked(items))


#: Classes that are called through a maker of this module, and built by their own `__new__` never.
MAKERS: dict[Any, Callable[..., Any]] = {
    OrderedDict: _make_ordered_dict,
    Counter: _make_counter,
    Tensor: _make_tensor,
}
#: Makers whose result is as large as what they are given; see the unpickler's budget.
COPYING = (
    _make_ordered_dict,
    _make_counter,
    _make_set,
    _make_size,
    _make_bytes,
    _make_bytearray,
)
