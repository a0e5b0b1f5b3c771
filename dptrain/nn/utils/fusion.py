"""Batch normalisation in evaluation mode as part of the layer before it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

from dptrain.core.creation import ones_like, zeros_like
from dptrain.core.failures import telling
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter

_M = TypeVar("_M", bound=Module)


def _check_eval(layer: Module, bn: Module) -> None:
    if layer.training or bn.training:
        raise AssertionError("Fusion only for eval!")


def _check_averages(bn: Any) -> None:
    if bn.running_mean is None or bn.running_var is None:
        raise AssertionError("bn.running_mean and bn.running_var must not be None")


def _scale_and_shift(
    mean: Tensor,
    var: Tensor,
    eps: float,
    factor: Tensor | None,
    summand: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """What the outputs are multiplied by, and the bias after it."""
    factor = ones_like(mean) if factor is None else factor
    summand = zeros_like(mean) if summand is None else summand
    bias = zeros_like(mean) if bias is None else bias
    scale = factor * (var + eps).rsqrt()
    return scale, (bias - mean) * scale + summand


def _parameters(weight: Tensor, bias: Tensor, like: Tensor, like_bias: Tensor | None) -> Any:
    trained = like_bias is not None and like_bias.requires_grad
    return (
        Parameter(weight.to(like.dtype).detach(), like.requires_grad),
        Parameter(bias.to(like.dtype if like_bias is None else like_bias.dtype).detach(), trained),
    )


@telling
def fuse_conv_bn_weights(
    conv_w: Tensor,
    conv_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a convolution with a batch normalisation after it.

    Args:
        conv_w, conv_b: those of the convolution.
        bn_rm, bn_rv: running mean and variance.
        bn_eps: added to the variance.
        bn_w, bn_b: factor and summand; 1 and 0 if None.
        transpose: the convolution is a transposed one, whose outputs are dimension 1.
    """
    scale, bias = _scale_and_shift(bn_rm, bn_rv, bn_eps, bn_w, bn_b, conv_b)
    shape = [1] * conv_w.ndim
    shape[1 if transpose else 0] = -1
    found: tuple[Parameter, Parameter] = _parameters(
        conv_w * scale.reshape(shape), bias, conv_w, conv_b
    )
    return found


@telling
def fuse_conv_bn_eval(conv: _M, bn: Any, transpose: bool = False) -> _M:
    """A convolution that does what `conv` and then `bn` do in evaluation mode.

    Raises:
        AssertionError: one of them is in training mode, or `bn` has no running averages.
    """
    _check_eval(conv, bn)
    _check_averages(bn)
    fused: Any = deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight,
        fused.bias,
        bn.running_mean,
        bn.running_var,
        bn.eps,
        bn.weight,
        bn.bias,
        transpose,
    )
    return fused


@telling
def fuse_linear_bn_weights(
    linear_w: Tensor,
    linear_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor,
    bn_b: Tensor,
) -> tuple[Parameter, Parameter]:
    """Weight and bias of a linear layer with a batch normalisation after it."""
    return fuse_conv_bn_weights(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b)


@telling
def fuse_linear_bn_eval(linear: _M, bn: Any) -> _M:
    """A linear layer that does what `linear` and then `bn` do in evaluation mode.

    Raises:
        AssertionError: one of them is in training mode, or their features differ, or `bn` has no running averages.
    """
    _check_eval(linear, bn)
    fused: Any = deepcopy(linear)
    _check_averages(bn)
    if fused.out_features != bn.num_features and bn.num_features != 1:
        raise AssertionError(
            f"To fuse, linear.out_features == bn.num_features or bn.num_features == 1, got {fused.out_features} "
            f"and {bn.num_features}"
        )
    fused.weight, fused.bias = fuse_linear_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return fused
