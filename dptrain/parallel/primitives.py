"""The steps of `DataParallel` one by one, for users who put them together themselves.

Owns: `replicate`, `parallel_apply`. Must not know: how replicas are made and run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from dptrain.core.device import device
from dptrain.core.grad_mode import no_grad
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module
from dptrain.parallel.data_parallel import Threads, devices_named
from dptrain.parallel.replicas import ReplicaSet


def replicate(network: Module, devices: Sequence[Any], detach: bool = False) -> list[Module]:
    """The module on each of several devices; gradients of the copies add up in its parameters.

    Args:
        network: lives on the first device, where it is its own replica.
        devices: devices, their names, or their numbers among those of the module's kind.
        detach: make copies from which no gradient comes back.

    Raises:
        RuntimeError: no such device.
        ValueError: no device, or one named twice.
    """
    home = next((p.device for p in network.parameters()), None)
    places = devices_named(devices, home.type if home is not None else "cpu")
    if not places:
        raise ValueError("replicate: expected at least one device")
    if not detach:
        return [network, *ReplicaSet(network).make(places[1:])]
    with no_grad():
        return [network, *ReplicaSet(network).make(places[1:])]


def parallel_apply(
    modules: Sequence[Module],
    inputs: Sequence[Any],
    kwargs_tup: Sequence[dict[str, Any]] | None = None,
    devices: Sequence[Any] | None = None,
) -> list[Any]:
    """The results of modules for their inputs, computed side by side on threads.

    Args:
        modules: one for each device.
        inputs: for each module its argument, or a tuple of them.
        kwargs_tup: for each module its keyword arguments.
        devices: accepted; a module computes where its inputs live. For messages.

    Raises:
        ValueError: another number of inputs, arguments or devices than of modules.
    """
    count = len(modules)
    named = [{}] * count if kwargs_tup is None else kwargs_tup
    for what, given in (("inputs", inputs), ("kwargs_tup", named), ("devices", devices)):
        if given is not None and len(given) != count:
            raise ValueError(
                f"parallel_apply: {what} must have one entry for each module ({count}), got {len(given)}"
            )
    if not count:
        return []
    arguments = [x if isinstance(x, (tuple, list)) else (x,) for x in inputs]
    places = [_place(x) for x in arguments]
    calls = [partial(m, *x, **k) for m, x, k in zip(modules, arguments, named, strict=True)]
    return Threads(count - 1).run(calls, places)


def _place(inputs: Sequence[Any]) -> device:
    """Where the first tensor among the arguments lives."""
    return next((x.device for x in inputs if isinstance(x, Tensor)), device("cpu"))
