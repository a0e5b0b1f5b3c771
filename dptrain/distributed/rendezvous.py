"""The store that an address stands for: `next(rendezvous("tcp://host:port", rank, world_size))`.

Owns: `rendezvous`, `register_rendezvous_handler`. Must not know: how the ranks are connected.

Scripts that make a store of their own for `init_process_group(store=...)` call it; ranks are connected
by MPI without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

from dptrain.comm.env import discover, master_address
from dptrain.distributed.file_store import FileStore
from dptrain.distributed.stores import DEFAULT_TIMEOUT, Store
from dptrain.distributed.tcp_store import TCPStore

Found = tuple[Store, int, int]
_handlers: dict[str, Callable[..., Iterator[Found]]] = {}


def register_rendezvous_handler(scheme: str, handler: Callable[..., Iterator[Found]]) -> None:
    """Let addresses `scheme://...` be served by `handler(url, **kwargs)`, a generator.

    Raises:
        RuntimeError: the scheme is taken.
    """
    if scheme in _handlers:
        raise RuntimeError(f"Rendezvous handler for {scheme}:// already registered")
    _handlers[scheme] = handler


def rendezvous(url: str, rank: int = -1, world_size: int = -1, **kwargs: Any) -> Iterator[Found]:
    """Yield a store that all ranks share, this rank and the number of ranks.

    Args:
        url: "tcp://host:port" (rank 0 is the server), "file:///path", or "env://" (MASTER_ADDR and
            MASTER_PORT); rank and world_size may be in its query, as in "?rank=0&world_size=2".
        rank, world_size: in place of those of the query, or of the launcher's for "env://".
        kwargs: for the handler; `timeout` is a timedelta.

    Raises:
        RuntimeError: no text, or nobody serves its scheme.
        ValueError: rank, world_size, host or port are missing.
    """
    if not isinstance(url, str):
        raise RuntimeError(f"`url` must be a string. {type(url)}: {url}")
    scheme = urlparse(url).scheme or "env"
    if scheme not in _handlers:
        raise RuntimeError(f"No rendezvous handler for {scheme}://")
    return _handlers[scheme](url, rank=rank, world_size=world_size, **kwargs)


def _ranks(url: str, rank: int, world_size: int) -> tuple[int, int]:
    """Rank and number of ranks that the arguments or the address say."""
    query = parse_qs(urlparse(url).query)
    found = []
    for name, value in (("rank", rank), ("world size", world_size)):
        text = query.get(name.replace(" ", "_"), [""])[0]
        if value < 0 and not text:
            scheme = urlparse(url).scheme
            raise ValueError(
                f"Error initializing dptrain.distributed using {scheme}:// rendezvous: {name} parameter missing"
            )
        found.append(value if value >= 0 else int(text))
    return found[0], found[1]


def _tcp(
    url: str, rank: int = -1, world_size: int = -1, timeout: timedelta = DEFAULT_TIMEOUT, **_: Any
) -> Iterator[Found]:
    place = urlparse(url)
    if not place.hostname or place.port is None:
        raise ValueError(
            f"Error initializing dptrain.distributed using tcp:// rendezvous: host or port missing in {url!r}"
        )
    rank, world_size = _ranks(url, rank, world_size)
    yield TCPStore(place.hostname, place.port, world_size, rank == 0, timeout), rank, world_size


def _file(url: str, rank: int = -1, world_size: int = -1, **_: Any) -> Iterator[Found]:
    path = urlparse(url).path
    if not path:
        raise ValueError(
            "Error initializing dptrain.distributed using file:// rendezvous: path missing"
        )
    rank, world_size = _ranks(url, rank, world_size)
    yield FileStore(path, world_size), rank, world_size


def _env(
    url: str, rank: int = -1, world_size: int = -1, timeout: timedelta = DEFAULT_TIMEOUT, **_: Any
) -> Iterator[Found]:
    started = discover()
    rank = started.rank if rank < 0 else rank
    world_size = started.world_size if world_size < 0 else world_size
    host, port = master_address()
    yield TCPStore(host, port, world_size, rank == 0, timeout), rank, world_size


for _scheme, _handler in (("tcp", _tcp), ("file", _file), ("env", _env)):
    register_rendezvous_handler(_scheme, _handler)
