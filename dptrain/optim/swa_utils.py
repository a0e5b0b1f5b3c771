"""PyTorch's `torch.optim.swa_utils`: averaging the weights of a model over the course of training.

The schedule is here; the averaged model and the averages live in `dptrain.nn.averaging` and are
resolved on first use, because optimizers know no modules.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from dptrain.optim.lr_scheduler.base import LRScheduler, per_group
from dptrain.optim.optimizer import Optimizer

_ELSEWHERE = (
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
)


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module("dptrain.nn.averaging"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class SWALR(LRScheduler):
    """Bring the rate to a constant one within some steps, for stochastic weight averaging.

    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018.

    Args:
        optimizer: whose rates are set.
        swa_lr: the constant rate, or one for each parameter group.
        anneal_epochs: steps until it is reached.
        anneal_strategy: the way there: "cos" or "linear".
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: an unknown strategy, a negative number of steps, or not one rate per group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        for lr, group in zip(
            per_group("swa_lr", optimizer, swa_lr), optimizer.param_groups, strict=True
        ):
            group["swa_lr"] = lr
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        self._anneal_strategy = anneal_strategy
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ValueError(f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}")
        self.anneal_epochs = anneal_epochs
        super().__init__(optimizer, last_epoch)

    def _part(self, step: int) -> float:
        """How far the rate has come."""
        t = max(0.0, min(1.0, step / max(1, self.anneal_epochs)))
        return t if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * t)) / 2

    def get_lr(self) -> list[float]:
        """The next rates, computed from the present ones."""
        self._warn_outside_step()
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._part(step - 1), self._part(step)
        rates = []
        for lr, group in zip(self._rates(), self.optimizer.param_groups, strict=True):
            swa_lr = group["swa_lr"]
            start = swa_lr if before == 1 else (lr - before * swa_lr) / (1 - before)
            rates.append(swa_lr * now + start * (1 - now))
        return rates
