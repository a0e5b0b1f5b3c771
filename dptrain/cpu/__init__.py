"""`torch.cpu`'s questions, so that code that is written for any device also runs on the host.

The host devices are one, or as many as `DPTRAIN_HOST_DEVICES` splits the host into.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.device import host_device_count
from dptrain.cpu import amp

__all__ = [
    "amp",
    "current_device",
    "device_count",
    "is_available",
    "is_initialized",
    "set_device",
    "synchronize",
]


def is_available() -> bool:
    """True: there is a host."""
    return True


def is_initialized() -> bool:
    """True: nothing has to be set up."""
    return True


def device_count() -> int:
    """Into how many devices the host is split."""
    return host_device_count()


def current_device() -> str:
    """ "cpu", as PyTorch says."""
    return "cpu"


def set_device(device: Any) -> None:
    """Does nothing: the device of a tensor is said where it is made."""


def synchronize(device: Any = None) -> None:
    """Does nothing: the host computes in order."""
