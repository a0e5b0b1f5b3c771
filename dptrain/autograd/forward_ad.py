"""`torch.autograd.forward_ad`: tensors that carry a direction, and results with their derivative along it.

Owns: dual tensors and their levels. Must not know: any operation.

A dual tensor is a point of the graph; the derivative along the directions is computed when it is asked
for, by differentiating a vector-Jacobian product by its vector. What runs under `no_grad` therefore
carries no direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from dptrain.autograd.points import derivatives, seen_outside
from dptrain.core.creation import zeros_like
from dptrain.core.engine import grad
from dptrain.core.grad_mode import enable_grad, is_grad_enabled
from dptrain.core.tensor import Tensor

__all__ = [
    "UnpackedDualTensor",
    "dual_level",
    "enter_dual_level",
    "exit_dual_level",
    "make_dual",
    "unpack_dual",
]

#: The dual tensors of the current level, with their directions; None outside of any.
_duals: ContextVar[list[tuple[Tensor, Tensor]] | None] = ContextVar("duals", default=None)


class UnpackedDualTensor(NamedTuple):
    """A value, and its derivative along the directions of the level (None: it does not depend)."""

    primal: Tensor
    tangent: Tensor | None


def enter_dual_level() -> int:
    """Begin a level, in which dual tensors can be made.

    Raises:
        RuntimeError: there is one already.
    """
    if _duals.get() is not None:
        raise RuntimeError("Nested forward mode AD is not supported at the moment")
    _duals.set([])
    return 0


def exit_dual_level(*, level: int | None = None) -> None:
    """End the level; its dual tensors carry no direction any more.

    Raises:
        RuntimeError: there is none.
    """
    if _duals.get() is None:
        raise RuntimeError(
            "Trying to exit a forward AD level that was not entered: no level exists"
        )
    _duals.set(None)


@contextmanager
def dual_level() -> Iterator[int]:
    """A level for the `with` block."""
    level = enter_dual_level()
    try:
        yield level
    finally:
        exit_dual_level(level=level)


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """The tensor with a direction.

    Args:
        tensor: the value.
        tangent: the direction, of the same shape and dtype.
        level: the level; there is only one.

    Raises:
        RuntimeError: outside of a level, or another shape.
        ValueError: not of a floating point type.
    """
    duals = _duals.get()
    if duals is None:
        raise RuntimeError(
            "Trying to create a dual Tensor for forward AD but no level exists, make sure to enter_dual_level() first."
        )
    for name, value in (("primal", tensor), ("tangent", tangent)):
        if not value.dtype.is_floating_point:
            raise ValueError(
                f"Expected {name} to be floating point or complex, but got: {value.dtype}"
            )
    if tensor.shape != tangent.shape:
        raise RuntimeError(
            "Trying to set a forward gradient that has a different size than that of the original Tensor, this is not "
            f"supported. Tensor is of size {list(tensor.shape)} while the given forward gradient is of size "
            f"{list(tangent.shape)}."
        )
    connected = tensor.requires_grad and is_grad_enabled()
    point: Tensor = tensor.view_as(tensor) if connected else tensor.detach().requires_grad_()
    duals.append((point, tangent))
    return point


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """A tensor's value, and its derivative along the directions of the level."""
    duals = _duals.get()
    if not duals or not tensor.requires_grad:
        return UnpackedDualTensor(tensor, None)
    points = [point for point, _ in duals]
    with enable_grad():
        weight = zeros_like(tensor).requires_grad_()
        pulled = grad(tensor, points, weight, create_graph=True, allow_unused=True)
        used = [
            (found, tangent)
            for found, (_, tangent) in zip(pulled, duals, strict=True)
            if found is not None
        ]
        tangent = None
        if used:
            (tangent,) = derivatives([f for f, _ in used], [weight], [t for _, t in used], True)
    own: list[Any] = [*points, weight]
    recording = is_grad_enabled()
    return UnpackedDualTensor(
        seen_outside(tensor, own, recording),
        None if tangent is None else seen_outside(tangent, own, recording),
    )
