"""Which communicator a `process_group` argument means.

Owns: `communicator_of`. Must not know: what is communicated.
"""

from __future__ import annotations

from typing import Any

from dptrain.comm.communicator import Communicator
from dptrain.comm.default import default_communicator, is_initialized


def communicator_of(process_group: Any, who: str) -> Communicator:
    """The communicator of a process group; of the default group if None.

    Args:
        process_group: a communicator, or what holds one as its `communicator`.
        who: the class that asks, for the message.

    Raises:
        RuntimeError: None, and there is no default group.
        TypeError: something else.
    """
    if process_group is None:
        if not is_initialized():
            raise RuntimeError(
                "default process group has not been initialized; call "
                f"dptrain.distributed.init_process_group() before {who}"
            )
        return default_communicator()
    found = getattr(process_group, "communicator", process_group)
    if not isinstance(found, Communicator):
        raise TypeError(
            f"{who}: process_group must be a process group, got {type(process_group).__name__}"
        )
    return found
