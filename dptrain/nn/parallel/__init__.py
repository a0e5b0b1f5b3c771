"""The place where PyTorch has its data-parallel wrappers; they live in `dptrain.parallel`.

Resolved on first use: importing `dptrain.nn` must not load the rooms above it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = (
    "DataParallel",
    "DistributedDataParallel",
    "SyncBatchNorm",
    "data_parallel",
    "gather",
    "parallel_apply",
    "replicate",
    "scatter",
)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module("dptrain.parallel"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
