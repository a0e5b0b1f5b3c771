"""The idx format: what is read, and what is refused with which words."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dptrain.vision.datasets.idx import read_idx


@given(
    st.sampled_from([1, 3]).flatmap(
        lambda ndim: arrays(np.uint8, st.tuples(*[st.integers(0, 5)] * ndim))
    ),
    st.booleans(),
)
def test_what_was_written_is_read(tmp_path_factory, idx_bytes, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_idx(path, array.ndim)
    assert found.dtype == np.uint8
    assert np.array_equal(found, array)
    assert found.flags.writeable


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def store(request, tmp_path):
    """Writes content to a file, compressed or not, and returns its path."""

    def write(content):
        path = tmp_path / "values-idx"
        path.write_bytes(gzip.compress(content) if request.param else content)
        return path

    return write


@pytest.mark.parametrize("kept", [0, 3, 4, 15, 16, 17, 16 + 23])
def test_a_file_that_is_cut_short_names_expected_and_found_size(store, idx_bytes, kept):
    path = store(idx_bytes(np.zeros((2, 3, 4), np.uint8))[:kept])
    expected = "header of 16 bytes" if kept < 16 else "expected 40 bytes"
    with pytest.raises(ValueError, match=f"cut short.*{expected}.*found {kept}") as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_a_file_that_is_too_long_is_refused(store, idx_bytes):
    path = store(idx_bytes(np.zeros(5, np.uint8)) + b"\0")
    with pytest.raises(ValueError, match=r"too long.*says 5 values.*expected 13 bytes"):
        read_idx(path, 1)


@pytest.mark.parametrize("kept", [2, 12, 30, -1])
def test_compressed_data_that_is_cut_short_is_refused(tmp_path, idx_bytes, kept):
    values = np.random.default_rng(0).integers(0, 256, 100, dtype=np.uint8)
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx_bytes(values))[:kept])
    with pytest.raises(ValueError, match=r"cut short|damaged") as error:
        read_idx(path, 1)
    assert str(path) in str(error.value)


def test_damaged_compressed_data_is_refused(tmp_path, idx_bytes):
    values = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
    content = bytearray(gzip.compress(idx_bytes(values)))
    content[200] ^= 0xFF
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.gz is (damaged|no idx|cut short|too long)"):
        read_idx(path, 1)


@pytest.mark.parametrize(
    ("content", "ndim", "named"),
    [
        (
            b"PK\x03\x04" + bytes(20),
            3,
            "is no idx file: .*0x00000803.*found magic number 0x504b0304",
        ),
        (b"\0\0\x08\x01\0\0\0\0", 3, r"is an idx1 file \(labels\): expected an idx3 file"),
        (b"\0\0\x08\x03" + bytes(12), 1, r"is an idx3 file \(images\): expected an idx1 file"),
        (b"\0\0\x08\x02" + bytes(8), 1, "is an idx2 file: expected an idx1 file"),
        (b"\0\0\x0d\x01\0\0\0\0", 1, "holds float32 values"),
        (b"\0\0\x08\x01\xff\xff\xff\xff12", 1, "cut short: its header says 4294967295 values"),
    ],
)
def test_another_file_is_refused_with_what_it_is(store, content, ndim, named):
    with pytest.raises(ValueError, match=named):
        read_idx(store(content), ndim)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere", 1)
