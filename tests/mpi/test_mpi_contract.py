"""The contract between processes, in shared memory and over messages."""

from __future__ import annotations

import pytest
from comm_contract import BREAKING, CONTRACT, MISMATCHES, a_mismatch_is_an_error_on_every_rank

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("check", [*CONTRACT, *BREAKING], ids=lambda check: check.__name__)
def test_contract(comm, check):
    check(comm)


@pytest.mark.parametrize("case", MISMATCHES)
def test_mismatch(comm, case):
    a_mismatch_is_an_error_on_every_rank(comm, case)
