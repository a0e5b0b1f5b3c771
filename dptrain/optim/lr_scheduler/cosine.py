"""Schedules along cosines."""

from __future__ import annotations

import math

from dptrain.optim.lr_scheduler.base import LRScheduler
from dptrain.optim.optimizer import Optimizer


class CosineAnnealingLR(LRScheduler):
    """Let the rate fall from its start to `eta_min` along half a cosine of `T_max` steps.

    Source: Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017
    (without the restarts).

    Args:
        optimizer: whose rates are set.
        T_max: steps of the half wave.
        eta_min: the lowest rate.
        last_epoch: see `LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The next rates along the cosine, computed from the present ones."""
        self._warn_outside_step()
        if self._is_initial:
            return self._rates()
        t, low = self.last_epoch, self.eta_min
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:
            # The wave turns at its lowest point, where the ratio below would be 0 / 0.
            rise = (1 - math.cos(math.pi / self.T_max)) / 2
            return [
                lr + (base - low) * rise
                for lr, base in zip(self._rates(), self._bases(), strict=True)
            ]
        ratio = (1 + math.cos(math.pi * t / self.T_max)) / (
            1 + math.cos(math.pi * (t - 1) / self.T_max)
        )
        return [ratio * (lr - low) + low for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        height = (1 + math.cos(math.pi * self.last_epoch / self.T_max)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self._bases()]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Let the rate fall along half a cosine again and again, each time from its start.

    Source: Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.

    Args:
        optimizer: whose rates are set.
        T_0: steps of the first half wave.
        T_mult: factor by which each half wave is longer than the one before.
        eta_min: the lowest rate.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: T_0 or T_mult is no positive integer, or eta_min no number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(T_0, int) or T_0 <= 0:
            raise ValueError(f"Expected positive integer T_0, but got {T_0}")
        if not isinstance(T_mult, int) or T_mult < 1:
            raise ValueError(f"Expected integer T_mult >= 1, but got {T_mult}")
        if not isinstance(eta_min, (float, int)):
            raise ValueError(
                f"Expected float or int eta_min, but got {eta_min} of type {type(eta_min)}"
            )
        self.T_0 = T_0
        self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The rates at `T_cur` of `T_i` steps of the present half wave."""
        self._warn_outside_step()
        height = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * height for base in self._bases()]

    def step(self, epoch: float | None = None) -> None:
        """Go on to the next step, or to the given one.

        Args:
            epoch: where to go; fractions set rates between two steps.

        Raises:
            ValueError: a negative step.
        """
        if epoch is None and self.last_epoch < 0:
            epoch = 0
        if epoch is None:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        else:
            self._go_to(epoch)
        self._update_lr(math.floor(epoch))

    def _go_to(self, epoch: float) -> None:
        if epoch < 0:
            raise ValueError(f"Expected non-negative epoch, but got {epoch}")
        waves = 0
        if epoch >= self.T_0 and self.T_mult > 1:
            waves = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
            past = self.T_0 * (self.T_mult**waves - 1) / (self.T_mult - 1)
            self.T_cur = epoch - past
        else:
            self.T_cur = epoch % self.T_0
        self.T_i = self.T_0 * self.T_mult**waves
