"""The contract of `Communicator`, as functions of one rank.

Every function in `CONTRACT` is called on all ranks of a group at once, with that rank's
communicator, and must leave the group in step. `BREAKING` holds those after which the communicator
is broken: each needs a group of its own. A function of a `contract_*` module that takes nothing but
`comm` is part of the contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType

import contract_collectives
import contract_errors
import contract_groups
import contract_memory

__all__ = ["BREAKING", "CONTRACT"]


def _checks(module: ModuleType) -> list[Callable]:
    return [
        check
        for name, check in vars(module).items()
        if inspect.isfunction(check)
        and check.__module__ == module.__name__
        and list(inspect.signature(check).parameters) == ["comm"]
        and not name.startswith("_")
    ]


BREAKING = [
    contract_errors.a_missing_rank_is_a_timeout_that_names_it,
    contract_errors.a_rank_that_closes_is_named_to_those_who_wait,
    contract_errors.what_is_queued_behind_an_error_fails_too,
    contract_errors.close_finishes_what_is_queued,
    contract_collectives.sizes_that_disagree_are_an_error_on_every_rank,
]
CONTRACT = [
    check
    for module in (contract_collectives, contract_memory, contract_groups, contract_errors)
    for check in _checks(module)
    if check not in BREAKING
]
