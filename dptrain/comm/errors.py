"""What can go wrong between ranks.

Owns: the exception types of the communicators. Must not know: how a backend moves its bytes.
"""

from __future__ import annotations


class CommunicatorError(RuntimeError):
    """A communicator cannot be used, or can no longer be used: it is closed, broken or aborted."""


class CollectiveMismatchError(CommunicatorError):
    """The ranks called different collectives; the message says which rank called what, and where.

    Raised on every rank, before any data moves.
    """


class CollectiveTimeoutError(CommunicatorError, TimeoutError):
    """Some ranks did not come to a collective within its timeout; the message names them."""


class NetworkError(CommunicatorError):
    """Another process cannot be reached, or no longer."""


class RankLeftError(NetworkError):
    """A rank ended, closed its communicator or gave up on it, while others still waited for it.

    Attributes:
        cause: what began it: which rank left first as far as is known, and how; "" if unknown.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


def rank_prefix(rank: int, world_size: int) -> str:
    """The prefix of every message in which ranks matter, such as `[rank 1/4]`."""
    return f"[rank {rank}/{world_size}]"
