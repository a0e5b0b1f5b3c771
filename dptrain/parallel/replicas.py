"""Replicas of a module on several devices of one process.

Owns: `ReplicaSet` (the copies of the parameters, refreshed from flat storage) and `Replicate`, the
operation through which their gradients come back. Must not know: how the replicas are run.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from dptrain.comm.nccl_local import sum_on
from dptrain.core.arrays import beside, device_of, move, namespace_on
from dptrain.core.device import device
from dptrain.core.flat import FlatStorage, Place, adopt, placed
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.module import Module


class Replicate(Op):
    """Parameters on further devices: (parameters) -> (parameters on each device, one after another).

    The copies are views of one buffer per device and storage. Backward adds the gradients up through
    one buffer per device: between GPUs NCCL does, in an order of its own; else in the order of the
    devices, whichever replica was ready first.
    """

    backward_name = "BroadcastBackward"

    def forward(
        self, *arrays: Any, places: Sequence[Place], mirrors: Sequence[dict[FlatStorage, Any]]
    ) -> Any:
        self.places, self.devices = places, len(mirrors)
        self.home = device_of(arrays[0])
        self.shapes = [a.shape for a in arrays]
        return tuple(
            mirror[p.storage][p.start : p.stop].reshape(shape)
            for mirror in mirrors
            for p, shape in zip(places, self.shapes, strict=True)
        )

    def backward(self, grads: Any) -> Any:
        count = len(self.places)
        rows = [grads[i * count : (i + 1) * count] for i in range(self.devices)]
        if any(isinstance(g, Tensor) for g in grads):
            return tuple(self._sum_tensors(column) for column in zip(*rows, strict=True))
        by_storage: dict[FlatStorage, list[Any]] = {}
        for row in rows:
            for storage, flat in self._flat(row).items():
                by_storage.setdefault(storage, []).append(flat)
        totals = {storage: self._total(flats) for storage, flats in by_storage.items()}
        return tuple(
            totals[p.storage][p.start : p.stop].reshape(shape)
            if any(row[i] is not None for row in rows)
            else None
            for i, (p, shape) in enumerate(zip(self.places, self.shapes, strict=True))
        )

    def _total(self, flats: Sequence[Any]) -> Any:
        """The sum of the devices' buffers, at home: by NCCL between GPUs, else in their order."""
        total = sum_on(self.home, flats)
        if total is not None:
            return total
        arrived = [move(flat, self.home) for flat in flats]
        with beside(arrived[0]):
            return sum(arrived[1:], arrived[0])

    def _flat(self, row: Sequence[Any]) -> dict[FlatStorage, Any]:
        """The gradients of one device in buffers laid out like the storages."""
        found: dict[FlatStorage, Any] = {}
        for p, grad in zip(self.places, row, strict=True):
            if grad is None:
                continue
            with beside(grad):
                if p.storage not in found:
                    xp = namespace_on(device_of(grad))
                    found[p.storage] = xp.zeros(p.storage.size, p.storage.data.dtype)
                found[p.storage][p.start : p.stop] = grad.reshape(-1)
        return found

    def _sum_tensors(self, column: Sequence[Any]) -> Any:
        arrived = [g.to(self.home) for g in column if g is not None]
        return sum(arrived[1:], arrived[0]) if arrived else None


class ReplicaSet:
    """The copies of one module on further devices.

    The copies' memory is kept from call to call. What a recorded forward pass still needs is not
    overwritten: while the graph of the last call lives, the next call gets other memory.

    Args:
        module: the original; it lives on the first device and is itself the first replica.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self._mirrors: dict[device, dict[FlatStorage, Any]] = {}
        self._last: weakref.ref[Any] | None = None

    def make(self, devices: Sequence[device]) -> list[Module]:
        """The module on each of `devices`, with the parameters and buffers of this moment."""
        if not devices:
            return []
        named = {id(p): p for p in self._module.parameters()}
        adopt(named.values())
        trained = [p for p in named.values() if p.requires_grad]
        mirrors = self._refreshed([placed(p).storage for p in named.values()], devices)
        copies: list[dict[int, Any]] = [{} for _ in devices]
        if trained:
            outs = Replicate.apply(*trained, places=[placed(p) for p in trained], mirrors=mirrors)
            self._last = None if outs[0].grad_fn is None else weakref.ref(outs[0].grad_fn)
            for i, copy in enumerate(copies):
                part = outs[i * len(trained) : (i + 1) * len(trained)]
                copy.update(zip(map(id, trained), part, strict=True))
        for place, copy, mirror in zip(devices, copies, mirrors, strict=True):
            for key, p in named.items():
                if key not in copy:
                    at = placed(p)
                    copy[key] = wrap(mirror[at.storage][at.start : at.stop].reshape(p._array.shape))
            for buffer in self._module.buffers():
                copy[id(buffer)] = wrap(move(buffer._array, place))
        return [_with_tensors(self._module, copy, {}) for copy in copies]

    def _refreshed(
        self, storages: Sequence[FlatStorage], devices: Sequence[device]
    ) -> list[dict[FlatStorage, Any]]:
        node = None if self._last is None else self._last()
        if node is not None and node.saved is not None:
            self._mirrors = {}  # the graph of the last call keeps the memory
        wanted = dict.fromkeys(storages)
        for storage in wanted:
            storage.gather()
        for place in devices:
            held = self._mirrors.get(place, {})
            mirror = self._mirrors[place] = {s: held.get(s) for s in wanted}
            for storage in wanted:
                if mirror[storage] is None:
                    mirror[storage] = move(storage.data, place)
                else:
                    with beside(mirror[storage]):
                        mirror[storage][...] = move(storage.data, place)
        return [self._mirrors[place] for place in devices]


def _with_tensors(module: Module, tensors: dict[int, Any], made: dict[int, Module]) -> Module:
    """The module with other tensors in the place of its own; everything else is shared."""
    if id(module) in made:
        return made[id(module)]
    replica = made[id(module)] = object.__new__(type(module))
    replica.__dict__.update(module.__dict__)
    for table in ("_parameters", "_buffers"):
        held = module.__dict__[table]
        replica.__dict__[table] = {
            name: None if t is None else tensors[id(t)] for name, t in held.items()
        }
    replica.__dict__["_modules"] = {
        name: None if child is None else _with_tensors(child, tensors, made)
        for name, child in module.__dict__["_modules"].items()
    }
    return replica
