"""Vision: the names of `torchvision` that dptrain has."""

from importlib import import_module
from typing import Any

from dptrain.vision import datasets

__all__ = ["datasets", "io", "models", "ops", "transforms", "utils"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported on first use: who trains on digits needs no architectures
        return import_module(f"dptrain.vision.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
