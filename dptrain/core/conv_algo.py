"""Which algorithms of convolution may be used: the switch behind `dptrain.backends.conv_algo`.

Owns: the restriction. The choice within it is `dptrain.core.kernels.convolution`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: "auto", or "direct" for convolutions without transforms (whose rounding is that of plain sums).
ALGORITHMS = ("auto", "direct")
_pinned = "auto"


def set_conv_algo(name: str) -> None:
    """Restrict the choice from here on, in the whole process.

    Raises:
        ValueError: no such restriction.
    """
    global _pinned
    if name not in ALGORITHMS:
        raise ValueError(f"conv_algo must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    _pinned = name


def get_conv_algo() -> str:
    """What the choice is restricted to."""
    return _pinned


@contextmanager
def pinned(name: str) -> Iterator[None]:
    """Restrict the choice within a `with` block."""
    before = _pinned
    set_conv_algo(name)
    try:
        yield
    finally:
        set_conv_algo(before)
