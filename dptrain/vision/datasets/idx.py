"""Reading idx files, the format of MNIST and its relatives.

Owns: the format and its checks. Must not know: which dataset a file belongs to, tensors.

Source of the format: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits",
section "File formats": two zero bytes, a type code, the number of dimensions, one big-endian 32-bit
size per dimension, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

_UNSIGNED_BYTE = 0x08
_OTHER_TYPES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_KINDS = {1: "labels", 3: "images"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """The values of an idx file of unsigned bytes, plain or gzip-compressed.

    Args:
        path: the file; whether it is compressed is seen from its content.
        ndim: dimensions it must have: 1 for labels, 3 for images.

    Returns:
        A uint8 array of shape `(items,)` or `(items, rows, columns)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no idx file, is of another kind, or is shorter or longer than its header says;
            the message names the file, the expected and the found size.
    """
    path = Path(path)
    with path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            return _read(raw, path, ndim)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _read(cast(BinaryIO, stream), path, ndim)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged: its gzip data does not decompress ({error})"
            ) from None


def _read(stream: BinaryIO, path: Path, ndim: int) -> np.ndarray:
    header_nbytes = 4 + 4 * ndim
    magic = _read_up_to(stream, 4)
    if len(magic) == 4:
        _check_magic(magic, path, ndim)
    header = magic + _read_up_to(stream, header_nbytes - len(magic))
    if len(header) < header_nbytes:
        raise ValueError(
            f"{path} is cut short: expected a header of {header_nbytes:,} bytes, found {len(header):,} bytes"
        )
    shape = struct.unpack(f">{ndim}I", header[4:])
    nbytes = math.prod(shape)
    values = _read_up_to(stream, nbytes + 1)
    if len(values) != nbytes:
        problem = "is cut short" if len(values) < nbytes else "is too long"
        found = f"{header_nbytes + len(values):,}" if len(values) < nbytes else "more"
        raise ValueError(
            f"{path} {problem}: its header says {' x '.join(map(str, shape))} values, so expected "
            f"{header_nbytes + nbytes:,} bytes{_when_compressed(stream)}, found {found}; "
            "bring a complete copy of the file"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _when_compressed(stream: BinaryIO) -> str:
    return " (uncompressed)" if isinstance(stream, gzip.GzipFile) else ""


def _read_up_to(stream: BinaryIO, nbytes: int) -> bytearray:
    """At most `nbytes` bytes, fewer where the file ends, be it in the middle of its gzip data."""
    values = bytearray()
    while len(values) < nbytes:
        # In pieces: a damaged header may claim a size that no memory holds.
        try:
            piece = stream.read(min(nbytes - len(values), 1 << 24))
        except EOFError:  # gzip's word for a compressed file that is cut short
            break
        if not piece:
            break
        values += piece
    return values


def _check_magic(magic: bytearray, path: Path, ndim: int) -> None:
    expected = f"expected an idx{ndim} file of unsigned bytes ({_KINDS[ndim]}, magic number {0x800 + ndim:#010x})"
    found = int.from_bytes(magic, "big")
    if magic[:2] != b"\0\0" or magic[2] not in (_UNSIGNED_BYTE, *_OTHER_TYPES):
        raise ValueError(f"{path} is no idx file: {expected}, found magic number {found:#010x}")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(
            f"{path} holds {_OTHER_TYPES[magic[2]]} values: {expected}, found {found:#010x}"
        )
    if magic[3] != ndim:
        kind = f" ({_KINDS[magic[3]]})" if magic[3] in _KINDS else ""
        raise ValueError(f"{path} is an idx{magic[3]} file{kind}: {expected}, found {found:#010x}")
