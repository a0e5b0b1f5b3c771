"""2-d max and average pooling; each scatter is the transpose of its gather, so both differentiate."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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


class MaxPool2d(Op):
    """The largest value of each window.

    Of a pending ReLU it computes both in one pass: the largest value of the ReLU's input, cut at 0. Where
    it was cut, `where` holds no place, which keeps gradients out.
    """

    name = "max_pool2d"
    joins = True
    #: The ReLU that this node was computed with.
    below: Any = None
    #: Whether backward does that one's work too.
    cut = False

    def forward(
        self, input: Any, geometry: Geometry, oh: int, ow: int, rectified: bool = False
    ) -> Any:
        self.geometry, self.shape = geometry, input.shape
        more = (True,) if rectified else ()
        out, self.where = kernels_for(input).max_pool(channels_last(input), oh, ow, geometry, *more)
        return channels_first(out)

    @classmethod
    def rectified(cls, pending: Pending, geometry: Geometry, oh: int, ow: int) -> Tensor:
        """The pool of a ReLU that waits, without padding."""
        op, wait = cls(), pending._wait
        op.below = wait.node
        return record(op, op.forward(wait.source, geometry, oh, ow, True), pending)

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
            where = np.maximum(where, 0)  # of equal values the first counts
        return MaxPoolScatter.call(grad, where, self.shape, self.geometry)


class MaxPoolScatter(Op):
    """Each window's value at the place where its maximum stood."""

    in_float32 = halves_on_gpu = True

    def forward(self, grad: Any, where: Any, shape: tuple[int, ...], geometry: Geometry) -> Any:
        self.where, self.shape, self.geometry = where, shape, geometry
        n, c, h, w = shape
        out = kernels_for(grad).max_pool_scatter(channels_last(grad), where, (n, h, w, c), geometry)
        return channels_first(out)

    def backward(self, grad: Any) -> Any:
        return MaxPoolGather.call(grad, self.where, self.shape, self.geometry)


class MaxPoolGather(Op):
    """The value of each window at the place where its maximum stood."""

    def forward(self, input: Any, where: Any, shape: tuple[int, ...], geometry: Geometry) -> Any:
        self.where, self.shape, self.geometry = where, shape, geometry
        return channels_first(
            kernels_for(input).max_pool_gather(channels_last(input), where, geometry)
        )

    def backward(self, grad: Any) -> Any:
        return MaxPoolScatter.call(grad, self.where, self.shape, self.geometry)


def _max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """The largest value of each window: (N, C, H, W) -> (N, C, oh, ow); also unbatched."""
    if type(input) is Pending and isinstance(input._wait, Rectifying):
        window, outs = pool_window(
            "max_pool2d", 2, input._wait, kernel_size, stride, padding, dilation, ceil_mode
        )
        if not any(window.padding):
            return MaxPool2d.rectified(input, window.geometry(), *outs)
    x = batched("max_pool2d", input, 2)
    window, outs = pool_window(
        "max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode
    )
    out = MaxPool2d.apply(x, window.geometry(), *outs)
    return out if input.ndim == 4 else out.squeeze(0)


def _divisors(
    shape: tuple[int, ...], oh: int, ow: int, g: Geometry, count_include_pad: bool, override: Any
) -> Any:
    """How many elements each window averages: (oh, ow, 1)."""
    if override:
        return np.full((1, 1, 1), override, dtype=np.float64)
    counts = []
    for size, out, k, s, p in ((shape[2], oh, g[0], g[2], g[4]), (shape[3], ow, g[1], g[3], g[5])):
        start = np.arange(out) * s - p
        end = np.minimum(start + k, size + p)
        counts.append(
            end - start if count_include_pad else np.minimum(end, size) - np.maximum(start, 0)
        )
    return (counts[0][:, None] * counts[1])[:, :, None].astype(np.float64)


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


class AvgPool2d(Op):
    """The sum of each window over a divisor: an array of one for each, or a number."""

    name = "avg_pool2d"
    in_float32 = halves_on_gpu = True

    def forward(self, input: Any, geometry: Geometry, oh: int, ow: int, divisors: Any) -> Any:
        self.rest = (input.shape, geometry, oh, ow, divisors)
        image = channels_last(input)
        sums = kernels_for(input).sum_pool(image, oh, ow, geometry)
        return channels_first(_as_type(divided(sums, divisors), input.dtype))

    def backward(self, grad: Any) -> Any:
        return AvgPoolScatter.call(grad, *self.rest)


def _as_type(array: Any, kind: np.dtype[Any]) -> Any:
    return array if array.dtype == kind else kernels_for(array).convert(array, kind)


class AvgPoolScatter(Op):
    """Each window's value over its divisor, added to all its elements."""

    in_float32 = halves_on_gpu = True

    def forward(
        self, grad: Any, shape: tuple[int, ...], geometry: Geometry, oh: int, ow: int, divisors: Any
    ) -> Any:
        self.rest = (geometry, oh, ow, divisors)
        n, c, h, w = shape
        kind = computed_in(grad.dtype)
        if kind != grad.dtype and (geometry[0] > geometry[2] or geometry[1] > geometry[3]):
            # Windows overlap: their shares have to be summed before they are rounded.
            return lifted_after_all(self, grad, shape, *self.rest)
        wide = _as_type(channels_last(grad), kind)
        by = divisors if isinstance(divisors, float) else self.xp.asarray(divisors.astype(kind))
        share = _as_type(wide / by, grad.dtype)
        return channels_first(kernels_for(grad).sum_pool_scatter(share, (n, h, w, c), geometry))

    def backward(self, grad: Any) -> Any:
        return AvgPool2d.call(grad, *self.rest)


def _avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window: (N, C, H, W) -> (N, C, oh, ow); also unbatched."""
    if divisor_override == 0:
        raise RuntimeError("avg_pool2d: divisor must be not zero")
    x = batched("avg_pool2d", input, 2)
    check_averaged("avg_pool2d", input)
    window, outs = pool_window("avg_pool2d", 2, x, kernel_size, stride, padding, 1, ceil_mode)
    geometry = window.geometry()
    oh, ow = outs
    counts = _divisors(x._array.shape, oh, ow, geometry, count_include_pad, divisor_override)
    out = AvgPool2d.apply(x, geometry, oh, ow, _beside(x._array, counts))
    return out if input.ndim == 4 else out.squeeze(0)


def _beside(image: Any, divisors: np.ndarray) -> Any:
    """The divisors where the image is; a GPU gets no copy where one number says all."""
    if on_gpu(image) and image.dtype.kind in "fV" and (divisors == divisors.flat[0]).all():
        return float(divisors.flat[0])
    return namespace_of(image).asarray(divisors)


export("max_pool2d", function=_max_pool2d)(MaxPool2d)
export("avg_pool2d", function=_avg_pool2d)(AvgPool2d)
