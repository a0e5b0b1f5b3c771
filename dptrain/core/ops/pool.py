"""Max and average pooling over one to three dimensions; each scatter is the transpose of its gather, so both differentiate.

A pool over volumes is one over the planes, then one over the depth: of equal values the first still counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.arrays import as_array, namespace_of, on_gpu
from dptrain.core.export import export
from dptrain.core.half import computed_in, lifted_after_all
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.reference import Geometry
from dptrain.core.op import Op
from dptrain.core.ops.activation import Rectifying
from dptrain.core.ops.conv import batched
from dptrain.core.ops.windows import Sizes, Window, channels_first, channels_last, sizes_of
from dptrain.core.pending import Pending, record
from dptrain.core.tensor import Tensor


def _out_size(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * pad - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    # A window that starts in the border after the image does not count.
    return out - 1 if ceil_mode and (out - 1) * stride >= size + pad else out


def pool_window(
    op: str,
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> tuple[Window, Sizes]:
    """The window of a pool over the last `rank` dimensions and the sizes of its result.

    Raises:
        RuntimeError: sizes that do not fit.
    """
    sizes: Any = kernel_size, stride, padding, dilation
    if list in map(type, sizes):
        sizes = (tuple(s) if isinstance(s, list) else s for s in sizes)
    return _window(op, rank, tuple(input.shape), *sizes, ceil_mode)


@lru_cache(maxsize=1024)  # asked by every pool
def _window(
    op: str,
    rank: int,
    shape: Sizes,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
) -> tuple[Window, Sizes]:
    kernel = sizes_of(kernel, rank, op, "kernel_size")
    step = kernel if stride in (None, ()) else sizes_of(stride, rank, op, "stride")
    pad, gap = sizes_of(padding, rank, op, "padding"), sizes_of(dilation, rank, op, "dilation")
    window = Window(kernel, step, pad, gap)
    if 0 in shape[1:]:
        raise RuntimeError(
            f"{op}: Expected input's non-batch dimensions to have positive length, but input has a shape of "
            f"{list(shape)}"
        )
    if min(kernel) < 1 or min(step) < 1 or min(gap) < 1:
        raise RuntimeError(
            f"{op}: kernel_size, stride and dilation must be greater than zero, got {kernel}, {step}, {gap}"
        )
    if any(not 0 <= p <= k // 2 for p, k in zip(pad, kernel, strict=True)):
        raise RuntimeError(
            f"{op}: pad should be non-negative and at most half of kernel size, got padding={pad}, kernel_size={kernel}"
        )
    outs = tuple(
        _out_size(s, k, st, p, d, ceil_mode)
        for s, k, st, p, d in zip(shape[-len(kernel) :], *window, strict=True)
    )
    if min(outs) < 1:
        raise RuntimeError(
            f"{op}: given input size {list(shape)} and kernel_size={kernel}, the output size "
            f"({' x '.join(str(o) for o in outs)}) is too small"
        )
    return window, outs


class Pass(NamedTuple):
    """A pool over images, as the kernels take it."""

    image: tuple[int, int, int, int]
    out_h: int
    out_w: int
    geometry: Geometry

    @property
    def overlaps(self) -> bool:
        """Whether an element may be in several windows."""
        kh, kw, sh, sw = self.geometry[:4]
        return kh > sh or kw > sw


@lru_cache(maxsize=1024)
def passes_of(shape: Sizes, window: Window, outs: Sizes) -> tuple[Pass, ...]:
    """The pools over images that make one over (N, C, *sizes); a line is an image of height one."""
    n, c, *sizes = shape
    if len(sizes) < 3:
        h, w = (1, *sizes)[-2:]
        out_h, out_w = (1, *outs)[-2:]
        return (Pass((n, h, w, c), out_h, out_w, window.geometry()),)
    (d, h, w), (out_d, out_h, out_w) = sizes, outs
    deep, flat = Window(*(v[:1] for v in window)), Window(*(v[1:] for v in window))
    k, s, p, g = (v[0] for v in deep)
    planes = Pass((n * d, h, w, c), out_h, out_w, flat.geometry())
    lines = Pass((n, d, out_h * out_w, c), out_d, out_h * out_w, (k, 1, s, 1, p, 0, g, 1))
    over_planes = flat[:3] != ((1, 1), (1, 1), (0, 0))
    over_depth = (k, s, p) != (1, 1, 0) or not over_planes
    return (planes,) * over_planes + (lines,) * over_depth


class MaxPool(Op):
    """The largest value of each window.

    Of a pending ReLU it computes both in one pass: the largest value of the ReLU's input, cut at 0. Where
    it was cut, `where` holds no place, which keeps gradients out.
    """

    joins = True
    #: The ReLU that this node was computed with.
    below: Any = None
    #: Whether backward does that one's work too.
    cut = False

    def forward(self, input: Any, window: Window, outs: Sizes, rectified: bool = False) -> Any:
        self.shape, self.rest = input.shape, (window, outs)
        more = (True,) if rectified else ()
        kernels, image, self.where = kernels_for(input), channels_last(input), []
        for shape, out_h, out_w, geometry in passes_of(tuple(input.shape), window, outs):
            image = image.reshape(shape)
            image, where = kernels.max_pool(image, out_h, out_w, geometry, *more)
            self.where.append(where)
        return _result(image, self.shape, outs)

    @classmethod
    def rectified(cls, pending: Pending, window: Window, outs: Sizes) -> Tensor:
        """The pool of a ReLU that waits, without padding."""
        op, wait = cls(), pending._wait
        op.below = wait.node
        return record(op, op.forward(wait.source, window, outs, True), pending)

    def joined(self, run: Any) -> bool:
        """See `Op.joined`: this node does the work of the next one."""
        below = self.below
        self.cut = below is not None and below.only == self.sequence and run.may_join(below)
        if self.cut:
            run.joined.add(below)
        return False

    def backward(self, grad: Any) -> Any:
        where = self.where
        if self.below is not None and (isinstance(grad, Tensor) or not self.cut):
            where = [np.maximum(w, 0) for w in where]  # of equal values the first counts
        return MaxPoolScatter.call(grad, where, self.shape, *self.rest)


def _result(image: Any, shape: Sizes, outs: Sizes) -> Any:
    """What the last pass gave as (N, C, *outs)."""
    return channels_first(image.reshape((shape[0], *outs, shape[1])))


class MaxPoolScatter(Op):
    """Each window's value at the place where its maximum stood."""

    in_float32 = halves_on_gpu = True

    def forward(self, grad: Any, where: Any, shape: Sizes, window: Window, outs: Sizes) -> Any:
        self.rest = where, shape, window, outs
        passes = passes_of(tuple(shape), window, outs)
        if len(passes) > 1 and computed_in(grad.dtype) != grad.dtype:
            return lifted_after_all(self, grad, *self.rest)
        kernels, image = kernels_for(grad), channels_last(grad)
        for pool, places in zip(reversed(passes), reversed(where), strict=True):
            sizes, out_h, out_w, geometry = pool
            image = image.reshape((sizes[0], out_h, out_w, sizes[3]))
            image = kernels.max_pool_scatter(image, places, sizes, geometry)
        return _result(image, shape, tuple(shape[2:]))

    def backward(self, grad: Any) -> Any:
        return MaxPoolGather.call(grad, *self.rest)


class MaxPoolGather(Op):
    """The value of each window at the place where its maximum stood."""

    def forward(self, input: Any, where: Any, shape: Sizes, window: Window, outs: Sizes) -> Any:
        self.rest = where, shape, window, outs
        kernels, image = kernels_for(input), channels_last(input)
        passes = passes_of(tuple(shape), window, outs)
        for (sizes, _, _, geometry), places in zip(passes, where, strict=True):
            image = kernels.max_pool_gather(image.reshape(sizes), places, geometry)
        return _result(image, shape, outs)

    def backward(self, grad: Any) -> Any:
        return MaxPoolScatter.call(grad, *self.rest)


#: The shapes of inputs and results, without a batch too.
_INPUTS = "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)"
_RESULTS = "(N, C, out)", "(N, C, oh, ow)", "(N, C, od, oh, ow)"


def _max_pool(rank: int) -> Callable[..., Any]:
    op = f"max_pool{rank}d"

    def pool(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Any:
        options = kernel_size, stride, padding, dilation, ceil_mode
        if type(input) is Pending and isinstance(input._wait, Rectifying):
            window, outs = pool_window(op, rank, input._wait, *options)
            if not any(window.padding):
                return MaxPool.rectified(input, window, outs)
        x = batched(op, input, rank)
        out = MaxPool.apply(x, *pool_window(op, rank, x, *options))
        return out if input.ndim == rank + 2 else out.squeeze(0)

    pool.__doc__ = f"""The largest value of each window: {_INPUTS[rank - 1]} -> {_RESULTS[rank - 1]}; also unbatched."""
    return pool


def _divisors(
    sizes: Sizes, outs: Sizes, window: Window, count_include_pad: bool, override: Any
) -> Any:
    """How many elements each window averages: (*outs, 1), or a single number in that many dimensions."""
    if override:
        return np.full((1,) * (len(outs) + 1), override, dtype=np.float64)
    counts = []
    for size, out, k, s, p, _ in zip(sizes, outs, *window, strict=True):
        start = np.arange(out) * s - p
        end = np.minimum(start + k, size + p)
        counts.append(
            end - start if count_include_pad else np.minimum(end, size) - np.maximum(start, 0)
        )
    product: np.ndarray = math.prod(np.ix_(*counts), start=np.ones(1))
    return product[..., None]


def divided(sums: np.ndarray, divisors: Any) -> np.ndarray:
    """The sums over their divisors; of integers cut towards zero."""
    if sums.dtype.kind == "f" and isinstance(divisors, float):
        return sums / divisors
    by = namespace_of(sums).asarray(divisors).astype(sums.dtype)
    if sums.dtype.kind == "f":
        return sums / by
    return as_array(np.sign(sums) * np.sign(by) * (np.abs(sums) // np.abs(by)))


def check_averaged(op: str, input: Any) -> None:
    """Means are taken of floating point and int64 values, as in PyTorch.

    Raises:
        NotImplementedError: another type.
    """
    if not (input.is_floating_point() or input.dtype.name == "int64"):
        raise NotImplementedError(
            f"{op}: not implemented for input of {input.dtype}; convert it with .float()"
        )


class AvgPool(Op):
    """The sum of each window over a divisor: an array of one for each, or a number."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any, window: Window, outs: Sizes, divisors: Any) -> Any:
        self.rest = (input.shape, window, outs, divisors)
        passes = passes_of(tuple(input.shape), window, outs)
        if len(passes) > 1 and computed_in(input.dtype) != input.dtype:
            return lifted_after_all(self, input, window, outs, divisors)
        kernels, image = kernels_for(input), channels_last(input)
        for sizes, out_h, out_w, geometry in passes:
            image = kernels.sum_pool(image.reshape(sizes), out_h, out_w, geometry)
        means = divided(image.reshape((len(input), *outs, input.shape[1])), divisors)
        return channels_first(_as_type(means, input.dtype))

    def backward(self, grad: Any) -> Any:
        return AvgPoolScatter.call(grad, *self.rest)


def _as_type(array: Any, kind: np.dtype[Any]) -> Any:
    return array if array.dtype == kind else kernels_for(array).convert(array, kind)


class AvgPoolScatter(Op):
    """Each window's value over its divisor, added to all its elements."""

    in_float32 = halves_on_gpu = True

    def forward(self, grad: Any, shape: Sizes, window: Window, outs: Sizes, divisors: Any) -> Any:
        self.rest = (window, outs, divisors)
        passes = passes_of(tuple(shape), window, outs)
        kind = computed_in(grad.dtype)
        if kind != grad.dtype and any(p.overlaps for p in passes):
            # Windows overlap: their shares have to be summed before they are rounded.
            return lifted_after_all(self, grad, shape, *self.rest)
        wide = _as_type(channels_last(grad), kind)
        by = divisors if isinstance(divisors, float) else self.xp.asarray(divisors.astype(kind))
        image = _as_type(wide / by, grad.dtype)
        for sizes, out_h, out_w, geometry in reversed(passes):
            image = image.reshape((sizes[0], out_h, out_w, sizes[3]))
            image = kernels_for(grad).sum_pool_scatter(image, sizes, geometry)
        return _result(image, shape, tuple(shape[2:]))

    def backward(self, grad: Any) -> Any:
        return AvgPool.call(grad, *self.rest)


def averaged(
    op: str, input: Any, rank: int, options: tuple[Any, ...], include: bool, override: Any = None
) -> Any:
    """The mean of each window of `pool_window`'s options.

    Raises:
        RuntimeError, NotImplementedError: sizes or types that do not fit.
    """
    if override == 0:
        raise RuntimeError(f"{op}: divisor must be not zero")
    x = batched(op, input, rank)
    check_averaged(op, input)
    window, outs = pool_window(op, rank, x, *options)
    counts = _divisors(tuple(x.shape[2:]), outs, window, include, override)
    out = AvgPool.apply(x, window, outs, _beside(x._array, counts))
    return out if input.ndim == rank + 2 else out.squeeze(0)


def _avg_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window: (N, C, L) -> (N, C, out); also unbatched."""
    options = kernel_size, stride, padding, 1, ceil_mode
    return averaged("avg_pool1d", input, 1, options, count_include_pad)


def _avg_pool(rank: int) -> Callable[..., Any]:
    op = f"avg_pool{rank}d"

    def pool(
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        options = kernel_size, stride, padding, 1, ceil_mode
        return averaged(op, input, rank, options, count_include_pad, divisor_override)

    pool.__doc__ = (
        f"""The mean of each window: {_INPUTS[rank - 1]} -> {_RESULTS[rank - 1]}; also unbatched."""
    )
    return pool


def _beside(image: Any, divisors: np.ndarray) -> Any:
    """The divisors where the image is; a GPU gets no copy where one number says all."""
    if on_gpu(image) and image.dtype.kind in "fV" and (divisors == divisors.flat[0]).all():
        return float(divisors.flat[0])
    return namespace_of(image).asarray(divisors)


for _rank in (2, 1, 3):
    export(f"max_pool{_rank}d", function=_max_pool(_rank))(MaxPool)
export("avg_pool2d", function=_avg_pool(2))(AvgPool)
export("avg_pool1d", function=_avg_pool1d)(AvgPool)
export("avg_pool3d", function=_avg_pool(3))(AvgPool)
