"""The contract over the backends that need no launcher: one rank, and ranks as threads."""

from __future__ import annotations

import pytest
from comm_contract import BREAKING, CONTRACT
from contract_misuse import (
    CALLS,
    CASES,
    check_case,
    gaps_in_memory,
    one_call_more_than_the_others,
    two_threads_in_another_order,
    use_after_close,
)

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


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_rank_that_differs_is_an_error_on_every_thread(case, world_size):
    run_ranks(world_size, check_case, case)


@pytest.mark.parametrize("check", [one_call_more_than_the_others, use_after_close, gaps_in_memory])
@pytest.mark.parametrize("call", CALLS)
def test_bad_use_between_threads(check, call):
    run_ranks(3, check, call)


def test_two_threads_of_a_rank():
    run_ranks(2, two_threads_in_another_order)
