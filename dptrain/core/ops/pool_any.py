"""Adaptive averages, and the positions of maxima: a maximum is found by position and then picked.

Pools that hand out no positions have kernels (`pool.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from dptrain.core.argument_kinds import is_int
from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.export import export
from dptrain.core.half import lift
from dptrain.core.op import Op
from dptrain.core.ops.conv import batched
from dptrain.core.ops.pick import Pick
from dptrain.core.ops.pool import AvgPool, pool_window
from dptrain.core.ops.stencil import Stencil, check_floating, windows
from dptrain.core.ops.windows import Sizes, Window
from dptrain.core.tensor import Tensor, wrap


def planes(input: Tensor, rank: int) -> tuple[Tensor, Sizes]:
    """(N, C, *sizes) as (N * C, positions), and the sizes."""
    sizes = tuple(int(s) for s in input.shape[-rank:])
    return input.reshape(math.prod(input.shape[:-rank]), math.prod(sizes)), sizes


def max_positions(rows: np.ndarray, sizes: Sizes, outs: Sizes, window: Window) -> np.ndarray:
    """Where the largest value of each window stands: (R, positions) -> (R, prod(outs)).

    The first of equal values counts; NaN counts as larger than everything, the last of them.
    """
    x = rows.reshape(len(rows), *sizes)
    least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    xp = namespace_of(rows)
    best = xp.full((len(rows), *outs), least, x.dtype)
    where = xp.full(best.shape, -1, np.int64)
    every = xp.arange(len(rows))
    for taps in product(*(range(k) for k in window.kernel)):
        places = [
            np.arange(o) * s - p + t * d
            for o, s, p, d, t in zip(
                outs, window.stride, window.padding, window.dilation, taps, strict=True
            )
        ]
        # The windows that have an element of the image at this tap.
        inside = [np.flatnonzero((p >= 0) & (p < s)) for p, s in zip(places, sizes, strict=True)]
        if any(not len(i) for i in inside):
            continue
        kept = [p[i] for p, i in zip(places, inside, strict=True)]
        here = np.ix_(every, *map(xp.asarray, inside))
        value, held = x[np.ix_(every, *map(xp.asarray, kept))], best[here]
        number = xp.asarray(np.ravel_multi_index(np.ix_(*kept), sizes))
        seen = where[here]
        # NaN differs from itself; integers have none.
        better = (value > held) | (value != value) | (seen < 0)
        best[here] = np.where(better, value, held)
        where[here] = np.where(better, number, seen)
    return where.reshape(len(rows), math.prod(outs))


def max_pool(op: str, rank: int, input: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The largest value of each window, and where it stands (row-major over the sizes)."""
    x = batched(op, input, rank)
    window, outs = pool_window(op, rank, x, *options)
    rows, sizes = planes(x, rank)
    where = max_positions(rows._array, sizes, outs, window)
    shape = (*input.shape[:-rank], *outs)
    return Pick.apply(rows, where).reshape(shape), wrap(where.reshape(shape))


def output_sizes(op: str, output_size: Any, rank: int, input: Tensor) -> Sizes:
    """The sizes asked for; None keeps the input's.

    Raises:
        ValueError: several sizes for too few dimensions.
        RuntimeError: not one size, or one per dimension.
    """
    several = isinstance(output_size, (tuple, list))
    for i, size in enumerate(output_size if several else (output_size,)):
        if not (is_int(size) or (several and (size is None or (i and isinstance(size, bool))))):
            raise TypeError(
                f"{op}(): argument 'output_size' must be int or tuple of ints, not {output_size!r}"
            )
    if several and rank > 1 and input.ndim <= len(output_size):
        raise ValueError(
            f"{op}: Input dimension should be at least {len(output_size) + 1}, got shape {list(input.shape)}"
        )
    batched(op, input, rank)
    wanted = tuple(output_size) if several else (output_size,) * rank
    if len(wanted) != rank:
        raise RuntimeError(f"{op}: output_size must have {rank} sizes, got {output_size!r}")
    sizes = tuple(
        int(s) if w is None else int(w) for w, s in zip(wanted, input.shape[-rank:], strict=True)
    )
    if min(sizes) < 0:
        raise RuntimeError(
            f"{op}: elements of output_size must be greater than or equal to 0, got {sizes}"
        )
    if 0 in input.shape[-rank:]:
        raise RuntimeError(
            f"{op}: Expected input to have non-zero size for non-batch dimensions, but input has sizes "
            f"{list(input.shape)}"
        )
    return sizes


def adaptive_spans(size: int, out: int) -> tuple[Any, Any]:
    """Start and end of the `out` windows that cover `size` entries."""
    i = np.arange(out)
    return i * size // max(out, 1), -(-(i + 1) * size // max(out, 1))


def _mean_image(images: Tensor, rank: int) -> Tensor:
    """The mean over all positions on a GPU, of images as they lie there: (N, C, H, W) -> (N, C, 1, 1)."""
    sizes = images._array.shape[2:]
    window = Window(sizes, sizes, (0, 0), (1, 1))
    out = AvgPool.apply(images, window, (1, 1), float(math.prod(sizes)))
    if out._node is not None:
        out._node.backward_name = "MeanBackward1"
    return out if rank == 4 else out.squeeze(0)


def _adaptive_avg(rank: int) -> Callable[..., Any]:
    op = f"adaptive_avg_pool{rank}d"

    def pool(input: Any, output_size: Any) -> Any:
        wanted = output_sizes(op, output_size, rank, input)
        if wanted == (1, 1) and on_gpu(input._array) and input.is_floating_point():
            return _mean_image(batched(op, input, rank), input.ndim)
        out = lift(batched(op, input, rank))
        dims = tuple(range(2, rank + 2))
        check_floating(op, input)
        if wanted == (1,) * rank:
            out = out.mean(dims, keepdim=True)
        else:
            for dim, size in zip(dims, wanted, strict=True):
                entries = int(out.shape[dim])
                start, end = adaptive_spans(entries, size)
                out = Stencil.apply(out, dim, windows(start, end, 1 / (end - start), entries))
        out = out.to(input.dtype)
        return out if input.ndim == rank + 2 else out.squeeze(0)

    pool.__doc__ = f"""Means over windows that divide the input evenly: (N, C, *sizes) -> (N, C, *output_size).

    Args:
        input: {rank} sizes behind the channels; also unbatched.
        output_size: one number or one per dimension; None keeps a size.

    Raises:
        RuntimeError: sizes that do not fit.
    """
    return pool


class MaxUnpool(Op):
    """Values stored at positions of a larger plane of zeros: (R, k) -> (R, size)."""

    def forward(self, input: Any, index: Any, size: int) -> Any:
        self.index = index
        out = self.xp.zeros((len(index), size), input.dtype)
        np.put_along_axis(out, index, input, axis=1)
        return out

    def backward(self, grad: Any) -> Any:
        return Pick.call(grad, self.index)


for _rank in (1, 2, 3):
    export(f"adaptive_avg_pool{_rank}d", function=_adaptive_avg(_rank))(Stencil)
