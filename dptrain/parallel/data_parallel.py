"""DataParallel: one process, one model, the batch split over several devices.

Owns: the module wrapper, the threads that run the replicas, the errors of replicas. Must not know:
how devices move arrays.
"""

from __future__ import annotations

import contextvars
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from dptrain.core.cuda import cuda_device, device_count
from dptrain.core.device import as_device, device, host_device, host_device_count
from dptrain.core.random import current_shard, set_shard
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.parallel.replicas import ReplicaSet
from dptrain.parallel.scatter_gather import gather, scatter, scatter_kwargs


def devices_named(given: Sequence[Any] | None, kind: str) -> list[device]:
    """The devices that `device_ids` names; all of a kind by default.

    Args:
        given: devices, their names, or their numbers among those of the kind.
        kind: "cuda", or "cpu" for the virtual host devices.

    Raises:
        RuntimeError: there is no such device.
        ValueError: one is named twice.
    """
    if given is None and kind == "cuda":
        return [cuda_device(i) for i in range(device_count())]
    if given is None:
        return [host_device(i) for i in range(host_device_count())]
    found = [as_device(device(kind, d) if isinstance(d, int) else d) for d in given]
    if len(set(found)) != len(found):
        raise ValueError(f"device_ids names a device twice: {[str(d) for d in found]}")
    return found


class ReplicaError(RuntimeError):
    """An error of a replica whose own kind cannot be raised with a message."""


def _reraise(error: BaseException, index: int, place: device) -> None:
    """Raise the error of a replica as its own kind, with the device and the original traceback."""
    text = "".join(traceback.format_exception(error))
    message = (
        f"Caught {type(error).__name__} in replica {index} on device {place}.\nOriginal {text}"
    )
    try:
        raised = type(error)(message)
    except Exception:  # a kind whose constructor wants something else
        raised = ReplicaError(message)
    raise raised from error


class Threads:
    """One thread for each replica but the first, kept from call to call."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(max(1, count), thread_name_prefix="dptrain-replica")
        weakref.finalize(self, self._pool.shutdown, wait=False)

    def run(self, calls: Sequence[Callable[[], Any]], places: Sequence[device]) -> list[Any]:
        """The results of all calls, the first of which runs in the calling thread.

        Every call sees the caller's context (grad mode, default group, autocast, ...) and computes
        a share of its own. All are over before an error is raised: the first one, by device.
        """
        base = current_shard() * len(calls)

        def replica(index: int) -> Any:
            set_shard(base + index, own_draws=index > 0)
            return calls[index]()

        futures: list[Future[Any]] = [
            self._pool.submit(contextvars.copy_context().run, replica, i)
            for i in range(1, len(calls))
        ]
        results: list[Any] = [None] * len(calls)
        errors: list[BaseException | None] = [None] * len(calls)
        try:
            results[0] = contextvars.copy_context().run(replica, 0)
        except Exception as error:
            errors[0] = error
        for i, future in enumerate(futures, 1):
            errors[i] = future.exception()
            results[i] = None if errors[i] is not None else future.result()
        for i, found in enumerate(errors):
            if found is not None:
                _reraise(found, i, places[i])
        return results


class DataParallel(Module):
    """Computes `module` on several devices of this process, each with its share of the batch.

    The arguments are split along `dim`, the module is run on each device with a copy of the
    parameters, and the results are joined on `output_device`. Backward adds the gradients of all
    replicas up in the parameters of `module`, which lives on the first device.

    As in PyTorch: the batch should be at least as large as the number of devices; buffers (running
    statistics) are those of the first device's share, changes of the other replicas are dropped;
    attributes that `forward` sets on the module stay on the first replica only. Dropout draws a
    different mask on every device.

    Args:
        module: the model; its parameters and buffers live on `device_ids[0]`.
        device_ids: the devices (or their indices); by default all GPUs where the module lives on one,
            else all virtual devices.
        output_device: where the results are joined; `device_ids[0]` by default.
        dim: the dimension along which arguments are split and results are joined.

    Raises:
        RuntimeError: no such device; from a call: parameters or buffers live elsewhere.
        ValueError: a device is named twice, or none.
    """

    module: Module
    #: Its forward computes what that of `module` does.
    forwards_to_module = True

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        kind = next((p.device.type for p in module.parameters()), "cpu")
        self.device_ids = devices_named(device_ids, kind)
        if not self.device_ids:
            raise ValueError("DataParallel needs at least one device in device_ids")
        self.output_device = (
            self.device_ids[0] if output_device is None else devices_named([output_device], kind)[0]
        )
        self.dim = dim
        self.module = module
        self._machinery: tuple[ReplicaSet, Threads] | None = None

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The results of all replicas, joined on the output device."""
        if len(self.device_ids) == 1:
            return self._on_one(self.module, inputs, kwargs)
        parts, named = scatter_kwargs(inputs, kwargs, self.device_ids, self.dim)
        if len(parts) < 2:  # no tensors at all, or one short batch
            return self._on_one(self.module, *((parts[0], named[0]) if parts else ((), {})))
        outputs = self._run(lambda m, i: m(*parts[i], **named[i]), len(parts))
        return gather(outputs, self.output_device, self.dim)

    def replica_loss(
        self, loss_fn: Callable[..., Tensor], inputs: Any, targets: Any, reduction: str = "mean"
    ) -> Tensor:
        """The loss of the whole batch, computed share by share where the results are.

        Only one number travels per device: the results themselves are never joined, which saves the
        first device the memory and the time of a `forward`.

        Args:
            loss_fn: `loss_fn(output, target)`, a scalar: the mean or the sum over its share.
            inputs: the argument of the module, or a tuple of them.
            targets: the second argument of `loss_fn`, split like the inputs.
            reduction: "mean" or "sum": what `loss_fn` does with its share. Means are weighted by the
                shares' sizes along `dim`.

        Returns:
            A scalar on the output device, equal to the loss of the undivided batch.

        Raises:
            ValueError: another reduction; inputs and targets that give different numbers of shares.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        parts = scatter(given, self.device_ids, self.dim)
        shares = scatter(targets, self.device_ids, self.dim)
        if len(parts) != len(shares):
            raise ValueError(
                f"inputs were split into {len(parts)} shares and targets into {len(shares)}; they need the same "
                f"size along dim {self.dim}"
            )
        losses = self._run(lambda m, i: loss_fn(m(*parts[i]), shares[i]), len(parts))
        sizes = [_size(share, self.dim) for share in parts]
        factors = [s / sum(sizes) if reduction == "mean" else 1.0 for s in sizes]
        weighted = [
            loss.to(self.output_device) * f for loss, f in zip(losses, factors, strict=True)
        ]
        return sum(weighted[1:], weighted[0])

    def _on_one(self, module: Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_home()
        parts, named = scatter_kwargs(inputs, kwargs, self.device_ids[:1], self.dim)
        return module(*parts[0], **named[0]) if parts else module()

    def _run(self, call: Callable[[Module, int], Any], count: int) -> list[Any]:
        """`call(replica, index)` on the first `count` devices."""
        self._check_home()
        if self._machinery is None:
            self._machinery = ReplicaSet(self.module), Threads(len(self.device_ids) - 1)
        replicas, threads = self._machinery
        places = self.device_ids[:count]
        modules = [self.module, *replicas.make(places[1:])]
        calls = [lambda i=i, m=m: call(m, i) for i, m in enumerate(modules)]
        return threads.run(calls, places)

    def _check_home(self) -> None:
        home = self.device_ids[0]
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.device != home:
                raise RuntimeError(
                    f"module must have its parameters and buffers on device {home} (device_ids[0]) but found one of "
                    f"them on device: {tensor.device}"
                )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_machinery": None}  # threads and copies are made anew


def _size(value: Any, dim: int) -> int:
    """The size along `dim` of the first tensor in a container of any nesting."""
    if isinstance(value, Tensor):
        return value.shape[dim]
    parts = value.values() if isinstance(value, dict) else value
    return next((_size(p, dim) for p in parts if isinstance(p, (Tensor, tuple, list, dict))), 1)


def data_parallel(
    module: Module,
    inputs: Any,
    device_ids: Sequence[Any] | None = None,
    output_device: Any = None,
    dim: int = 0,
    module_kwargs: dict[str, Any] | None = None,
) -> Any:
    """One call of `module` on several devices; see `DataParallel`.

    Args:
        module: the model, on `device_ids[0]`.
        inputs: its argument, or a tuple of them.
        device_ids: the devices; all of this process by default.
        output_device: where the results are joined; `device_ids[0]` by default.
        dim: the dimension along which arguments are split and results are joined.
        module_kwargs: keyword arguments of the module.
    """
    given = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    return DataParallel(module, device_ids, output_device, dim)(*given, **(module_kwargs or {}))
