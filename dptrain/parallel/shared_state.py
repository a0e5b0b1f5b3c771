"""Which parameters and buffers of a module its ranks share.

Owns: `shared_parameters`, `shared_buffers`. Must not know: how they are made equal.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.tensor import Tensor

#: PyTorch's name for the list of names that stay a rank's own.
IGNORED = "_ddp_params_and_buffers_to_ignore"


def shared_parameters(module: Any) -> list[tuple[str, Tensor]]:
    """Names and parameters, without those that stay a rank's own."""
    own = set(getattr(module, IGNORED, ()))
    return [(name, p) for name, p in module.named_parameters() if name not in own]


def shared_buffers(module: Any) -> list[tuple[str, Tensor]]:
    """Names and buffers, without those that stay a rank's own."""
    if not _has_buffers(module):  # which every training forward asks
        return []
    own = set(getattr(module, IGNORED, ()))
    return [(name, b) for name, b in module.named_buffers() if name not in own]


def _has_buffers(module: Any) -> bool:
    found, seen = [module], {id(module)}
    for each in found:  # which grows on the way
        if each._buffers:
            return True
        for child in each._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return False
