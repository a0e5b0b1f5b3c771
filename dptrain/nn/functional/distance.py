"""Lengths, angles and distances along a dimension."""

from __future__ import annotations

from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.linalg_norm import VectorNorm, clamp_below
from dptrain.core.tensor import Tensor

pdist = FUNCTIONS["pdist"]


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """`input` divided by max(its p-norm along `dim`, eps)."""
    result = input / clamp_below(VectorNorm.apply(input, p, dim, True), eps)
    return result if out is None else out.resize_(result.shape).copy_(result)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle along `dim`; each norm is at least `eps`. The shapes broadcast."""
    if not eps >= 0:
        raise RuntimeError(f"cosine_similarity: eps must be non-negative, got: {eps}")
    for x in (x1, x2):
        if not x.is_floating_point():
            raise RuntimeError(
                f"cosine_similarity: expected floating point tensors, got {x1.dtype} and {x2.dtype}"
            )
    # Broadcast first: `dim` counts the dimensions of the result.
    if x1._array.shape != x2._array.shape:
        shape = (x1.detach() + x2.detach()).shape
        x1, x2 = x1.expand(*shape), x2.expand(*shape)
    lengths = [clamp_below(VectorNorm.apply(x, 2.0, dim, True), eps) for x in (x1, x2)]
    return ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """The p-norm of x1 - x2 + eps along the last dimension. The shapes broadcast."""
    return VectorNorm.apply(x1 - x2 + eps, p, -1, keepdim)
