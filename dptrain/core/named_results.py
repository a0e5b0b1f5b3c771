"""Results with named parts, which print and are found as PyTorch's `return_types`."""

from __future__ import annotations

from typing import Any, TypeVar

_C = TypeVar("_C", bound=type)

#: PyTorch's name -> class; `dptrain.return_types` lifts these into a module.
RETURN_TYPES: dict[str, type] = {}


def _text(self: Any) -> str:
    parts = ",\n".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
    return f"dptrain.return_types.{type(self).__name__}(\n{parts})"


def named_result(name: str) -> Any:
    """Give a NamedTuple the name and the text that it has among PyTorch's `return_types`."""

    def register(cls: _C) -> _C:
        cls.__name__ = cls.__qualname__ = name
        cls.__module__ = "dptrain.return_types"
        cls.__repr__ = _text  # type: ignore[assignment]
        RETURN_TYPES[name] = cls
        return cls

    return register
