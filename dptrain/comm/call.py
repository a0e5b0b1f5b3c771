"""What a rank calls, as data: the header that the ranks compare before anything moves.

Owns: the description of one call, its fixed-size header record, and the report of a mismatch.
Must not know: how headers travel or how data moves.

Every collective begins with one exchange of these records. Equal records mean that all ranks made
the same call; anything else is an error on every rank, at once, with both sides named.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.comm.errors import CollectiveMismatchError, rank_prefix
from dptrain.comm.reduction import DTYPE_NAMES, ReduceOp, dtype_name
from dptrain.core.device import device

_PACKAGE = str(Path(__file__).resolve().parents[1])
# NumPy's decorators stand between the user's line and a call that backward makes.
_NOT_THE_USERS = (_PACKAGE, str(Path(np.__file__).parent))


class Kind(enum.IntEnum):
    """The calls in which all ranks take part."""

    BARRIER = 0
    ALL_REDUCE = 1
    REDUCE = 2
    BROADCAST = 3
    ALL_GATHER = 4
    REDUCE_SCATTER = 5
    ALL_TO_ALL = 6
    SPLIT = 7
    ALLOCATE = 8
    RELEASE = 9
    JOIN = 10
    CLOSE = 11
    GATHER = 12
    SCATTER = 13


_OPS = tuple(ReduceOp)
# number, digest, kind, op, dtype, joinable, on GPUs, root | nbytes, window, offset, length of the
# text. What has to be equal on all ranks comes first, so that one comparison of bytes decides.
_HEADER = struct.Struct("<QQBBBBBi qqq H")
_EQUAL_PART = struct.calcsize("<QQBBBBBi")
_TEXT_LIMIT = 160
RECORD_NBYTES = 240
# root=None ("the lowest rank that takes part") and calls without a root.
NO_ROOT = -1
# An array that lies in no shared window, and the window number of one that peers on this host can
# reach at its address.
PRIVATE = (-1, 0)
AT_ADDRESS = -2


@lru_cache(maxsize=4096)
def _signature(
    kind: Kind,
    op: ReduceOp | None,
    dtype: str | None,
    shape: tuple[int, ...] | None,
    root: int,
    name: str | None,
    joinable: bool,
    uneven: bool,
    on_gpu: bool,
) -> tuple[int, int, int, bytes]:
    """Digest, codes of op and dtype, and text of a call.

    Cached: training repeats the same few calls.
    """
    parts = []
    if op is not None:
        parts.append(f"op={op.value}")
    if dtype is not None:
        parts.append(f"dtype={dtype}")
    if shape is not None:
        parts.append(f"shape={shape}")
    if root != NO_ROOT:
        parts.append(f"root={root}")
    if name is not None:
        parts.append(f"name={name!r}")
    if joinable:
        parts.append("joinable")
    if uneven:
        parts.append("sizes by rank")
    if on_gpu:
        parts.append("on GPUs")
    text = f"{kind.name.lower()}({', '.join(parts)})"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    short = text.encode()[:_TEXT_LIMIT].decode(errors="ignore").encode()
    op_code = 0 if op is None else _OPS.index(op)
    dtype_code = 0 if dtype is None else DTYPE_NAMES.index(dtype)
    return int.from_bytes(digest, "little"), op_code, dtype_code, short


@dataclass(slots=True)
class Parts:
    """What goes from this rank to each rank and back, where that is not one equal row for each.

    Attributes:
        outgoing: for every rank the bytes to send to it, (nbytes,) uint8.
        incoming: for every rank the room for what it sends, (nbytes,) uint8.
        lengths: (ranks, ranks) int64, bytes from rank i to rank j; None if ranks have to tell each
            other first.
        same_to_all: whether every rank sends one and the same array to all ranks.
        finish: what to do once everything has come.
    """

    outgoing: Sequence[np.ndarray[Any, Any]]
    incoming: Sequence[np.ndarray[Any, Any]]
    lengths: np.ndarray[Any, Any] | None = None
    same_to_all: bool = False
    finish: Callable[[], None] | None = None

    def sizes(self) -> np.ndarray[Any, Any]:
        """(1, 2 * ranks) int64: the bytes that this rank sends to each, then those it expects."""
        own = [part.size for part in (*self.outgoing, *self.incoming)]
        return np.array([own], np.int64)


@dataclass(slots=True)
class Call:
    """One collective call of this rank.

    Attributes:
        source: what this rank contributes, (rows, columns), C-contiguous; rows is 1, or the number
            of ranks where every rank gets another row. None if it contributes nothing.
        target: where the result goes, (columns,) or (ranks, columns); None if nowhere.
        columns: elements per row of the exchange; equal on all ranks.
        position: (window, offset in bytes) of `source` in shared memory, (`AT_ADDRESS`, address) in
            memory that the peers can read and write, or `PRIVATE`.
        site: file name and line of the caller.
        device: where the arrays live, if that is not the host's own memory.
        on_gpu: whether the transport moves them from GPU to GPU; else they have been brought to the
            host.
        ready: what the arrays' values wait for on their GPU; the transport's business.
        settled: what the result waits for, likewise.
        captured: whether the call is recorded into a CUDA graph.
    """

    kind: Kind
    op: ReduceOp | None = None
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] | None = None
    root: int = NO_ROOT
    name: str | None = None
    joinable: bool = False
    timeout_s: float = 1800.0
    source: np.ndarray[Any, Any] | None = None
    target: np.ndarray[Any, Any] | None = None
    columns: int = 0
    rows: int = 1
    position: tuple[int, int] = PRIVATE
    site: tuple[str, int] = ("", 0)
    number: int = 0
    # For JOIN: how many collectives of the others this rank has answered. For ALLOCATE: the size.
    count: int = 0
    # For the calls that move other things than one equal row per rank.
    parts: Parts | None = None
    device: device | None = None
    on_gpu: bool = False
    ready: Any = None
    settled: Any = None
    captured: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one rank's contribution."""
        return self.rows * self.columns * (self.dtype.itemsize if self.dtype is not None else 0)

    def record(self) -> bytes:
        """The header record: `RECORD_NBYTES` bytes."""
        digest, op, dtype, text = self._signature()
        header = _HEADER.pack(
            self.number,
            digest,
            self.kind,
            op,
            dtype,
            self.joinable,
            self.on_gpu,
            self.root,
            self.nbytes if self.dtype is not None else self.count,
            *self.position,
            len(text),
        )
        return (header + text).ljust(RECORD_NBYTES, b"\0")

    def describe(self) -> str:
        """The call and the line it was made on, for messages."""
        text = self._signature()[3].decode()
        return f"{text} (number {self.number}) at {self.site[0]}:{self.site[1]}"

    @property
    def is_uneven(self) -> bool:
        """Whether ranks give arrays of different sizes and have to tell each other which."""
        return self.parts is not None and self.parts.lengths is None

    def _signature(self) -> tuple[int, int, int, bytes]:
        name = None if self.dtype is None else dtype_name(self.dtype)
        return _signature(
            self.kind,
            self.op,
            name,
            self.shape,
            self.root,
            self.name,
            self.joinable,
            self.is_uneven,
            self.on_gpu,
        )


@dataclass(frozen=True, slots=True)
class Header:
    """The header record of some rank, read back."""

    number: int
    kind: Kind
    op: ReduceOp
    dtype_name: str
    joinable: bool
    on_gpu: bool
    root: int
    nbytes: int
    position: tuple[int, int]
    text: str

    @classmethod
    def parse(cls, record: bytes) -> Header:
        number, _, kind, op, dtype, joinable, on_gpu, root, nbytes, window, offset, length = (
            _HEADER.unpack_from(record)
        )
        text = record[_HEADER.size : _HEADER.size + length].decode(errors="replace")
        return cls(
            number=number,
            kind=Kind(kind),
            op=_OPS[op],
            dtype_name=DTYPE_NAMES[dtype],
            joinable=bool(joinable),
            on_gpu=bool(on_gpu),
            root=root,
            nbytes=nbytes,
            position=(window, offset),
            text=text,
        )


@dataclass(frozen=True, slots=True)
class Roster:
    """Who takes part in a collective, as all ranks agreed.

    Attributes:
        participants: ranks that made the call, ascending; the others are in `join()`.
        root: the root rank, resolved, or `NO_ROOT`.
        position: the shared position of the participants' arrays, or `PRIVATE` if they differ.
        addresses: by rank, where the participants' arrays lie, if the ranks reach each other's memory
            and these are in no window; else nothing.
    """

    participants: tuple[int, ...]
    root: int
    position: tuple[int, int]
    addresses: dict[int, int] = field(default_factory=dict)


def same_call(records: Sequence[bytes], rank: int) -> bool:
    """Whether every record asks for what this rank's record asks for."""
    mine = records[rank][:_EQUAL_PART]
    return all(record[:_EQUAL_PART] == mine for record in records)


def position_of(record: bytes) -> tuple[int, int]:
    """The (window, offset) of a record, without reading the rest."""
    fields = _HEADER.unpack_from(record)
    return fields[9], fields[10]


def is_of(kind: Kind, record: bytes) -> bool:
    """Whether the call of a record is of that kind, without reading the rest."""
    return record[16] == kind


def call_site() -> tuple[str, int]:
    """File and line of the innermost frame that is neither this package's nor NumPy's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def mismatch_error(
    rank: int,
    descriptions: Sequence[str],
    what: str = "the ranks called different collectives",
) -> CollectiveMismatchError:
    """The error of a mismatch: what is wrong, what this rank called, then what others did."""
    groups: dict[str, list[int]] = {descriptions[rank]: []}
    for other, text in enumerate(descriptions):
        groups.setdefault(text, [])
        if other != rank:
            groups[text].append(other)
    lines = [f"{rank_prefix(rank, len(descriptions))} {what}"]
    for text, ranks in groups.items():
        who = ["this rank"] if text == descriptions[rank] else []
        who += [f"rank {other}" for other in ranks]
        lines.append(f"  {', '.join(who)} called {text}")
    lines.append(
        "  every rank has to make the same calls in the same order, with equal op, dtype, shape, "
        "root and name"
    )
    return CollectiveMismatchError("\n".join(lines))
