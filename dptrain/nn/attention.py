"""PyTorch's `torch.nn.attention`: which implementation of attention may run.

There is one here; it stands for PyTorch's `MATH` and, as PyTorch's own on the CPU, for
`FLASH_ATTENTION`. Where neither is allowed, `scaled_dot_product_attention` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from dptrain.nn.functional.attention import allowed


class SDPBackend(IntEnum):
    """The implementations that PyTorch knows."""

    ERROR = -1
    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3
    OVERRIDEABLE = 4

    def __str__(self) -> str:
        return f"SDPBackend.{self.name}"


@contextmanager
def sdpa_kernel(backends: Any, set_priority: bool = False) -> Iterator[Any]:
    """Allow only these implementations inside the `with` block.

    Args:
        backends: one or several.
        set_priority: accepted for PyTorch's sake; there is nothing to order.

    Raises:
        AssertionError: something else than these.
    """
    if not isinstance(backends, (list, SDPBackend)):
        raise AssertionError(
            f"Backend must be an instance of SDPBackend or a list of SDPBackend instances, got {type(backends).__name__}"
        )
    chosen = [backends] if isinstance(backends, SDPBackend) else backends
    token = allowed.set(any(b in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION) for b in chosen))
    try:
        yield {}
    finally:
        allowed.reset(token)
