"""ZeroRedundancyOptimizer: every rank updates its part of the parameters and keeps state for it alone.

Owns: the sharded optimizer. Must not know: backends, how any optimizer updates.

The parameters of each flat storage are cut into one contiguous range per rank, at borders between
parameters, so that every optimizer whose update looks at one parameter at a time works unchanged on
its range. The ranges are sent in place, from the rank that updated them. DistributedDataParallel has
averaged the gradients before, on all ranks or (`reduce_scatter`) on those that own them. Source: Rajbhandari, Rasley, Ruwase & He, "ZeRO: memory optimizations
toward training trillion parameter models", SC'20, stage 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator
from dptrain.core.arrays import namespace_of
from dptrain.core.creation import tensor
from dptrain.core.device import device
from dptrain.core.flat import FlatStorage, Place, place_of
from dptrain.core.grad_mode import enable_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.utils.clip_grad import clip_grads_with_norm_, get_total_norm
from dptrain.optim.optimizer import Optimizer
from dptrain.parallel.buckets import consecutive
from dptrain.parallel.ddp import DistributedDataParallel
from dptrain.parallel.gradient_owners import GradientOwners
from dptrain.parallel.join import Join, Joinable, JoinHook
from dptrain.parallel.process_group import communicator_of


class ZeroRedundancyOptimizer(Optimizer, Joinable):
    """An optimizer whose state is divided among the ranks.

    Updates the parameters to the same values as the optimizer that it divides; a rank needs memory for
    all parameters and gradients and for its share of the state.

    Args:
        params: as of any optimizer; the same on all ranks.
        optimizer_class: what updates the parameters.
        process_group: whose ranks share the work; the default group if None.
        parameters_as_bucket_view: accepted; parameters always lie in flat buffers.
        overlap_with_ddp: refused.
        defaults: the arguments of `optimizer_class`.

    Raises:
        TypeError: `optimizer_class` is no optimizer, or as it raises.
        ValueError: it updates all parameters together (LBFGS), or as it raises; `overlap_with_ddp`.
        RuntimeError: no process group.
    """

    def __init__(
        self,
        params: Iterable[Any],
        optimizer_class: type[Optimizer],
        process_group: Any = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        **defaults: Any,
    ) -> None:
        if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
            raise TypeError(
                f"ZeroRedundancyOptimizer: optimizer_class must be an Optimizer class, got {optimizer_class!r}"
            )
        if optimizer_class.couples_parameters:
            raise ValueError(
                f"ZeroRedundancyOptimizer: {optimizer_class.__name__} updates all parameters together and cannot be "
                "divided among ranks"
            )
        if overlap_with_ddp:
            raise ValueError(
                "ZeroRedundancyOptimizer: overlap_with_ddp=True is not supported; gradients are averaged during "
                "backward and the update follows in step(). To reduce each gradient to its owner alone, call "
                "optimizer.reduce_scatter(model)"
            )
        self._communicator = communicator_of(process_group, "ZeroRedundancyOptimizer")
        self.process_group = process_group if process_group is not None else self._communicator
        # Checks the arguments, and knows the defaults. It keeps no state without a step.
        whole = optimizer_class(params, **defaults)
        self._owner: dict[int, int] = {}
        self._places: list[Place | None] = []
        self._ranges: list[tuple[int, np.ndarray]] = []
        self._consolidated: dict[int, dict[str, Any]] | None = None
        super().__init__(whole.param_groups, whole.defaults)
        self._divide()
        own = [self._own_part(group) for group in self.param_groups]
        self.optim = optimizer_class(own, **defaults)
        self.state = self.optim.state

    # ---- who owns what -----------------------------------------------------------------------------

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _own_part(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group with this rank's parameters alone."""
        mine = [p for p in group["params"] if self._owner.get(id(p)) == self._communicator.rank]
        return {**{k: v for k, v in group.items() if k != "param_names"}, "params": mine}

    def _divide(self) -> None:
        """Give every parameter an owner, and find the ranges that each rank sends.

        A parameter keeps its owner, with whom its state is.
        """
        params = self._params()
        places = [place_of(p) for p in params]
        by_storage: dict[FlatStorage, list[Place]] = {}
        for p, place in zip(params, places, strict=True):
            if place is not None and id(p) not in self._owner:
                by_storage.setdefault(place.storage, []).append(place)
        size = self._communicator.world_size
        for storage, members in by_storage.items():
            members.sort(key=lambda place: place.start)
            total, before = sum(place.size for place in members), 0
            for place in members:
                # The rank in whose equal part of the elements the parameter has its middle.
                middle = before + place.size / 2
                rank = min(int(middle * size / total), size - 1) if total else 0
                self._owner[id(storage.params[place.position])] = rank
                before += place.size
        self._places, self._ranges = places, self._found_ranges(params, places)

    def _found_ranges(
        self, params: Sequence[Tensor], places: Sequence[Place | None]
    ) -> list[tuple[int, np.ndarray]]:
        """Owner and slice of the parameters' memory, for neighbours with one owner."""
        members: dict[tuple[FlatStorage, int], list[int]] = {}
        for p, place in zip(params, places, strict=True):
            if place is not None:
                key = (place.storage, self._owner[id(p)])
                members.setdefault(key, []).append(place.position)
        ranges = []
        for (storage, owner), positions in members.items():
            for run in consecutive(sorted(positions)):
                first, last = storage.places[run[0]], storage.places[run[-1]]
                ranges.append((owner, storage.data[first.start : last.stop]))
        return ranges

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; the ranks divide them among themselves. On all ranks."""
        super().add_param_group(param_group)
        self._divide()
        self.optim.add_param_group(self._own_part(self.param_groups[-1]))

    # ---- stepping --------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Update this rank's parameters, then take over those of the other ranks. Collective.

        Args:
            closure: computes the loss again, with gradients, and returns it.
            kwargs: for the step of the optimizer.

        Returns:
            What `closure` returned, or None.
        """
        Join.notify_join_context(self)
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        self._consolidated = None
        self._follow_changes()
        for whole, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            own.update(_options(whole))
        self.optim.step(**kwargs)
        for whole, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            whole.update(_options(own))
        storages = dict.fromkeys(place.storage for place in self._places if place is not None)
        for storage in storages:
            storage.gather()
        works = [
            self._communicator.broadcast(
                array, owner, name=f"ZeroRedundancyOptimizer parameters of rank {owner}"
            )
            for owner, array in self._ranges
        ]
        for work in works:
            work.wait()
        for storage in storages:
            storage.scatter()
        for p in self._params():
            others = self._owner.get(id(p)) != self._communicator.rank
            unseen = p._place is not None and p._place.storage.incomplete
            if others and (p._grad is not None or unseen):
                p._bump_version()
        return loss

    # ---- gradients that only their owners get ------------------------------------------------------

    def reduce_scatter(self, model: DistributedDataParallel) -> None:
        """Let the backward of `model` bring each averaged gradient to the rank that updates it alone.

        Half of an all-reduce then; `step()` sends the updated parameters as before, and the numbers are
        the same. Afterwards `grad` is None for the other ranks' parameters: the norm of all gradients
        is known to this optimizer's `clip_grad_norm_` only, and `zero_grad()` is needed between steps.

        Args:
            model: all of whose parameters this optimizer has.

        Raises:
            ValueError: a model of other ranks or parameters, or one that averages in another way (a
                communication hook, `weighted`, `reproducible`).
        """
        reducer = model._reducer
        if reducer.communicator is not self._communicator:
            raise ValueError("reduce_scatter: the model and the optimizer belong to other groups")
        if reducer.hook is not None or model.weighted or model.reproducible:
            raise ValueError(
                "reduce_scatter: the model averages its gradients in another way (a communication hook, weighted or "
                "reproducible)"
            )
        self._follow_changes()
        params = [p for section in reducer.sections for p in section.params()]
        missing = [reducer.name_of(p) for p in params if id(p) not in self._owner]
        if missing:
            raise ValueError(f"reduce_scatter: the optimizer lacks parameter {missing[0]!r}")
        reducer.owners = GradientOwners(self._owner_of, self._communicator.rank)
        reducer.owners.watch(reducer, params)

    def _owner_of(self, p: Tensor) -> int:
        if id(p) not in self._owner:  # unfrozen since the last step
            self._follow_changes()
        return self._owner[id(p)]

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Scale the averaged gradients of all ranks' parameters down to a total norm. Collective.

        Args:
            max_norm: the largest total norm allowed.
            norm_type: the order of the norm; may be inf.
            error_if_nonfinite: refuse a norm that is infinite or no number.

        Returns:
            The total norm before.

        Raises:
            RuntimeError: see `error_if_nonfinite`.
        """
        rank = self._communicator.rank
        own = [p for p in self._params() if self._owner.get(id(p)) == rank]
        mine = float(get_total_norm([p._grad for p in own if p._grad is not None], norm_type))
        largest = norm_type == float("inf")
        total = np.array([mine if largest else mine**norm_type])
        self._communicator.all_reduce(
            total, "max" if largest else "sum", name="norm of gradients", async_op=False
        )
        norm = float(total[0]) if largest else float(total[0]) ** (1 / norm_type)
        if error_if_nonfinite and not np.isfinite(norm):
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients of all ranks' parameters is non-finite, so it cannot "
                "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )
        found = tensor(norm)
        clip_grads_with_norm_(own, max_norm, found)
        return found

    def _follow_changes(self) -> None:
        """Notice parameters that were unfrozen or bound to something else since the last step."""
        self._adopt()
        places = [place_of(p) for p in self._params()]
        if len(places) == len(self._places) and all(
            a is b for a, b in zip(places, self._places, strict=True)
        ):
            return
        self._divide()
        for whole, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            own["params"][:] = self._own_part(whole)["params"]

    # ---- state -----------------------------------------------------------------------------------

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Collect the state of all ranks on rank `to`, for `state_dict()` there. Collective.

        Raises:
            ValueError: no such rank.
        """
        communicator = self._communicator
        if not 0 <= to < communicator.world_size:
            raise ValueError(
                f"consolidate_state_dict: to={to} is no rank of the group of {communicator.world_size}"
            )
        index = {id(p): i for i, p in enumerate(self._params())}
        mine = {
            index[id(p)]: dict(self.optim.state[p])
            for group in self.optim.param_groups
            for p in group["params"]
            if self.optim.state.get(p)
        }
        described = {
            i: {name: _description(value) for name, value in entry.items()}
            for i, entry in mine.items()
        }
        everyone = communicator.all_gather_object(described, name="ZeroRedundancyOptimizer state")
        if communicator.rank != to:
            self._consolidated = None
            for entry in mine.values():
                for value in entry.values():
                    if isinstance(value, Tensor):
                        communicator.send(_flat(value), to).wait()
            return
        found = {i: dict(entry) for i, entry in mine.items()}
        for rank, theirs in enumerate(everyone):
            if rank != to:
                found |= {
                    i: {name: _received(d, communicator, rank) for name, d in entry.items()}
                    for i, entry in theirs.items()
                }
        self._consolidated = dict(sorted(found.items()))

    def state_dict(self) -> dict[str, Any]:
        """The state of all ranks, as the undivided optimizer has it, on the rank that collected it.

        Raises:
            RuntimeError: `consolidate_state_dict(to=...)` was not called since the last step, or
                collected the state on another rank.
        """
        if self._consolidated is None:
            communicator = self._communicator
            raise RuntimeError(
                f"[rank {communicator.rank}/{communicator.world_size}] Optimizer state has not been consolidated on this "
                f"rank. Please call `consolidate_state_dict(to={communicator.rank})` on all ranks beforehand if you "
                "meant to save the global state."
            )
        self._before_state_dict()
        groups, start = [], 0
        for group in self.param_groups:
            stop = start + len(group["params"])
            groups.append({**_options(group, names=True), "params": list(range(start, stop))})
            start = stop
        return self._after_state_dict({"state": self._consolidated, "param_groups": groups})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state of the undivided optimizer, of any number of ranks. On all ranks.

        Raises:
            ValueError: other groups than this optimizer's, or state of another shape.
        """
        state_dict = self._before_load(state_dict)
        saved = list(state_dict["param_groups"])
        sizes, own_sizes = (
            [len(g["params"]) for g in groups] for groups in (saved, self.param_groups)
        )
        if sizes != own_sizes:
            raise ValueError(
                "loaded state dict has a different number of parameter groups, or a group that doesn't match the size of "
                f"optimizer's group: its groups have {sizes} parameters, the optimizer's {own_sizes}"
            )
        self._follow_changes()
        rank = self._communicator.rank
        state, groups = {}, []
        for theirs, whole in zip(saved, self.param_groups, strict=True):
            kept = []
            for key, p in zip(theirs["params"], whole["params"], strict=True):
                if self._owner.get(id(p)) == rank:
                    kept.append(key)
                    if key in state_dict["state"]:
                        state[key] = state_dict["state"][key]
            options = {k: v for k, v in theirs.items() if k != "param_names"}
            groups.append({**options, "params": kept})
        self.optim.load_state_dict({"state": state, "param_groups": groups})
        self.state, self._consolidated = self.optim.state, None
        for whole, own in zip(self.param_groups, self.optim.param_groups, strict=True):
            whole.update(_options(own))
        self._after_load()

    # ---- ranks that run out of data ----------------------------------------------------------------

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """A rank that has run out of data goes on updating its part of the parameters."""
        return _UpdatesItsPart(self)

    @property
    def join_device(self) -> device:
        """Where the parameters live."""
        return self._params()[0].device

    @property
    def join_process_group(self) -> Communicator:
        """Whose ranks share the work."""
        return self._communicator


class _UpdatesItsPart(JoinHook):
    """Makes the steps of the others, with the averages that the model's hook has brought before."""

    def __init__(self, optimizer: ZeroRedundancyOptimizer) -> None:
        self._optimizer = optimizer

    def main_hook(self) -> None:
        self._optimizer.step()


def _options(group: Mapping[str, Any], names: bool = False) -> dict[str, Any]:
    left = ("params",) if names else ("params", "param_names")
    return {k: v for k, v in group.items() if k not in left}


def _flat(value: Tensor) -> np.ndarray:
    return namespace_of(value._array).ascontiguousarray(value._array).reshape(-1)


def _description(value: Any) -> tuple[Any, ...]:
    """What a rank has to know to receive a piece of state; small pieces travel with it."""
    if isinstance(value, Tensor):
        return ("tensor", value._array.shape, value._array.dtype)
    return ("value", value)


def _received(description: tuple[Any, ...], communicator: Communicator, rank: int) -> Any:
    if description[0] == "value":
        return description[1]
    _, shape, kind = description
    array = np.empty(shape, kind)
    communicator.recv(array.reshape(-1), rank).wait()
    return tensor(array)
