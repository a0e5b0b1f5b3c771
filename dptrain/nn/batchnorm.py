"""Normalisation layers that keep running averages: batch and instance norm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

from dptrain.core import arrays
from dptrain.core.creation import empty, ones, tensor, zeros
from dptrain.core.dtypes import int64
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


class _NormBase(Module):
    """Parameters, running averages and text of batch and instance norm."""

    #: 2 since `num_batches_tracked` is part of the state.
    _version = 2
    dims: ClassVar[tuple[int, ...]]
    num_features: int
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        bias: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self._make_parameters(bias, device, dtype)

    def _make_parameters(self, bias: bool, device: Any, dtype: Any) -> None:
        options = {"device": device, "dtype": dtype}
        for name, wanted in (("weight", True), ("bias", bias)):
            made = self.affine and wanted
            value = Parameter(empty(self.num_features, **options)) if made else None
            self.register_parameter(name, value)
        tracked = self.track_running_stats
        self.register_buffer(
            "running_mean", zeros(self.num_features, **options) if tracked else None
        )
        self.register_buffer("running_var", ones(self.num_features, **options) if tracked else None)
        count = tensor(0, dtype=int64, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Averages of nothing yet: mean 0, variance 1, no batches."""
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Factor 1, summand 0, and no averages."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *report: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if local_metadata.get("version") in (None, 1) and self.num_batches_tracked is not None:
            state_dict.setdefault(key, tensor(0, dtype=int64))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *report)

    def _check_dims(self, input: Tensor) -> None:
        if input.ndim not in self.dims:
            wanted = " or ".join(f"{d}D" for d in self.dims)
            raise ValueError(f"expected {wanted} input (got {input.ndim}D input)")

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_NormBase):
    """Normalise each channel over the batch and all positions: (N, C, ...) -> the same.

    In evaluation mode the running averages take the place of the batch's mean and variance.
    Source: Ioffe & Szegedy, "Batch normalization", 2015.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of each batch in the averages; None for the plain average of all batches.
        affine: whether there are a factor and a summand for each channel.
        track_running_stats: whether averages are kept; if not, every mode uses the batch's values.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
        bias: whether there is a summand, if `affine`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, bias, device, dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same.

        Raises:
            ValueError: the wrong number of dimensions, or one value per channel in training.
        """
        self._check_dims(input)
        share = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            batches = self.num_batches_tracked
            if batches is not None:
                # `add_` would bring the number to the counter's type, check the graph, and so on.
                count = batches._array
                with arrays.beside(count) if arrays.several_gpus else nullcontext():
                    count[...] = count + 1
                batches._bump_version()
                if self.momentum is None:
                    share = 1.0 / float(batches)
        mean, var = self.running_mean, self.running_var
        own = self.training or mean is None or var is None
        follow = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            mean if follow else None,
            var if follow else None,
            self.weight,
            self.bias,
            own,
            share,
            self.eps,
        )


class BatchNorm1d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    dims = (4,)


class BatchNorm3d(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    dims = (5,)


class _InstanceNorm(_NormBase):
    """Normalise each channel of each sample over its positions: (N, C, ...) -> the same.

    Source: Ulyanov et al., "Instance normalization", 2016.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of each batch in the averages.
        affine: whether there are a factor and a summand for each channel.
        track_running_stats: keep averages, and use them in evaluation mode.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
        bias: whether there is a summand, if `affine`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, bias, device, dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) or (C, ...) -> the same.

        Raises:
            ValueError: the wrong number of dimensions or of channels.
        """
        self._check_dims(input)
        batched = input.ndim == self.dims[1]
        x = input if batched else input.unsqueeze(0)
        if x.shape[1] != self.num_features and self.affine:
            raise ValueError(
                f"expected input's size at dim={0 if not batched else 1} to match num_features "
                f"({self.num_features}), but got: {x.shape[1]}."
            )
        out = F.instance_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return out if batched else out.squeeze(0)


class InstanceNorm1d(_InstanceNorm):
    __doc__ = _InstanceNorm.__doc__
    dims = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    __doc__ = _InstanceNorm.__doc__
    dims = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    __doc__ = _InstanceNorm.__doc__
    dims = (4, 5)
