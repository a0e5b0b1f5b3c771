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
            image((40, 3, 64, 64), dtype),
        ):
            got = native.channels_last(case)
            np.testing.assert_array_equal(got, reference.channels_last(case))
            assert got.flags.c_contiguous
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


def test_max_pool_takes_the_first_of_equal_values_and_nan_over_all():
    geometry = (1, 3, 1, 3, 0, 0, 1, 1)
    x = np.array([[2, 2, 1], [1, np.nan, np.nan], [-np.inf, -np.inf, -np.inf]])
    for provider in (native, reference):
        best, where = provider.max_pool(x.reshape(3, 1, 3, 1), 1, 1, geometry)
        np.testing.assert_array_equal(best.ravel(), [2, np.nan, -np.inf])
        np.testing.assert_array_equal(where.ravel(), [0, 1, 0])


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


def flat(seed, n, dtype):
    values = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    if n > 3:
        values[1], values[2] = np.nan, np.inf
    return values


def run_twins(name, n, dtype, make_arguments):
    """Run both providers on equal arrays; returns the arrays of each after the call."""
    results = []
    for provider in (native, reference):
        arrays, scalars = make_arguments()
        with np.errstate(all="ignore"):
            getattr(provider, name)(*arrays, *scalars)
        results.append([a for a in arrays if a is not None])
    return results


@relaxed
@given(
    n=st.integers(0, 9),
    dtype=dtypes,
    lr=st.floats(0, 1),
    momentum=st.sampled_from([None, 0.5, 0.9]),
    dampening=st.sampled_from([0.0, 0.3]),
    weight_decay=st.sampled_from([0, 0.1]),
    nesterov=st.booleans(),
    maximize=st.booleans(),
    first=st.booleans(),
)
def test_sgd_twins_give_the_same_bits(
    n, dtype, lr, momentum, dampening, weight_decay, nesterov, maximize, first
):
    def arguments():
        buf = None if momentum is None else flat(2, n, dtype)
        scalars = (lr, momentum or 0, dampening, weight_decay, nesterov, maximize, first)
        return (flat(0, n, dtype), flat(1, n, dtype), buf), scalars

    for got, expected in zip(*run_twins("sgd", n, dtype, arguments), strict=True):
        np.testing.assert_array_equal(got, expected)


@relaxed
@given(
    n=st.integers(0, 9),
    dtype=dtypes,
    lr=st.floats(0, 1),
    weight_decay=st.sampled_from([0, 0.1]),
    amsgrad=st.booleans(),
    decoupled=st.booleans(),
    maximize=st.booleans(),
    step=st.integers(1, 1000),
)
def test_adam_twins_agree(n, dtype, lr, weight_decay, amsgrad, decoupled, maximize, step):
    def arguments():
        squares = np.abs(flat(3, n, dtype))
        largest = np.abs(flat(4, n, dtype)) if amsgrad else None
        arrays = (flat(0, n, dtype), flat(1, n, dtype), flat(2, n, dtype), squares, largest)
        rates = (lr / (1 - 0.9**step), np.sqrt(1 - 0.999**step))
        return arrays, (lr, 0.9, 0.999, 1e-8, weight_decay, *rates, decoupled, maximize)

    rtol = 2e-6 if dtype is np.float32 else 1e-13
    for got, expected in zip(*run_twins("adam", n, dtype, arguments), strict=True):
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


def test_every_kernel_of_the_definition_has_a_compiled_twin():
    public = {
        n
        for n, f in vars(reference).items()
        if callable(f) and getattr(f, "__module__", "").startswith(reference.__name__)
    }
    assert {"conv", "softmax", "relu"} < public  # of each file of the definition
    assert {n for n in public if not n.startswith("_")} <= set(native.__all__)


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


# ---- exponentials, softmax and sums of rows -------------------------------------------------------


def test_exp_is_within_its_bound_everywhere_and_keeps_what_is_no_number():
    import numba

    from dptrain.core.kernels.compiled import KEEP_NAN
    from dptrain.core.kernels.exponential import exp32

    @numba.njit(fastmath=KEEP_NAN, error_model="numpy")
    def run(x, out):
        for i in range(x.size):
            out[i] = exp32(x[i])

    x = np.concatenate([np.linspace(-110, 95, 400_001), np.linspace(-1, 1, 100_001)]).astype("f")
    got = np.empty_like(x)
    run(x, got)
    exact = np.exp(x.astype(np.float64))
    with np.errstate(over="ignore"):
        rounded = exact.astype("f")
    finite = np.isfinite(rounded)
    assert (np.abs(got - exact)[finite] <= 1.1 * np.spacing(rounded[finite])).all()
    assert np.isposinf(got[~finite]).all()
    edges = np.array([np.nan, np.inf, -np.inf, 0, -0.0], "f")
    got = np.empty_like(edges)
    run(edges, got)
    np.testing.assert_array_equal(got, np.array([np.nan, np.inf, 0, 1, 1], "f"))


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


def test_updates_give_the_same_bits_on_any_number_of_threads():
    n = 300_001
    before = dptrain.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            dptrain.set_num_threads(threads)
            p, g, m, v = (flat(i, n, np.float32) for i in range(4))
            native.sgd(p, g, m, 0.1, 0.9, 0, 0.01, False, False, False)
            native.adam(p, g, m, np.abs(v), None, 0.1, 0.9, 0.99, 1e-8, 0.1, 0.1, 0.5, True, False)
            results.append((p, m))
    finally:
        dptrain.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
