"""Normalisation by mean and variance: one operation behind batch, layer, group, instance and RMS norm.

The input is seen in an inner shape; `axes` of it are normalised, and the affine parameters have
`affine_shape` there. Backward keeps mean and 1/std only and computes the normalised values again:
one pass over the data costs less than keeping a second copy of every activation.
Source of the derivative: Ioffe & Szegedy, "Batch normalization", 2015, section 3.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.half import computed_in, lifted_after_all
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.windows import channels_first, channels_last, is_channels_last
from dptrain.core.pending import Wait
from dptrain.core.tensor import Tensor

Shape = tuple[int, ...]


class NormSpec(NamedTuple):
    """What is normalised, and how the affine parameters lie over it."""

    inner: Shape
    axes: Shape
    affine_shape: Shape
    eps: float
    centre: bool = True


def _mean(value: Any, axes: Shape) -> Any:
    """The mean over `axes`, which stay; 0 over nothing."""
    count = math.prod(value.shape[a] for a in axes)
    return value.sum(axis=axes, keepdims=True) / max(count, 1)


class _Norm(Op):
    """(input - mean) / sqrt(var + eps) * weight + bias; a bias comes with a weight of its shape.

    `fixed` are a mean and a variance to use in place of the input's; `seen` is a list that receives
    the mean and the variance (population) that were used.
    """

    in_float32 = halves_on_gpu = True

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        spec: NormSpec,
        fixed: Any = None,
        seen: Any = None,
    ) -> Any:
        if computed_in(input.dtype) != input.dtype:
            return lifted_after_all(self, input, weight, bias, spec, fixed, seen)
        self.spec, self.fixed = spec, fixed is not None
        self.affine = None if weight is None else weight.shape
        x = input.reshape(spec.inner)
        if fixed is not None:
            mean, var = (v.reshape(spec.affine_shape).astype(x.dtype) for v in fixed)
            self.mean, self.rstd = mean, 1 / np.sqrt(var + x.dtype.type(spec.eps))
            out = x - mean
        else:
            self.mean = _mean(x, spec.axes) if spec.centre else None
            out = x - self.mean if spec.centre else x
            var = _mean(out * out, spec.axes)
            self.rstd = 1 / np.sqrt(var + x.dtype.type(spec.eps))
            if seen is not None:
                seen += [self.mean, var]
        out = out * self.rstd
        if weight is not None:
            out *= weight.reshape(spec.affine_shape)
        if bias is not None:
            out += bias.reshape(spec.affine_shape)
        return out.reshape(input.shape)

    def _normalised(self, input: Any) -> tuple[Any, Any]:
        """The normalised input and 1/std: raw from what is kept, or as part of the graph."""
        spec = self.spec
        x = input.reshape(spec.inner)
        if self.fixed or not isinstance(input, Tensor):
            mean, rstd = self.mean, self.rstd
            return (x if mean is None else x - mean) * rstd, rstd
        centred = x - _mean(x, spec.axes) if spec.centre else x
        var = _mean(centred * centred, spec.axes)
        rstd = (var + spec.eps) ** -0.5
        return centred * rstd, rstd

    def _rows(self, input: Any) -> Any:
        """The inner shape where it is a matrix whose rows are normalised, contiguous."""
        inner = self.spec.inner
        rows = input if input.shape == inner else input.reshape(inner)
        return rows if rows.flags.c_contiguous else namespace_of(input).ascontiguousarray(rows)

    def _by_images(
        self, input: Any, weight: Any, bias: Any, spec: NormSpec, groups: int, seen: Any = None
    ) -> Any:
        """The forward pass over groups of the channels of each image, in compiled passes."""
        self.spec, self.fixed = spec, False
        self.affine = None if weight is None else weight.shape
        images, shape = _as_images(input)
        out, *facts = kernels_for(images).group_norm(images, groups, weight, bias, spec.eps)
        kept = tuple(1 if axis in spec.axes else n for axis, n in enumerate(spec.inner))
        self.mean, var, self.rstd = (v.reshape(kept) for v in facts)
        if seen is not None:
            seen += [self.mean, var]
        return channels_first(out.reshape(shape))

    def _images_grad(self, grad: Any, input: Any, weight: Any) -> Any:
        images, shape = _as_images(input)
        grads, _ = _as_images(grad)
        facts = (v.reshape(len(images), -1) for v in (self.mean, self.rstd))
        out, *sums = kernels_for(grads).group_norm_grad(grads, images, weight, *facts)
        d_weight, d_bias = (None if self.affine is None else v.reshape(self.affine) for v in sums)
        return channels_first(out.reshape(shape)), d_weight, d_bias

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        spec = self.spec
        g = grad.reshape(spec.inner)
        x_hat, rstd = self._normalised(input)
        others = tuple(i for i, s in enumerate(spec.affine_shape) if s == 1)
        d_input = d_weight = d_bias = None
        if self.needs[1]:
            product = g * x_hat
            d_weight = (product.sum(axis=others) if others else product).reshape(self.affine)
        if self.needs[2]:
            d_bias = (g.sum(axis=others) if others else g).reshape(self.affine)
        if self.needs[0]:
            d = g if weight is None else g * weight.reshape(spec.affine_shape)
            if not self.fixed:
                d = d - x_hat * _mean(d * x_hat, spec.axes)
                if spec.centre:
                    d = d - _mean(d, spec.axes)
            d_input = (d * rstd).reshape(tuple(input.shape))
        return d_input, d_weight, d_bias


class NativeBatchNorm(_Norm):
    """Each channel over the batch and all positions, or (instance norm) over the positions of each sample.

    Given a list, `postponed`, it may add something to it and give a result without values (see
    `Normalising`).
    """

    name = "batch_norm"
    joins = True
    #: Number of the node that alone uses the result; see `core/pending.py`.
    only: int | None = None
    #: Whether backward receives the gradient of the result's ReLU.
    cut = False
    vectors: Any = None

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        spec: NormSpec,
        fixed: Any = None,
        seen: Any = None,
        postponed: Any = None,
    ) -> Any:
        columns = 0 in spec.axes and input.size > 0
        self.by_columns = fixed is None and columns
        self.by_images = fixed is None and 0 not in spec.axes and _served(input)
        if self.by_images:
            return self._by_images(input, weight, bias, spec, input.shape[1], seen)
        if columns and fixed is not None:
            return self._by_fixed(input, weight, bias, spec, fixed)
        if not self.by_columns:
            return super().forward(input, weight, bias, spec, fixed, seen)
        self.spec, self.fixed = spec, False
        self.affine = None if weight is None else weight.shape
        rows, shape = _as_columns(input)
        kernels = kernels_for(input)
        mean, var, rstd, self.vectors = kernels.batch_statistics(rows, weight, bias, spec.eps)
        out = np.empty_like(rows)
        if postponed is None:
            kernels.normalise(rows, self.vectors, out)
        else:
            postponed.append(True)
        self.mean, self.rstd, var = (v.reshape(spec.affine_shape) for v in (mean, rstd, var))
        if seen is not None:
            seen += [self.mean, var]
        return channels_first(out.reshape(shape))

    def _by_fixed(self, input: Any, weight: Any, bias: Any, spec: NormSpec, fixed: Any) -> Any:
        """The same in one pass; backward is that of `_Norm`, in float32."""
        self.spec, self.fixed, self.halves_on_gpu = spec, True, False
        self.affine = None if weight is None else weight.shape
        rows, shape = _as_columns(input)
        kind = computed_in(input.dtype)
        mean, var = (v.reshape(-1).astype(kind) for v in fixed)
        rstd = 1 / np.sqrt(var + kind.type(spec.eps))
        kernels, out = kernels_for(input), np.empty_like(rows)
        kernels.normalise(rows, kernels.batch_vectors(rows, mean, rstd, weight, bias), out)
        self.mean, self.rstd = (v.reshape(spec.affine_shape) for v in (mean, rstd))
        return channels_first(out.reshape(shape))

    def joined(self, run: Any) -> bool:
        """See `Op.joined`."""
        self.cut = self in run.joined
        return False

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        raw = not isinstance(grad, Tensor) and not isinstance(input, Tensor)
        if raw and self.by_images:
            return self._images_grad(grad, input, weight)
        if not raw or not self.by_columns:
            return super().backward(grad, input, weight)
        rows, shape = _as_columns(input)
        grads, _ = _as_columns(grad)
        more = (self.vectors,) if self.cut else ()
        facts = (self.mean.reshape(-1), self.rstd.reshape(-1), *more)
        out, *sums = kernels_for(grads).batch_norm_grad(grads, rows, weight, *facts)
        d_weight, d_bias = (None if self.affine is None else v.reshape(self.affine) for v in sums)
        return channels_first(out.reshape(shape)), d_weight, d_bias


class Normalising(Wait):
    """Of a result of batch norm by columns: its statistics are there, its values are not.

    Args:
        node: batch norm.
        source: its input.
        array: memory for the result.
    """

    def __init__(self, node: NativeBatchNorm, source: Any, array: Any) -> None:
        super().__init__(node, source)
        self._vectors, self._array = node.vectors, array

    def values(self, cut: bool = False, more: Any = None) -> Any:
        """The values, with `cut` those of their ReLU, or with an array of their shape added."""
        array, self._array = self._array, None
        rows, shape = _as_columns(self.source)
        # A consumer may have taken it.
        out = np.empty(shape, rows.dtype) if array is None else channels_last(array)
        added = None if more is None else _as_columns(more)[0]
        kernels_for(rows).normalise(rows, self._vectors, out.reshape(rows.shape), cut, added)
        return channels_first(out)

    def takes(self, more: Any) -> bool:
        """Whether an array can be added on the way."""
        fits = type(more) is np.ndarray and more.shape == self.shape
        return fits and more.dtype == self.source.dtype and is_channels_last(more)


def _as_columns(image: Any) -> tuple[Any, Shape]:
    """(N, C, *sizes) -> (N * sizes, C) and the shape (N, *sizes, C)."""
    last = channels_last(image)
    return last.reshape(-1, last.shape[-1]), last.shape


def _as_images(image: Any) -> tuple[Any, Shape]:
    """(N, C, *sizes) -> (N, sizes, C) and the shape (N, *sizes, C)."""
    last = channels_last(image)
    return last.reshape(len(last), -1, last.shape[-1]), last.shape


def _served(input: Any) -> bool:
    """Whether images are normalised by compiled passes, group by group."""
    return not on_gpu(input) and input.size > 0 and input.ndim < 6


class NativeLayerNorm(_Norm):
    """Each sample over its last dimensions."""

    name = "layer_norm"

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        spec: NormSpec,
        fixed: Any = None,
        seen: Any = None,
    ) -> Any:
        # As the rows of a matrix, in one compiled pass.
        self.by_rows = fixed is None and seen is None and input.size > 0 and self._served(input)
        if not self.by_rows:
            return super().forward(input, weight, bias, spec, fixed, seen)
        self.spec, self.fixed = spec, False
        self.affine = None if weight is None else weight.shape
        given = (weight, bias) if spec.centre else (weight,)
        flat = [v if v is None or v.ndim == 1 else v.reshape(-1) for v in given]
        kernels, rows = kernels_for(input), self._rows(input)
        run = kernels.layer_norm if spec.centre else kernels.rms_norm
        out, *self.facts = run(rows, *flat, spec.eps)
        return out if out.shape == input.shape else out.reshape(input.shape)

    def _served(self, input: Any) -> bool:
        return True

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        if isinstance(grad, Tensor) or isinstance(input, Tensor) or not self.by_rows:
            return super().backward(grad, input, weight)
        factor, kernels = None if weight is None else weight.reshape(-1), kernels_for(grad)
        run = kernels.layer_norm_grad if self.spec.centre else kernels.rms_norm_grad
        out, *more = run(self._rows(grad), self._rows(input), factor, *self.facts)
        affine = (None if self.affine is None else v.reshape(self.affine) for v in more)
        return (out.reshape(input.shape), *affine)


class NativeGroupNorm(_Norm):
    """Each sample over groups of channels and all positions."""

    name = "group_norm"

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        spec: NormSpec,
        fixed: Any = None,
        seen: Any = None,
    ) -> Any:
        self.by_images = fixed is None and seen is None and _served(input)
        if self.by_images:
            return self._by_images(input, weight, bias, spec, spec.inner[1])
        return super().forward(input, weight, bias, spec, fixed, seen)

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        if isinstance(grad, Tensor) or isinstance(input, Tensor) or not self.by_images:
            return super().backward(grad, input, weight)
        return self._images_grad(grad, input, weight)


class FusedRmsNorm(NativeLayerNorm):
    """Each sample over its last dimensions, by the root of the mean square alone."""

    name = "rms_norm"

    def _served(self, input: Any) -> bool:
        return on_gpu(input)
