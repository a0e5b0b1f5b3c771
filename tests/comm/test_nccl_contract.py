"""The contract over GPUs' arrays: by NCCL, staged through the host, and staged from virtual devices.

Without a GPU NCCL is `fake_nccl` and CuPy is `fake_cupy`, between ranks that are threads; that shows what
`NcclTransport` asks for, not what a GPU makes of it. `tests/mpi/test_nccl_ranks.py` runs the same
contract where GPUs are.
"""

from __future__ import annotations

import contract_collectives
import contract_memory
import contract_values
import fake_cupy
import fake_nccl
import on_device
import pytest
from comm_contract import BREAKING, CONTRACT
from contract_misuse import CALLS, CASES, check_case, one_call_more_than_the_others, use_after_close
from on_device import OnDevice

from dptrain.comm import call, run_ranks
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.nccl import NcclTransport

#: NCCL adds 16-bit types in 16 bits, and scales before it adds.
NOT_OF_NCCL = [contract_collectives.sixteen_bit_sums_accumulate_in_float32]
#: Where three ranks' average or random 16-bit sum is rounded as NCCL rounds.
ROUNDED = [
    contract_collectives.average_divides_by_the_number_of_ranks,
    contract_memory.any_shape_and_dtype_agrees_with_numpy,
]


def name(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.fixture
def ranks(monkeypatch):
    """Runs a check on ranks with a (stand-in) GPU each, connected by NCCL; gives the library."""
    monkeypatch.setattr(contract_values, "exact", True)
    # Messages name the line of the user, who calls through `OnDevice`.
    inner = (*call._NOT_THE_USERS, on_device.__file__)
    monkeypatch.setattr(call, "_NOT_THE_USERS", inner)

    def run(world_size, check, *args):
        library = fake_nccl.Library()

        def on_gpu(comm):
            transport = NcclTransport(comm._transport, comm.rank, library)
            made = TransportCommunicator(transport, timeout_s=comm.timeout_s)
            place = f"cuda:{comm.rank}"
            try:
                return check(OnDevice(made, place), *args)
            finally:
                made.close()

        with fake_cupy.installed(monkeypatch, world_size):
            run_ranks(world_size, on_gpu)
        return library

    return run


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "check", [c for c in [*CONTRACT, *BREAKING] if c not in NOT_OF_NCCL], ids=name
)
def test_nccl(ranks, check, world_size):
    if world_size == 3 and check in ROUNDED:
        pytest.skip("rounded as NCCL rounds")
    ranks(world_size, check)


@pytest.mark.parametrize("case", CASES)
def test_a_rank_that_differs_is_an_error_before_nccl_is_asked(ranks, case):
    ranks(2, check_case, case)


@pytest.mark.parametrize("check", [one_call_more_than_the_others, use_after_close])
@pytest.mark.parametrize("collective", CALLS)
def test_bad_use(ranks, check, collective):
    ranks(2, check, collective)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=name)
def test_gpu_arrays_without_nccl(monkeypatch, check, world_size):
    with fake_cupy.installed(monkeypatch, world_size):
        run_ranks(world_size, lambda comm: check(OnDevice(comm, f"cuda:{comm.rank}")))


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=name)
def test_virtual_devices(host_devices, check):
    host_devices(3)
    run_ranks(2, lambda comm: check(OnDevice(comm, f"cpu:{comm.rank + 1}")))
