"""A pickle machine that runs nothing from the file: what `weights_only=True` loads with.

Owns: the opcodes, what each may do, the errors. Must not know: zip files, how storages are read.

Only names on the list of `safe_globals` can be called, built or filled. The machine keeps its own
stack, so that no nesting in a file reaches Python's or C's. What it allocates is bounded by the length
of the file: lengths are checked before they are used, and functions that copy what they are given work
on a budget, as one large list can be named again and again for six bytes each.

Source of the opcodes: the Python library's `pickletools`.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from struct import error as StructError
from struct import unpack
from typing import Any

from dptrain.serialization.names import modern_name, why_unsupported
from dptrain.serialization.safe_globals import (
    BLOCKED_MODULES,
    COPYING,
    MAKERS,
    check_key,
    find_safe,
    is_built_in,
    is_users,
)
from dptrain.serialization.source import Source

#: What Python raises where a pickle is damaged.
DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    StructError,
    TypeError,
    ValueError,
)
_BUDGET_FACTOR, _BUDGET_LEAST = 16, 1 << 20
_OPCODES = {ord(op.code): op.name for op in pickletools.opcodes}


def _look_up(full_name: str) -> Any:
    module = full_name.rpartition(".")[0]
    if module.partition(".")[0] in BLOCKED_MODULES:
        raise pickle.UnpicklingError(
            f"Trying to load unsupported GLOBAL {full_name} whose module {module} is blocked."
        )
    found = find_safe(full_name)
    if found is not None:
        return found
    reason = why_unsupported(full_name)
    shown = full_name.removeprefix("builtins.")
    raise pickle.UnpicklingError(
        f"Unsupported global: GLOBAL {shown} was not an allowed global by default. "
        + (
            f"The file holds {reason}."
            if reason
            else f"Please use `dptrain.serialization.add_safe_globals([{shown}])` or the "
            f"`dptrain.serialization.safe_globals([{shown}])` context manager to allow it if you trust it, "
            "or, if you trust whoever made the file, load it with weights_only=False, which can run code "
            "from the file."
        )
    )


class _Machine:
    """One pickle being read.

    Args:
        source: where it stands.
        persistent_load: gives the storage for a persistent id.
        look_up: gives what a full name stands for.
        encoding: of the byte strings of Python 2.
    """

    def __init__(
        self,
        source: Source,
        persistent_load: Callable[[Any], Any],
        look_up: Callable[[str], Any],
        encoding: str,
    ) -> None:
        self.read = source.read
        self.readline = source.readline
        self.persistent_load = persistent_load
        self.look_up = look_up
        self.encoding = encoding
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = _BUDGET_FACTOR * source.left() + _BUDGET_LEAST

    def run(self) -> Any:
        """Read to the end of the pickle and give what it holds."""
        read, table = self.read, _TABLE
        while True:
            code = read(1)[0]
            act = table.get(code)
            if act is not None:
                act(self)
            elif code == 0x2E:  # STOP
                return self.stack.pop()
            else:
                raise pickle.UnpicklingError(
                    f"Unsupported operand {code} ({_OPCODES.get(code, 'no opcode')})"
                )

    def items(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        found = self.stack
        self.stack = self.below.pop()
        return found

    def spend(self, count: int) -> None:
        """Pay for copying so many items.

        Raises:
            ValueError: there were too many for a file of this length.
        """
        self.budget -= count
        if self.budget < 0:
            raise ValueError("the file unfolds to far more than its own length")

    # ---- opcodes -----------------------------------------------------------------------------------

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def frame(self) -> None:
        self.read(8)

    def protocol(self) -> None:
        version = self.read(1)[0]
        if version > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"unsupported pickle protocol: {version}")

    def global_(self) -> None:
        module, name = self.readline().decode(), self.readline().decode()
        self.stack.append(self.look_up(modern_name(module, name)))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("STACK_GLOBAL requires str")
        self.stack.append(self.look_up(f"{module}.{name}"))

    def reduce(self) -> None:
        args, called = self.stack.pop(), self.stack[-1]
        if not (is_built_in(called) or is_users(called)):
            raise pickle.UnpicklingError(
                f"Trying to call reduce for unrecognized function {_shown(called)}"
            )
        if isinstance(called, type):
            called = MAKERS.get(called, called)
        if any(called is maker for maker in COPYING):
            self.spend(sum(len(a) for a in args if hasattr(a, "__len__")))
        self.stack[-1] = called(*args)

    def new_object(self, with_names: bool = False) -> None:
        kwargs = self.stack.pop() if with_names else {}
        args, cls = self.stack.pop(), self.stack.pop()
        if not (isinstance(cls, type) and is_users(cls)):
            raise pickle.UnpicklingError(
                f"Can only create new object for classes allowed via `add_safe_globals`, but got {_shown(cls)}"
            )
        self.stack.append(cls.__new__(cls, *args, **kwargs))

    def build(self) -> None:
        state, held = self.stack.pop(), self.stack[-1]
        if type(held) is OrderedDict:
            if not isinstance(state, dict):
                raise pickle.UnpicklingError("the attributes of an OrderedDict must be a dict")
            held.__dict__.update(state)
        elif is_users(type(held)):
            _set_state(held, state)
        else:
            raise pickle.UnpicklingError(
                "Can only build OrderedDict or types allowed via `add_safe_globals`, but got "
                f"{_shown(type(held))}"
            )

    def append(self) -> None:
        item, held = self.stack.pop(), self.stack[-1]
        if type(held) is not list:
            raise pickle.UnpicklingError(f"Can only append to lists, but got {_shown(type(held))}")
        held.append(item)

    def appends(self) -> None:
        items, held = self.items(), self.stack[-1]
        if type(held) is not list:
            raise pickle.UnpicklingError(f"Can only extend lists, but got {_shown(type(held))}")
        held.extend(items)

    def add_items(self) -> None:
        items, held = self.items(), self.stack[-1]
        if type(held) is not set:
            raise pickle.UnpicklingError(f"Can only add to sets, but got {_shown(type(held))}")
        for item in items:
            check_key(item)
            held.add(item)

    def _set_pairs(self, items: list[Any]) -> None:
        held = self.stack[-1]
        if type(held) not in (dict, OrderedDict, Counter) and not is_users(type(held)):
            raise pickle.UnpicklingError(
                f"Can only set items of dict, OrderedDict and Counter, but got {_shown(type(held))}"
            )
        if len(items) % 2:
            raise pickle.UnpicklingError("odd number of items for SETITEMS")
        for key, value in zip(items[::2], items[1::2], strict=True):
            check_key(key)
            held[key] = value

    def set_item(self) -> None:
        pair = self.stack[-2:]
        del self.stack[-2:]
        self._set_pairs(pair)

    def set_items(self) -> None:
        self._set_pairs(self.items())

    def list_(self) -> None:
        found = self.items()
        self.stack.append(found)

    def dict_(self) -> None:
        found = self.items()
        self.stack.append({})
        self._set_pairs(found)

    def tuple_(self) -> None:
        found = tuple(self.items())
        self.stack.append(found)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, form: str, width: int) -> None:
        (count,) = unpack(form, self.read(width))
        self.stack.append(str(self.read(count), "utf-8", "surrogatepass"))

    def bytes_(self, form: str, width: int) -> None:
        (count,) = unpack(form, self.read(width))
        self.stack.append(self.read(count))

    def byte_array(self) -> None:
        (count,) = unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(count)))

    def old_string(self, form: str, width: int) -> None:
        (count,) = unpack(form, self.read(width))
        if count < 0:
            raise pickle.UnpicklingError("BINSTRING of a negative length")
        data = self.read(count)
        self.stack.append(data if self.encoding == "bytes" else data.decode(self.encoding))

    def number(self, form: str, width: int) -> None:
        self.stack.append(unpack(form, self.read(width))[0])

    def long(self, form: str, width: int) -> None:
        (count,) = unpack(form, self.read(width))
        if count < 0:
            raise pickle.UnpicklingError("LONG4 of a negative length")
        self.stack.append(int.from_bytes(self.read(count), "little", signed=True))

    def get(self, form: str, width: int) -> None:
        self.stack.append(self.memo[unpack(form, self.read(width))[0]])

    def put(self, form: str, width: int) -> None:
        self.memo[unpack(form, self.read(width))[0]] = self.stack[-1]

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def pop(self) -> None:
        if self.stack:
            del self.stack[-1]
        else:
            self.items()

    def pop_mark(self) -> None:
        self.items()

    def duplicate(self) -> None:
        self.stack.append(self.stack[-1])

    def persistent(self) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))


def _set_state(held: Any, state: Any) -> None:
    """What the opcode BUILD does by the pickle protocol."""
    if hasattr(held, "__setstate__"):
        held.__setstate__(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        held.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(held, name, value)


def _shown(value: Any) -> str:
    """A short text of a class or of the kind of a value; values of a file may be long to print."""
    return value.__qualname__ if isinstance(value, type) else f"a {type(value).__name__}"


def _with(act: Callable[..., None], *args: Any) -> Callable[[_Machine], None]:
    return lambda machine: act(machine, *args)


def _pushing(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


_M = _Machine
_BY_NAME: dict[str, Callable[[_Machine], None]] = {
    "MARK": _M.mark,
    "FRAME": _M.frame,
    "PROTO": _M.protocol,
    "GLOBAL": _M.global_,
    "STACK_GLOBAL": _M.stack_global,
    "REDUCE": _M.reduce,
    "NEWOBJ": _M.new_object,
    "NEWOBJ_EX": _with(_M.new_object, True),
    "BUILD": _M.build,
    "APPEND": _M.append,
    "APPENDS": _M.appends,
    "ADDITEMS": _M.add_items,
    "SETITEM": _M.set_item,
    "SETITEMS": _M.set_items,
    "LIST": _M.list_,
    "DICT": _M.dict_,
    "TUPLE": _M.tuple_,
    "TUPLE1": _with(_M.tuple_of, 1),
    "TUPLE2": _with(_M.tuple_of, 2),
    "TUPLE3": _with(_M.tuple_of, 3),
    "NONE": _with(_M.push, None),
    "NEWTRUE": _with(_M.push, True),
    "NEWFALSE": _with(_M.push, False),
    "EMPTY_TUPLE": _with(_M.push, ()),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_SET": _pushing(set),
    "BININT": _with(_M.number, "<i", 4),
    "BININT1": _with(_M.number, "<B", 1),
    "BININT2": _with(_M.number, "<H", 2),
    "BINFLOAT": _with(_M.number, ">d", 8),
    "LONG1": _with(_M.long, "<B", 1),
    "LONG4": _with(_M.long, "<i", 4),
    "SHORT_BINUNICODE": _with(_M.text, "<B", 1),
    "BINUNICODE": _with(_M.text, "<I", 4),
    "BINUNICODE8": _with(_M.text, "<Q", 8),
    "SHORT_BINSTRING": _with(_M.old_string, "<B", 1),
    "BINSTRING": _with(_M.old_string, "<i", 4),
    "SHORT_BINBYTES": _with(_M.bytes_, "<B", 1),
    "BINBYTES": _with(_M.bytes_, "<I", 4),
    "BINBYTES8": _with(_M.bytes_, "<Q", 8),
    "BYTEARRAY8": _M.byte_array,
    "BINGET": _with(_M.get, "<B", 1),
    "LONG_BINGET": _with(_M.get, "<I", 4),
    "BINPUT": _with(_M.put, "<B", 1),
    "LONG_BINPUT": _with(_M.put, "<I", 4),
    "MEMOIZE": _M.memoize,
    "POP": _M.pop,
    "POP_MARK": _M.pop_mark,
    "DUP": _M.duplicate,
    "BINPERSID": _M.persistent,
}
_TABLE = {code: _BY_NAME[name] for code, name in _OPCODES.items() if name in _BY_NAME}


def damaged(error: Exception) -> pickle.UnpicklingError:
    """The error for a pickle that makes no sense."""
    return pickle.UnpicklingError(
        f"the pickle in the file is damaged: {type(error).__name__}: {str(error)[:200]}"
    )


def _no_storages(pid: Any) -> Any:
    raise pickle.UnpicklingError("unsupported persistent id encountered")


def load_safely(
    source: Source,
    persistent_load: Callable[[Any], Any] = _no_storages,
    encoding: str = "utf-8",
) -> Any:
    """Read one pickle without running anything from it.

    Args:
        source: where it starts; it is left where the pickle ends.
        persistent_load: gives the storage for a persistent id.
        encoding: of the byte strings of Python 2; "bytes" leaves them as they are.

    Raises:
        UnpicklingError: the pickle is damaged, or holds what is not allowed.
        EOFError: it is cut short.
        RuntimeError: it states a tensor that cannot be.
    """
    try:
        return _Machine(source, persistent_load, _look_up, encoding).run()
    except DAMAGE as error:
        raise damaged(error) from error
