"""The compiled kernels over rows (exponentials, softmax, losses, sums) against their NumPy definition."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.kernels import reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")
memory = pytest.importorskip("dptrain.core.kernels.memory", reason="numba not installed")

# The first example of a test compiles; timing says nothing about the code.
relaxed = settings(max_examples=40, deadline=None)
dtypes = st.sampled_from([np.float32, np.float64])


@relaxed
@given(
    st.integers(0, 40),
    st.one_of(st.integers(1, 70), st.just(1000)),
    dtypes,
    st.sampled_from([0.0, 1.0, 50.0]),
    st.sampled_from([1, 2, 4]),
)
def test_softmax_twins_agree(rows, c, dtype, scale, threads):
    stream = np.random.default_rng(rows * 71 + c)
    x = (stream.standard_normal((rows, c)) * scale + 3).astype(dtype)
    grad = stream.standard_normal((rows, c)).astype(dtype)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        out, log = native.softmax(x), native.log_softmax(x)
        got = (out, native.softmax_grad(grad, out), log, native.log_softmax_grad(grad, log))
    finally:
        dptrain.set_num_threads(before)
    x, grad = x.astype(np.float64), grad.astype(np.float64)
    out, log = reference.softmax(x), reference.log_softmax(x)
    exact = (
        out,
        reference.softmax_grad(grad, out),
        log,
        reference.log_softmax_grad(grad, log),
    )
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype
        size = max(1, np.abs(expected).max(initial=0))
        bound = (c + 4) * np.finfo(dtype).eps * size * np.sqrt(max(c, 4)) / 2
        np.testing.assert_allclose(value, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_softmax_of_a_row_with_what_is_no_number_is_none(bad):
    x = np.random.default_rng(0).standard_normal((3, 40)).astype("f")
    for place in (0, 17, 39):
        rows = x.copy()
        rows[1, place] = bad
        for function in (native.softmax, native.log_softmax):
            got = function(rows)
            assert np.isnan(got[1]).any()
            assert np.isfinite(got[[0, 2]]).all()
    nothing = np.full((1, 20), -np.inf, "f")
    assert np.isnan(native.softmax(nothing)).all()


@relaxed
@given(
    st.integers(0, 60),
    st.integers(1, 300),
    st.integers(1, 9),
    dtypes,
    st.sampled_from([1, 2, 4]),
)
def test_sums_of_rows_by_index_twins_agree(count, c, size, dtype, threads):
    stream = np.random.default_rng(count + c)
    rows = np.round(stream.standard_normal((count, c)), 1).astype(dtype)
    index = stream.integers(0, size, count)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = native.add_rows(rows, index, size)
    finally:
        dptrain.set_num_threads(before)
    exact = np.zeros((size, c))
    np.add.at(exact, index, rows.astype(np.float64))
    np.testing.assert_allclose(got, exact, rtol=0, atol=count * 4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(
        reference.add_rows(rows, index, size), got, rtol=0, atol=count * 1e-6
    )
    assert got.dtype == dtype
    for provider, expected in ((native, got), (reference, reference.add_rows(rows, index, size))):
        place = np.full((size, c), np.nan, dtype)
        assert provider.add_rows(rows, index, size, out=place) is place
        np.testing.assert_array_equal(place, expected)


@relaxed
@given(st.integers(0, 5), st.integers(1, 6), dtypes, st.floats(0, 200))
def test_cross_entropy_twins_agree(n, c, dtype, scale):
    logits = (np.random.default_rng(n * 7 + c).standard_normal((n, c)) * scale).astype(dtype)
    target = np.random.default_rng(c).integers(0, c, n)
    loss, p = native.cross_entropy(logits, target)
    expected_loss, expected_p = reference.cross_entropy(logits, target)
    rtol = 1e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(loss, expected_loss, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(p, expected_p, rtol=rtol, atol=rtol)
    assert loss.dtype == p.dtype == dtype


@relaxed
@given(st.integers(0, 70), st.integers(1, 300), dtypes, st.sampled_from([np.int64, np.int32]))
def test_the_gradient_of_cross_entropy_is_probability_less_one_at_the_class(n, c, dtype, kind):
    rng = np.random.default_rng(n * 7 + c)
    p, target = rng.random((n, c)).astype(dtype), rng.integers(0, c, n).astype(kind)
    grad, scale = np.array(rng.standard_normal(), dtype), 1 / (n + 1)
    got = native.cross_entropy_grad(grad, p, p, target, scale)
    exact = (p - np.eye(c)[target]) * (float(grad) * scale)
    eps = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, exact, rtol=eps, atol=eps)
    expected = reference.cross_entropy_grad(grad, p, p, target, scale)
    np.testing.assert_allclose(got, expected, rtol=eps, atol=eps)
    assert got.dtype == dtype


@relaxed
@given(st.integers(0, 90), st.integers(1, 400), dtypes, st.booleans())
def test_sums_of_columns_are_those_of_float64(rows, columns, dtype, turned):
    shape = (columns, rows) if turned else (rows, columns)
    x = np.random.default_rng(rows * 401 + columns).standard_normal(shape).astype(dtype)
    x = x.T if turned else x
    got = native.column_sums(x)
    bound = (rows + 2) * np.finfo(dtype).eps * np.abs(x).sum(axis=0, dtype=np.float64)
    assert (np.abs(got - x.sum(axis=0, dtype=np.float64)) <= bound + 1e-300).all()
    assert got.dtype == dtype
    assert got.shape == (columns,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cross_entropy_of_a_row_without_a_finite_maximum_is_nan(bad):
    logits = np.array([[0.0, bad, 1.0], [0.0, 1.0, 2.0]])
    target = np.array([0, 2])
    for provider in (native, reference):
        with np.errstate(all="ignore"):
            loss, p = provider.cross_entropy(logits, target)
        assert np.isnan(loss[0])
        assert np.isfinite(loss[1])
        assert np.isfinite(p[1]).all()


def test_a_gradient_that_is_a_number_of_numpys_has_no_address_and_is_read_all_the_same():
    with pytest.raises(TypeError, match="address of a number of NumPy's"):
        memory.address(np.float64(1.0))  # of a copy, which another thread may have by now
    stream = np.random.default_rng(0)
    logits, target = stream.standard_normal((4, 3)), np.array([0, 2, 1, 1])
    _, p = native.cross_entropy(logits, target)
    for grad in (np.float64(0.3), np.array(0.3)):
        got = native.cross_entropy_grad(grad, logits, p, target, 0.5)
        np.testing.assert_allclose(got, 0.15 * (p - np.eye(3)[target]), rtol=1e-12)
        slope = native.activation_grad("tanh", grad, np.array(0.5))
        np.testing.assert_allclose(slope, 0.3 * 0.75, rtol=1e-12)
        assert native.relu_grad(grad, np.array(0.5)) == 0.3


def test_threads_that_scale_their_losses_do_not_meet_in_memory():
    x, target = np.random.default_rng(0).standard_normal((3, 3)), dptrain.tensor([0, 1, 2])

    def gradient():
        t = dptrain.tensor(x, requires_grad=True)
        (dptrain.nn.functional.cross_entropy(t, target) / 2).backward()
        return t.grad.numpy()

    expected = gradient()

    def many(_):
        return all(np.array_equal(gradient(), expected) for _ in range(300))

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(many, range(3)))


@relaxed
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.data(),
    dtypes,
    st.sampled_from([1, 2, 4]),
)
def test_adding_at_an_index_twins_agree_to_the_bit(shape, data, dtype, threads):
    stream = np.random.default_rng(sum(shape))
    shape = (*shape[:-1], shape[-1] * data.draw(st.sampled_from([1, 40, 2000]), "widening"))
    start = data.draw(st.integers(0, len(shape) - 1), "whole dimensions in front")
    stop = data.draw(st.integers(start + 1, len(shape)), "end of those with places")
    places = [stream.integers(-n, n, (3, 1) if d % 2 else 4) for d, n in enumerate(shape)]
    index = (slice(None),) * start + tuple(places[start:stop])
    picked = np.zeros(shape, bool)[index]
    values = stream.standard_normal(picked.shape[picked.ndim // 2 :]).astype(dtype)
    got = stream.standard_normal(shape).astype(dtype)
    expected = got.copy()
    reference.add_at(expected, index, values)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        native.add_at(got, index, values)
    finally:
        dptrain.set_num_threads(before)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2000, 7), (2000, 128), (3, 30000), (400, 9, 40), (2, 50000, 1)])
def test_large_sums_by_index_do_not_depend_on_threads(shape, threads):
    stream = np.random.default_rng(3)
    dim = max(0, len(shape) - 2)
    count = min(8000, 2**21 * shape[dim] // math.prod(shape))
    index = (slice(None),) * dim + (stream.integers(-shape[dim], shape[dim], count),)
    values = stream.standard_normal((*shape[:dim], count, *shape[dim + 1 :])).astype("f")
    got, expected = np.zeros(shape, "f"), np.zeros(shape, "f")
    reference.add_at(expected, index, values)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        native.add_at(got, index, values)
    finally:
        dptrain.set_num_threads(before)
    assert np.array_equal(got, expected)


def test_an_index_of_masks_steps_or_arrays_apart_is_added_at_too():
    stream = np.random.default_rng(0)
    mask = stream.random((4, 5)) > 0.5
    apart = (np.array([0, 1, 1]), slice(None), np.array([2, 0, 0]))
    for index in ((mask,), apart, (np.array([1, 1]), slice(0, 2)), (np.array([3]), None)):
        got, expected = np.zeros((4, 5, 3)), np.zeros((4, 5, 3))
        values = stream.standard_normal(got[index].shape)
        reference.add_at(expected, index, values)
        native.add_at(got, index, values)
        assert np.array_equal(got, expected)
