"""Which algorithm convolves: a pure function of operation, shapes, element type and processor.

Owns: the choice, and `pinned`. The functions are those of `reference`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from dptrain.core.kernels import depthwise, direct, reference
from dptrain.core.kernels.reference import Geometry

#: "auto", or "direct" for convolutions without transforms (whose rounding is that of plain sums).
ALGORITHMS = ("auto", "direct")
_pinned = "auto"


def set_algorithm(name: str) -> None:
    """Restrict the choice from here on, in the whole process.

    Raises:
        ValueError: no such restriction.
    """
    global _pinned
    if name not in ALGORITHMS:
        raise ValueError(f"conv_algo must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    _pinned = name


def get_algorithm() -> str:
    """What the choice is restricted to."""
    return _pinned


@contextmanager
def pinned(name: str) -> Iterator[None]:
    """Restrict the choice within a `with` block."""
    before = _pinned
    set_algorithm(name)
    try:
        yield
    finally:
        set_algorithm(before)


def algorithm(channels: int, results: int, groups: int, empty: bool) -> str:
    """The algorithm for a convolution.

    Args:
        channels, results: in all groups.
        groups: their number.
        empty: a size is 0.
    """
    if empty:
        return "reference"
    if groups == channels == results and groups > 1:
        return "depthwise"
    return "direct"


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv`."""
    x = np.ascontiguousarray(x)
    empty = 0 in x.shape or 0 in weight.shape or out_h * out_w == 0
    match algorithm(x.shape[3], weight.shape[0], groups, empty):
        case "depthwise":
            return depthwise.conv(x, weight, bias, out_h, out_w, geometry)
        case "direct":
            return direct.conv(x, weight, bias, out_h, out_w, geometry, groups)
    return reference.conv(x, weight, bias, out_h, out_w, geometry, groups)


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv_input_grad`."""
    grad = np.ascontiguousarray(grad)
    empty = 0 in shape or 0 in weight.shape or 0 in grad.shape
    match algorithm(shape[3], grad.shape[3], groups, empty):
        case "depthwise":
            return depthwise.conv_input_grad(grad, weight, bias, shape, geometry)
        case "direct":
            return direct.conv_input_grad(grad, weight, bias, shape, geometry, groups)
    return reference.conv_input_grad(grad, weight, bias, shape, geometry, groups)


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.conv_weight_grad`."""
    x, grad = np.ascontiguousarray(x), np.ascontiguousarray(grad)
    empty = 0 in x.shape or 0 in grad.shape or 0 in w_shape
    match algorithm(x.shape[3], grad.shape[3], groups, empty):
        case "depthwise":
            return depthwise.conv_weight_grad(x, grad, w_shape, geometry)
        case "direct":
            return direct.conv_weight_grad(x, grad, w_shape, geometry, groups)
    return reference.conv_weight_grad(x, grad, w_shape, geometry, groups)
