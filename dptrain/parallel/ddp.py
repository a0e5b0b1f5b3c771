"""DistributedDataParallel: one model per rank, gradients averaged while backward runs.

Owns: the module wrapper, `no_sync`, buffers, ranks that run out of data. Must not know: backends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dptrain.comm.communicator import Communicator
from dptrain.comm.default import default_communicator, is_initialized
from dptrain.core.flat import adopt
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.data.events import register_pass_end
from dptrain.nn.module import Module
from dptrain.nn.parameter import is_lazy
from dptrain.parallel.agreement import broadcast_arrays, broadcast_buffers, check_models_agree
from dptrain.parallel.reducer import Reducer
from dptrain.parallel.statistics import StepTimes

_PREFIX = "module."


class DistributedDataParallel(Module):
    """Trains `module` on every rank with its own share of the data, as one model.

    Construction compares the ranks' models, sends parameters and buffers of rank 0 to all, and moves
    parameters and gradients into flat buffers. After each `backward()` every `param.grad` is the mean
    over the ranks; optimizers and clipping need not know of ranks.

    Parameters that no rank used keep `grad is None`; parameters that some ranks used get the average
    with zeros of the others. Both are settled in the same step, without a flag.

    When a DataLoader's pass that trained this module ends on one rank before the others, that rank
    answers the others' averages (which then divide by the ranks that had data) until all are done,
    and then takes over parameters, buffers and optimizer state of a rank that made all steps.

    `state_dict()` has no "module." prefix; `load_state_dict` takes both kinds.

    Args:
        module: the model; the same on every rank.
        device_ids: None or one device, as in PyTorch; on the CPU it must be None.
        output_device: as `device_ids`.
        dim: batch dimension; only 0.
        broadcast_buffers: send rank 0's buffers to all before each training forward.
        init_sync: compare and broadcast at construction.
        process_group: a communicator; the default one if None.
        bucket_cap_mb: size of a gradient bucket in MiB; None: 25, and 1 for the first and the last.
        find_unused_parameters: accepted; unused parameters are always handled.
        gradient_as_bucket_view: accepted; gradients are always views of the buckets.
        static_graph: accepted; nothing here depends on it.

    Raises:
        RuntimeError: no process group; models that differ; no parameter requires gradients.
        ValueError: an argument that cannot be honoured.
    """

    def __init__(
        self,
        module: Module,
        device_ids: list[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: Communicator | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
    ) -> None:
        super().__init__()
        if dim != 0 or device_ids or output_device is not None:
            raise ValueError(
                f"DistributedDataParallel computes on this rank's 'cpu' device along dim 0; got dim={dim}, "
                f"device_ids={device_ids}, output_device={output_device}"
            )
        if process_group is None and not is_initialized():
            raise RuntimeError(
                "default process group has not been initialized; call "
                "dptrain.distributed.init_process_group() before DistributedDataParallel"
            )
        if any(is_lazy(p) for p in module.parameters()):
            raise RuntimeError(
                "Modules with uninitialized parameters can't be used with `DistributedDataParallel`. Run a dummy "
                "forward pass to correctly initialize the modules"
            )
        self.module = module
        self.communicator = process_group or default_communicator()
        self.broadcast_buffers = broadcast_buffers
        if init_sync:
            check_models_agree(module, self.communicator)
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise RuntimeError(
                "DistributedDataParallel is not needed when a module doesn't have any parameter that requires a gradient"
            )
        self._storages = adopt(trained)
        self._name = f"DDP({type(module).__name__})"
        self._reducer = Reducer(self._storages, self.communicator, bucket_cap_mb, self._name)
        if init_sync:
            self._broadcast_module(root=0)
        weakref.finalize(self, register_pass_end(_weakly(self)).remove)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the module; before that, in training, take over the buffers of the first rank."""
        if self.broadcast_buffers and self.training and is_grad_enabled():
            buffers = list(self.module.buffers())
            if buffers:
                broadcast_buffers(buffers, self.communicator, None, f"{self._name} buffers")
        return self.module(*inputs, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients of this rank only; the first backward outside averages the sum."""
        before = self._reducer.enabled
        self._reducer.enabled = False
        try:
            yield
        finally:
            self._reducer.enabled = before

    @property
    def times(self) -> StepTimes:
        """Communication of this rank so far, and how much of it was hidden behind backward."""
        return self._reducer.times

    # ---- state, without the wrapper's prefix -----------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own state, whose keys do not tell that it was wrapped."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the module's state; keys may carry PyTorch's "module." prefix."""
        if state_dict and all(k.startswith(_PREFIX) for k in state_dict):
            state_dict = {k.removeprefix(_PREFIX): v for k, v in state_dict.items()}
        return self.module.load_state_dict(state_dict, strict=strict, assign=assign)

    # ---- ranks that run out of data ----------------------------------------------------------------

    def _on_pass_end(self, first_batch_time_ns: int) -> None:
        """Wait for the ranks that still have batches, if this pass trained the module."""
        if self._reducer.last_step_ns < first_batch_time_ns:
            return
        answered = self.communicator.join().shadowed_by_rank
        if any(answered):
            # Who answered made fewer steps; a rank that answered nothing made them all.
            self._broadcast_module(root=answered.index(0))
            self._broadcast_optimizers(root=answered.index(0))

    def _broadcast_module(self, root: int) -> None:
        broadcast_arrays(
            [s.data for s in self._storages], self.communicator, root, f"{self._name} parameters"
        )
        held = {id(p) for storage in self._storages for p in storage.params}
        others = [p for p in self.module.parameters() if id(p) not in held]
        broadcast_buffers(
            [*others, *self.module.buffers()], self.communicator, root, f"{self._name} buffers"
        )

    def _broadcast_optimizers(self, root: int) -> None:
        owners = {id(o): o for storage in self._storages for o in storage.owners()}
        for owner in owners.values():
            state = owner.state_dict() if self.communicator.rank == root else None
            state = self.communicator.broadcast_object(state, root, name=f"{self._name} optimizer")
            if self.communicator.rank != root:
                owner.load_state_dict(state)


def _weakly(ddp: DistributedDataParallel) -> Callable[[Any, int], None]:
    """The module's pass-end callback, which does not keep the module alive."""
    reference = weakref.ref(ddp)

    def on_pass_end(loader: Any, first_batch_time_ns: int) -> None:
        module = reference()
        if module is not None:
            module._on_pass_end(first_batch_time_ns)

    return on_pass_end
