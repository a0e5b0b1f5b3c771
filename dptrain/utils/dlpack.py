"""`torch.utils.dlpack`'s names: memory lent to other libraries and borrowed from them."""

from __future__ import annotations

from typing import Any

from dptrain.core.lent_memory import from_dlpack
from dptrain.core.tensor import Tensor

__all__ = ["from_dlpack", "to_dlpack"]


def to_dlpack(tensor: Tensor) -> Any:
    """A capsule that lends the memory of a tensor."""
    return tensor.__dlpack__()
