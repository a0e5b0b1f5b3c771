"""Local SGD: after a while ranks train on their own, and average their parameters now and then.

Owns: the hook, the averagers, the optimizer that calls one. Must not know: the reducer.

Gradients are averaged over all ranks for the first steps, then over a small group or not at all, and
parameters over all ranks in every so many steps. Source: Lin, Stich, Patel & Jaggi, "Don't use large
mini-batches, use local SGD", ICLR 2020, which names it post-local SGD; its levels: Castiglia, Das & Patterson, "Multi-level local
SGD for heterogeneous hierarchical networks", ICLR 2021.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.callers import level_outside
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor, wrap
from dptrain.distributed.groups import get_world_size, member, new_subgroups, world
from dptrain.futures import Future
from dptrain.optim.hooks import Hooks
from dptrain.optim.optimizer import Optimizer
from dptrain.parallel.comm_hooks import allreduce_hook, noop_hook
from dptrain.parallel.grad_bucket import GradBucket

_PERIOD_OF_ONE = (
    "averages parameters in every step, which costs as much as averaging gradients does; "
    "DistributedDataParallel alone is enough for that"
)


class PostLocalSGDState:
    """What `post_localSGD_hook` knows.

    Args:
        process_group: whose ranks average the first steps' gradients; the default group if None.
        subgroup: whose ranks average them later; None: those of each host.
        start_localSGD_iter: number of first steps.
        post_local_gradient_allreduce: whether later gradients are averaged at all.

    Attributes:
        iter: steps so far, up to `start_localSGD_iter`.
    """

    __slots__ = (
        "iter",
        "post_local_gradient_allreduce",
        "process_group",
        "start_localSGD_iter",
        "subgroup",
    )

    def __init__(
        self,
        process_group: Any,
        subgroup: Any,
        start_localSGD_iter: int,
        post_local_gradient_allreduce: bool = True,
    ) -> None:
        self.process_group, self.subgroup = process_group, subgroup
        self.start_localSGD_iter = start_localSGD_iter
        self.post_local_gradient_allreduce = post_local_gradient_allreduce
        self.iter = 0

    def maybe_increase_iter(self, bucket: GradBucket) -> None:
        """Count a step, at its last bucket."""
        if bucket.is_last():
            self.iter += 1


def post_localSGD_hook(state: PostLocalSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients over all ranks in the first steps, later over those of the subgroup.

    From then on the ranks' parameters differ, and a `ModelAverager` has to bring them together. Ranks need
    equal numbers of steps.
    """
    if state.iter < state.start_localSGD_iter:
        state.maybe_increase_iter(bucket)
        return allreduce_hook(state.process_group, bucket)
    if not state.post_local_gradient_allreduce:
        return noop_hook(None, bucket)
    if state.subgroup is None:
        state.subgroup, _ = new_subgroups()
    return allreduce_hook(state.subgroup, bucket)


# ---- averaging parameters ------------------------------------------------------------------------


def get_params_to_average(params: Iterable[Any]) -> list[Tensor]:
    """Those of parameters, or of an optimizer's groups, that have gradients.

    Raises:
        NotImplementedError: neither parameters nor groups.
    """
    found: list[Tensor] = []
    for entry in params:
        if not isinstance(entry, (Tensor, Mapping)):
            raise NotImplementedError(f"Parameter input of type {type(entry)} is not supported")
        found += [entry] if isinstance(entry, Tensor) else entry["params"]
    return [p for p in found if p.grad is not None]


def average_parameters(params: Iterable[Tensor], process_group: Any) -> None:
    """Make parameters the mean of what they are on the ranks of a group. Collective.

    Args:
        params: the same on all ranks, in the same order.
        process_group: the default group if None; ranks outside it are left as they are.
    """
    group = member(process_group)
    if group is None:
        return
    by_kind: dict[tuple[Any, np.dtype[Any]], list[Tensor]] = {}
    for p in params:
        by_kind.setdefault((p.device, p._array.dtype), []).append(p)
    for members in by_kind.values():
        xp = namespace_of(members[0]._array)
        flat = xp.concatenate([p._array.reshape(-1) for p in members])
        group.communicator.all_reduce(flat, "avg", name="average_parameters").wait()
        start = 0
        with no_grad():
            for p in members:
                p.copy_(wrap(flat[start : start + p.numel()].reshape(p._array.shape)))
                start += p.numel()


def average_parameters_or_parameter_groups(params: Iterable[Any], process_group: Any) -> None:
    """`average_parameters` of those of parameters, or of an optimizer's groups, that have gradients."""
    average_parameters(get_params_to_average(params), process_group)


class ModelAverager(ABC):
    """Averages a model's parameters over the ranks, in some of the steps.

    Attributes:
        process_group: whose ranks.
        step: how often it was called.
    """

    def __init__(self, process_group: Any = None) -> None:
        self.process_group = world() if process_group is None else process_group
        self.step = 0

    @abstractmethod
    def average_parameters(self, params: Iterable[Any]) -> None:
        """Call after each optimizer step, on all ranks, with parameters or an optimizer's groups."""


class PeriodicModelAverager(ModelAverager):
    """Averages in every `period`-th step after the first `warmup_steps`.

    Raises:
        ValueError: a negative `warmup_steps`, or a `period` below 1.
    """

    def __init__(self, period: int, warmup_steps: int = 0, process_group: Any = None) -> None:
        super().__init__(process_group)
        _check_warmup(warmup_steps)
        if period < 1:
            raise ValueError("Arg ``period`` must be a positive value.")
        if period == 1:
            warnings.warn(f"A period of 1 {_PERIOD_OF_ONE}", stacklevel=level_outside())
        self.period, self.warmup_steps = period, warmup_steps

    def average_parameters(self, params: Iterable[Any]) -> None:
        after = self.step - self.warmup_steps
        if after >= 0 and after % self.period == 0:
            average_parameters_or_parameter_groups(params, self.process_group)
        self.step += 1


class HierarchicalModelAverager(ModelAverager):
    """Averages over small groups often, over larger ones less often.

    In each step after the first `warmup_steps` the group with the largest period that divides the step's
    number averages.

    Args:
        period_group_size_dict: period -> size of a group, ascending; the last size is that of the group.
        warmup_steps: see there.
        process_group: all ranks that take part; the default group if None.

    Raises:
        ValueError: no periods, one below 1, another last size, or a negative `warmup_steps`.
    """

    def __init__(
        self,
        period_group_size_dict: Mapping[int, int] | None = None,
        warmup_steps: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__(process_group)
        if not period_group_size_dict:
            raise ValueError("Arg ``period_group_size_dict`` must not be empty.")
        self._periods, sizes = list(period_group_size_dict), list(period_group_size_dict.values())
        if self._periods[0] <= 0:
            raise ValueError(
                "The minimum period in arg ``period_group_size_dict`` must be a positive value."
            )
        if self._periods[-1] == 1:
            warnings.warn(f"A largest period of 1 {_PERIOD_OF_ONE}", stacklevel=level_outside())
        whole = get_world_size(self.process_group)
        if sizes[-1] != whole:
            raise ValueError(
                f"The last value in arg ``period_group_size_dict`` {sizes[-1]} must be equal to the size of arg "
                f"``process_group`` {whole}."
            )
        _check_warmup(warmup_steps)
        self.warmup_steps = warmup_steps
        self.period_process_group_dict = {
            period: self.process_group
            if size == whole
            else new_subgroups(group_size=size, group=self.process_group)[0]
            for period, size in period_group_size_dict.items()
        }

    def average_parameters(self, params: Iterable[Any]) -> None:
        if self.step >= self.warmup_steps:
            due = [period for period in self._periods if self.step % period == 0]
            if due:
                group = self.period_process_group_dict[due[-1]]
                average_parameters_or_parameter_groups(params, group)
        self.step += 1


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise ValueError("Arg ``warmup_steps`` must be a non-negative number.")


class PostLocalSGDOptimizer(Optimizer):
    """An optimizer whose steps are followed by those of a `ModelAverager`.

    Args:
        optim: updates the parameters.
        averager: averages them over the ranks, when it is time to.
    """

    def __init__(self, optim: Optimizer, averager: ModelAverager) -> None:
        Hooks.__init__(self)  # Parameters, state and options are those of `optim`.
        self.optim, self.averager = optim, averager
        self.param_groups, self.defaults = optim.param_groups, optim.defaults

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of `optim`."""
        return self.optim.state

    def step(self, closure: Any = None) -> Any:
        """Update the parameters, then average them if it is time to. Collective.

        Args:
            closure: for the step of `optim`.

        Returns:
            What that returned.
        """
        loss = self.optim.step() if closure is None else self.optim.step(closure)
        self.averager.average_parameters(self.param_groups)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optim.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of `optim`, and under "step" that of the averager."""
        return {**self.optim.state_dict(), "step": self.averager.step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; without a "step" the averager begins at 0, with a warning."""
        self.optim.load_state_dict({k: v for k, v in state_dict.items() if k != "step"})
        self.param_groups = self.optim.param_groups
        if "step" not in state_dict:
            warnings.warn(
                "Loaded state dict does not contain a step counter for an averager. Setting step counter to 0.",
                stacklevel=level_outside(),
            )
        self.averager.step = state_dict.get("step", 0)

    def __repr__(self) -> str:
        return repr(self.optim)
