"""Files that cross between PyTorch and dptrain, both ways."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

import dptrain

pytestmark = pytest.mark.oracle


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_we_read_what_pytorch_wrote(torch, same, everything, written, options):
    theirs = everything(torch)
    same(dptrain.load(io.BytesIO(written(torch.save, theirs, **options))), theirs)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_pytorch_reads_what_we_wrote(torch, same, everything, written, options):
    ours = everything(dptrain)
    theirs = torch.load(io.BytesIO(written(dptrain.save, ours, **options)), weights_only=True)
    same(ours, theirs)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_we_read_what_we_wrote_with_every_protocol(
    torch, same, everything, written, options, protocol
):
    data = written(dptrain.save, everything(dptrain), pickle_protocol=protocol, **options)
    same(dptrain.load(io.BytesIO(data)), everything(torch))


def test_trusting_loads_give_the_same(torch, same, everything, written):
    data = written(torch.save, everything(torch))
    same(dptrain.load(io.BytesIO(data), weights_only=False), everything(torch))
    legacy = written(torch.save, everything(torch), **LEGACY)
    same(dptrain.load(io.BytesIO(legacy), weights_only=False), everything(torch))


def test_files_differ_from_pytorchs_in_the_serialization_id_only(torch, everything, tmp_path):
    for library in (torch, dptrain):
        (tmp_path / library.__name__).mkdir()
        library.save(everything(library), tmp_path / library.__name__ / "model.v1.pth")
    theirs, ours = (
        bytearray((tmp_path / name / "model.v1.pth").read_bytes()) for name in ("torch", "dptrain")
    )
    assert len(theirs) == len(ours)
    with zipfile.ZipFile(io.BytesIO(theirs)) as archive:
        names = [e.filename for e in archive.infolist()]
        last = archive.infolist()[-1]
        assert last.filename == "model.v1/.data/serialization_id"
        start = archive.start_dir
    data_at = start - 16 - last.file_size
    for data in (theirs, ours):
        data[data_at : start - 12 + 4] = bytes(last.file_size + 8)  # the digits and their checksum
        at = data.rindex(b"PK\x01\x02")
        data[at + 16 : at + 20] = bytes(4)
    assert theirs == ours
    assert names[:4] == [
        f"model.v1/{n}" for n in ("data.pkl", ".format_version", ".storage_alignment", "byteorder")
    ]


def test_storages_lie_at_64_byte_boundaries_and_pytorch_maps_them(torch, tmp_path):
    state = OrderedDict((f"p{i}", dptrain.randn(i, 3)) for i in range(1, 20))
    path = tmp_path / "m.pt"
    dptrain.save(state, path)
    mapped = torch.load(path, mmap=True, weights_only=True)
    for name, tensor in state.items():
        assert mapped[name].data_ptr() % 64 == 0
        assert np.array_equal(mapped[name].numpy(), tensor.numpy())
    again = dptrain.load(path, mmap=True)
    assert all(again[n].data_ptr() % 64 == 0 for n in state)
    # Readers may compute the places of records from the version of the format alone.
    skipped = torch.load(path, map_location="meta", weights_only=True)
    raw = path.read_bytes()
    for name, tensor in state.items():
        at = skipped[name].untyped_storage()._checkpoint_offset
        assert raw[at : at + tensor.nbytes] == tensor.numpy().tobytes()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("direction", ["there", "back", "round"])
def test_shared_storage_is_shared_after_loading(torch, written, options, direction):
    writer, reader = {
        "there": (dptrain, torch),
        "back": (torch, dptrain),
        "round": (dptrain, dptrain),
    }[direction]
    base = writer.arange(10.0)
    data = written(writer.save, [base, base[2:4], base.view(2, 5).t(), writer.zeros(10)], **options)
    a, b, c, d = reader.load(io.BytesIO(data), weights_only=True)
    a[2] = 99.0
    d += 1
    assert b[0] == 99
    assert c[2, 0] == 99
    assert a.tolist() == [0, 1, 99, 3, 4, 5, 6, 7, 8, 9]
    assert len(data) < 4000


def test_one_memory_as_two_types_is_refused_as_by_pytorch(torch, written):
    for library in (torch, dptrain):
        x = library.zeros(4)
        with pytest.raises(RuntimeError, match="view the same data as different types"):
            written(library.save, [x, x.view(library.int32)])


def repacked(data, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """The archive written again by an ordinary zip program; None for the content drops a record."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", compression) as new,
    ):
        for entry in old.infolist():
            name = entry.filename.removeprefix("archive/")
            content = change(name, old.read(entry))
            if content is not None:
                new.writestr(f"mine/{name}", content)
    return out.getvalue()


def big_endian(name, content):
    """What a big-endian machine would have written."""
    if name == "byteorder":
        return b"big"
    kinds = {"data/0": "f4", "data/1": "i2", "data/2": "u1"}
    return np.frombuffer(content, kinds[name]).byteswap().tobytes() if name in kinds else content


def test_files_of_big_endian_machines(torch, same, written):
    value = [
        torch.arange(4.0),
        torch.arange(3, dtype=torch.int16),
        torch.ones(2, dtype=torch.uint8),
    ]
    data = repacked(written(torch.save, value), big_endian)
    same(dptrain.load(io.BytesIO(data)), torch.load(io.BytesIO(data), weights_only=True))
    same(dptrain.load(io.BytesIO(data)), value)


@pytest.mark.parametrize("order", ["LITTLE", "BIG", "NATIVE", None])
def test_files_without_a_byte_order_follow_the_setting(torch, same, written, order):
    data = repacked(
        written(torch.save, [torch.arange(4.0)]), lambda name, c: None if name == "byteorder" else c
    )
    assert b"byteorder" not in data
    results = []
    for library in (torch, dptrain):
        settings = library.serialization
        settings.set_default_load_endianness(order and settings.LoadEndianness[order])
        try:
            results.append(library.load(io.BytesIO(data), weights_only=True))
        finally:
            settings.set_default_load_endianness(None)
    same(results[1], results[0])
    assert (results[1][0].tolist() == [0, 1, 2, 3]) == (order != "BIG" or sys.byteorder == "big")


def test_records_anywhere_can_be_mapped(written, tmp_path, torch):
    path = tmp_path / "m.pt"
    path.write_bytes(repacked(written(torch.save, [torch.arange(5.0), torch.arange(3)])))
    found = dptrain.load(path, mmap=True)
    assert [t.tolist() for t in found] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert all(t.numpy().flags.aligned for t in found)


def test_an_archive_of_another_folder_name_and_compression(torch, same, written):
    """What someone unpacked and packed again with an ordinary zip program."""
    value = {"w": torch.randn(5, 5), "b": torch.zeros(3)}
    data = repacked(written(torch.save, value), compression=zipfile.ZIP_DEFLATED)
    same(dptrain.load(io.BytesIO(data)), value)


@pytest.mark.parametrize("name", ["a.pt", "a", "a.b.pt", "caf\u00e9.pt", "a b.pt"])
def test_the_folder_of_the_records_is_named_as_by_pytorch(torch, tmp_path, name):
    folders = []
    for library in (torch, dptrain):
        path = tmp_path / library.__name__ / name
        path.parent.mkdir()
        library.save(library.ones(1), path)
        with zipfile.ZipFile(path) as archive:
            folders.append({entry.split("/")[0] for entry in archive.namelist()})
        for other in (torch, dptrain):
            assert other.load(path, weights_only=True).tolist() == [1]
    assert folders[0] == folders[1]


@pytest.mark.parametrize("kind", ["str", "Path", "file", "bytesio", "offset"])
def test_every_kind_of_file(torch, tmp_path, kind):
    path = tmp_path / "x.pt"
    if kind in ("str", "Path"):
        f = str(path) if kind == "str" else path
        dptrain.save(dptrain.arange(3), f)
        assert torch.load(f).tolist() == dptrain.load(f).tolist() == [0, 1, 2]
        return
    file = io.BytesIO() if kind != "file" else path.open("w+b")
    with file:
        if kind == "offset":
            file.write(b"ahead")
        dptrain.save(dptrain.arange(3), file)
        file.seek(5 if kind == "offset" else 0)
        assert dptrain.load(file).tolist() == [0, 1, 2]
        file.seek(5 if kind == "offset" else 0)
        assert torch.load(file).tolist() == [0, 1, 2]


def test_legacy_values_follow_each_other_in_one_file(torch):
    file = io.BytesIO()
    for library in (torch, dptrain):
        library.save(library.arange(3), file, **LEGACY)
        library.save([library.ones(2)], file, **LEGACY)
    file.seek(0)
    found = [dptrain.load(file) for _ in range(4)]
    assert [f[0].tolist() for f in found] == [0, [1, 1], 0, [1, 1]]


def numpy_values():
    return {"array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1.5), "ints": np.arange(3)}


def test_numpy_values_need_to_be_allowed_as_in_pytorch(torch, written):
    allowed = [
        np._core.multiarray._reconstruct,
        np._core.multiarray.scalar,
        np.ndarray,
        np.dtype,
        np.dtypes.Float64DType,
        np.dtypes.Float32DType,
        np.dtypes.Int64DType,
    ]
    data = [written(library.save, numpy_values()) for library in (torch, dptrain)]
    for library in (torch, dptrain):
        for content in data:
            with pytest.raises(Exception, match=r"numpy.*add_safe_globals"):
                library.load(io.BytesIO(content), weights_only=True)
            with library.serialization.safe_globals(allowed):
                found = library.load(io.BytesIO(content), weights_only=True)
            for name, value in numpy_values().items():
                assert type(found[name]) is type(value)
                assert np.array_equal(found[name], value)
            unsafe = library.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
            assert set(unsafe) >= {"numpy.dtype", "numpy.ndarray"}


def test_unsafe_names_are_those_that_pytorch_finds(torch, written):
    data = written(
        torch.save, {"m": torch.nn.Linear(2, 2), "n": numpy_values(), "t": torch.ones(1)}
    )
    find = [m.serialization.get_unsafe_globals_in_checkpoint for m in (torch, dptrain)]
    assert set(find[0](io.BytesIO(data))) == set(find[1](io.BytesIO(data)))


def test_a_whole_model_of_pytorch_is_refused_with_what_to_do(torch, written):
    data = written(torch.save, torch.nn.Sequential(torch.nn.Linear(2, 2)))
    for weights_only in (True, False):
        with pytest.raises(Exception, match=r"torch\.nn\.modules\.container\.Sequential") as caught:
            dptrain.load(io.BytesIO(data), weights_only=weights_only)
        assert type(caught.value).__name__ == "UnpicklingError"
        assert "state_dict" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda t: t.zeros(2, dtype=t.complex64), "ComplexFloatStorage|complex64"),
        (lambda t: t.zeros(2, dtype=t.uint16), "uint16"),
        (lambda t: t.zeros(2, dtype=t.float8_e4m3fn), "float8_e4m3fn"),
        (lambda t: t.eye(3).to_sparse(), "sparse"),
        (lambda t: t.quantize_per_tensor(t.ones(2), 0.1, 0, t.qint8), "qint8|QInt8|qtensor"),
        (lambda t: t.sparse_coo, "sparse_coo"),
        (lambda t: t.complex64, "complex64"),
    ],
    ids=["complex", "uint16", "float8", "sparse", "quantized", "layout", "dtype"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_dptrain_has_no_type_for_is_named(torch, written, make, says):
    data = written(torch.save, {"x": make(torch)})
    with pytest.raises(Exception, match=says) as caught:
        dptrain.load(io.BytesIO(data))
    assert type(caught.value).__name__ in ("UnpicklingError", "RuntimeError")


def test_attributes_of_tensors_come_along(torch, same, written):
    for writer, reader in ((torch, dptrain), (dptrain, torch)):
        t, p = writer.ones(2), writer.nn.Parameter(writer.ones(2))
        t.note, p.note = "a", ["b"]
        found = reader.load(io.BytesIO(written(writer.save, [t, p])), weights_only=True)
        assert found[0].note == "a"
        assert found[1].note == ["b"]
        assert isinstance(found[1], reader.nn.Parameter)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_storages_by_themselves(torch, written):
    data = written(torch.save, torch.arange(3.0).untyped_storage())
    assert dptrain.load(io.BytesIO(data)).nbytes() == 12
    data = written(dptrain.save, dptrain.arange(3.0).storage())
    assert torch.load(io.BytesIO(data), weights_only=True).nbytes() == 12


def test_a_tag_of_another_device(torch, written):
    data = written(torch.save, torch.arange(3))
    tagged = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00qpu")
    tagged = fix_checksum(tagged)
    for library in (torch, dptrain):
        with pytest.raises(RuntimeError, match="don't know how to restore data location"):
            library.load(io.BytesIO(tagged), weights_only=True)
        for place in ("cpu", library.device("cpu"), {"qpu": "cpu"}, lambda storage, tag: storage):
            found = library.load(io.BytesIO(tagged), map_location=place, weights_only=True)
            assert found.tolist() == [0, 1, 2]
        given = []

        def look(storage, tag, given=given):
            given.append((storage.nbytes(), tag))
            return storage.cpu()

        library.load(io.BytesIO(tagged), look, weights_only=True)
        assert given == [(24, "qpu")]


def fix_checksum(data):
    """The same archive with true checksums."""
    import zlib

    raw = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.infolist()[0]
        n, m = struct.unpack("<HH", raw[entry.header_offset + 26 : entry.header_offset + 30])
        start = entry.header_offset + 30 + n + m
        end = start + entry.file_size
        crc = struct.pack("<I", zlib.crc32(raw[start:end]))
        at = archive.start_dir
    raw[end + 4 : end + 8] = crc
    raw[at + 16 : at + 20] = crc
    return bytes(raw)


def test_a_cuda_tag_says_what_to_do(torch, written):
    data = written(torch.save, torch.arange(3), _use_new_zipfile_serialization=False)
    data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    for library in (torch, dptrain):
        with pytest.raises(RuntimeError, match="Attempting to deserialize object on a CUDA device"):
            library.load(io.BytesIO(data), weights_only=True)
        assert library.load(io.BytesIO(data), map_location="cpu", weights_only=True).tolist() == [
            0,
            1,
            2,
        ]


BAD_FILES = {
    "nothing": lambda data: b"",
    "a picture": lambda data: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-10],
    "no pickle": lambda data: repacked(data, lambda n, c: None if n == "data.pkl" else c),
    "no storage": lambda data: repacked(data, lambda n, c: None if n == "data/0" else c),
    "an unknown byte order": lambda data: repacked(
        data, lambda n, c: b"odd" if n == "byteorder" else c
    ),
    "a pickle of something else": lambda data: pickle.dumps([1, 2], 2),
    "a version of something else": lambda data: (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(3, 2)
    ),
    "a name that is not allowed": lambda data: repacked(
        data, lambda n, c: pickle.dumps(os.getcwd, 2) if n == "data.pkl" else c
    ),
}


@pytest.mark.parametrize("spoil", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_raise_the_kind_of_error_that_pytorch_raises(torch, written, spoil):
    data = spoil(written(torch.save, {"w": torch.tensor(list(b"abcdefgh"), dtype=torch.uint8)}))
    kinds = [refusal(library, data) for library in (torch, dptrain)]
    assert kinds[0] is not None
    assert kinds[1] is kinds[0]


def refusal(library, data):
    """The kind of exception, or None if the file was loaded."""
    try:
        library.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        return type(error)
    return None


def test_a_changed_element_is_found_by_its_checksum(torch, written):
    data = written(torch.save, torch.tensor(list(b"abcdefgh"), dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="checksum"):
        dptrain.load(io.BytesIO(data.replace(b"abcdefgh", b"abcdefgi")))


def test_files_without_checksums_load(torch, same, written):
    torch.serialization.set_crc32_options(False)
    try:
        data = written(torch.save, value := {"w": torch.arange(5.0), "v": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    same(dptrain.load(io.BytesIO(data)), value)


@pytest.mark.slow
def test_archives_beyond_four_gigabytes(torch, tmp_path):
    """Offsets and sizes in zip64 fields; the file is sparse, so that it takes no room."""
    path = tmp_path / "large.pt"

    class Sparse(io.FileIO):
        def write(self, data):
            memory = memoryview(data).cast("B")
            if len(memory) > 1 << 30:
                self.seek(len(memory) - 1, 1)
                return super().write(memory[-1:]) and len(memory)
            return super().write(memory)

    large = dptrain.zeros(2**32 + 100, dtype=dptrain.uint8)
    with Sparse(path, "w") as file:
        dptrain.save({"large": large, "after": dptrain.arange(5)}, file)
    assert path.stat().st_size > 2**32
    for library in (torch, dptrain):
        found = library.load(path, mmap=True, weights_only=True)
        assert found["large"].numel() == 2**32 + 100
        assert found["after"].tolist() == [0, 1, 2, 3, 4]
        del found
