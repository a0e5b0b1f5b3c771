"""The compiled kernels against their NumPy definition, and the definition against direct sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.kernels import fingerprint, kernels_for, reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")

# The first example of a test compiles; timing says nothing about the code.
relaxed = settings(max_examples=40, deadline=None)


@st.composite
def windows(draw, max_pad=2):
    """An image shape, a geometry with at least one window, and the size of the result."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad = draw(st.tuples(st.integers(0, max_pad), st.integers(0, max_pad)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    sizes = [draw(st.integers(max(1, span - 2 * p), 7)) for span, p in zip(spans, pad, strict=True)]
    n, c = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    out = [
        (size + 2 * p - span) // s + 1
        for size, p, span, s in zip(sizes, pad, spans, stride, strict=True)
    ]
    return (n, *sizes, c), (*kernel, *stride, *pad, *dilation), out


def image(shape, dtype, seed=0, nan=False):
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    values = np.round(values, 1)  # so that equal values meet in a window
    if nan and values.size:
        values.flat[:: max(1, values.size // 3)] = np.nan
        values.flat[1 :: max(1, values.size // 2)] = -np.inf
    return values


dtypes = st.sampled_from([np.float32, np.float64])


@relaxed
@given(windows(), dtypes)
def test_im2col_twins_agree(case, dtype):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype)
    np.testing.assert_array_equal(
        native.im2col(x, oh, ow, geometry), reference.im2col(x, oh, ow, geometry)
    )


@relaxed
@given(windows(), dtypes)
def test_col2im_twins_agree_and_are_the_transpose_of_im2col(case, dtype):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype)
    cols = image((shape[0] * oh * ow, geometry[0] * geometry[1] * shape[3]), dtype, seed=1)
    got = native.col2im(cols, shape, oh, ow, geometry)
    np.testing.assert_array_equal(got, reference.col2im(cols, shape, oh, ow, geometry))
    # <im2col(x), cols> = <x, col2im(cols)>
    left = (reference.im2col(x, oh, ow, geometry).astype(np.float64) * cols).sum()
    assert left == pytest.approx((x.astype(np.float64) * got).sum(), rel=1e-4, abs=1e-4)


@relaxed
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
    dtypes,
    st.sampled_from([1, 2, 4]),
)
def test_channels_last_twins_agree(shape, dtype, threads):
    x = image(shape, dtype)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        for case in (
            x,
            x[:, :, ::-1],
            x.transpose(0, 1, 3, 2),
            x[:, :, 0],
            image((3, 40, 21), dtype)[:, 3:-5, 1:],
            image((40, 3, 64, 64), dtype),
        ):
            got = native.channels_last(case)
            np.testing.assert_array_equal(got, reference.channels_last(case))
            assert got.flags.c_contiguous
            back = native.row_major(np.moveaxis(got, -1, 1))
            np.testing.assert_array_equal(back, case)
            assert back.flags.c_contiguous
    finally:
        dptrain.set_num_threads(before)


@relaxed
@given(windows(max_pad=1), dtypes, st.booleans(), st.booleans())
def test_max_pool_twins_agree(case, dtype, nan, rectified):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype, nan=nan)
    best, where = native.max_pool(x, oh, ow, geometry, rectified)
    expected_best, expected_where = reference.max_pool(x, oh, ow, geometry, rectified)
    np.testing.assert_array_equal(best, expected_best)
    np.testing.assert_array_equal(where, expected_where)
    assert where.dtype == expected_where.dtype
    grad = image(best.shape, dtype, seed=2)
    scattered = native.max_pool_scatter(grad, where, shape, geometry)
    # The two add windows that share a maximum in different orders.
    np.testing.assert_allclose(
        scattered, reference.max_pool_scatter(grad, where, shape, geometry), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(
        native.max_pool_gather(x, where, geometry), reference.max_pool_gather(x, where, geometry)
    )


@relaxed
@given(windows(max_pad=1), dtypes)
def test_max_pool_points_at_the_values_it_returns(case, dtype):
    shape, geometry, (oh, ow) = case
    x = image(shape, dtype)
    best, where = reference.max_pool(x, oh, ow, geometry)
    inside = where >= 0  # a window that lies in the border alone has no element
    np.testing.assert_array_equal(
        reference.max_pool_gather(x, where, geometry)[inside], best[inside]
    )


def test_max_pool_takes_the_first_of_equal_values_and_the_last_nan_over_all():
    geometry = (1, 3, 1, 3, 0, 0, 1, 1)
    x = np.array([[2, 2, 1], [1, np.nan, np.nan], [-np.inf, -np.inf, -np.inf]])
    for provider in (native, reference):
        best, where = provider.max_pool(x.reshape(3, 1, 3, 1), 1, 1, geometry)
        np.testing.assert_array_equal(best.ravel(), [2, np.nan, -np.inf])
        np.testing.assert_array_equal(where.ravel(), [0, 2, 0])


def test_every_kernel_of_the_definition_has_a_compiled_twin():
    public = {
        n
        for n, f in vars(reference).items()
        if callable(f) and getattr(f, "__module__", "").startswith(reference.__name__)
    }
    assert {"conv", "softmax", "relu"} < public  # of each file of the definition
    assert {n for n in public if not n.startswith("_")} <= set(native.__all__)
    assert all(callable(getattr(native, n)) for n in native.__all__)


def test_provider_follows_the_element_type_alone():
    assert kernels_for(np.empty(0, np.float16)) is reference
    assert kernels_for(np.empty(0, np.int64)) is reference
    assert kernels_for(np.empty(0, np.float32)) is kernels_for(np.empty(0, np.float64))
    if kernels_for(np.empty(0, np.float32)) is native:
        assert fingerprint() == native.describe()
    else:  # DPTRAIN_KERNELS=numpy
        assert fingerprint() == "numpy"


@relaxed
@given(st.integers(0, 40), dtypes, st.sampled_from([1.0, 0.25, 1 / 3]), st.booleans())
def test_unscale_twins_give_the_same_bits_and_find_what_is_not_finite(n, dtype, inverse, nan):
    inverse = float(np.float32(inverse))
    grad = image((n,), dtype, nan=nan)
    copies = [grad.copy(), grad.copy()]
    found = [k.unscale(c, inverse) for k, c in zip((native, reference), copies, strict=True)]
    assert found == [not np.isfinite(grad).all()] * 2
    np.testing.assert_array_equal(copies[0], copies[1])
    np.testing.assert_array_equal(copies[0], grad * dtype(inverse))


@relaxed
@given(windows(max_pad=1), dtypes)
def test_sum_pool_twins_agree(case, dtype):
    shape, geometry, (oh, ow) = case
    geometry = (*geometry[:6], 1, 1)  # windows without gaps
    x = image(shape, dtype)
    got, expected = (p.sum_pool(x, oh, ow, geometry) for p in (native, reference))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    grad = image(got.shape, dtype, seed=2)
    got, expected = (p.sum_pool_scatter(grad, shape, geometry) for p in (native, reference))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@relaxed
@given(
    st.integers(1, 200),
    st.integers(1, 40),
    dtypes,
    st.booleans(),
    st.sampled_from([0.0, 3.0, 1e4]),
    st.sampled_from([1, 2]),
)
def test_batch_norm_twins_agree(rows, c, dtype, affine, offset, threads):
    """Also far from zero, where the difference of a mean of squares and a squared mean is noise."""
    stream = np.random.default_rng(rows * 41 + c)
    x = (stream.standard_normal((rows, c)) + offset).astype(dtype)
    grad = stream.standard_normal((rows, c)).astype(dtype)
    weight, bias = stream.standard_normal((2, c)).astype(dtype) if affine else (None, None)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = native.batch_norm(x, weight, bias, 1e-5)
        vectors = native.batch_statistics(x, weight, bias, 1e-5)[3]
        cut, sums = np.empty_like(x), np.empty_like(x)
        native.normalise(x, vectors, cut, cut=True)
        native.normalise(x, vectors, sums, more=grad)
        got_grads = native.batch_norm_grad(grad, x, weight, got[1], got[3])
        cut_grads = native.batch_norm_grad(grad, x, weight, got[1], got[3], vectors)
    finally:
        dptrain.set_num_threads(before)
    # Bit for bit what the passes give one after the other.
    np.testing.assert_array_equal(cut, reference.relu(got[0]))
    np.testing.assert_array_equal(sums, got[0] + grad)
    exact = reference.batch_norm(x.astype(np.float64), weight, bias, 1e-5)
    rtol = (2e-5 if dtype is np.float32 else 1e-10) * (1 + offset / 10)
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype
        if rows > 1:  # 1 / sqrt(0 + eps) magnifies everything
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol * 5)
    passed = reference.relu_grad(grad, got[0])
    for gradient, found in ((grad, got_grads), (passed, cut_grads)):
        wide = (
            a if a is None else a.astype(np.float64) for a in (gradient, x, weight, got[1], got[3])
        )
        for value, expected in zip(found, reference.batch_norm_grad(*wide), strict=True):
            scale = max(1, np.abs(expected).max(initial=0))
            np.testing.assert_allclose(value, expected, rtol=0, atol=rtol * 10 * scale)


@relaxed
@given(st.integers(1, 40), st.integers(1, 9), dtypes, st.booleans())
def test_the_numpy_twin_fuses_what_it_computes(rows, c, dtype, affine):
    stream = np.random.default_rng(rows * 7 + c)
    x, grad = stream.standard_normal((2, rows, c)).astype(dtype)
    weight, bias = stream.standard_normal((2, c)).astype(dtype) if affine else (None, None)
    out, mean, _, rstd = reference.batch_norm(x, weight, bias, 1e-5)
    vectors = reference.batch_statistics(x, weight, bias, 1e-5)[3]
    got = np.empty_like(x)
    reference.normalise(x, vectors, got, cut=True)
    np.testing.assert_array_equal(got, reference.relu(out))
    reference.normalise(x, vectors, got, more=grad)
    np.testing.assert_array_equal(got, out + grad)
    fused = reference.batch_norm_grad(grad, x, weight, mean, rstd, vectors)
    passed = reference.batch_norm_grad(reference.relu_grad(grad, out), x, weight, mean, rstd)
    for value, expected in zip(fused, passed, strict=True):
        np.testing.assert_array_equal(value, expected)


@relaxed
@given(
    st.sampled_from([(3,), (4, 5), (2, 3, 40, 40), (0, 2), (1, 96, 700)]),
    dtypes,
    st.sampled_from(["C", "F", "gaps"]),
    st.sampled_from([1, 2]),
)
def test_relu_twins_agree(shape, dtype, order, threads):
    x, grad = (image(shape, dtype, seed, nan=True) for seed in (1, 2))
    if order == "F":
        x, grad = np.asfortranarray(x), np.asfortranarray(grad)
    if order == "gaps":
        x, grad = (np.repeat(a, 2, axis=-1)[..., ::2] for a in (x, grad))
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        out = native.relu(x)
        got = native.relu_grad(grad, out)
    finally:
        dptrain.set_num_threads(before)
    np.testing.assert_array_equal(out, reference.relu(x))
    np.testing.assert_array_equal(got, reference.relu_grad(grad, out))
    assert out.dtype == got.dtype == dtype


def test_the_gradient_of_relu_lies_as_its_result_does():
    """Residual nets add gradients of several layouts; convolutions need theirs back."""
    grad = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype("f")
    out = np.maximum(np.random.default_rng(1).standard_normal((4, 5, 5, 3)).astype("f"), 0)
    got = native.relu_grad(grad, out.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(got, reference.relu_grad(grad, out.transpose(0, 3, 1, 2)))
    assert got.strides == out.transpose(0, 3, 1, 2).strides


def test_relu_lets_the_gradient_of_what_is_no_number_pass_and_stops_infinity_at_zero():
    """As PyTorch: the slope is a choice, not a factor."""
    out, grad = np.array([0, 0, np.nan, 1], "f"), np.array([np.inf, np.nan, 2, 3], "f")
    for provider in (native, reference):
        np.testing.assert_array_equal(provider.relu_grad(grad, out), [0, 0, 2, 3])


@relaxed
@given(
    st.integers(0, 70),
    st.integers(1, 70),
    dtypes,
    st.booleans(),
    st.sampled_from([0.0, 100.0]),
    st.sampled_from([1, 2]),
)
def test_layer_norm_twins_agree(rows, c, dtype, affine, offset, threads):
    stream = np.random.default_rng(rows * 71 + c)
    x = (stream.standard_normal((rows, c)) + offset).astype(dtype)
    grad = stream.standard_normal((rows, c)).astype(dtype)
    weight, bias = stream.standard_normal((2, c)).astype(dtype) if affine else (None, None)
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = native.layer_norm(x, weight, bias, 1e-2)
        got += native.layer_norm_grad(grad, x, weight, *got[1:])
    finally:
        dptrain.set_num_threads(before)
    wide = [a if a is None else a.astype(np.float64) for a in (x, weight, bias, grad)]
    exact = reference.layer_norm(*wide[:3], 1e-2)
    exact += reference.layer_norm_grad(wide[3], *wide[:2], *exact[1:])
    atol = (1e-4 if dtype is np.float32 else 1e-11) * (1 + offset / 10)
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype
        scale = max(1, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(value, expected, rtol=0, atol=atol * scale)


def test_gelu_is_right_everywhere_and_keeps_what_is_no_number():
    x = np.linspace(-12, 12, 200_001)
    exact, slope = reference.gelu(x), reference.gelu_grad(np.ones_like(x), x)
    for dtype, atol in ((np.float32, 4e-7), (np.float64, 1e-14)):
        got = native.gelu(x.astype(dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, exact, rtol=4e-7, atol=atol)
        got = native.gelu_grad(np.ones_like(x, dtype), x.astype(dtype))
        np.testing.assert_allclose(got, slope, rtol=4e-7, atol=2 * atol)
    edges = np.array([np.nan, np.inf, -1e30, 1e30, 0, -0.0], "f")
    for provider in (native, reference):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(
                provider.gelu(edges), np.array([np.nan, np.inf, 0, 1e30, 0, 0], "f")
            )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 64, 24), 4), ((2, 35, 6), 6), ((4, 1, 10), 2), ((5, 16, 3), 1), ((1, 48, 260), 13)],
)
def test_group_norm_twins_agree(shape, groups, dtype, affine, threads):
    rng = np.random.default_rng(5)
    x, grad = (rng.normal(100, 2, shape).astype(dtype) for _ in range(2))
    weight, bias = (rng.normal(size=shape[2]).astype(dtype) if affine else None for _ in range(2))
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = native.group_norm(x, groups, weight, bias, 1e-5)
        grads = native.group_norm_grad(grad, x, weight, got[1], got[3])
    finally:
        dptrain.set_num_threads(before)
    wide = [None if v is None else v.astype(np.float64) for v in (x, weight, bias, grad)]
    exact = reference.group_norm(wide[0], groups, *wide[1:3], 1e-5)
    # The mean is rounded to the type of the image, by its size over the deviations.
    slack = 200 * np.finfo(dtype).eps * max(1, (np.abs(exact[1]) * exact[3]).max())
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=slack, atol=slack)
    exact_grads = reference.group_norm_grad(wide[3], wide[0], wide[1], exact[1], exact[3])
    for value, expected in zip(grads, exact_grads, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=slack, atol=slack * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 40, 300), (200, 9, 1)])
def test_weighted_sums_of_twins_are_the_same_bits(shape, dtype, weighted, threads):
    """Results of none, one, two and more entries; an infinite entry reaches only the results that have it."""
    rng = np.random.default_rng(6)
    counts = np.array([1, 2, 0, 3, 2, 5, 1, 0])
    starts = np.concatenate([[0], np.cumsum(counts)])
    cols = rng.integers(1, shape[1], counts.sum())
    cols[-1] = 0
    weights = rng.normal(size=len(cols)) if weighted else None
    x = rng.normal(size=shape).astype(dtype)
    x[:, 0] = np.inf
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        got = native.weighted_sums(x, starts, cols, weights)
    finally:
        dptrain.set_num_threads(before)
    np.testing.assert_array_equal(got, reference.weighted_sums(x, starts, cols, weights))
    assert got.dtype == dtype
    assert np.isfinite(got[:, :6]).all()
    assert not got[:, [2, 7]].any()
    assert np.isinf(got[:, 6]).all()
