"""Files that were cut, damaged or made to hurt: each is refused, quickly and in little memory."""

import io
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from crafted_files import (
    ARCHIVES,
    DIRECTORY,
    LEGACY,
    LEGACY_HEAD,
    MAGIC,
    archive,
    bomb,
    changed,
    legacy_storage,
    overlapping,
    zipped,
)
from crafted_pickles import DEAR, PICKLES, TENSORS
from pickle_pieces import DOUBLED, Raw, call, name, op, tensor, whole

import dptrain

DOCUMENTED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError)


def load(data, **options):
    return dptrain.load(io.BytesIO(data), **options)


def test_the_builders_of_crafted_files_build():
    assert load(archive(whole(tensor(size=(2, 2), stride=(2, 1))))).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("opcodes", TENSORS.values(), ids=TENSORS)
def test_impossible_tensors_are_refused(opcodes):
    with pytest.raises(DOCUMENTED):
        load(archive(whole(opcodes)))


@pytest.mark.parametrize("opcodes", PICKLES.values(), ids=PICKLES)
def test_pickles_that_ask_for_more_are_refused(opcodes):
    for legacy in (False, True):
        if legacy:
            data = LEGACY_HEAD + whole(opcodes) + pickle.dumps([], 2)
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
    for opcodes in (b"}" + DOUBLED + b"Ns", b"\x8f(" + DOUBLED + b"\x90"):
        assert isinstance(limited(archive(whole(opcodes))), pickle.UnpicklingError)
    deep = b"}" + b")" + b"\x85" * 100_000 + b"Ns"  # hash() would overflow C's stack
    assert isinstance(limited(archive(whole(deep))), pickle.UnpicklingError)
    assert isinstance(
        limited(archive(whole(name("builtins.set"), b"]" + DOUBLED + b"a\x85R"))),
        pickle.UnpicklingError,
    )


@pytest.mark.timeout(20)
@pytest.mark.parametrize("opcodes", DEAR.values(), ids=DEAR)
def test_messages_do_not_print_what_has_no_end(opcodes):
    for data in (archive(whole(opcodes)), LEGACY_HEAD + whole(opcodes)):
        assert isinstance(limited(data, 4 << 20), DOCUMENTED)
    numbers = [b"\x80\x02\x8b" + struct.pack("<i", 9999) + b"\x7f" * 9999 + b".", whole(DOUBLED)]
    for number in numbers:
        assert isinstance(limited(number), RuntimeError)
        assert isinstance(limited(pickle.dumps(MAGIC, 2) + number), RuntimeError)


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
    data = bomb(2**26)
    assert len(data) < 2**20
    assert isinstance(limited(data), RuntimeError)


def test_records_that_overlap_cannot_add_up():
    assert isinstance(limited(overlapping(1 << 20, 200), 16 << 20), RuntimeError)


@pytest.mark.parametrize("change", DIRECTORY.values(), ids=DIRECTORY)
def test_directories_that_lie_are_refused(change):
    assert isinstance(limited(changed(archive(whole(tensor())), *change)), RuntimeError)


def test_offsets_that_come_out_negative_are_refused_in_memory_and_on_disk(tmp_path):
    path = tmp_path / "m.pt"
    path.write_bytes(data := ARCHIVES["offsets that come out negative"])
    for file, options in ((io.BytesIO(data), {}), (path, {}), (path, {"mmap": True})):
        with pytest.raises(RuntimeError, match="does not lie where the directory says"):
            dptrain.load(file, **options)


def test_two_records_of_one_name_are_refused():
    with pytest.raises(RuntimeError, match="two records of one name"):
        load(zipped(("archive/data.pkl", whole(op(1))), ("archive/data.pkl", whole(op(2)))))


def test_archives_of_something_else():
    for names in ([], ["a/b"], ["archive/constants.pkl", "archive/data.pkl"]):
        with pytest.raises((RuntimeError, pickle.UnpicklingError)):
            load(zipped(*((n, b"N.") for n in names)))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_cut_anywhere_are_refused(new):
    file = io.BytesIO()
    value = {"w": dptrain.arange(40.0), "v": dptrain.ones(3, dtype=dptrain.int16)}
    dptrain.save(value, file, _use_new_zipfile_serialization=new)
    data = file.getvalue()
    for end in range(0, len(data), 7):
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
            load(data[:end])


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
