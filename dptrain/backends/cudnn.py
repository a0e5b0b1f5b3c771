"""Flags of cuDNN, set as in PyTorch; convolutions on GPUs read them."""

import sys

from dptrain.core import cuda
from dptrain.core.kernels.cuda import cudnn as _cudnn

enabled = True
#: Accepted for PyTorch's sake: plans come from cuDNN's heuristics.
benchmark = False
deterministic = False
allow_tf32 = True

_cudnn.flags = sys.modules[__name__]


def is_available() -> bool:
    """Whether convolutions on a GPU run by cuDNN."""
    return cuda.device_count() > 0 and _cudnn.library() is not None


def version() -> int | None:
    """cuDNN's version (91900 is 9.19.0), None without it."""
    found = _cudnn.library() if cuda.device_count() else None
    return None if found is None else found.version()
