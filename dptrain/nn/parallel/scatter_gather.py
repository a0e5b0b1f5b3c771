"""PyTorch's module of scattering and gathering, which live in `dptrain.parallel`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("gather", "scatter", "scatter_kwargs"):
        return getattr(import_module("dptrain.parallel.scatter_gather"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
