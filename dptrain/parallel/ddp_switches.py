"""The facts and switches of a DistributedDataParallel that PyTorch's users reach for.

Owns: `Switches`, a base of DistributedDataParallel. Must not know: how gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dptrain.core.device import device
from dptrain.nn.module import Module
from dptrain.parallel.agreement import check_replicas_equal
from dptrain.parallel.comm_hooks import BuiltinCommHookType
from dptrain.parallel.ddp_report import logging_data
from dptrain.parallel.grad_bucket import CommHook, check_hook
from dptrain.parallel.reducer import Reducer
from dptrain.parallel.shared_state import IGNORED
from dptrain.parallel.statistics import StepTimes


class Switches:
    """What can be asked and set between steps.

    Attributes:
        module: the model.
        static_graph: as the user said; nothing here depends on it.
    """

    module: Module
    static_graph: bool

    @property
    def _reducer(self) -> Reducer:
        raise NotImplementedError

    @property
    def device(self) -> device:
        """Where the module computes."""
        found: device = next(self.module.parameters()).device
        return found

    @property
    def require_backward_grad_sync(self) -> bool:
        """Whether the next backward averages: PyTorch's switch behind `no_sync`."""
        return self._reducer.enabled

    @require_backward_grad_sync.setter
    def require_backward_grad_sync(self, wanted: bool) -> None:
        self._reducer.enabled = wanted

    @property
    def times(self) -> StepTimes:
        """Communication of this rank so far, and how much of it was hidden behind backward."""
        return self._reducer.times

    def get_ddp_logging_data(self) -> dict[str, Any]:
        """Facts about this run for a log, under PyTorch's names where it has them."""
        return logging_data(self, self._reducer)

    _get_ddp_logging_data = get_ddp_logging_data

    def check_replicas(self) -> None:
        """Raise, on every rank, if the ranks' parameters are no longer the same bits. Collective.

        Averages keep replicas equal; what a rank does on its own (draws without a common seed, changes under
        `if rank == 0`, an optimizer with other options) does not. Call it now and then, before a checkpoint for
        example: it costs a pass over the parameters, and 16 bytes of each travel.

        Raises:
            RuntimeError: names the first parameter that differs, and the ranks.
        """
        check_replicas_equal(self.module, self._reducer.communicator)

    def register_comm_hook(self, state: Any, hook: CommHook) -> None:
        """Let `hook(state, bucket)` average the buckets in place of an all-reduce.

        Args:
            state: for the hook.
            hook: takes the state and a `GradBucket` with this rank's gradients; returns a
                `dptrain.futures.Future` of a tensor with the averaged ones.

        Raises:
            TypeError: not callable.
            ValueError: annotations that ask for something else than a `GradBucket`.
            RuntimeError: there is a hook already.
        """
        check_hook(hook)
        if self._reducer.hook is not None:
            raise RuntimeError(
                "register_comm_hook or register_builtin_comm_hook can only be called once."
            )
        self._reducer.hook = (state, hook)

    def _register_builtin_comm_hook(self, comm_hook_type: BuiltinCommHookType) -> None:
        """`register_comm_hook` of the hook of that name, over the ranks of this module."""
        self.register_comm_hook(self._reducer.communicator, comm_hook_type.value)

    def _set_static_graph(self) -> None:
        """Say that every step uses the same parameters; accepted, and not needed."""
        self.static_graph = True

    @staticmethod
    def _set_params_and_buffers_to_ignore_for_model(
        module: Module, params_and_buffers_to_ignore: Iterable[str]
    ) -> None:
        """Leave parameters and buffers of these names each rank's own, in a module not yet wrapped."""
        object.__setattr__(module, IGNORED, list(params_and_buffers_to_ignore))
