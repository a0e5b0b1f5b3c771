"""DistributedDataParallel where models live on devices: the numbers are those of the host.

Virtual devices are staged through the host, as GPUs without NCCL are; GPUs by NCCL are stand-ins here
(`fake_cupy`, `fake_nccl`: see these for what that shows). On real GPUs: `test_ddp_gpu.py`.
"""

import fake_cupy
import fake_nccl
import numpy as np
import pytest
from device_ranks import SCENARIOS, bfloat16_hook, float16_hook, step
from fake_cupy import over_the_stand_in
from thread_ranks import on_ranks

import dptrain
from dptrain import nn, optim
from dptrain.comm import gpus as comm_gpus
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.default import set_default
from dptrain.comm.nccl import NcclTransport
from dptrain.core import kernels
from dptrain.core.transfers import watch
from dptrain.parallel import DistributedDataParallel, ZeroRedundancyOptimizer


def name(scenario):
    return scenario.__name__


def check_equal(found, expected, near=1e-12):
    for rank, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert (a is None) == (b is None), (rank, i)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=near, atol=near, err_msg=f"{rank}, {i}")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_staged_from_virtual_devices(host_devices, scenario):
    expected = on_ranks(2, scenario, "cpu")
    host_devices(3)
    found = on_ranks(2, lambda comm: scenario(comm, f"cpu:{comm.rank + 1}"))
    check_equal(found, expected, 0)


@pytest.fixture
def gpus(monkeypatch):
    """Runs a function on two ranks with a stand-in GPU each, by NCCL or staged."""

    def run(function, by_nccl):
        library = fake_nccl.Library()
        monkeypatch.setattr(kernels, "_cuda", over_the_stand_in)

        def rank(comm):
            place = f"cuda:{comm.rank}"
            with fake_cupy.Device(comm.rank):
                if not by_nccl:
                    return function(comm, place)
                made = NcclTransport(comm._transport, comm.rank, library)
                with TransportCommunicator(made) as ours:
                    set_default(ours)
                    return function(ours, place)

        with fake_cupy.installed(monkeypatch):
            return on_ranks(2, rank), library

    return run


@pytest.mark.parametrize("by_nccl", [True, False], ids=["nccl", "staged"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_gpus(gpus, scenario, by_nccl):
    expected = on_ranks(2, scenario, "cpu")
    found, library = gpus(scenario, by_nccl)
    rounded = by_nccl and scenario in (float16_hook, bfloat16_hook)  # 16-bit sums are NCCL's
    check_equal(found, expected, 1e-2 if rounded else 1e-12)
    assert bool(library.calls) == by_nccl


def test_a_step_looks_at_no_gpu_from_the_host_where_all_parameters_are_used(gpus):
    def rank(comm, place):
        model = DistributedDataParallel(nn.Linear(6, 4).double().to(place))
        step(model, comm.rank, place)
        with watch() as seen:
            x, y = dptrain.ones(2, 6).double().to(place), dptrain.zeros(2, 4).double().to(place)
            nn.functional.mse_loss(model(x), y).backward()
        return seen

    (first, second), _ = gpus(rank, by_nccl=True)
    assert first == second == []


def test_a_bucket_of_gradients_is_reduced_where_it_lies(gpus):
    def rank(comm, place):
        model = DistributedDataParallel(nn.Linear(6, 4).double().to(place))
        step(model, comm.rank, place)

    _, library = gpus(rank, by_nccl=True)
    for one in range(2):
        (call,) = fake_nccl.calls_of(library, one, "allReduce")
        # Bias and weight, each from a 64-byte boundary, and a flag for each.
        assert (call.count, call.datatype) == (8 + 24 + 2, fake_nccl.CONSTANTS["NCCL_FLOAT64"])


@pytest.mark.parametrize("by_nccl", [True, False], ids=["nccl", "staged"])
def test_zero_divides_the_state_of_gpus_parameters(gpus, by_nccl):
    def rank(comm, place):
        dptrain.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double().to(place)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optim.SGD, lr=0.1, momentum=0.9)
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            step(wrapped, comm.rank, place)
            optimizer.step()
        optimizer.consolidate_state_dict(to=0)
        state = optimizer.state_dict()["state"] if comm.rank == 0 else {}
        kept = [entry["momentum_buffer"].cpu().numpy() for entry in state.values()]
        return [p.detach().cpu().numpy() for p in model.parameters()] + kept

    found, _ = gpus(rank, by_nccl)
    check_equal(found, on_ranks(2, rank, "cpu"))


def test_the_module_has_to_live_where_device_ids_says(host_devices):
    host_devices(2)

    def rank(comm):
        module = nn.Linear(2, 2).to("cpu:1")
        DistributedDataParallel(module, device_ids=["cpu:1"], output_device="cpu:1")
        with pytest.raises(ValueError, match="only work with the device on which the module lives"):
            DistributedDataParallel(module, device_ids=["cpu:0"])

    on_ranks(2, rank)


def test_ranks_that_share_a_gpu_are_told_so_once(monkeypatch, capfd):
    def rank(comm, place):
        for _ in range(2):
            DistributedDataParallel(nn.Linear(6, 4).to(place))

    with fake_cupy.installed(monkeypatch, count=1):
        comm_gpus._say.cache_clear()
        on_ranks(3, rank, "cpu")
        assert capfd.readouterr().err == ""
        on_ranks(3, rank, "cuda:0")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dptrain: ranks 0, 1, 2 share one GPU, cuda:0 (Stand-in) of ")


def test_ranks_with_a_gpu_each_hear_nothing(gpus, capfd):
    gpus(lambda comm, place: DistributedDataParallel(nn.Linear(6, 4).to(place)), by_nccl=False)
    assert capfd.readouterr().err == ""
