"""Flags of cuDNN. They may be set as in PyTorch; on the CPU nothing reads them."""

from collections.abc import Iterator
from contextlib import contextmanager

enabled = True
benchmark = False
deterministic = False
allow_tf32 = True


def is_available() -> bool:
    """False: this version computes on the CPU only."""
    return False


def version() -> int | None:
    """None: there is no cuDNN."""
    return None


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
