"""Files built byte by byte: what a file can say that no `save` writes.

The tables name what is wrong, or at least unusual, in each; `crafted_files` gives all of them, and the pickles
of `crafted_pickles`, as whole files.
"""

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile

from crafted_pickles import CALLS, DEAR, OBJECTS, OPCODES, PICKLES, REBUILT, TENSORS
from pickle_pieces import DOUBLED, Raw, name, op, storage, tensor, tuple_of, whole

from dptrain.serialization.archive import ArchiveWriter
from dptrain.serialization.safe_globals import built_in

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"".join(pickle.dumps(v, 2) for v in (MAGIC, 1001, {}))


def archive(data_pkl, **records):
    """A whole archive around a pickle; records by key, float32 storage 0 of four elements by default."""
    file = io.BytesIO()
    writer = ArchiveWriter(file, "archive")
    writer.write("data.pkl", data_pkl)
    for key, data in ({"0": bytes(16)} | records).items():
        writer.write(f"data/{key}", data)
    writer.finish()
    return file.getvalue()


def entries(data):
    """Start of each entry of the directory, and its name."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        at = old.start_dir
        for e in old.infolist():
            yield e.filename, at
            at += 46 + len(e.filename) + len(e.extra)


def changed(data, record, at, form, value):
    """The file with one field of a record's entry in the directory changed."""
    raw = bytearray(data)
    place = dict(entries(data))[f"archive/{record}"] + at
    struct.pack_into(form, raw, place, value)
    return bytes(raw)


DIRECTORY = {
    "size": ("data/0", 24, "<I", 17),
    "compressed size": ("data/0", 20, "<I", 15),
    "size far too large": ("data/0", 24, "<I", 0xFFFFFFF0),
    "offset": ("data/0", 42, "<I", 3),
    "offset beyond": ("data/0", 42, "<I", 0x7FFFFFFF),
    "checksum": ("data/0", 16, "<I", 1),
    "method": ("data/0", 10, "<H", 12),
    "deflated": ("data/0", 10, "<H", 8),
    "encrypted": ("data/0", 8, "<H", 1),
    "name length": ("data/0", 28, "<H", 0xFFFF),
    "the pickle's size": ("data.pkl", 24, "<I", 1),
    "the pickle's checksum": ("data.pkl", 16, "<I", 1),
}


def zipped(*records, method=zipfile.ZIP_STORED):
    """What an ordinary zip program makes of names and contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two records of one name
        for record, content in records:
            new.writestr(record, content)
    return out.getvalue()


def bomb(size):
    """A compressed record that unfolds to far more than the file."""
    return zipped(
        ("archive/data.pkl", whole(tensor(storage(numel=size // 4), size=(1,)))),
        ("archive/data/0", bytes(size)),
        method=zipfile.ZIP_DEFLATED,
    )


def overlapping(size, count):
    """Many names for the same bytes: the directory is all that a file has to pay for each."""
    tensors = b"".join(
        tensor(storage(key=str(i), numel=size, kind="torch.ByteStorage"), size=(1,))
        for i in range(count)
    )
    first = archive(
        whole(b"(", tensors, b"l"), **{"0": bytes(size)} | {str(i): b"" for i in range(1, count)}
    )
    raw = bytearray(first)
    places = dict(entries(first))
    source = places["archive/data/0"]
    for i in range(1, count):
        at = places[f"archive/data/{i}"]
        raw[at + 8 : at + 28] = raw[source + 8 : source + 28]
        raw[at + 42 : at + 46] = raw[source + 42 : source + 46]
    return bytes(raw)


def with_byteorder(order):
    return zipped(
        ("archive/data.pkl", whole(tensor())),
        ("archive/byteorder", order),
        ("archive/data/0", bytes(16)),
    )


def with_negative_offsets():
    """The directory is stated to start later than it does, as if what lies before it were cut off."""
    raw = bytearray(zipped(*PLAIN))
    (start,) = struct.unpack_from("<I", raw, len(raw) - 6)
    struct.pack_into("<I", raw, len(raw) - 6, start + 100)
    return bytes(raw)


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
        new.addfile(tarfile.TarInfo("sys_info"))
    return out.getvalue()


PLAIN = ("archive/data.pkl", whole(tensor())), ("archive/data/0", bytes(range(16)))
ARCHIVES = {
    "by another program": zipped(*PLAIN),
    "deflated": zipped(*PLAIN, method=zipfile.ZIP_DEFLATED),
    "deflated, another size": changed(
        zipped(PLAIN[0], ("archive/data/0", bytes(12)), method=zipfile.ZIP_DEFLATED),
        "data/0",
        24,
        "<I",
        16,
    ),
    "packed in a way unknown": zipped(*PLAIN, method=zipfile.ZIP_BZIP2),
    "without folder": zipped(*((n.removeprefix("archive/"), c) for n, c in PLAIN)),
    "an empty storage": archive(
        whole(tensor(storage(key="1", numel=0), size=(0,), stride=(1,))), **{"1": b""}
    ),
    "two of one name": zipped(
        ("archive/data.pkl", whole(op(1))), ("archive/data.pkl", whole(op(2)))
    ),
    "deflated, beyond the end": changed(
        zipped(*PLAIN, method=zipfile.ZIP_DEFLATED), "data/0", 20, "<I", 1 << 20
    ),
    "a bomb": bomb(1 << 20),
    "no records": zipped(),
    "no records after the first bytes of one": b"PK\x03\x04" + zipped(),
    "no pickle": zipped(("a/b", b"N.")),
    "a program": zipped(("archive/constants.pkl", b"N."), ("archive/data.pkl", b"N.")),
    "records that overlap": overlapping(1 << 10, 40),
    "little-endian": with_byteorder(b"little"),
    "big-endian": with_byteorder(b"big"),
    "big-endian, nothing in it": zipped(
        ("archive/data.pkl", whole(storage(numel=0))),
        ("archive/byteorder", b"big"),
        ("archive/data/0", b""),
    ),
    "byte order unknown": with_byteorder(b"middle\xff" + b"x" * 50),
    "cut": archive(whole(tensor()))[:-30],
    "offsets that come out negative": with_negative_offsets(),
    "tar": tar(),
}

# ---- PyTorch before 1.6 --------------------------------------------------------------------------


def legacy_storage(key="0", numel=4, view=None, kind="torch.FloatStorage"):
    return Raw(tuple_of("storage", name(kind), key, "cpu", numel, view) + b"Q")


LEGACY = {
    "storages larger than the file": (legacy_storage(numel=2**40), ["0"], b""),
    "negative storage": (legacy_storage(numel=-1), ["0"], b""),
    "many storages": (
        Raw(b"(" + b"".join(legacy_storage(str(i), 60) for i in range(500)) + b"t"),
        ["0"],
        bytes(100),
    ),
    "view outside": (legacy_storage(view=("1", 2, 3)), ["0"], struct.pack("<q", 4) + bytes(16)),
    "view negative": (legacy_storage(view=("1", -2, 3)), ["0"], struct.pack("<q", 4) + bytes(16)),
    "view that is none": (legacy_storage(view=3), ["0"], struct.pack("<q", 4) + bytes(16)),
    "keys missing": (legacy_storage(), [], b""),
    "keys unknown": (legacy_storage(), ["0", "1"], struct.pack("<q", 4) + bytes(16)),
    "keys no list": (legacy_storage(), 3, b""),
    "keys unhashable": (legacy_storage(), [[]], b""),
    "another size": (legacy_storage(), ["0"], struct.pack("<q", 3) + bytes(16)),
    "cut": (legacy_storage(), ["0"], struct.pack("<q", 4) + bytes(15)),
    "key of a list": (legacy_storage(key=[]), ["0"], b""),
}
#: Whole ones, and ids of other kinds.
LEGACY_MORE = {
    "a view": (legacy_storage(view=("1", 1, 2)), ["0"], struct.pack("<q", 4) + bytes(16)),
    "a class with its source": (Raw(tuple_of("module", 1, 2, 3) + b"Q"), [], b""),
    "of Python 2": (
        Raw(b"(U\x07storage" + name("torch.FloatStorage") + b"U\x010U\x03cpuK\x04NtQ"),
        [b"0"],
        struct.pack("<q", 4) + bytes(16),
    ),
    "twice": (
        Raw(legacy_storage() + legacy_storage() + b"\x86"),
        ["0"],
        struct.pack("<q", 4) + bytes(16),
    ),
    "of two types": (
        Raw(legacy_storage() + legacy_storage(kind="torch.IntStorage") + b"\x86"),
        ["0"],
        struct.pack("<q", 4) + bytes(16),
    ),
    "not of a text": (Raw(tuple_of(3, 1, 2, 3, 4, 5) + b"Q"), [], b""),
    "no storage": (Raw(tuple_of("other", 1, 2, 3, 4, 5) + b"Q"), [], b""),
    "a number": (Raw(b"K\x01Q"), [], b""),
    "neither a storage nor a class": (Raw(tuple_of("other", 1, 2, 3) + b"Q"), [], b""),
    "a number of elements that is none": (legacy_storage(numel="4"), ["0"], b""),
    "a view of less than nothing": (legacy_storage(view=("1", 2, -1)), ["0"], b""),
    "no type": (Raw(tuple_of("storage", 1, "0", "cpu", 4, None) + b"Q"), [], b""),
}

BEFORE = {
    "no magic number": pickle.dumps(3, 2),
    "another version": pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2),
    "a version without end": pickle.dumps(MAGIC, 2) + whole(DOUBLED),
    **{
        f"a version that is {version!r:.20}": pickle.dumps(MAGIC, 2) + pickle.dumps(version, 2)
        for version in ("1001", tuple(range(20)), (1.5,), True, None, 2**70, 1.5)
    },
    "an id in the head": b"\x80\x02NQ.",
    "nothing": b"",
    "a mark": b"(",
}

# ---- safetensors ---------------------------------------------------------------------------------

SAFE_TYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8, "F4": 1, "C64": 8, "none": 1,
}  # fmt: skip


def safetensors_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind="F32", shape=(2,), start=0, end=8):
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    **{
        f"type {kind}": safetensors_of({"a": entry(kind, (2,), 0, 2 * size)}, bytes(2 * size))
        for kind, size in SAFE_TYPES.items()
    },
    "metadata": safetensors_of({"__metadata__": {"k": "v"}, "a": entry()}, bytes(8)),
    "nothing": safetensors_of({}),
    "no dimensions": safetensors_of({"a": entry(shape=(), end=4)}, bytes(4)),
    "an empty tensor": safetensors_of({"a": entry(shape=(0, 3), end=0)}),
    "two that overlap": safetensors_of({"a": entry(), "b": entry(start=4, end=12)}, bytes(12)),
    "a gap": safetensors_of({"a": entry(start=8, end=16)}, bytes(16)),
    "another size than its shape": safetensors_of({"a": entry(shape=(3,))}, bytes(8)),
    "shape negative": safetensors_of({"a": entry(shape=(-2,))}, bytes(8)),
    "shape overflows": safetensors_of({"a": entry(shape=(2**33, 2**33))}, bytes(8)),
    "shape of texts": safetensors_of({"a": entry(shape=("2",))}, bytes(8)),
    "offsets beyond": safetensors_of({"a": entry(end=2**40)}, bytes(8)),
    "offsets swapped": safetensors_of({"a": entry(start=8, end=0)}, bytes(8)),
    "bytes left over": safetensors_of({"a": entry()}, bytes(9)),
    "no entry": safetensors_of({"a": 3}),
    "no object": safetensors_of(b"{]"),
    "no text": safetensors_of(b'{"\xff": 3}'),
    "nested without end": safetensors_of(b'{"a":' * 5000),
    "length beyond": struct.pack("<Q", 2**40) + b"{}",
    "length huge": b"\xff" * 8 + b"{}",
    "header cut": safetensors_of({"a": entry()}, b"")[:-4],
}  # fmt: skip


def crafted_files():
    """All of these as whole files, by a name that says what they are."""
    permitted = {full: name(full) for full in built_in()}
    groups = TENSORS, PICKLES, DEAR, OBJECTS, REBUILT, CALLS, OPCODES, permitted
    lone = {f"{i} {k}": v for i, table in enumerate(groups) for k, v in table.items()}
    files = {f"zip {k}": archive(whole(opcodes)) for k, opcodes in lone.items()}
    files |= {
        f"legacy {k}": LEGACY_HEAD + whole(opcodes) + pickle.dumps([], 2)
        for k, opcodes in lone.items()
    }
    files |= {
        f"storages {k}": LEGACY_HEAD + whole(opcodes) + pickle.dumps(keys, 2) + data
        for k, (opcodes, keys, data) in (LEGACY | LEGACY_MORE).items()
    }
    files |= {
        f"directory {k}": changed(archive(whole(tensor())), *change)
        for k, change in DIRECTORY.items()
    }
    files |= {f"archive {k}": data for k, data in ARCHIVES.items()}
    files |= {f"safetensors {k}": data for k, data in SAFETENSORS.items()}
    return files | {f"before {k}": data for k, data in BEFORE.items()}
