"""`dptrain.distributed` over tensors on devices: the results are those of tensors on the host.

The calls of `calls.py`, which are compared with PyTorch over CPU tensors in `test_against_torch.py`, with
every new tensor on a device. GPUs and NCCL are stand-ins here (`fake_cupy`, `fake_nccl`).
"""

from __future__ import annotations

import warnings

import calls
import fake_cupy
import fake_nccl
import pytest

import dptrain
import dptrain.distributed as dist
import dptrain.distributed.nn
from dptrain.comm import run_ranks
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.default import set_default
from dptrain.comm.nccl import NcclTransport


def results(call, comm, place):
    warnings.simplefilter("ignore")  # as in run_calls.py
    set_default(comm)
    if place is None:
        return call(dptrain, dist, comm.rank)
    with dptrain.device(place(comm.rank)):
        return call(dptrain, dist, comm.rank)


@pytest.fixture(scope="module")
def on_the_host():
    """What the calls return over CPU tensors, by name."""
    found = {}

    def of(call):
        if call.__name__ not in found:
            found[call.__name__] = run_ranks(2, lambda comm: results(call, comm, None))
        return found[call.__name__]

    return of


def name(call):
    return call.__name__


@pytest.mark.parametrize("call", calls.CALLS, ids=name)
def test_staged_from_virtual_devices(host_devices, on_the_host, call):
    expected = on_the_host(call)
    host_devices(3)
    assert run_ranks(2, lambda comm: results(call, comm, "cpu:{}".format)) == expected
    found = run_ranks(2, lambda comm: results(call, comm, lambda rank: f"cpu:{rank + 1}"))
    assert found == expected


@pytest.mark.parametrize("by_nccl", [True, False], ids=["nccl", "staged"])
@pytest.mark.parametrize("call", calls.CALLS, ids=name)
def test_gpus(monkeypatch, on_the_host, call, by_nccl):
    expected, library = on_the_host(call), fake_nccl.Library()
    if by_nccl and call is calls.facts:
        pytest.skip("names the backend")

    def rank(comm):
        with fake_cupy.Device(comm.rank):
            if not by_nccl:
                return results(call, comm, "cuda:{}".format)
            made = NcclTransport(comm._transport, comm.rank, library)
            with TransportCommunicator(made) as ours:
                return results(call, ours, "cuda:{}".format)

    with fake_cupy.installed(monkeypatch):
        assert run_ranks(2, rank) == expected
