"""Whether everything that a recording depends on is as it was.

Owns: `guard`, `reach_guard`, `Unchanged`. Must not know: recordings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.compiler.kinds import modes
from dptrain.compiler.state import Survey, is_plain
from dptrain.compiler.writing import Writer
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor


def _differs(found: Any, value: Any) -> bool:
    """Whether a plain value is another one now."""
    if found is value:
        return False
    return not is_plain(value) or type(found) is not type(value) or not _equal(found, value)


def _equal(found: Any, value: Any) -> bool:
    try:
        return bool(found == value)
    except (TypeError, ValueError):
        return False


def guard(
    tensors: list[tuple[Tensor, Any, bool]],
    unwatched: list[tuple[Tensor, str]],
    starts: list[tuple[Tensor, Any]],
    generator: Any,
    found: Survey,
) -> Callable[[], bool]:
    """The function that says whether tensors and everything in reach are as they were.

    Args:
        tensors: (tensor, its array, its `requires_grad`).
        unwatched: (tensor, attribute): hooks that there must not be.
        starts: (tensor, its `.grad`).
        generator: the default generator; None if nothing depends on it.
        found: what else is in reach.
    """
    writer = Writer()
    name = writer.name
    tests = []
    for tensor, array, wanted in tensors:
        held = name(tensor)
        tests.append(f"{held}._array is not {name(array)}")
        tests.append(f"{held}._requires_grad is not {wanted!r}")
        tests.append(f"{held}._node is not None")
    tests += [f"{name(tensor)}.{hooks}" for tensor, hooks in unwatched]
    tests += [f"{name(tensor)}._grad is not {name(grad)}" for tensor, grad in starts]
    if generator is not None:
        tests.append(f"{name(default_generator)}() is not {name(generator)}")
    return _check(writer, [*tests, *_reach_tests(writer, found)])


def reach_guard(found: Survey) -> Callable[[], bool]:
    """The function that says whether plain values and objects in reach are as they were."""
    writer = Writer()
    return _check(writer, _reach_tests(writer, found))


class Unchanged:
    """What a call has changed in its reach since this was made, which a replay would not change.

    Attributes:
        holds: whether plain values and objects in reach are as they were.
    """

    def __init__(self, found: Survey) -> None:
        self.holds, self._modes = reach_guard(found), modes()

    def reason(self) -> str | None:
        """Why the call cannot be replayed, if so."""
        if not self.holds():
            return "it changes a plain value, an object or a container in its reach"
        if self._modes != modes():
            return "it changes a mode (gradients, autocast, threads, default dtype)"
        return None


def _reach_tests(writer: Writer, found: Survey) -> list[str]:
    """Expressions that are true where something in reach has changed."""
    name, differs = writer.name, writer.name(_differs, "f")
    tests = []
    for container, size in found.sizes:
        tests.append(f"len({name(container)}) != {size}" if size else name(container))
    for container, key, value in found.same:
        tests.append(f"{name(container)}[{writer.key(key)}] is not {name(value)}")
    for function, code in found.codes:
        tests.append(f"{name(function)}.__code__ is not {name(code)}")
    places = [(f"{name(c)}[{writer.key(k)}]", value) for c, k, value in found.plain]
    for place, value in places + [(f"{name(c)}.cell_contents", v) for c, v in found.cells]:
        held = repr(value) if value is None or type(value) is bool else writer.value(value)
        tests.append(f"({place} is not {held} and {differs}({place}, {held}))")
    return tests


def _check(writer: Writer, tests: list[str]) -> Callable[[], bool]:
    """The tests as a function, written out, as it runs at each call."""
    for i in range(0, len(tests), 200):
        writer.lines.append(f"if {' or '.join(tests[i : i + 200])}: return False")
    writer.lines.append("return True")
    check = writer.made("")

    def holds() -> bool:
        try:
            return bool(check())
        except (LookupError, ValueError):  # an item that is gone, an empty cell
            return False

    return holds
