"""The end of a pass over the data, which ranks reach at different times: they wait, then they are equal.

Owns: `EqualEnds`, the part of DistributedDataParallel that answers ranks with more data. Must not
know: how gradients are averaged, backends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from dptrain.comm.communicator import Communicator
from dptrain.core.device import device
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.parallel.agreement import broadcast_arrays, broadcast_buffers
from dptrain.parallel.join import CountedHook, Join, Joinable, JoinHook
from dptrain.parallel.reducer import Reducer
from dptrain.parallel.shared_state import shared_buffers, shared_parameters


class EqualEnds(Joinable):
    """What a module that averages gradients does when ranks run out of data.

    Attributes:
        module: the model.
        communicator: connects the ranks.
        process_group: as the user gave it.
        training: whether the module is in training mode.
        forward_sync_buffers: how buffers are kept equal.
    """

    module: Module
    communicator: Communicator
    process_group: Any
    training: bool
    forward_sync_buffers: bool | str
    _name: str
    _connected: Reducer | None

    @property
    def _reducer(self) -> Reducer:
        raise NotImplementedError

    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """A context for a loop with a different number of steps on each rank, without a hang.

        Args:
            divide_by_initial_world_size: divide by all ranks; else by those that still have data, as
                happens at the end of a DataLoader's pass without this context.
            enable: False does nothing.
            throw_on_early_termination: raise on all ranks as soon as one has run out of data.
        """
        return Join(
            [self],
            enable,
            throw_on_early_termination,
            divide_by_initial_world_size=divide_by_initial_world_size,
        )

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """What to do when all ranks have run out of data; see `join` for the arguments."""
        return _EqualAfterwards(self, kwargs.get("divide_by_initial_world_size", True))

    @property
    def join_device(self) -> device:
        """Where the module computes."""
        found: Tensor = next(self.module.parameters())
        return found.device

    @property
    def join_process_group(self) -> Any:
        """Whose ranks train together."""
        return self.process_group

    def _on_pass_end(self, loader: Any, first_batch_time_ns: int) -> None:
        """Wait for the ranks that still have batches, if this pass trained the module.

        A pass without a single batch counts if the module is in training: the others train.
        """
        if self._connected is None or Join.counts_steps_of(self):
            return
        empty = loader.last_pass_length == 0 and self.training and is_grad_enabled()
        if self._connected.last_backward_ns < first_batch_time_ns and not empty:
            return
        answered = self.communicator.join().shadowed_by_rank
        if any(answered):
            # Who answered made fewer steps; a rank that answered nothing made them all.
            self._make_equal(root=answered.index(0))

    def _make_equal(self, root: int) -> None:
        """Take over parameters, buffers and the state of optimizers from rank `root`. Collective."""
        self._broadcast_module(root, buffers=True)
        owners = {id(o): o for s in self._reducer.sections for o in s.storage.owners()}
        for owner in owners.values():
            state = owner.state_dict() if self.communicator.rank == root else None
            state = self.communicator.broadcast_object(state, root, name=f"{self._name} optimizer")
            if self.communicator.rank != root:
                owner.load_state_dict(state)

    def _broadcast_module(self, root: int, buffers: bool) -> None:
        sections = self._reducer.sections
        whole = [s.storage for s in sections if s.whole]
        for storage in whole:
            storage.gather()
        broadcast_arrays(
            [storage.data for storage in whole],
            self.communicator,
            root,
            f"{self._name} parameters",
        )
        for storage in whole:
            storage.scatter()
        held = {id(p) for s in sections if s.whole for p in s.storage.params}
        others = [p for _, p in shared_parameters(self.module) if id(p) not in held]
        if buffers:
            others += [b for _, b in shared_buffers(self.module)]
        broadcast_buffers(
            others,
            self.communicator,
            root,
            f"{self._name} buffers",
        )


class _EqualAfterwards(CountedHook):
    """Divides as the context says, and makes the ranks equal when all have left it."""

    def __init__(self, ddp: EqualEnds, by_initial_world_size: bool) -> None:
        self._ddp, self._by_initial_world_size = ddp, by_initial_world_size
        self._counted = False
        self._ddp._reducer.divide_by = (
            ddp.communicator.world_size if by_initial_world_size else None
        )

    def begin_counting(self) -> None:
        reducer, sends = self._ddp._reducer, self._ddp.forward_sync_buffers
        buffers = bool(sends) and bool(shared_buffers(self._ddp.module))
        if reducer.weights is not None or reducer.owners is not None or buffers:
            raise ValueError(
                "Join: a DistributedDataParallel with weighted=True, with buffers of the first rank (make it with "
                "forward_sync_buffers=False) or with reduce_scatter cannot be joined together with joinables that "
                "override main_hook"
            )
        self._counted = True

    def with_data(self, ranks: int) -> None:
        if not self._by_initial_world_size:
            self._ddp._reducer.divide_by = ranks

    def counted_step(self) -> None:
        """Average the others' gradients, to which this rank contributes zeros."""
        self._ddp._reducer.take_part()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Collective, where steps were not counted: then every rank has made or answered all of them."""
        self._ddp._reducer.divide_by = None
        if self._counted:
            return
        last = self._ddp.communicator.all_gather_object(is_last_joiner, name="Join last joiner")
        if not all(last):
            self._ddp._make_equal(root=last.index(True))


def weakly(ddp: EqualEnds) -> Callable[[Any, int], None]:
    """The module's pass-end callback, which does not keep the module alive."""
    reference = weakref.ref(ddp)

    def on_pass_end(loader: Any, first_batch_time_ns: int) -> None:
        module = reference()
        if module is not None:
            module._on_pass_end(loader, first_batch_time_ns)

    return on_pass_end
