"""DistributedDataParallel: one model per rank, gradients averaged while backward runs.

Owns: the module wrapper, `no_sync`, buffers, ranks that run out of data. Must not know: backends.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dptrain.comm.default import default_communicator, is_initialized
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.data.events import register_pass_end
from dptrain.nn.module import Module
from dptrain.nn.replays import never
from dptrain.parallel.agreement import (
    LatestBuffers,
    average_buffers,
    check_models_agree,
)
from dptrain.parallel.agreement import (
    broadcast_buffers as send_buffers,
)
from dptrain.parallel.ddp_arguments import (
    buffer_policy,
    check_devices,
    check_module,
    check_options,
    check_trained,
    group_of_mesh,
)
from dptrain.parallel.ddp_switches import Switches
from dptrain.parallel.ends import EqualEnds, weakly
from dptrain.parallel.join import Join
from dptrain.parallel.process_group import communicator_of
from dptrain.parallel.reducer import Reducer
from dptrain.parallel.reproducible import ShardedStep, shard_count
from dptrain.parallel.shared_state import shared_buffers, shared_parameters
from dptrain.parallel.weights import SampleWeights

_PREFIX = "module."


class DistributedDataParallel(Switches, EqualEnds, Module):
    """Trains `module` on every rank with its own share of the data, as one model.

    Construction compares the ranks' models, sends parameters and buffers of rank 0 to all, and moves
    parameters and gradients into flat buffers. After each `backward()` every `param.grad` is the mean
    over the ranks; optimizers and clipping need not know of ranks.

    Parameters that no rank used keep `grad is None`; parameters that some ranks used get the average
    with zeros of the others. Both are settled in the same step, without a flag. A rank whose backward
    reaches none of them at all is an error on every rank at its next optimizer step, as the others wait
    for it in theirs; add `0 * output.sum()` to its loss. Parameters may be frozen and unfrozen between
    steps, on all ranks alike.

    When a DataLoader's pass that trained this module ends on one rank before the others, that rank
    answers the others' averages (which then divide by the ranks that had data) until all are done,
    and then takes over parameters, buffers and optimizer state of a rank that made all steps. `join()`
    does the same for loops without a DataLoader.

    `state_dict()` has no "module." prefix; `load_state_dict` takes both kinds. Copies and pickles
    belong to the default group, and connect at their first forward.

    Args:
        module: the model; the same on every rank.
        device_ids: None or the one device on which the module lives.
        output_device: likewise.
        dim: batch dimension; only 0.
        broadcast_buffers: the deprecated name of `forward_sync_buffers`.
        init_sync: compare and broadcast at construction.
        process_group: whose ranks train together; the default group if None.
        bucket_cap_mb: size of a gradient bucket in MiB; None: 25, and 1 for the first and the last (4
            where all ranks are on one host).
        find_unused_parameters: accepted; unused parameters are always handled.
        check_reduction: accepted; has no effect, as in PyTorch.
        gradient_as_bucket_view: accepted; gradients are always views of the buckets.
        static_graph: accepted; nothing here depends on it.
        delay_all_reduce_named_params: accepted with `param_to_hook_all_reduce`; buckets never block
            backward, so there is nothing to delay.
        param_to_hook_all_reduce: see there.
        mixed_precision: refused.
        device_mesh: a mesh of one dimension, in place of `process_group`.
        skip_all_reduce_unused_params: accepted; buckets always travel, with zeros where need be.
        bucket_cap_mb_list: sizes of the buckets in MiB, the last one also for those that follow.
        batched_grad_copy: accepted; there are no copies.
        forward_sync_buffers: begin each forward with rank 0's buffers (the default): all ranks send and
            receive them in a training forward, and an evaluation has those of the last backward;
            "average": take the mean of the ranks' floating point buffers instead.
        weighted: average over samples in place of ranks. The loss has to be a mean over its batch; the
            batch's size (or `weigh`) travels with the gradients, and the result is the gradient of the
            mean over the whole global batch, however it is split over ranks and micro-batches. Until
            it is averaged (`no_sync`), `grad` holds sums of gradients times counts.
        reproducible: the number of virtual shards of a global batch (True: 8), or False. Steps are made
            with `shard_backward`, and have the same bits on any number of ranks.

    Raises:
        RuntimeError: no process group; models that differ; no parameter requires gradients.
        ValueError: an argument that cannot be honoured.
    """

    #: Its forward computes what that of `module` does.
    forwards_to_module = True

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool | None = None,
        init_sync: bool = True,
        process_group: Any = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Any = None,
        param_to_hook_all_reduce: Any = None,
        mixed_precision: Any = None,
        device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
        bucket_cap_mb_list: Sequence[float] | None = None,
        batched_grad_copy: bool = False,
        forward_sync_buffers: bool | str | None = None,
        *,
        weighted: bool = False,
        reproducible: bool | int = False,
    ) -> None:
        super().__init__()
        cap = list(bucket_cap_mb_list) if bucket_cap_mb_list else bucket_cap_mb
        check_options(
            dim,
            delay_all_reduce_named_params,
            param_to_hook_all_reduce,
            mixed_precision,
            cap,
        )
        process_group = group_of_mesh(process_group, device_mesh)
        self.communicator = communicator_of(process_group, "DistributedDataParallel")
        check_module(module)
        check_devices(module, device_ids, output_device)
        self.module = module
        self.process_group = process_group if process_group is not None else self.communicator
        self.device_ids, self.output_device, self.dim = device_ids, output_device, dim
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.forward_sync_buffers, init_buffers = buffer_policy(
            broadcast_buffers, forward_sync_buffers
        )
        self.weighted, self.reproducible = weighted, shard_count(reproducible)
        self._bucket_cap = cap
        self._name = f"DDP({type(module).__name__})"
        if init_sync:
            check_models_agree(module, self.communicator)
        check_trained(module)  # After the comparison, which says where only some ranks have none.
        self._connect()
        if init_sync:
            self._broadcast_module(root=0, buffers=init_buffers)

    def _connect(self) -> None:
        """Start averaging the gradients. Collective."""
        named = shared_parameters(self.module)
        if self.communicator.local_world_size < self.communicator.world_size:
            # A replay hands over all gradients at its end; here they travel while backward runs.
            never(self.module, "its gradients go to other hosts while its backward pass runs")
        self._connected: Reducer | None = Reducer(
            [(n, p) for n, p in named if p.requires_grad],
            self.communicator,
            self._bucket_cap,
            self._name,
            SampleWeights() if self.weighted else None,
        )
        self._frozen = [(n, p) for n, p in named if not p.requires_grad]
        self._sharded = ShardedStep(self.module, self._connected, self.reproducible, self._name)
        self._latest = LatestBuffers(self.module, self.communicator, f"{self._name} buffers")
        if self.forward_sync_buffers is True and shared_buffers(self.module):
            self._connected.after = self._latest.keep
        weakref.finalize(self, self._connected.detach)
        weakref.finalize(self, register_pass_end(weakly(self)).remove)

    @property
    def _reducer(self) -> Reducer:
        """What averages the gradients; a copy of a module connects when it is first used."""
        if self._connected is None:
            self.communicator = communicator_of(None, "DistributedDataParallel")
            self.process_group = self.communicator
            self._connect()
        assert self._connected is not None
        return self._connected

    @property
    def broadcast_buffers(self) -> bool | str:
        """The deprecated name of `forward_sync_buffers`."""
        return self.forward_sync_buffers

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run the module; before that, take over the buffers of the first rank."""
        if self._connected is not None and not (is_grad_enabled() and self.training):
            self._latest.bring()
        if not is_grad_enabled():
            return self.module(*inputs, **kwargs)
        reducer, begun_ns = self._reducer, time.perf_counter_ns()
        if self.reproducible and self.training:
            raise RuntimeError(
                f"this module was made with reproducible={self.reproducible}; train it with "
                "loss = model.shard_backward(criterion, inputs, targets) over the global batch"
            )
        Join.notify_join_context(self)
        self._take_unfrozen()
        if self.training and reducer.enabled and self.forward_sync_buffers:
            self._sync_buffers()
        if reducer.weights is not None:
            reducer.weights.add_forward((*inputs, *kwargs.values()))
        output = self.module(*inputs, **kwargs)
        reducer.forward_ns = (begun_ns, time.perf_counter_ns())
        return output

    def _take_unfrozen(self) -> None:
        """Average the gradients of parameters that were frozen until now, too."""
        if self._frozen and any(p.requires_grad for _, p in self._frozen):
            self._reducer.add([(n, p) for n, p in self._frozen if p.requires_grad])
            self._frozen = [(n, p) for n, p in self._frozen if not p.requires_grad]

    def shard_backward(self, loss_fn: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """Forward and backward of a global batch, with the same bits on any number of ranks.

        The batch is cut into the number of shards that `reproducible` says; each rank computes some of
        them, one after another. Afterwards every `param.grad` is the exact mean over the shards, plus
        what was there before, and buffers are the mean of what the shards made of them. Random numbers
        (dropout) depend on the seed, the step and the shard. Seeds and batches have to be the same on
        all ranks. Memory: this rank's shards' gradients at once; nothing overlaps.

        Args:
            loss_fn: `loss_fn(output, *rest)`, the mean over its shard.
            batch: the whole global batch: the input of the module, then the rest; the first dimension
                is a multiple of the number of shards.

        Returns:
            The loss of the global batch, a float64 scalar without history.

        Raises:
            RuntimeError: made without `reproducible`.
            TypeError, ValueError: a batch that cannot be cut.
        """
        if not self.reproducible:
            raise RuntimeError(
                "shard_backward() needs DistributedDataParallel(..., reproducible=number_of_shards)"
            )
        self._reducer  # noqa: B018 - connects a copy
        self._take_unfrozen()
        return self._sharded.run(loss_fn, batch)

    @property
    def shard_steps(self) -> int:
        """How many times `shard_backward` ran; set it when a run is resumed, as dropout follows it."""
        self._reducer  # noqa: B018 - connects a copy
        return self._sharded.steps

    @shard_steps.setter
    def shard_steps(self, steps: int) -> None:
        self._reducer  # noqa: B018 - connects a copy
        self._sharded.steps = steps

    def _sync_buffers(self) -> None:
        buffers = [b for _, b in shared_buffers(self.module)]
        name = f"{self._name} buffers"
        if self.forward_sync_buffers == "average":
            average_buffers(buffers, self.communicator, name)
        else:
            send_buffers(buffers, self.communicator, None, name)

    # ---- when gradients are averaged, and how -------------------------------------------------------

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients of this rank only; the first backward outside averages the sum.

        What counts is where `backward()` runs; `forward` may be inside or outside.
        """
        reducer = self._reducer
        before, reducer.enabled = reducer.enabled, False
        try:
            yield
        finally:
            reducer.enabled = before

    @contextmanager
    def accumulate(self, step: int, every: int, last: bool = False) -> Iterator[bool]:
        """Average in every `every`-th step only; in the others accumulate, as `no_sync` does.

        Example::

            for step, (x, y) in enumerate(loader):
                with model.accumulate(step, every=4, last=step + 1 == len(loader)) as update:
                    (criterion(model(x), y) / 4).backward()
                if update:
                    optimizer.step()
                    optimizer.zero_grad()

        Args:
            step: number of the micro-batch, from 0.
            every: micro-batches per averaged step.
            last: whether no micro-batch follows: averages what there is.

        Yields:
            Whether the gradients are averaged after this block.

        Raises:
            ValueError: `every` is below 1.
        """
        if every < 1:
            raise ValueError(f"accumulate: every must be 1 or more, got {every}")
        if last or (step + 1) % every == 0:
            yield True
            return
        with self.no_sync():
            yield False

    def weigh(self, count: float) -> None:
        """Say that the next backward counts for `count` samples (or tokens), whatever the batch's size.

        Raises:
            RuntimeError: made without `weighted=True`.
            ValueError: no finite number of 0 or more.
        """
        if not self.weighted:
            raise RuntimeError("weigh() needs DistributedDataParallel(..., weighted=True)")
        weights = self._reducer.weights
        assert weights is not None
        weights.tell(count)

    # ---- recordings --------------------------------------------------------------------------------

    def why_not_recorded(self) -> str | None:
        """Why a CUDA graph cannot hold its steps, if it cannot."""
        reducer = self._connected
        if reducer is None:
            return "a copy of a DistributedDataParallel connects at its first forward"
        if self.communicator.backend != "nccl":
            return (
                f"DistributedDataParallel moves gradients through the host by backend {self.communicator.backend!r}; a CUDA "
                "graph holds what NCCL does"
            )
        if self.reproducible or any(c[k] is not None for c, k in self.switches()[1:]):
            return (
                "how DistributedDataParallel averages is decided on the host (weighted, reproducible, a communication hook, "
                "a ZeRO optimizer)"
            )
        return None

    def switches(self) -> list[tuple[dict[str, Any], str]]:
        """Where it says how gradients are averaged: first whether they are (container, key)."""
        names = ("enabled", "hook", "owners", "divide_by", "weights")
        return [] if self._connected is None else [(vars(self._connected), n) for n in names]

    def sent_buffers(self) -> Callable[[], None]:
        """What to call after each replay of a recorded step, for the buffers that it sends."""
        return self._latest.again()

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

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take along: not the connection to the other ranks.

        Raises:
            RuntimeError: the module belongs to another group than the default one.
        """
        if not is_initialized() or self.communicator is not default_communicator():
            raise RuntimeError(
                "DDP Pickling/Unpickling are only supported when using DDP with the default process group; copy or save "
                "model.module instead"
            )
        left = ("communicator", "process_group", "_frozen", "_latest", "_sharded")
        return {k: v for k, v in self.__dict__.items() if k not in left} | {"_connected": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
