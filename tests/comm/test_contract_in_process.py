"""The contract over the backends that need no launcher: one rank, and ranks as threads."""

from __future__ import annotations

import pytest
from comm_contract import BREAKING, CONTRACT, MISMATCHES, a_mismatch_is_an_error_on_every_rank

from dptrain.comm import run_ranks
from dptrain.comm.serial import SerialCommunicator


def name(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=name)
def test_serial(check):
    with SerialCommunicator() as comm:
        check(comm)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=name)
def test_threads(check, world_size):
    run_ranks(world_size, check)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("case", MISMATCHES)
def test_mismatch_between_threads(case, world_size):
    run_ranks(world_size, a_mismatch_is_an_error_on_every_rank, case)
