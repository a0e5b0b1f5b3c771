"""Flags of cuDNN, set as in PyTorch; convolutions on GPUs read them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dptrain.core import cuda
from dptrain.core.kernels.cuda import cudnn as _cudnn

enabled = True
#: Whether the plans that cuDNN holds for the best are timed when a convolution comes first; else it chooses.
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


@contextmanager
def flags(**values: bool) -> Iterator[None]:
    """Set flags of this module inside a `with` block.

    Raises:
        TypeError: no such flag.
    """
    held = globals()
    for name in values:
        if not isinstance(held.get(name), bool):
            raise TypeError(f"flags() got an unexpected keyword argument {name!r}")
    before = {name: held[name] for name in values}
    held.update(values)
    try:
        yield
    finally:
        held.update(before)
