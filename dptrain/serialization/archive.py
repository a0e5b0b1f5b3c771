"""PyTorch's zip files: records that lie uncompressed at 64-byte boundaries, under one folder name.

Owns: `ArchiveWriter`, `ArchiveReader`. Must not know: pickles, tensors.

The writer lays records out byte for byte as PyTorch does (a file that states format version 1 promises
that its readers can compute where records lie). Source of the layout: PKWARE's APPNOTE 6.3 and files
written by PyTorch 2.13.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from dptrain.core.storage import PrivateMap
from dptrain.serialization.source import Source

ALIGNMENT = 64
SIGNATURE = b"PK\x03\x04"
#: From here on, sizes and offsets are written in zip64 fields.
_LIMIT = 0xFFFFFFFF
_MADE_BY = 0x031E  # version 3.0 of the format, on Unix
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
#: Compressed records, which PyTorch does not write, may unfold to so many times the file's length.
_MAX_UNFOLDING = 16
_ARCHIVE_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    OverflowError,
    IndexError,
    ValueError,
    struct.error,
    EOFError,
    zlib.error,
)


class ArchiveWriter:
    """Writes records one after the other; `finish` writes the directory.

    Args:
        file: what has `write`; nothing else is asked of it.
        folder: the name under which the records lie.
    """

    def __init__(self, file: Any, folder: str) -> None:
        self._write_raw = file.write
        self._folder = folder
        self._at = 0
        self._entries: list[bytes] = []
        self._names = hashlib.sha256()
        self._contents = hashlib.sha256()

    def _write(self, data: Any) -> None:
        self._write_raw(data)
        self._at += len(data)

    def write(self, name: str, data: Any) -> None:
        """Add a record of bytes (or of what has a buffer of bytes)."""
        full, start, size = f"{self._folder}/{name}".encode(), self._at, len(data)
        crc = zlib.crc32(data)
        flags = 0x0800 | (0x0008 if size else 0)  # names are UTF-8; sizes follow the data
        sizes_64 = struct.pack("<QQ", size, size) if size >= _LIMIT else b""
        offset_64 = struct.pack("<Q", start) if start >= _LIMIT else b""
        extra = _zip64(sizes_64 + offset_64)
        # PyTorch's marker: two letters, the length, then as many Z as alignment takes.
        pad = -(start + _LOCAL.size + len(full) + len(extra) + 4) % ALIGNMENT
        extra += b"FB" + struct.pack("<H", pad) + b"Z" * pad
        self._write(
            _LOCAL.pack(SIGNATURE, 0, flags, 0, 0, 0, 0, 0, 0, len(full), len(extra)) + full + extra
        )
        self._write(data)
        short = min(size, _LIMIT)
        if size:
            wide = size >= _LIMIT or start >= _LIMIT
            self._write(struct.pack("<4sIQQ" if wide else "<4sIII", b"PK\x07\x08", crc, size, size))
        central = _zip64(sizes_64 + offset_64)
        self._entries.append(
            _CENTRAL.pack(
                b"PK\x01\x02", 0, 0, flags, 0, 0, 0, crc, short, short,
                len(full), len(central), 0, 0, 0, 0, min(start, _LIMIT),
            )
            + full
            + central
        )  # fmt: skip
        self._names.update(full)
        self._contents.update(struct.pack("<IQ", crc, size))

    def finish(self) -> None:
        """Write the last records, which PyTorch's reader asks for, and the directory."""
        self.write("version", b"3\n")
        digits = [int.from_bytes(h.digest()[:8], "big") for h in (self._names, self._contents)]
        self.write(".data/serialization_id", b"%020d%020d" % tuple(digits))
        start, count = self._at, len(self._entries)
        for entry in self._entries:
            self._write(entry)
        size = self._at - start
        # PyTorch writes the zip64 form of the end always, and before it the older one.
        self._write(
            struct.pack(
                "<4sQ2H2I4Q", b"PK\x06\x06", 44, _MADE_BY, 45, 0, 0, count, count, size, start
            )
        )
        self._write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1))
        short = min(count, 0xFFFF)
        self._write(_END.pack(b"PK\x05\x06", 0, 0, short, short, size, min(start, _LIMIT), 0))


def _zip64(fields: bytes) -> bytes:
    return struct.pack("<HH", 1, len(fields)) + fields if fields else b""


class ArchiveReader:
    """The records of a zip file.

    Args:
        source: the file.

    Raises:
        RuntimeError: it is no complete zip file, or no file of PyTorch's.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            entries = zipfile.ZipFile(source.file).infolist()
        except _ARCHIVE_DAMAGE as error:
            raise RuntimeError(
                f"failed reading zip archive: {error}; the file is damaged or was cut short"
            ) from None
        folder = entries[0].filename.partition("/")[0] if entries else ""
        self._entries = {e.filename.removeprefix(f"{folder}/"): e for e in entries}
        if len(self._entries) != len(entries):
            raise RuntimeError("failed reading zip archive: it has two records of one name")
        # Records that overlap would let a small file state any amount of data.
        self._budget = source.size
        self._unfolding = _MAX_UNFOLDING * source.size

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def record(self, name: str) -> bytes:
        """The bytes of a record.

        Raises:
            RuntimeError: there is none of this name, or it is damaged.
        """
        return self.array(name, np.dtype(np.uint8), None).tobytes()

    def array(self, name: str, kind: np.dtype[Any], nbytes: int | None) -> np.ndarray:
        """A new array with the bytes of a record.

        Args:
            name: of the record.
            kind: type of the array's elements.
            nbytes: how many bytes it has to hold; None: what it holds.

        Raises:
            RuntimeError: there is no such record, or it is damaged or of another size.
        """
        entry, start = self._locate(name, nbytes)
        try:
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                data = self._inflate(entry, start)
                made = np.frombuffer(bytearray(data), np.uint8).view(kind)
            else:
                made = np.empty(entry.file_size // kind.itemsize, kind)
                self._source.file.seek(start)
                self._source.read_into(made)
        except _ARCHIVE_DAMAGE as error:
            raise self._fault(name, str(error)) from None
        # A directory that states 0 has no checksum: PyTorch can leave it out, and never looks at it.
        if entry.CRC and zlib.crc32(made.view(np.uint8).data) != entry.CRC:
            raise self._fault(name, "its checksum is wrong")
        return made

    def mapped(self, name: str, memory: PrivateMap, kind: np.dtype[Any], nbytes: int) -> np.ndarray:
        """A view of a record in the mapped file; its checksum is not looked at."""
        entry, start = self._locate(name, nbytes)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise self._fault(name, "it is compressed, so that it cannot be mapped (mmap=True)")
        if not nbytes:
            return np.empty(0, kind)
        found = np.frombuffer(memory, kind, nbytes // kind.itemsize, start)
        # Ordinary zip programs put records anywhere; compiled kernels need whole elements.
        return found if found.flags.aligned else found.copy()

    def _locate(self, name: str, nbytes: int | None) -> tuple[zipfile.ZipInfo, int]:
        """A record and where its data starts, after the checks of what the directory says of it."""
        entry = self._entries.get(name)
        if entry is None:
            raise RuntimeError(f"file in archive is not found: {name}")
        if entry.flag_bits & 1 or entry.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise self._fault(name, "it is encrypted or compressed in an unknown way")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if stored and entry.file_size != entry.compress_size:
            raise self._fault(name, "its two sizes differ")
        if nbytes is not None and entry.file_size != nbytes:
            raise self._fault(
                name, f"it holds {entry.file_size} bytes, but its tensors need {nbytes}"
            )
        self._budget -= entry.compress_size
        self._unfolding -= entry.file_size
        start = self._start(entry)
        if start is None or start + entry.compress_size > self._source.size:
            raise self._fault(name, "it does not lie where the directory says")
        if self._budget < 0 or self._unfolding < 0:
            raise self._fault(name, "the records together are larger than such a file can hold")
        return entry, start

    def _start(self, entry: zipfile.ZipInfo) -> int | None:
        """Where the data of a record starts, after its own header; None if that does not lie there."""
        # An offset that is stated too large comes out as negative, where a file cannot go.
        if not 0 <= entry.header_offset <= self._source.size - _LOCAL.size:
            return None
        self._source.file.seek(entry.header_offset)
        signature, *_, name_length, extra_length = _LOCAL.unpack(self._source.read(_LOCAL.size))
        if signature != SIGNATURE:
            return None
        return entry.header_offset + _LOCAL.size + name_length + extra_length

    def _inflate(self, entry: zipfile.ZipInfo, start: int) -> bytes:
        self._source.file.seek(start)
        machine = zlib.decompressobj(-15)
        data = machine.decompress(self._source.read(entry.compress_size), entry.file_size + 1)
        if len(data) != entry.file_size:
            raise ValueError(f"it unfolds to another size than {entry.file_size} bytes")
        return data

    def _fault(self, name: str, why: str) -> RuntimeError:
        return RuntimeError(f"failed reading file {name} of the zip archive: {why}")
