"""PyTorch's public place `torch.cuda.amp`, the older forms of `torch.amp`; re-exports and nothing else."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "GradScaler": ("dptrain.optim.grad_scaler", "CudaGradScaler"),
    "autocast": ("dptrain.core.autocast_older", "CudaAutocast"),
    "custom_bwd": ("dptrain.core.autocast_older", "cuda_custom_bwd"),
    "custom_fwd": ("dptrain.core.autocast_older", "cuda_custom_fwd"),
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, found = _PLACES[name]
        return getattr(import_module(module), found)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_PLACES)
