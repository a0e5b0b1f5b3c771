"""A model whose weights are the average of another's over the course of training.

Owns: `AveragedModel`, the averages, `update_bn`. Public as `dptrain.optim.swa_utils`, where PyTorch has
it. Must not know: optimizers.

Sources: Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018;
exponential average: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np

from dptrain.core.creation import tensor
from dptrain.core.dtypes import int64
from dptrain.core.failures import telling
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module

_Average = Callable[[Tensor, Tensor, Any], Tensor]
_MultiAverage = Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ValueError(
            f"Invalid decay value {decay} provided. Please provide a value in [0,1] range."
        )


@telling
def get_ema_avg_fn(decay: float = 0.999) -> _Average:
    """The exponential average: decay * average + (1 - decay) * new.

    Raises:
        ValueError: a decay outside [0, 1].
    """
    _check_decay(decay)

    @no_grad()
    def ema_update(ema_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return ema_param * decay + current_param * (1 - decay)

    return ema_update


@telling
def get_swa_avg_fn() -> _Average:
    """The mean of all so far."""

    @no_grad()
    def swa_update(averaged_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return averaged_param + (current_param - averaged_param) / (num_averaged + 1)

    return swa_update


@telling
def get_ema_multi_avg_fn(decay: float = 0.999) -> _MultiAverage:
    """The exponential average of many tensors in place.

    Raises:
        ValueError: a decay outside [0, 1].
    """
    _check_decay(decay)

    @no_grad()
    def ema_update(
        ema_param_list: Sequence[Tensor], current_param_list: Sequence[Tensor], _: Any
    ) -> None:
        _move_towards(ema_param_list, current_param_list, 1 - decay)

    return ema_update


@telling
def get_swa_multi_avg_fn() -> _MultiAverage:
    """The mean of all so far, of many tensors in place."""

    @no_grad()
    def swa_update(
        averaged_param_list: Sequence[Tensor],
        current_param_list: Sequence[Tensor],
        num_averaged: Any,
    ) -> None:
        _move_towards(averaged_param_list, current_param_list, 1 / (int(num_averaged) + 1))

    return swa_update


def _move_towards(averages: Sequence[Tensor], values: Sequence[Tensor], weight: float) -> None:
    for average, value in zip(averages, values, strict=True):
        a, v = average._array, value._array
        if average.is_floating_point():
            a += (v - a) * a.dtype.type(weight)
        else:  # counts of batches: the average, rounded towards zero
            np.copyto(a, a + (v - a) * weight, casting="unsafe")
        average._bump_version()


class AveragedModel(Module):
    """A copy of a model whose parameters are the average of the model's at each `update_parameters`.

    Args:
        model: the model; copied deeply.
        device: where the copy lives; the model's device if None.
        avg_fn: gives the new average of one parameter from the average, the parameter and the number
            of averaged models; the mean by default.
        multi_avg_fn: likewise for all parameters of one type at once, in place.
        use_buffers: average the buffers too, rather than copy them.

    Raises:
        AssertionError: both functions are given.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: _Average | None = None,
        multi_avg_fn: _MultiAverage | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = deepcopy(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", tensor(0, dtype=int64, device=device))
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the averaged model."""
        return self.module(*args, **kwargs)

    def _averaged(self, model: Module) -> list[Tensor]:
        buffers = model.buffers() if self.use_buffers else ()
        return [t.detach() for t in chain(model.parameters(), buffers)]

    @no_grad()
    def update_parameters(self, model: Module) -> None:
        """Take the present parameters of `model` into the average."""
        averages, values = self._averaged(self.module), self._averaged(model)
        if self.n_averaged.item() == 0:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
        elif self.multi_avg_fn is not None:
            for kind in dict.fromkeys(a.dtype for a in averages):
                members = [i for i, a in enumerate(averages) if a.dtype is kind]
                self.multi_avg_fn(
                    [averages[i] for i in members], [values[i] for i in members], self.n_averaged
                )
        else:
            average_one = self.avg_fn or get_swa_avg_fn()
            for average, value in zip(averages, values, strict=True):
                average.copy_(average_one(average, value, self.n_averaged))
        if not self.use_buffers:
            for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
                average.copy_(value)
        self.n_averaged += 1


@no_grad()
@telling
def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Compute the statistics of the batch normalisations anew, in one pass over data.

    Args:
        loader: batches; of a list or tuple the first entry.
        model: whose layers with running statistics are updated; its mode is kept.
        device: where the batches are moved to.
    """
    layers = [m for m in model.modules() if hasattr(m, "running_mean") and hasattr(m, "momentum")]
    momenta = [layer.momentum for layer in layers]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
    was_training = model.training
    model.train()
    try:
        for layer in layers:
            layer.momentum = None  # the mean over all batches
        for batch in loader:
            given = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(given if device is None else given.to(device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)
