"""Layers whose number of input features or channels comes from the first input.

After its first call a layer is an ordinary one, of the class without "Lazy".
"""

from __future__ import annotations

from typing import Any

from dptrain.core.creation import tensor
from dptrain.core.dtypes import int64
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    _BatchNorm,
    _InstanceNorm,
    _NormBase,
)
from dptrain.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    _ConvNd,
    _Convolution,
    _ConvTransposeNd,
)
from dptrain.nn.lazy import LazyModuleMixin
from dptrain.nn.linear import Linear
from dptrain.nn.parameter import UninitializedBuffer, UninitializedParameter


class LazyLinear(LazyModuleMixin, Linear):
    """`Linear` whose `in_features` is the last size of the first input.

    Args:
        out_features: size of each output sample.
        bias: whether to add one.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    cls_to_become = Linear
    weight: Any
    bias: Any

    def __init__(
        self, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(0, 0, False)
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        self.out_features = out_features
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw new initial values, if the shapes are known."""
        if not self.has_uninitialized_params() and self.in_features != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Take `in_features` from the input.

        Raises:
            AssertionError: a weight that was loaded is of another size.
        """
        size = int(input.shape[-1])
        if self.has_uninitialized_params():
            with no_grad():
                self.in_features = size
                self.weight.materialize((self.out_features, size))
                if self.bias is not None:
                    self.bias.materialize((self.out_features,))
                self.reset_parameters()
        if self.in_features == 0:  # the weight was loaded
            if size != self.weight.shape[-1]:
                raise AssertionError(
                    f"The in_features inferred from input: {size} is not equal to in_features from "
                    f"self.weight: {self.weight.shape[-1]}"
                )
            self.in_features = size


class _LazyConvNd(LazyModuleMixin, _ConvNd):
    """What lazy convolutions and their transposes share."""

    weight: Any
    bias: Any

    def _make_lazy(self, out_channels: int, bias: bool, device: Any, dtype: Any) -> None:
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        self.out_channels = out_channels
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw new initial values, if the shapes are known."""
        if not self.has_uninitialized_params() and self.in_channels != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Take `in_channels` from the input.

        Raises:
            RuntimeError: the wrong number of dimensions.
            ValueError: channels that `groups` does not divide.
        """
        if not self.has_uninitialized_params():
            return
        if input.ndim not in (self.rank + 1, self.rank + 2):
            raise RuntimeError(
                f"Expected {self.rank + 1}D (unbatched) or {self.rank + 2}D (batched) input to "
                f"{type(self).__name__}, but got input of size: {input.shape}"
            )
        self.in_channels = int(input.shape[-self.rank - 1])
        if self.in_channels % self.groups:
            raise ValueError("in_channels must be divisible by groups")
        self.weight.materialize(self._weight_shape())
        if self.bias is not None:
            self.bias.materialize((self.out_channels,))
        self.reset_parameters()


class _LazyConvolution(_LazyConvNd, _Convolution):
    """A convolution whose `in_channels` comes from the first input; the arguments are its others.

    Args:
        out_channels: channels of the result.
        kernel_size, stride, padding, dilation, groups, bias, padding_mode: those of the convolution.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = (kernel_size, stride, padding, dilation, groups, False, padding_mode)
        super().__init__(0, 0, *options, device=device, dtype=dtype)
        self._make_lazy(out_channels, bias, device, dtype)


class _LazyConvTransposeNd(_LazyConvNd, _ConvTransposeNd):
    """A transposed convolution whose `in_channels` comes from the first input; the arguments are its others.

    Args:
        out_channels: channels of the result.
        kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: those of
            the transposed convolution.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = (kernel_size, stride, padding, output_padding, groups, False, dilation)
        super().__init__(0, 0, *options, padding_mode, device=device, dtype=dtype)
        self._make_lazy(out_channels, bias, device, dtype)


class LazyConv1d(_LazyConvolution, Conv1d):
    __doc__ = _LazyConvolution.__doc__
    cls_to_become = Conv1d


class LazyConv2d(_LazyConvolution, Conv2d):
    __doc__ = _LazyConvolution.__doc__
    cls_to_become = Conv2d


class LazyConv3d(_LazyConvolution, Conv3d):
    __doc__ = _LazyConvolution.__doc__
    cls_to_become = Conv3d


class LazyConvTranspose1d(_LazyConvTransposeNd, ConvTranspose1d):
    __doc__ = _LazyConvTransposeNd.__doc__
    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTransposeNd, ConvTranspose2d):
    __doc__ = _LazyConvTransposeNd.__doc__
    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTransposeNd, ConvTranspose3d):
    __doc__ = _LazyConvTransposeNd.__doc__
    cls_to_become = ConvTranspose3d


class _LazyNormBase(LazyModuleMixin, _NormBase):
    """A norm with running averages whose `num_features` is the number of channels of the first input.

    Args:
        eps, momentum, affine, track_running_stats, bias: those of the norm.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(0, eps, momentum, False, False, **options, bias=False)
        self.affine, self.track_running_stats = affine, track_running_stats
        if affine:
            self.weight = UninitializedParameter(**options)
            if bias:
                self.bias = UninitializedParameter(**options)
        if track_running_stats:
            self.running_mean = UninitializedBuffer(**options)
            self.running_var = UninitializedBuffer(**options)
            self.num_batches_tracked = tensor(0, dtype=int64, device=device)

    def reset_parameters(self) -> None:
        """The initial values, if the shapes are known."""
        if not self.has_uninitialized_params() and self.num_features != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Take `num_features` from the input."""
        if not self.has_uninitialized_params():
            return
        self.num_features = int(input.shape[1])
        for held in (self.weight, self.bias, self.running_mean, self.running_var):
            if held is not None:
                held.materialize((self.num_features,))
        self.reset_parameters()


class LazyBatchNorm1d(_LazyNormBase, _BatchNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = BatchNorm1d
    dims = BatchNorm1d.dims


class LazyBatchNorm2d(_LazyNormBase, _BatchNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = BatchNorm2d
    dims = BatchNorm2d.dims


class LazyBatchNorm3d(_LazyNormBase, _BatchNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = BatchNorm3d
    dims = BatchNorm3d.dims


class LazyInstanceNorm1d(_LazyNormBase, _InstanceNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = InstanceNorm1d
    dims = InstanceNorm1d.dims


class LazyInstanceNorm2d(_LazyNormBase, _InstanceNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = InstanceNorm2d
    dims = InstanceNorm2d.dims


class LazyInstanceNorm3d(_LazyNormBase, _InstanceNorm):
    __doc__ = _LazyNormBase.__doc__
    cls_to_become = InstanceNorm3d
    dims = InstanceNorm3d.dims
