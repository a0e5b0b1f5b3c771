"""The arguments of DistributedDataParallel: PyTorch's, those without effect here, and those refused.

Owns: the checks. Must not know: how gradients are averaged.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.device import as_device, device
from dptrain.nn.module import Module
from dptrain.nn.parameter import is_lazy
from dptrain.parallel.shared_state import shared_parameters

_CLASS = "DistributedDataParallel"


def check_module(module: Any) -> None:
    """Refuse what cannot be trained.

    Raises:
        TypeError: no module.
        RuntimeError: parameters that have no shape yet.
        ValueError: parameters on several kinds of devices.
    """
    if not isinstance(module, Module):
        raise TypeError(f"{_CLASS} expected a Module, got {type(module).__name__}")
    if any(is_lazy(p) for p in module.parameters()):
        raise RuntimeError(
            f"Modules with uninitialized parameters can't be used with `{_CLASS}`. Run a dummy "
            "forward pass to correctly initialize the modules"
        )
    kinds = {p.device.type for p in module.parameters()}
    if len(kinds) > 1:
        raise ValueError(
            f"{_CLASS}'s input module must be on the same type of devices, but input module parameters locate in "
            f"{kinds}."
        )


def check_trained(module: Module) -> None:
    """Refuse a module without a parameter to train.

    Raises:
        RuntimeError: it is one.
    """
    if not any(p.requires_grad for _, p in shared_parameters(module)):
        raise RuntimeError(
            f"{_CLASS} is not needed when a module doesn't have any parameter that requires a gradient."
        )


def check_devices(module: Module, device_ids: Sequence[Any] | None, output_device: Any) -> None:
    """Accept the names of the one device on which the module lives.

    Raises:
        ValueError: several devices, or another one than the module's.
    """
    if device_ids is not None and len(device_ids) > 1:
        raise ValueError("device_ids can only be None or contain a single element.")
    places = {p.device for p in module.parameters()}
    for named in [*(device_ids or ()), *(() if output_device is None else (output_device,))]:
        # A number is that of a GPU, as in PyTorch.
        wanted = device("cuda", named) if isinstance(named, int) else as_device(named)
        if places != {wanted}:
            raise ValueError(
                f"{_CLASS} device_ids and output_device arguments only work with the device on which the module lives, "
                f"but got device_ids {device_ids}, output_device {output_device}, and module parameters {places}."
            )


def check_options(
    dim: int,
    delay_all_reduce_named_params: Any,
    param_to_hook_all_reduce: Any,
    mixed_precision: Any,
    bucket_cap_mb: Any,
) -> None:
    """Refuse what would change the result and is not done here.

    Raises:
        ValueError: one of these, by name.
    """
    if dim != 0:
        raise ValueError(f"{_CLASS} computes along dim 0; got dim={dim}")
    if (delay_all_reduce_named_params is None) != (param_to_hook_all_reduce is None):
        raise ValueError(
            "delay_all_reduce_named_params and param_to_hook_all_reduce need to be set at the same time."
        )
    if mixed_precision is not None:
        raise ValueError(
            f"{_CLASS}: mixed_precision={mixed_precision!r} is not supported; use dptrain.autocast for 16-bit "
            "computation and fp16_compress_hook for 16-bit communication"
        )
    caps = bucket_cap_mb if isinstance(bucket_cap_mb, (list, tuple)) else [bucket_cap_mb]
    if any(cap is not None and cap < 0 for cap in caps):
        raise ValueError(f"{_CLASS}: a bucket cap must be 0 or more MiB, got {bucket_cap_mb}")


def group_of_mesh(process_group: Any, device_mesh: Any) -> Any:
    """The group that one of the two arguments names; None if neither does.

    Raises:
        RuntimeError: both are given, or a mesh of several dimensions.
    """
    if device_mesh is None:
        return process_group
    if process_group is not None:
        raise RuntimeError("Cannot specify both process_group and device_mesh arguments.")
    if device_mesh.ndim != 1:
        raise RuntimeError(
            f"Only 1D device mesh is supported, but got {device_mesh}; take one dimension, such as mesh['dp']"
        )
    return device_mesh.get_group()


def buffer_policy(
    broadcast_buffers: bool | None, forward_sync_buffers: bool | str | None
) -> tuple[bool | str, bool]:
    """What happens to buffers before a forward, and whether at construction.

    Raises:
        ValueError: `forward_sync_buffers` is another text than "average".
    """
    if isinstance(forward_sync_buffers, str) and forward_sync_buffers != "average":
        raise ValueError(
            f"{_CLASS}: forward_sync_buffers must be True, False or 'average', got {forward_sync_buffers!r}"
        )
    if broadcast_buffers is not None:
        warnings.warn(
            "`broadcast_buffers` is deprecated. Use `forward_sync_buffers` instead, which also decides; "
            "`forward_sync_buffers=False` still sends rank 0's buffers at construction."
            if forward_sync_buffers is None
            else "Both `broadcast_buffers` and `forward_sync_buffers` were specified. `broadcast_buffers` is "
            "deprecated and its value is ignored when `forward_sync_buffers` is provided.",
            FutureWarning,
            stacklevel=level_outside(),
        )
    if forward_sync_buffers is not None:
        return forward_sync_buffers, True
    chosen = True if broadcast_buffers is None else bool(broadcast_buffers)
    return chosen, chosen
