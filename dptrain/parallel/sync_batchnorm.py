"""SyncBatchNorm: batch normalisation over the batches of all ranks.

Owns: the layer, the operation and its derivative. Must not know: backends.

Every rank describes its batch by a count, a mean and a sum of squared deviations for each channel;
these are merged pairwise with the formula of Chan, Golub & LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances", 1979, which weighs by counts and does not cancel.
So ranks may have batches of different sizes, or none. The messages are joinable: a rank that has run
out of data counts as one with an empty batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.core.arrays import beside, device_of, move, namespace_of, to_host
from dptrain.core.half import lift
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.batchnorm import _BatchNorm
from dptrain.nn.module import Module
from dptrain.parallel.process_group import communicator_of


def _moments(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Count, mean and sum of squared deviations of each channel of (N, C, positions), in float64."""
    count = x.shape[0] * x.shape[2]
    mean = x.sum(axis=(0, 2), dtype=np.float64) / max(count, 1)
    centred = x - mean.astype(x.dtype)[:, None]
    # The rounding of the mean to the type of the data is taken out again.
    off = centred.sum(axis=(0, 2), dtype=np.float64) / max(count, 1)
    squares = np.einsum("ncp,ncp->c", centred, centred, dtype=np.float64)
    return count, mean, np.maximum(squares - count * off * off, 0.0)


def _merged(rows: np.ndarray, channels: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Count, mean and sum of squared deviations over the ranks, in rank order."""
    count, mean, squares = 0.0, np.zeros(channels), np.zeros(channels)
    for row in rows:
        more = row[0]
        if more == 0:
            continue
        delta = row[1 : channels + 1] - mean
        total = count + more
        mean = mean + delta * (more / total)
        squares = squares + row[channels + 1 :] + delta * delta * (count * more / total)
        count = total
    return count, mean, squares


@dataclass(frozen=True, slots=True)
class Statistics:
    """Count, mean and variance (population) of each channel over all ranks."""

    count: float
    mean: Any
    var: Any


def _statistics(input: Tensor, communicator: Communicator) -> Statistics:
    """The statistics of all ranks' batches. Collective.

    Raises:
        ValueError: there is at most one value per channel.
    """
    place = device_of(input._array)
    with beside(input._array):
        x, channels = _flat(lift(input._array)), input.shape[1]
        # Every rank fills its own row and adds zeros to the others', which is exact.
        rows = namespace_of(x).zeros((communicator.world_size, 1 + 2 * channels), np.float64)
        mine = rows[communicator.rank]
        mine[0], mine[1 : channels + 1], mine[channels + 1 :] = _moments(x)
        communicator.all_reduce(
            rows, name="SyncBatchNorm statistics", joinable=True, async_op=False
        )
    count, mean, squares = _merged(to_host(rows), channels)
    if count <= 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {list(input.shape)}, and "
            f"{int(count)} values per channel on all ranks together"
        )
    return Statistics(count, move(mean, place), move(squares / count, place))


def _flat(array: Any) -> Any:
    """(N, C, ...) -> (N, C, positions)."""
    return array.reshape(array.shape[0], array.shape[1], math.prod(array.shape[2:]))


class SyncBatchNormFunction(Op):
    """(input - mean) / sqrt(var + eps) * weight + bias, with mean and variance over all ranks."""

    name = "sync_batch_norm"
    in_float32 = True

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        statistics: Statistics,
        eps: float,
        communicator: Communicator,
    ) -> Any:
        self.communicator, self.count = communicator, statistics.count
        x = _flat(input)
        self.mean = statistics.mean.astype(x.dtype)[:, None]
        self.rstd = (1 / np.sqrt(statistics.var + eps)).astype(x.dtype)[:, None]
        out = (x - self.mean) * self.rstd
        if weight is not None:
            out *= weight[:, None]
        if bias is not None:
            out += bias[:, None]
        return out.reshape(input.shape)

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        if isinstance(grad, Tensor):
            raise RuntimeError(
                "SyncBatchNorm has no second derivative; leave out create_graph=True, or use BatchNorm"
            )
        g = _flat(grad)
        x_hat = (_flat(input) - self.mean) * self.rstd
        sums = np.stack(
            [
                g.sum(axis=(0, 2), dtype=np.float64),
                np.einsum("ncp,ncp->c", g, x_hat, dtype=np.float64),
            ]
        )
        # The gradients of weight and bias are this rank's; whoever averages gradients averages them.
        d_bias, d_weight = sums.astype(g.dtype) if self.needs[1] or self.needs[2] else (None, None)
        d_input = None
        if self.needs[0]:
            # Whether the input wants a gradient is the same on all ranks, as the model is.
            self.communicator.all_reduce(
                sums, name="SyncBatchNorm gradients", joinable=True, async_op=False
            )
            mean_g, mean_gx = (sums / self.count).astype(g.dtype)[:, :, None]
            d = g - mean_g - x_hat * mean_gx
            scale = self.rstd if weight is None else self.rstd * weight[:, None]
            d_input = (d * scale).reshape(input.shape)
        return d_input, d_weight, d_bias


class SyncBatchNorm(_BatchNorm):
    """Normalise each channel over the batches of all ranks and all positions: (N, C, ...) -> the same.

    Equal to BatchNorm over the ranks' batches put together, whatever their sizes; also an empty one.
    In evaluation mode the running averages are used, and nothing is communicated.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of each batch in the averages; None for the plain average of all batches.
        affine: whether there are a factor and a summand for each channel.
        track_running_stats: whether averages are kept; if not, every mode uses the batches' values.
        process_group: whose ranks' batches are put together; the default group if None.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
        bias: whether there is a summand, if `affine`.

    Raises:
        ValueError: from a call: less than 2 dimensions; one value per channel on all ranks together.
        RuntimeError: from a call: no process group.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group

    def _check_dims(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same."""
        self._check_dims(input)
        if input.shape[1] != self.num_features:
            raise RuntimeError(
                f"SyncBatchNorm: expected {self.num_features} channels in dim 1, got input of shape {list(input.shape)}"
            )
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0.0,
                self.eps,
            )
        if not input.is_floating_point():
            raise RuntimeError(
                f"SyncBatchNorm: not implemented for input of {input.dtype}; convert it with .float()"
            )
        communicator = communicator_of(self.process_group, "SyncBatchNorm")
        found = _statistics(input, communicator)
        if self.training and self.track_running_stats:
            self._follow(found)
        out: Tensor = SyncBatchNormFunction.apply(
            input, self.weight, self.bias, found, self.eps, communicator
        )
        return out

    def _follow(self, found: Statistics) -> None:
        """Bring the running averages up to date; the variance with Bessel's correction."""
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:
                share = 1.0 / float(self.num_batches_tracked)
        for running, value in (
            (self.running_mean, found.mean),
            (self.running_var, _unbiased(found)),
        ):
            if running is not None:
                held = running._array
                with beside(held):
                    held[...] = (1 - (share or 0.0)) * held + (share or 0.0) * value
                running._bump_version()

    @classmethod
    def convert_sync_batchnorm(cls, module: Module, process_group: Any = None) -> Module:
        """The module with every BatchNorm layer in it replaced by one over all ranks.

        Parameters, averages and mode are those of the layers that are replaced.

        Args:
            module: changed in place, unless it is a BatchNorm layer itself.
            process_group: for the new layers.

        Returns:
            The module, or the new layer in the place of a BatchNorm layer.
        """
        if isinstance(module, _BatchNorm):
            converted: Module = _converted(module, process_group)
        else:
            converted = module
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted


def _unbiased(found: Statistics) -> Any:
    with beside(found.var):
        return found.var * (found.count / (found.count - 1))


def _converted(layer: _BatchNorm, process_group: Any) -> SyncBatchNorm:
    made = SyncBatchNorm(
        layer.num_features,
        layer.eps,
        layer.momentum,
        layer.affine,
        layer.track_running_stats,
        process_group,
    )
    made.weight, made.bias = layer.weight, layer.bias
    made.running_mean, made.running_var = layer.running_mean, layer.running_var
    made.num_batches_tracked = layer.num_batches_tracked
    made.training = layer.training
    return made
