"""PyTorch's public places `torch.utils.*` for things that live elsewhere; re-exports and nothing else.

Resolved on first use, so that importing one does not load the rooms of the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = ("checkpoint", "data", "dlpack", "hooks", "model_zoo", "tensorboard")


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return import_module(f"dptrain.utils.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
