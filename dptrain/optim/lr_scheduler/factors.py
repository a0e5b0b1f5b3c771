"""Schedules that multiply the rate: by functions, at milestones, along lines and powers."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from dptrain.optim.lr_scheduler.base import LRScheduler
from dptrain.optim.optimizer import Optimizer


class _Functions(LRScheduler):
    """Base of the schedules by functions: keeps one for each parameter group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        count = len(optimizer.param_groups)
        self.lr_lambdas = (
            list(lr_lambda) if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * count
        )
        if len(self.lr_lambdas) != count:
            raise ValueError(f"Expected {count} lr_lambdas, but got {len(self.lr_lambdas)}")
        for function in self.lr_lambdas:
            if not callable(function):
                raise TypeError(
                    f"lr_lambda should be a function, but got {type(function).__name__}"
                )
        super().__init__(optimizer, last_epoch)

    def _factors(self) -> list[float]:
        return [function(self.last_epoch) for function in self.lr_lambdas]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer; callable objects give their attributes, functions nothing."""
        state = super().state_dict()
        del state["lr_lambdas"]  # PyTorch's order: they come last
        state["lr_lambdas"] = [
            None if isinstance(f, FunctionType) else dict(getattr(f, "__dict__", {}))
            for f in self.lr_lambdas
        ]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; functions stay those of this scheduler."""
        rest = {key: value for key, value in state_dict.items() if key != "lr_lambdas"}
        super().load_state_dict(rest)
        for function, saved in zip(self.lr_lambdas, state_dict["lr_lambdas"], strict=True):
            if saved:
                vars(function).update(saved)


class LambdaLR(_Functions):
    """The initial rate times a function of the step number.

    Args:
        optimizer: whose rates are set.
        lr_lambda: the function, or one for each parameter group.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: not one function per parameter group.
        TypeError: no function.
    """

    def get_lr(self) -> list[float]:
        """base_lr * lr_lambda(last_epoch)."""
        self._warn_outside_step()
        return [base * f for base, f in zip(self._bases(), self._factors(), strict=True)]


class MultiplicativeLR(_Functions):
    """The present rate times a function of the step number.

    Args:
        optimizer: whose rates are set.
        lr_lambda: the function, or one for each parameter group.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: not one function per parameter group.
        TypeError: no function.
    """

    def get_lr(self) -> list[float]:
        """The present rates times lr_lambda(last_epoch)."""
        self._warn_outside_step()
        if self._is_initial:
            return self._rates()
        return [lr * f for lr, f in zip(self._rates(), self._factors(), strict=True)]


class StepLR(LRScheduler):
    """Multiply the rate by `gamma` every `step_size` steps.

    Args:
        optimizer: whose rates are set.
        step_size: steps between two changes.
        gamma: the factor.
        last_epoch: see `LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates, times gamma at every `step_size`-th step."""
        self._warn_outside_step()
        if self.last_epoch == 0 or self.last_epoch % self.step_size != 0:
            return self._rates()
        return [lr * self.gamma for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        factor = self.gamma ** (self.last_epoch // self.step_size)
        return [base * factor for base in self._bases()]


class MultiStepLR(LRScheduler):
    """Multiply the rate by `gamma` at each of the given steps.

    Args:
        optimizer: whose rates are set.
        milestones: step numbers; one that is given twice counts twice.
        gamma: the factor.
        last_epoch: see `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates, times gamma at the milestones."""
        self._warn_outside_step()
        factor = self.gamma ** self.milestones.get(self.last_epoch, 0)
        return [lr * factor for lr in self._rates()] if factor != 1 else self._rates()

    def _get_closed_form_lr(self) -> list[float]:
        passed = bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return [base * self.gamma**passed for base in self._bases()]


class ExponentialLR(LRScheduler):
    """Multiply the rate by `gamma` at every step.

    Args:
        optimizer: whose rates are set.
        gamma: the factor.
        last_epoch: see `LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates times gamma."""
        self._warn_outside_step()
        if self._is_initial:
            return self._rates()
        return [lr * self.gamma for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        return [base * self.gamma**self.last_epoch for base in self._bases()]


class ConstantLR(LRScheduler):
    """The rate times `factor` until step `total_iters`, then as it was.

    Args:
        optimizer: whose rates are set.
        factor: the factor, in [0, 1].
        total_iters: steps until the factor is taken back.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: a factor out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= factor <= 1.0:
            raise ValueError(
                f"Constant multiplicative factor expected to be between 0 and 1, but got {factor}."
            )
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates, with the factor put on at the first step and taken off at the last."""
        self._warn_outside_step()
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self._rates()]
        if self.last_epoch != self.total_iters:
            return self._rates()
        return [lr * (1.0 / self.factor) for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        factor = 1.0 if self.last_epoch >= self.total_iters else self.factor
        return [base * factor for base in self._bases()]


class LinearLR(LRScheduler):
    """The rate times a factor that goes in a line from `start_factor` to `end_factor`.

    Args:
        optimizer: whose rates are set.
        start_factor: factor of the first step, in (0, 1].
        end_factor: factor from step `total_iters` on, in [0, 1].
        total_iters: steps of the line.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: a factor out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1.0:
            raise ValueError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal to 1, "
                f"but got {start_factor}."
            )
        if not 0 <= end_factor <= 1.0:
            raise ValueError(
                f"Ending multiplicative factor expected to be between 0 and 1, but got {end_factor}."
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates times the change of the factor."""
        self._warn_outside_step()
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in self._rates()]
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        rise = self.end_factor - self.start_factor
        change = 1.0 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise)
        return [lr * change for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        part = min(self.total_iters, self.last_epoch) / self.total_iters
        factor = self.start_factor + (self.end_factor - self.start_factor) * part
        return [base * factor for base in self._bases()]


class PolynomialLR(LRScheduler):
    """Let the rate fall to 0 at step `total_iters` like (1 - t / total_iters) ** power.

    Args:
        optimizer: whose rates are set.
        total_iters: steps until 0.
        power: the exponent.
        last_epoch: see `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present rates times the change of the polynomial."""
        self._warn_outside_step()
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        now, before = (1.0 - (self.last_epoch - back) / self.total_iters for back in (0, 1))
        return [lr * (now / before) ** self.power for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        factor = (1.0 - min(self.total_iters, self.last_epoch) / self.total_iters) ** self.power
        return [base * factor for base in self._bases()]
