"""Files that were cut, damaged or made to hurt: each is refused, quickly and in little memory."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

import dptrain
from dptrain.serialization.archive import ArchiveWriter

DOCUMENTED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError)


def archive(data_pkl, **records):
    """A whole archive around a pickle; records by key, float32 storage 0 of four elements by default."""
    file = io.BytesIO()
    writer = ArchiveWriter(file, "archive")
    writer.write("data.pkl", data_pkl)
    for key, data in ({"0": bytes(16)} | records).items():
        writer.write(f"data/{key}", data)
    writer.finish()
    return file.getvalue()


def op(value):
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


class Raw(bytes):
    """Opcodes that are to stay as they are."""


def tuple_of(*items):
    return b"(" + b"".join(i if isinstance(i, Raw) else op(i) for i in items) + b"t"


def name(text):
    module, _, last = text.rpartition(".")
    return Raw(f"c{module}\n{last}\n".encode())


def call(text, *args):
    return Raw(name(text) + tuple_of(*args) + b"R")


def storage(key="0", numel=4, kind="torch.FloatStorage", place="cpu"):
    return Raw(tuple_of("storage", name(kind), key, place, numel) + b"Q")


def tensor(held=None, offset=0, size=(4,), stride=(1,), requires_grad=False):
    held = storage() if held is None else held
    return call("torch._utils._rebuild_tensor_v2", held, offset, size, stride, requires_grad, None)


def whole(*opcodes):
    return b"\x80\x02" + b"".join(opcodes) + b"."


def load(data, **options):
    return dptrain.load(io.BytesIO(data), **options)


LEGACY_HEAD = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))


def test_the_builders_of_this_module_build():
    assert load(archive(whole(tensor(size=(2, 2), stride=(2, 1))))).tolist() == [[0, 0], [0, 0]]


TENSORS = {
    "size beyond": tensor(size=(5,)),
    "stride beyond": tensor(size=(2, 2), stride=(4, 1)),
    "offset beyond": tensor(offset=1),
    "offset negative": tensor(offset=-1, size=(3,)),
    "size negative": tensor(size=(-1,)),
    "stride negative": tensor(offset=3, size=(2,), stride=(-1,)),
    "size huge": tensor(size=(2**62,)),
    "sizes overflow": tensor(size=(2**33, 2**33), stride=(2**33, 1)),
    "expanded beyond an address": tensor(size=(2**61, 2**61), stride=(0, 0)),
    "stride overflows": tensor(size=(2,), stride=(2**62 - 1,)),
    "empty but far": tensor(offset=5, size=(0,)),
    "size of text": tensor(size=("a",)),
    "size of bools": tensor(size=(True,)),
    "size no tuple": tensor(size=4),
    "size a float": tensor(size=(4.0,)),
    "strides missing": tensor(size=(2, 2), stride=(1,)),
    "too many dimensions": tensor(size=(1,) * 65, stride=(1,) * 65),
    "no storage": tensor(held=Raw(b"N")),
    "a list as storage": tensor(held=Raw(b"]")),
    "integers that require gradients": tensor(
        storage(kind="torch.LongStorage", numel=2), size=(2,), requires_grad=True
    ),
    "negative number of elements": tensor(storage(numel=-4)),
    "more elements than bytes": tensor(storage(numel=5)),
    "fewer elements than bytes": tensor(storage(numel=3), size=(3,)),
    "elements without end": tensor(storage(numel=2**62)),
    "elements of a float": tensor(storage(numel=4.0)),
    "elements of a bool": tensor(storage(numel=True)),
    "no such record": tensor(storage(key="7")),
    "key outside": tensor(storage(key="../data.pkl")),
    "key no text": tensor(storage(key=0)),
    "no storage type": tensor(storage(kind="torch.float32")),
    "a function as storage type": tensor(storage(kind="torch._utils._rebuild_tensor")),
    "one storage of two types": Raw(tensor() + tensor(storage(kind="torch.IntStorage")) + b"\x86"),
    "one storage of two sizes": Raw(tensor() + tensor(storage(numel=8)) + b"\x86"),
    "place no text": tensor(storage(place=3)),
    "place unknown": tensor(storage(place="moon")),
    "place not here": tensor(storage(place="cuda:0")),
    "id a text": Raw(op("storage") + b"Q"),
    "id a number": Raw(op(3) + b"Q"),
    "id of a module": Raw(tuple_of("module", 1, 2, 3) + b"Q"),
    "id too long": Raw(tuple_of("storage", 1, 2, 3, 4, 5, 6) + b"Q"),
    "id empty": Raw(b")Q"),
    "parameter of a number": call("torch._utils._rebuild_parameter", 3, True, None),
    "attributes of the engine": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, {"_array": 3}
    ),
    "attributes without names": call(
        "torch._utils._rebuild_parameter_with_state", tensor(), True, None, {3: 3}
    ),
    "type that is none": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._utils._rebuild_tensor"),
        name("builtins.set"),
        (),
        {},
    ),
    "a function that makes no tensor": call(
        "torch._tensor._rebuild_from_type_v2", name("builtins.set"), name("torch.Tensor"), (), {}
    ),
    "itself": call(
        "torch._tensor._rebuild_from_type_v2",
        name("torch._tensor._rebuild_from_type_v2"),
        name("torch.Tensor"),
        (),
        {},
    ),
    "too few arguments": call("torch._utils._rebuild_tensor_v2", 1),
    "a dtype that is none": call(
        "torch._utils._rebuild_tensor_v3", storage(), 0, (1,), (1,), False, None, "float"
    ),
    "a wider dtype": call(
        "torch._utils._rebuild_tensor_v3",
        storage(),
        0,
        (4,),
        (1,),
        False,
        None,
        name("torch.float64"),
    ),
    "a lazy conjugate": call(
        "torch._utils._rebuild_tensor_v2", storage(), 0, (4,), (1,), False, None, {"conj": True}
    ),
}


@pytest.mark.parametrize("opcodes", TENSORS.values(), ids=TENSORS)
def test_impossible_tensors_are_refused(opcodes):
    with pytest.raises(DOCUMENTED):
        load(archive(whole(opcodes)))


PICKLES = {
    "os.system": call("os.system", "touch /tmp/never"),
    "posix.system": call("posix.system", "x"),
    "sys.exit": call("sys.exit"),
    "os.path": call("os.path.join", "x"),
    "eval": call("builtins.eval", "1"),
    "eval of python 2": call("__builtin__.eval", "1"),
    "getattr": call("builtins.getattr", 1, "real"),
    "import": call("importlib.import_module", "os"),
    "load": call("dptrain.load", "x"),
    "numpy": call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), b"b"),
    "a newline in a name": Raw(b"cos\r\nsystem\n"),
    "dotted name": Raw(b"ctorch\nSize.__class__\n"),
    "new object of a class that is allowed to be called": Raw(
        name("collections.OrderedDict") + b")\x81"
    ),
    "new tensor": Raw(name("torch.Tensor") + b")\x81"),
    "state of a tensor": Raw(tensor() + b"}b"),
    "state of a dict": Raw(b"}" + op({"a": 1}) + b"b"),
    "state of an OrderedDict that is a list": Raw(call("collections.OrderedDict") + b"]b"),
    "call of a dict": Raw(b"})R"),
    "call of a tensor": Raw(tensor() + b")R"),
    "call of a dtype": Raw(name("torch.float32") + b")R"),
    "call with a number": Raw(name("builtins.set") + op(3) + b"R"),
    "append to a tuple": Raw(b")" + op(3) + b"a"),
    "append to a tensor": Raw(tensor() + op(3) + b"a"),
    "item of a list": Raw(op([1]) + op(0) + op(2) + b"s"),
    "item of a tensor": Raw(tensor() + op(0) + op(2) + b"s"),
    "odd items": Raw(b"}(" + op(1) + b"u"),
    "unhashable key": Raw(b"}]" + op(1) + b"s"),
    "unhashable member": call("builtins.set", [[1]]),
    "bytearray of a number": call("builtins.bytearray", 10**12),
    "codec": call("_codecs.encode", "x" * 100, "zip"),
    "codec of no text": call("_codecs.encode", b"x", "latin1"),
    "size of texts": call("torch.Size", ["a"]),
    "device": call("torch.device", "moon"),
    "layout": call("torch.serialization._get_layout", "torch.sparse_coo"),
    "memo that is empty": Raw(b"h\x05"),
    "memo of nothing": Raw(b"q\x05"),
    "mark missing": Raw(b"t"),
    "stack empty": Raw(b"0"),
    "tuple of nothing": Raw(b"\x87"),
    "no opcode": Raw(b"\xff"),
    "text opcode": Raw(b"S'os'\n"),
    "instance opcode": Raw(b"(ios\nsystem\n"),
    "extension opcode": Raw(b"\x82\x01"),
    "text too long": Raw(b"X\xff\xff\xff\xff"),
    "text far too long": Raw(b"\x8d" + b"\xff" * 8),
    "bytes far too long": Raw(b"\x8e" + struct.pack("<Q", 2**40)),
    "negative string": Raw(b"T\xff\xff\xff\xff"),
    "negative long": Raw(b"\x8b\xff\xff\xff\xff"),
    "text that is none": Raw(b"X\x02\x00\x00\x00\xff\xff"),
    "protocol": Raw(b"\x80\xff"),
    "name without end": Raw(b"c" + b"a" * 70000),
}


@pytest.mark.parametrize("opcodes", PICKLES.values(), ids=PICKLES)
def test_pickles_that_ask_for_more_are_refused(opcodes):
    for legacy in (False, True):
        if legacy:
            head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
            data = head + whole(opcodes) + pickle.dumps([], 2)
        else:
            data = archive(whole(opcodes))
        with pytest.raises(DOCUMENTED):
            load(data)


def limited(data, limit=64 << 20):
    """Load, or be refused, within so many bytes."""
    tracemalloc.start()
    try:
        return load(data)
    except DOCUMENTED as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit, f"{peak:,} bytes for a file of {len(data):,}"


def test_nesting_without_end_is_no_recursion():
    depth = 50_000
    found = limited(archive(whole(b"]" * depth, b"a" * (depth - 1))))
    for _ in range(depth - 1):
        (found,) = found
    assert found == []
    found = limited(archive(whole(b")", b"\x85" * depth)))
    for _ in range(depth):
        (found,) = found


def test_keys_whose_hash_is_dear_are_refused():
    doubled = b")" + b"q\x00h\x00\x86" * 60  # t = (t, t), sixty times: 2**60 empty tuples
    for opcodes in (b"}" + doubled + b"Ns", b"\x8f(" + doubled + b"\x90"):
        assert isinstance(limited(archive(whole(opcodes))), pickle.UnpicklingError)
    deep = b"}" + b")" + b"\x85" * 100_000 + b"Ns"  # hash() would overflow C's stack
    assert isinstance(limited(archive(whole(deep))), pickle.UnpicklingError)
    assert isinstance(
        limited(archive(whole(name("builtins.set"), b"]" + doubled + b"a\x85R"))),
        pickle.UnpicklingError,
    )


DOUBLED = Raw(b")" + b"q\x00h\x00\x86" * 60)
DEAR = {
    "id": Raw(DOUBLED + b"Q"),
    "id inside": Raw(b"(" + op("storage") + DOUBLED * 4 + b"tQ"),
    "device": call("torch.device", DOUBLED),
    "device of a tensor": call(
        "torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(), DOUBLED, DOUBLED, False
    ),
    "layout": call("torch.serialization._get_layout", DOUBLED),
    "size": call("torch._utils._rebuild_tensor_v2", storage(), 0, DOUBLED, DOUBLED, False, None),
    "parameter": call("torch._utils._rebuild_parameter", DOUBLED, True, None),
    "state": call("torch._utils._rebuild_parameter_with_state", tensor(), True, None, DOUBLED),
    "called": Raw(DOUBLED + b")R"),
    "built": Raw(DOUBLED + b")b"),
    "a tensor of sizes": call("torch.Tensor", 2**40),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("opcodes", DEAR.values(), ids=DEAR)
def test_messages_do_not_print_what_has_no_end(opcodes):
    for data in (archive(whole(opcodes)), LEGACY_HEAD + whole(opcodes)):
        assert isinstance(limited(data, 4 << 20), DOCUMENTED)
    numbers = [b"\x80\x02\x8b" + struct.pack("<i", 9999) + b"\x7f" * 9999 + b".", whole(DOUBLED)]
    for number in numbers:
        assert isinstance(limited(number), RuntimeError)
        assert isinstance(limited(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + number), RuntimeError)


def test_copies_of_one_large_list_are_limited():
    many = b"]q\x00(" + b"N" * 50_000 + b"e0"
    text = b"X" + struct.pack("<I", 50_000) + b"a" * 50_000 + b"q\x010"
    for maker, index in (("torch.Size", 0), ("builtins.set", 0), ("_codecs.encode", 1)):
        copies = (name(maker) + b"h" + bytes([index]) + b"\x85R") * 5_000
        found = limited(archive(whole(many, text, copies)))
        assert isinstance(found, pickle.UnpicklingError)


def test_memo_places_cost_nothing():
    found = limited(
        archive(whole(b"]", b"".join(b"r" + struct.pack("<I", 2**32 - 1 - i) for i in range(100))))
    )
    assert found == []


def test_a_compressed_bomb_is_refused():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("archive/data.pkl", whole(tensor(storage(numel=2**24), size=(1,))))
        new.writestr("archive/data/0", bytes(2**26))
    assert len(out.getvalue()) < 2**20
    assert isinstance(limited(out.getvalue()), RuntimeError)


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


def test_records_that_overlap_cannot_add_up():
    """Many names for the same bytes: the directory is all that a file has to pay for each."""
    size, count = 1 << 20, 200
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
    found = limited(bytes(raw), 16 << 20)
    assert isinstance(found, RuntimeError)


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


@pytest.mark.parametrize("change", DIRECTORY.values(), ids=DIRECTORY)
def test_directories_that_lie_are_refused(change):
    assert isinstance(limited(changed(archive(whole(tensor())), *change)), RuntimeError)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_records_of_one_name_are_refused():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for content in (whole(op(1)), whole(op(2))):
            new.writestr("archive/data.pkl", content)
    with pytest.raises(RuntimeError, match="two records of one name"):
        load(out.getvalue())


def test_archives_of_something_else():
    for names in ([], ["a/b"], ["archive/constants.pkl", "archive/data.pkl"]):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as new:
            for n in names:
                new.writestr(n, b"N.")
        with pytest.raises((RuntimeError, pickle.UnpicklingError)):
            load(out.getvalue())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_cut_anywhere_are_refused(new):
    file = io.BytesIO()
    value = {"w": dptrain.arange(40.0), "v": dptrain.ones(3, dtype=dptrain.int16)}
    dptrain.save(value, file, _use_new_zipfile_serialization=new)
    data = file.getvalue()
    for end in range(0, len(data), 7):
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            load(data[:end])


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


@pytest.mark.parametrize(("opcodes", "keys", "data"), LEGACY.values(), ids=LEGACY)
def test_damaged_legacy_files_are_refused(opcodes, keys, data):
    file = LEGACY_HEAD + whole(opcodes) + pickle.dumps(keys, 2) + data
    found = limited(file, 4 << 20)
    assert isinstance(found, (RuntimeError, EOFError, pickle.UnpicklingError)), found


def test_views_of_storages_of_the_first_versions_load():
    held = call("torch._utils._rebuild_tensor", legacy_storage(view=("v", 1, 3)), 1, (2,), (1,))
    data = struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes()
    assert load(LEGACY_HEAD + whole(held) + pickle.dumps(["0"], 2) + data).tolist() == [2, 3]


def test_bytes_of_python_2_stay_readable():
    held = call(
        "torch._utils._rebuild_tensor",
        Raw(b"(U\x07storage" + name("torch.FloatStorage") + b"U\x010U\x03cpuK\x04tQ"),
        0,
        (4,),
        (1,),
    )
    assert load(archive(whole(held))).shape == (4,)
