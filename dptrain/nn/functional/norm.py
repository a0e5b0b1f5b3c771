"""Normalisation: batch, layer, group, instance, RMS and local response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.dtypes import float32
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.reference_pointwise import follow
from dptrain.core.op import Op
from dptrain.core.ops.norm import (
    FusedRmsNorm,
    NativeBatchNorm,
    NativeGroupNorm,
    NativeLayerNorm,
    Normalising,
    NormSpec,
)
from dptrain.core.pending import can_wait, postpone
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.padding import pad
from dptrain.nn.functional.pooling import avg_pool1d


def _check_input(op: str, input: Any, *affine: Tensor | None) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}(): argument 'input' must be Tensor, not {type(input).__name__}")
    kind = input.dtype
    if not kind.is_floating_point:
        raise RuntimeError(
            f"{op}: not implemented for input of {input.dtype}; convert it with .float()"
        )
    for value in affine:
        # Mixed precision: 16-bit activations with float32 parameters, which compute in float32 anyway.
        if (
            value is not None
            and value._array.dtype is not kind.numpy
            and not (value.dtype is kind or (kind.itemsize == 2 and value.dtype is float32))
        ):
            raise RuntimeError(
                f"{op}: expected scalar type {kind} for weight and bias but found {value.dtype}"
            )


def _check_channels(op: str, channels: int, **values: Tensor | None) -> None:
    mean, var = values.get("running_mean"), values.get("running_var")
    if (mean is None) != (var is None):
        raise ValueError(
            f"{op}: running_mean and running_var must either both be None or neither be None"
        )
    if mean is not None and var is not None and mean._array.dtype != var._array.dtype:
        raise RuntimeError(
            f"{op}: expected running_mean and running_var of one type, got {mean.dtype} and {var.dtype}"
        )
    for name, value in values.items():
        if value is not None and value._array.size != channels:
            raise RuntimeError(
                f"{op}: {name} should contain {channels} elements not {value.numel()}"
            )


def _ones_like_bias(weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The operation takes a bias only together with a weight."""
    return wrap(np.ones_like(bias._array)) if weight is None and bias is not None else weight


@lru_cache(1024)
def _over_channels(shape: tuple[int, ...], axes: tuple[int, ...], eps: float) -> NormSpec:
    return NormSpec(shape, axes, (1, shape[1], *(1,) * (len(shape) - 2)), eps)


def _follow(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: np.ndarray,
    var: np.ndarray,
    momentum: float,
    correction: float,
) -> None:
    """See `reference_pointwise.follow`; without averages nothing."""
    if running_mean is None or running_var is None:
        return
    held = running_mean._array, running_var._array
    fused = on_gpu(held[0]) and all(h.flags.c_contiguous for h in held)
    (kernels_for(held[0]).follow if fused else follow)(*held, mean, var, momentum, correction)
    running_mean._bump_version()
    running_var._bump_version()


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over the batch: (N, C, ...) -> the same.

    Args:
        input: (N, C) or (N, C, ...).
        running_mean, running_var: (C,) averages; used if not `training`, else updated in place (the
            variance with Bessel's correction).
        weight, bias: (C,) factor and summand.
        training: whether to normalise by the statistics of this batch.
        momentum: share of this batch in the averages.
        eps: added to the variance.

    Raises:
        ValueError: training with one value per channel, or an `eps` that may divide by 0.
        RuntimeError: sizes or dtypes that do not fit, or no averages outside of training.
    """
    _check_input("batch_norm", input, weight, bias)
    shape = tuple(input.shape)
    if shape == (0,):
        _check_channels("batch_norm", 0, running_mean=running_mean, running_var=running_var)
        return input.clone()
    if len(shape) < 2:
        raise RuntimeError(
            f"batch_norm: expected at least 2D input (N, C, ...), got shape {list(input.shape)}"
        )
    if eps < 0 or (training and eps == 0):
        wanted = "positive during training" if training else "non-negative"
        raise ValueError(f"batch_norm eps must be {wanted}, but got {eps}")
    _check_channels(
        "batch_norm",
        shape[1],
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
    )
    spec = _over_channels(shape, (0, *range(2, len(shape))), eps)
    weight = _ones_like_bias(weight, bias)
    if not training:
        if running_mean is None or running_var is None:
            raise RuntimeError(
                "batch_norm: expected running_mean and running_var to be defined when training=False"
            )
        fixed = (running_mean._array, running_var._array)
        return NativeBatchNorm.apply(input, weight, bias, spec, fixed)
    count = shape[0] * math.prod(shape[2:])
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    seen: list[Any] = []
    postponed: list[Any] | None = [] if can_wait(input) and input._array.itemsize > 2 else None
    out = NativeBatchNorm.apply(input, weight, bias, spec, None, seen, postponed)
    if postponed:
        postpone(out, input, Normalising(out._node, input._array, out._array))
    if count:
        mean, var = seen
        _follow(running_mean, running_var, mean, var, momentum, count / (count - 1))
    return out


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of each sample over its positions: (N, C, ...) -> the same.

    The arguments are those of `batch_norm`; the averages follow the mean over the batch.

    Raises:
        ValueError: one value per channel of a sample.
        RuntimeError: sizes or dtypes that do not fit.
    """
    _check_input("instance_norm", input, weight, bias)
    if input.ndim < 3:
        raise RuntimeError(
            f"instance_norm: expected at least 3D input (N, C, ...), got shape {list(input.shape)}"
        )
    channels = input.shape[1]
    _check_channels(
        "instance_norm",
        channels,
        running_mean=running_mean,
        running_var=running_var,
        weight=weight,
        bias=bias,
    )
    spec = _over_channels(tuple(input.shape), tuple(range(2, input.ndim)), eps)
    weight = _ones_like_bias(weight, bias)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise RuntimeError(
                "instance_norm: expected running_mean and running_var to be defined when use_input_stats=False"
            )
        fixed = (running_mean._array, running_var._array)
        return NativeBatchNorm.apply(input, weight, bias, spec, fixed)
    count = math.prod(input.shape[2:])
    if count == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {input.shape}"
        )
    seen: list[Any] = []
    out = NativeBatchNorm.apply(input, weight, bias, spec, None, seen)
    if running_mean is not None and running_var is not None and count and len(input):
        mean, var = (value.mean(axis=0) for value in seen)
        _follow(running_mean, running_var, mean, var, momentum, count / (count - 1))
    return out


def _last_dims(
    op: str,
    cls: type[Op],
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centre: bool,
) -> Tensor:
    _check_input(op, input, weight, bias)
    if type(normalized_shape) is tuple:  # of ints, as layers keep it
        wanted = normalized_shape
    else:
        wanted = tuple(map(int, normalized_shape))
    if not wanted:
        raise RuntimeError(
            f"{op}: Expected normalized_shape to be at least 1-dimensional, i.e., containing at least "
            f"one element, but got normalized_shape = {list(wanted)}"
        )
    for value in (weight, bias):
        if value is not None and value._array.shape != wanted:
            name = "weight" if value is weight else "bias"
            raise RuntimeError(
                f"{op}: Expected {name} to be of same shape as normalized_shape, but got {name} of shape "
                f"{list(value.shape)} and normalized_shape = {list(wanted)}"
            )
    shape = input._array.shape
    if shape[-len(wanted) :] != wanted:
        raise RuntimeError(
            f"{op}: Given normalized_shape={list(wanted)}, expected input with shape "
            f"[*, {', '.join(str(s) for s in wanted)}], but got input of size{list(shape)}"
        )
    spec = _over_last(shape, len(wanted), eps, centre)
    return cls.apply(input, _ones_like_bias(weight, bias), bias, spec)


@lru_cache(1024)
def _over_last(shape: tuple[int, ...], dims: int, eps: float, centre: bool) -> NormSpec:
    size = math.prod(shape[-dims:])
    return NormSpec((math.prod(shape[:-dims]), size), (1,), (1, size), eps, centre)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each sample over its last dimensions.

    Args:
        input: (..., *normalized_shape).
        normalized_shape: the sizes of the last dimensions.
        weight, bias: factor and summand of shape `normalized_shape`.
        eps: added to the variance.

    Raises:
        RuntimeError: shapes or dtypes that do not fit.
    """
    return _last_dims(
        "layer_norm", NativeLayerNorm, input, normalized_shape, weight, bias, eps, True
    )


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide each sample by the root of its mean square over the last dimensions.

    Args:
        input: (..., *normalized_shape).
        normalized_shape: the sizes of the last dimensions.
        weight: factor of shape `normalized_shape`.
        eps: added to the mean square; the dtype's resolution by default.

    Raises:
        ValueError: fewer dimensions than `normalized_shape` has.
        RuntimeError: shapes or dtypes that do not fit.
    """
    if input.ndim < len(normalized_shape):
        raise ValueError(
            f"rms_norm: Input tensor must have at least {len(normalized_shape)} dimensions, but got {input.ndim}"
        )
    if eps is None:
        _check_input("rms_norm", input, weight)
        eps = _resolution(input)
    return _last_dims("rms_norm", FusedRmsNorm, input, normalized_shape, weight, None, eps, False)


def _resolution(input: Tensor) -> float:
    """PyTorch computes 16-bit types in float32 and takes that type's resolution."""
    kind = input._array.dtype
    return float(np.finfo(np.float32 if kind.itemsize == 2 else kind).eps)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each sample over groups of channels: (N, C, ...) -> the same.

    Args:
        input: (N, C, ...).
        num_groups: groups, which divide C.
        weight, bias: (C,) factor and summand.
        eps: added to the variance.

    Raises:
        RuntimeError: sizes or dtypes that do not fit.
    """
    _check_input("group_norm", input, weight, bias)
    if input.ndim < 2:
        raise RuntimeError(
            f"Expected at least 2 dimensions for input tensor but received {input.ndim}"
        )
    n, channels = input.shape[:2]
    if num_groups < 1:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups:
        raise RuntimeError(
            f"Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and tuple(value.shape) != (channels,):
            raise RuntimeError(
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got "
                f"{name} of shape {list(value.shape)} and input of shape {list(input.shape)}"
            )
    depth = channels // num_groups
    inner = (n, num_groups, depth, math.prod(input.shape[2:]))
    if inner[2] * inner[3] == 1 and n == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    spec = NormSpec(inner, (2, 3), (1, num_groups, depth, 1), eps)
    return NativeGroupNorm.apply(input, _ones_like_bias(weight, bias), bias, spec)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Divide by (k + alpha * mean square of `size` neighbouring channels) ** beta.

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012.

    Raises:
        ValueError: fewer than three dimensions.
    """
    if input.ndim < 3:
        raise ValueError(
            f"Expected 3D or higher dimensionality                          input (got {input.ndim} dimensions)"
        )
    if input.numel() == 0:
        return input
    n, channels = input.shape[:2]
    squares = (input * input).reshape(n, channels, -1).transpose(1, 2)
    rows = squares.reshape(-1, 1, channels)
    before, after = size // 2, (size - 1) // 2
    means = avg_pool1d(pad(rows, (before, after)), size, 1)
    spread = means.reshape(n, -1, channels).transpose(1, 2).reshape(*input.shape)
    return input / (spread * alpha + k) ** beta
