"""Operations that give views, as functions that give copies (`transpose_copy`), and unsafe twins of splits.

Owns: these names. Must not know: how a view is made; the operations do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.core import ops as _ops  # binds the methods  # noqa: F401
from dptrain.core.tensor import Tensor
from dptrain.core.typed import check_tensor

_VIEWS = [
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "narrow",
    "permute",
    "select",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
]


def _copying(name: str) -> Callable[..., Any]:
    look = getattr(Tensor, name)

    def copy(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        check_tensor(f"{name}_copy", input)
        found = look(input, *args, **kwargs)
        return found.clone() if isinstance(found, Tensor) else tuple(v.clone() for v in found)

    copy.__name__ = copy.__qualname__ = f"{name}_copy"
    copy.__doc__ = f"As `{name}`, with memory of its own."
    return copy


def _unsafe(name: str) -> Callable[..., Any]:
    split = getattr(Tensor, name)

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        check_tensor(f"unsafe_{name}", input)
        return split(input, *args, **kwargs)

    function.__name__ = function.__qualname__ = f"unsafe_{name}"
    function.__doc__ = f"As `{name}`."
    return function


#: Public name -> function.
COPIES = {f"{name}_copy": _copying(name) for name in _VIEWS} | {
    f"unsafe_{name}": _unsafe(name) for name in ("chunk", "split", "split_with_sizes")
}
for _name in ("narrow_copy", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"):
    setattr(Tensor, _name, COPIES[_name])
