"""Reading arrays of numbers from MATLAB files of version 5.

Owns: the format and its checks. Must not know: which dataset a file belongs to.

Source: The MathWorks, "MAT-File Format", chapter "Level 5 MAT-File Format": a header of 128 bytes, then
elements of a tag (type, bytes) and data, possibly compressed; a matrix is an element of elements:
flags, dimensions, name, values in column-major order.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
#: Classes of matrices that hold plain numbers: double to uint64.
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip


def read_mat(path: str | Path) -> dict[str, np.ndarray]:
    """The real arrays of numbers in a file, by name; what else it holds is left out.

    Raises:
        ValueError: it is no MATLAB file of version 5 (7.3 files are HDF5), or is damaged.
    """
    content = Path(path).read_bytes()
    mark = content[126:128]
    if len(content) < 128 or mark not in (b"IM", b"MI") or content[:8] == b"\x89HDF\r\n\x1a\n":
        raise ValueError(f"{path} is no MATLAB file of version 5")
    order = "<" if mark == b"IM" else ">"
    arrays = {}
    try:
        for kind, data in _elements(memoryview(content)[128:], order):
            if kind == _COMPRESSED:
                kind, data = next(_elements(memoryview(zlib.decompress(data)), order))
            if kind == _MATRIX:
                found = _matrix(data, order)
                if found is not None:
                    arrays[found[0]] = found[1]
    except (zlib.error, ValueError, StopIteration, UnicodeDecodeError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error or 'an element is missing'}") from None
    return arrays


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and data of each element."""
    position = 0
    while position + 8 <= len(data):
        first, second = np.frombuffer(data, order + "u4", 2, position).tolist()
        if first >> 16:  # a small element: both numbers in four bytes, data in the next four
            kind, nbytes, start, end = first & 0xFFFF, first >> 16, position + 4, position + 8
        else:
            kind, nbytes, start = first, second, position + 8
            # Compressed elements are not filled up to eight bytes.
            end = start + (nbytes if kind == _COMPRESSED else -(-nbytes // 8) * 8)
        if start + nbytes > len(data):
            raise ValueError(
                f"an element of {nbytes:,} bytes begins where {len(data) - start:,} are left"
            )
        yield kind, data[start : start + nbytes]
        position = end


def _matrix(data: memoryview, order: str) -> tuple[str, np.ndarray] | None:
    parts = _elements(data, order)
    flags = int(np.frombuffer(next(parts)[1], order + "u4")[0])
    dtype = _CLASSES.get(flags & 0xFF)
    shape = np.frombuffer(next(parts)[1], order + "i4").tolist()
    name = bytes(next(parts)[1]).decode("ascii")
    if dtype is None or flags & 0x0800:  # complex numbers have a second part
        return None
    kind, values = next(parts)
    if kind not in _DTYPES:
        raise ValueError(f"the values of {name!r} have the unknown type {kind}")
    stored = np.frombuffer(values, order + _DTYPES[kind])
    if len(stored) != math.prod(shape):
        raise ValueError(f"{name!r} has {len(stored):,} values for shape {tuple(shape)}")
    return name, stored.astype(dtype).reshape(shape, order="F")
