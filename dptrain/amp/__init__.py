"""PyTorch's public place `torch.amp` for mixed precision; re-exports and nothing else.

`autocast` lives in `dptrain.core`, `GradScaler` in `dptrain.optim`; resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "GradScaler": "dptrain.optim.grad_scaler",
    "autocast": "dptrain.core.autocast",
    "custom_bwd": "dptrain.core.autocast_function",
    "custom_fwd": "dptrain.core.autocast_function",
    "is_autocast_available": "dptrain.core.autocast",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_PLACES)
