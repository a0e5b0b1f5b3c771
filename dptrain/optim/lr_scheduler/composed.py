"""Schedulers made of schedulers: one after another, or all at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from dptrain.optim.lr_scheduler.base import LRScheduler, present_rates, set_option
from dptrain.optim.lr_scheduler.plateau import ReduceLROnPlateau
from dptrain.optim.optimizer import Optimizer, number


class _Composed(LRScheduler):
    """Base of both: holds schedulers of one optimizer."""

    _schedulers: Sequence[LRScheduler]

    def _check(self, schedulers: Sequence[Any], optimizer: Any) -> None:
        name = type(self).__name__
        for i, scheduler in enumerate(schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(f"{name} at index {i} should have `optimizer` as its attribute.")
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{name} does not support `ReduceLROnPlateau` scheduler as it requires additional kwargs to "
                    f"be specified when calling `step`, but got one at index {i} in the given schedulers sequence."
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    f"{name} expects all schedulers to belong to the same optimizer, but got scheduler "
                    f"{type(scheduler).__name__} at index {i} has {scheduler.optimizer}, which is different from "
                    f"{type(optimizer).__name__}."
                )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer; the states of the schedulers in a list."""
        state = super().state_dict()
        del state["_schedulers"]  # PyTorch's order: they come last
        state["_schedulers"] = [s.state_dict() for s in self._schedulers]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for scheduler, saved in zip(self._schedulers, state_dict["_schedulers"], strict=True):
            scheduler.load_state_dict(saved)


class SequentialLR(_Composed):
    """One scheduler after another, each from its own start.

    Args:
        optimizer: whose rates are set.
        schedulers: in their order.
        milestones: steps at which the next one takes over.
        last_epoch: see `LRScheduler`.

    Raises:
        ValueError: no schedulers, one of another optimizer, or not one milestone less than schedulers.
        TypeError: what is no scheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        if len(schedulers) < 1:
            raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
        self._check(schedulers, optimizer)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                "Sequential Schedulers expects number of schedulers provided to be one more than the number of "
                f"milestone points, but got number of schedulers {len(schedulers)} and the number of milestones "
                f"to be equal to {len(milestones)}"
            )
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            set_option(group, "lr", number(group["initial_lr"]))
        # The schedulers made their first step when they were made; only one is to begin.
        self.recursive_undo()
        first = self._schedulers[bisect_right(milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def recursive_undo(self, sched: Any = None) -> None:
        """Take the first step of the schedulers back, of those inside others too."""
        inner = self if sched is None else sched
        if hasattr(inner, "_schedulers"):
            for scheduler in inner._schedulers:
                self.recursive_undo(scheduler)
        else:
            inner.last_epoch -= 1

    def step(self) -> None:  # type: ignore[override]
        """Go on to the next step of the scheduler whose turn it is."""
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == self.last_epoch:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Composed):
    """Several schedulers at once, each changing the rate that the one before it left.

    Args:
        schedulers: in their order.
        optimizer: theirs.

    Raises:
        ValueError: no schedulers, or one of another optimizer.
        TypeError: what is no scheduler.
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        if len(schedulers) < 1:
            raise ValueError(
                "ChainedScheduler expects at least one scheduler to be chained, but got no scheduler."
            )
        chosen = getattr(schedulers[0], "optimizer", None) if optimizer is None else optimizer
        self._check(schedulers, chosen)
        self._schedulers = schedulers
        self.optimizer = schedulers[0].optimizer
        self._last_lr = present_rates(self.optimizer)

    def step(self) -> None:  # type: ignore[override]
        """Go on to the next step of all."""
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = present_rates(self.optimizer)
