"""`torch.utils.data`'s names; they live in `dptrain.data`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = ("_utils", "dataloader", "dataset", "distributed", "sampler")


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return import_module(f"dptrain.utils.data.{name}")
    try:
        return getattr(import_module("dptrain.data"), name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*import_module("dptrain.data").__all__, *_PLACES]
