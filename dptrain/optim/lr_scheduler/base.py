"""What all learning rate schedulers share.

Owns: `LRScheduler`. The rates are computed step by step from the present ones, with PyTorch's
formulas, so that both give the same numbers and a rate that the user changed in between is respected.
Must not know: training loops.
"""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.capturing import whole
from dptrain.core.failures import telling_constructor, telling_method
from dptrain.core.tensor import Tensor
from dptrain.optim.optimizer import Optimizer, number


class LRScheduler:
    """Base class: sets the learning rate of every parameter group at each `step()`.

    Subclasses define `get_lr`. Call `step()` after the optimizer's.

    Args:
        optimizer: whose rates are set.
        last_epoch: number of the last step, to go on from; -1 to start.

    Attributes:
        base_lrs: the rates at the start, one per parameter group; a tensor where the group's is one.
        last_epoch: number of the present step, from 0.

    Raises:
        TypeError: `optimizer` is none.
        KeyError: going on with an optimizer that has no "initial_lr".
    """

    _is_initial: bool = False
    _get_lr_called_within_step: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        telling_constructor(cls)
        if "step" in cls.__dict__:
            cls.step = whole(telling_method(cls.__dict__["step"]))  # type: ignore[method-assign]
        if "load_state_dict" in cls.__dict__:
            cls.load_state_dict = telling_method(cls.__dict__["load_state_dict"])  # type: ignore[method-assign]

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = checked_optimizer(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", _copied(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming scheduler with "
                    "last_epoch >= 0; load the optimizer's state first, or leave last_epoch at -1"
                )
        self.base_lrs: list[Any] = [_copied(g["initial_lr"]) for g in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._initial_step()

    def _initial_step(self) -> None:
        """Set the rates of the first step."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def get_lr(self) -> list[float]:
        """The rates of the step `last_epoch`, one per parameter group; for `step` to call."""
        raise NotImplementedError

    def get_last_lr(self) -> list[Any]:
        """The rates that the last step set, one per parameter group; a tensor where the group's is one."""
        return self._last_lr

    @whole
    @telling_method
    def step(self, epoch: int | None = None) -> None:
        """Go on to the next step and set its rates.

        Args:
            epoch: deprecated: go to this step instead.
        """
        if self._step_count == 1 and not self.optimizer._opt_called:
            warnings.warn(
                "Detected call of `lr_scheduler.step()` before `optimizer.step()`: call them in the opposite "
                "order, or the first value of the learning rate schedule is skipped.",
                UserWarning,
                stacklevel=level_outside(),
            )
        self._step_count += 1
        if epoch is not None:
            warn_of_epoch()
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        """Set the rates of the next step, or, by the closed form if there is one, of step `epoch`."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        compute = (
            self.get_lr if epoch is None else getattr(self, "_get_closed_form_lr", self.get_lr)
        )
        self._get_lr_called_within_step = True
        try:
            rates = compute()
        finally:
            self._get_lr_called_within_step = False
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            set_option(group, "lr", lr)
        self._last_lr = present_rates(self.optimizer)

    def _warn_outside_step(self) -> None:
        if not self._get_lr_called_within_step:
            warnings.warn(
                "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
                UserWarning,
                stacklevel=level_outside(),
            )

    def _rates(self) -> list[float]:
        return [number(group["lr"]) for group in self.optimizer.param_groups]

    def _bases(self) -> list[float]:
        return [number(lr) for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    @telling_method
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; the optimizer's own state holds the present rates."""
        self.__dict__.update(state_dict)


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer, if it is one.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
    return optimizer


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def present_rates(optimizer: Optimizer) -> list[Any]:
    """Copies of the rates, one per parameter group; a tensor where the group's is one."""
    return [_copied(group["lr"]) for group in optimizer.param_groups]


def warn_of_epoch() -> None:
    """Say that `step(epoch)` is deprecated."""
    warnings.warn(
        "The epoch parameter in `scheduler.step()` was not necessary and is being deprecated where "
        "possible. Please use `scheduler.step()` to step the scheduler.",
        UserWarning,
        stacklevel=level_outside(),
    )


def set_option(group: dict[str, Any], name: str, value: Any) -> None:
    """Set an option of a group; a tensor that holds it is changed in place."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def per_group(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """One value for each parameter group, from one for all or a list of them.

    Raises:
        ValueError: not one value per parameter group.
    """
    count = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [number(value)] * count
    if len(value) != count:
        raise ValueError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(value)} values, param_groups has {count}."
        )
    return [number(v) for v in value]
