"""The arithmetic of reductions, apart from any communicator."""

from __future__ import annotations

import numpy as np
import pytest

from dptrain.comm.reduction import BLOCK_ELEMENTS, ReduceOp, check_reducible, reduce_arrays
from dptrain.core.kernels import prepare_sums


@pytest.mark.parametrize("size", [1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("own", [None, 0, 1, 2, 3])
def test_any_source_may_be_a_target(size, dtype, own):
    random = np.random.default_rng(size)
    sources = [(random.standard_normal(size) * 9).astype(dtype) for _ in range(4)]
    wide = np.float32 if dtype == np.float16 else dtype
    expected = sources[0].astype(wide)
    for source in sources[1:]:
        expected = expected + source.astype(wide)
    expected = expected.astype(dtype)
    target = np.empty(size, dtype) if own is None else sources[own]
    untouched = [source.copy() for i, source in enumerate(sources) if i != own]
    reduce_arrays(sources, [target], ReduceOp.SUM)
    assert target.tobytes() == expected.tobytes()
    rest = [source for i, source in enumerate(sources) if i != own]
    assert all(np.array_equal(a, b) for a, b in zip(untouched, rest, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_average_is_the_sum_divided_by_the_count(count):
    sources = [np.float32([0.1, 3.0, -7.7]) * (i + 1) for i in range(count)]
    total = sources[0].copy()
    for source in sources[1:]:
        total = total + source
    target = np.empty(3, np.float32)
    reduce_arrays(sources, [target], ReduceOp.AVG)
    assert target.tobytes() == (total / np.float32(count)).tobytes()


def test_every_target_gets_the_result():
    sources = [np.arange(5.0), np.ones(5)]
    targets = [np.empty(5), np.empty(5)]
    reduce_arrays(sources, [*targets, sources[1]], ReduceOp.PRODUCT)
    for target in (*targets, sources[1]):
        assert target.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_operators_are_found_by_name():
    assert ReduceOp.of("SUM") is ReduceOp.of("sum") is ReduceOp.of(ReduceOp.SUM)
    with pytest.raises(ValueError, match=r"'mean' is no reduction; expected one of 'sum', 'avg'"):
        ReduceOp.of("mean")


def test_integers_have_no_average():
    for dtype in (np.int64, np.bool_):
        with pytest.raises(TypeError, match="cannot hold an average"):
            check_reducible(ReduceOp.AVG, np.dtype(dtype))
    check_reducible(ReduceOp.AVG, np.dtype(np.float16))


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [4096, 10_001, 3 * BLOCK_ELEMENTS + 7])
def test_two_arrays_that_both_get_the_result_get_numpys_bits(size, dtype, op):
    prepare_sums()
    stream = np.random.default_rng(size)
    arrays = [(stream.standard_normal(size) * 1e30).astype(dtype) for _ in range(2)]
    arrays[0][:3], arrays[1][:3] = (np.inf, np.nan, 1e-42), (-np.inf, 1, 1e-44)
    with np.errstate(all="ignore"):
        expected = arrays[0] + arrays[1]
        expected = expected / dtype(2) if op == "avg" else expected
    reduce_arrays(arrays, arrays, ReduceOp.of(op))
    for found in arrays:
        np.testing.assert_array_equal(found, expected)
