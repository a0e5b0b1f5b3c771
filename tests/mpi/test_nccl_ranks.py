"""The contract between GPUs: `mpirun -n N python -m pytest --with-mpi -m gpu tests/mpi/test_nccl_ranks.py`.

One rank needs one GPU, N ranks need N. `dprun` is not needed: MPI carries the meetings.
"""

from __future__ import annotations

import contract_collectives
import contract_memory
import contract_values
import numpy as np
import on_device
import pytest
from comm_contract import BREAKING, CONTRACT
from on_device import OnDevice

import dptrain
from dptrain.core.cuda import probe, trouble

REASON = trouble(probe())
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}"),
]
#: What is rounded as NCCL rounds: 16-bit types are added in 16 bits, averages are scaled first.
ROUNDED = [
    contract_collectives.sixteen_bit_sums_accumulate_in_float32,
    contract_collectives.average_divides_by_the_number_of_ranks,
    contract_memory.any_shape_and_dtype_agrees_with_numpy,
]


@pytest.fixture
def comm(monkeypatch):
    """A communicator by NCCL whose ranks are given GPUs' arrays."""
    from mpi4py import MPI

    from dptrain.comm import call, gpus
    from dptrain.comm.mpi import connect
    from dptrain.comm.nccl import NcclTransport, binding

    library = binding()
    local = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    if local.size > probe().count:
        pytest.skip(f"{local.size} ranks on {probe().count} GPUs")
    index = gpus.choose(local.rank)
    monkeypatch.setattr(contract_values, "exact", True)
    monkeypatch.setattr(call, "_NOT_THE_USERS", (*call._NOT_THE_USERS, on_device.__file__))
    with connect(timeout_s=30.0, wrap=lambda t: NcclTransport(t, index, library)) as found:
        yield OnDevice(found, f"cuda:{index}")


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=lambda check: check.__name__)
def test_contract(comm, check):
    if comm.world_size > 1 and check in ROUNDED:
        pytest.skip("rounded as NCCL rounds")
    check(comm)


def test_a_sum_is_ordered_with_the_work_around_it(comm):
    # Large products before and after: a missing wait would read what is not there yet.
    x = dptrain.ones(2048, 2048).to(comm.place)
    for _ in range(10):
        y = x
        for _ in range(10):
            y = y @ x * (1 / 2048)
        work = comm.comm.all_reduce(y._array)
        work.wait()
        assert dptrain.equal((y * 1).cpu(), dptrain.full((2048, 2048), float(comm.world_size)))


def test_a_graph_that_holds_a_sum_is_replayed(comm):
    cuda = dptrain.cuda
    x = dptrain.zeros(1000).to(comm.place)
    comm.comm.all_reduce(x._array).wait()  # connects
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        y = x * 2
        comm.comm.all_reduce(y._array).wait()
        z = y + 1
    for k in range(3):
        x.fill_(k)
        graph.replay()
        assert z.tolist() == [2.0 * k * comm.world_size + 1] * 1000


def test_more_than_two_gibibytes_in_one_call(comm):
    free, _ = dptrain.cuda.mem_get_info()
    if free < 8 << 30:
        pytest.skip("needs 8 GiB of free GPU memory")
    x = dptrain.ones((1 << 31) + 5, dtype=dptrain.uint8).to(comm.place)
    comm.comm.all_reduce(x._array).wait()
    last = x[-3:].cpu().numpy()
    np.testing.assert_array_equal(last, comm.world_size)
