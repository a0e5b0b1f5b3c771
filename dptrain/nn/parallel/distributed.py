"""PyTorch's module of DistributedDataParallel, which lives in `dptrain.parallel`."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "DistributedDataParallel":
        return import_module("dptrain.parallel").DistributedDataParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
