"""The GPU's fused passes, run on the CPU, for every element type: against their definitions in float64."""

import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import on_cpu, using_cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dptrain.core.kernels import cuda, reference
from dptrain.core.kernels.cuda import activations, column_norms, pointwise

pytestmark = on_cpu
relaxed = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KINDS = [np.dtype(k) for k in (np.float32, np.float64, np.float16)] + [BFLOAT16]
kinds = st.sampled_from(KINDS)
#: Rounding of a result: half of the distance to the next number, relative, and what computing in float32 leaves.
NEAR = {KINDS[0]: 2e-6, KINDS[1]: 1e-13, KINDS[2]: 2**-11 + 1e-5, BFLOAT16: 2**-8 + 1e-5}


@pytest.fixture(scope="module", autouse=True)
def driver(tmp_path_factory):
    with using_cpu(tmp_path_factory) as found:
        yield found


def drawn(shape, kind, seed=0, scale=1.0, offset=0.0):
    values = np.random.default_rng(seed).standard_normal(shape) * scale + offset
    return values.astype(np.float32).astype(kind)


def misaligned(array, by):
    """The same values so many elements after an even place."""
    held = np.empty(array.size + 32, array.dtype)
    start = (-held.ctypes.data // array.itemsize) % (16 // array.itemsize) + by
    out = held[start : start + array.size].reshape(array.shape)
    out[...] = array
    return out


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def agree(got, expected, kind=None, slack=1.0, atol=None):
    kind = kind or got.dtype
    near = NEAR[np.dtype(kind)] * slack
    np.testing.assert_allclose(
        got.astype(np.float64), expected, rtol=near, atol=near if atol is None else atol
    )


def lying(array, order):
    """The array with its elements in another order in memory."""
    return array if order == "rows" else np.asfortranarray(array)


sizes = st.sampled_from([0, 1, 3, 7, 8, 9, 31, 64, 65, 1000])
places = st.integers(0, 9)


# ---- element by element ------------------------------------------------------------------------


@relaxed
@given(st.sampled_from(sorted(activations._CURVES)), sizes, kinds, places)
def test_activations_are_one_pass_rounded_once(driver, name, n, kind, by):
    x = misaligned(drawn(n, kind, scale=4), by)
    parameters = {"softplus": (1.5, 4.0), "elu": (0.7, 1.3), "leaky_relu": (0.2,)}.get(name, ())
    grad, launches = misaligned(drawn(n, kind, 1), by // 2), len(driver.launches)
    got = cuda.activation(name, x, *parameters)
    known = {"tanh": np.tanh, "gelu": reference.gelu}
    forward = known.get(name) or (lambda v: reference.activation(name, v, *parameters))
    expected = forward(*wide(x))
    assert got.dtype == kind
    agree(got, expected, slack=4)
    kept = got if name in ("sigmoid", "tanh") else x
    slope = cuda.activation_grad(name, grad, kept, *parameters)
    g, k = wide(grad, kept)
    if name == "gelu":
        agree(slope, reference.gelu_grad(g, k), slack=4)
    else:
        agree(slope, reference.activation_grad(name, g, k, *parameters), slack=4)
    assert len(driver.launches) - launches == (2 if n else 0)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", sorted(activations._CURVES))
def test_activations_at_the_ends_are_those_of_the_definition(name, kind):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 30.0, -30.0, 300.0, -300.0]).astype(kind)
    if name == "gelu":
        x = x[[0, 1, 3, 4, 5, 6, 7, 8]]
    parameters = {"softplus": (1.0, 20.0), "elu": (0.7, 1.3), "leaky_relu": (0.2,)}.get(name, ())
    known = {"tanh": np.tanh, "gelu": reference.gelu}
    forward = known.get(name) or (lambda v: reference.activation(name, v, *parameters))
    with np.errstate(all="ignore"):
        expected = forward(*wide(x))
        assert_near = expected.astype(np.float32 if kind.itemsize < 8 else np.float64)
    got = cuda.activation(name, x, *parameters).astype(np.float64)
    tiny = float(ml_dtypes.finfo(kind).smallest_normal)
    np.testing.assert_allclose(got, assert_near, rtol=4 * NEAR[kind], atol=max(tiny, 1e-12))


@relaxed
@given(sizes, kinds, places, st.sampled_from([1, -1, 0.3]))
def test_sums_and_products_of_two_arrays_are_rounded_once(driver, n, kind, by, alpha):
    x, y = misaligned(drawn(n, kind), by), misaligned(drawn(n, kind, 1), by)
    exact = np.float32 if kind.itemsize == 2 else kind.type
    scaled = y.astype(exact) * exact(alpha) if alpha != 1 else y.astype(exact)
    got = cuda.add(x, y, alpha)
    np.testing.assert_array_equal(got, (x.astype(exact) + scaled).astype(kind))
    np.testing.assert_array_equal(got, reference.add(x, y, alpha))
    np.testing.assert_array_equal(
        cuda.multiply(x, y), (x.astype(exact) * y.astype(exact)).astype(kind)
    )


@relaxed
@given(sizes, st.sampled_from([KINDS[2], BFLOAT16]), places, st.sampled_from([1, -1, 0.3]))
def test_a_sum_of_two_types_is_one_pass(driver, n, kind, by, alpha):
    x, y = misaligned(drawn(n, np.float32), by), misaligned(drawn(n, kind, 1), by)
    expected = x + y.astype(np.float32) * np.float32(alpha)
    launches = len(driver.launches)
    np.testing.assert_array_equal(cuda.add(x, y, alpha), expected)
    if alpha == 1:
        np.testing.assert_array_equal(cuda.add(y, x), expected)
    assert len(driver.launches) - launches == (0 if not n else 1 + (alpha == 1))
    turned = [np.lib.stride_tricks.as_strided(a, (n, 2), (a.itemsize, 0)) for a in (x, y)]
    np.testing.assert_array_equal(cuda.add(*turned, alpha)[:, 0], expected)
    other = y.astype(np.float32) + x * np.float32(alpha)
    np.testing.assert_array_equal(cuda.add(y, x, alpha), other)
    np.testing.assert_array_equal(reference.add(y, x, alpha), other)


@relaxed
@given(sizes, kinds, places)
def test_relu_keeps_nan_and_its_gradient_passes_where_the_result_is_above_zero(driver, n, kind, by):
    x = misaligned(drawn(n, kind), by)
    x[: min(n, 1)] = np.nan
    with np.errstate(invalid="ignore"):
        expected = np.where(x <= 0, kind.type(0), x)
    got = cuda.relu(x)
    np.testing.assert_array_equal(*wide(got, expected))
    grad = misaligned(drawn(n, kind, 1), by)
    with np.errstate(invalid="ignore"):
        expected = reference.relu_grad(grad, got)
    np.testing.assert_array_equal(cuda.relu_grad(grad, got), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_images_with_the_channels_last_are_read_as_they_lie(driver, kind):
    image = drawn((2, 5, 4, 3), kind).transpose(0, 3, 1, 2)
    other = np.ascontiguousarray(drawn((2, 5, 4, 3), kind, 1).transpose(0, 3, 1, 2))
    for got in (cuda.relu(image), cuda.add(image, image), cuda.activation("silu", image)):
        assert got.strides == image.strides
        assert got.shape == image.shape
    np.testing.assert_array_equal(cuda.relu(image), np.maximum(image, kind.type(0)))
    both = cuda.relu_grad(other, image)
    assert both.strides == image.strides  # that of the forward pass
    np.testing.assert_array_equal(both, reference.relu_grad(other, image))
    np.testing.assert_array_equal(cuda.add(image, other), image + other)
    gaps = drawn((6, 8), kind)[:, ::2]
    np.testing.assert_array_equal(cuda.relu(gaps), np.maximum(gaps, kind.type(0)))


@relaxed
@given(sizes, st.sampled_from([KINDS[2], BFLOAT16]), places)
def test_conversions_have_the_bits_of_the_hosts(driver, n, kind, by):
    x = misaligned(drawn(n, np.float32, scale=300), by)
    x[: min(n, 2)] = [np.inf, np.nan][: min(n, 2)]
    with np.errstate(over="ignore"):
        narrow = x.astype(kind)
    launches = len(driver.launches)
    got = cuda.convert(x, kind)
    np.testing.assert_array_equal(*wide(got, narrow))
    back = cuda.convert(misaligned(narrow, by), np.dtype(np.float32))
    np.testing.assert_array_equal(back, narrow.astype(np.float32))
    assert back.dtype == np.float32
    assert len(driver.launches) - launches == (2 if n else 0)
    np.testing.assert_array_equal(cuda.convert(narrow, np.dtype(np.float64)), narrow.astype(float))
    memory = np.zeros((2, n), np.float32)
    for out in (memory[1], np.zeros((n, 2), np.float32)[:, 1]):  # the second one has gaps
        assert cuda.convert(narrow, out.dtype, out) is out
        np.testing.assert_array_equal(out, narrow.astype(np.float32))
    cuda.assign(memory[0], memory[1])
    np.testing.assert_array_equal(memory[0], memory[1])


@relaxed
@given(sizes, kinds, st.sampled_from([0.1, 0.5]))
def test_dropout_keeps_and_scales_in_one_pass_and_notes_what_it_kept(driver, n, kind, p):
    x = drawn(n, kind)
    draws = np.random.default_rng(2).random(n, np.float32)
    draws[:1] = np.float32(p)  # the bound itself is kept
    out, kept = cuda.dropout(x, draws, p)
    np.testing.assert_array_equal(kept, draws >= np.float32(p))
    agree(out, x.astype(np.float64) * kept / (1 - p))
    assert out.dtype == kind
    np.testing.assert_array_equal(cuda.keep(x, kept, 1 / (1 - p)), out)
    expected = reference.dropout(x, draws, p)
    np.testing.assert_array_equal(expected[1], kept)
    np.testing.assert_array_equal(expected[0], out)


# ---- rows --------------------------------------------------------------------------------------

matrices = st.tuples(
    st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 7, 8, 31, 33, 256, 300, 2100])
)


@relaxed
@given(matrices, kinds, places, st.sampled_from([1.0, 30.0]))
def test_softmax_and_its_logarithm_are_those_of_float64(driver, shape, kind, by, scale):
    x = misaligned(drawn(shape, kind, scale=scale), by)
    if shape[1] > 7:
        x[0, 3:6] = -np.inf  # as masks have it
    grad = misaligned(drawn(shape, kind, 1), by)
    for name in ("softmax", "log_softmax"):
        got = getattr(cuda, name)(x)
        assert got.dtype == kind
        with np.errstate(all="ignore"):
            expected = getattr(reference, name)(*wide(x))
        agree(got, expected, slack=4)
        kept = np.where(np.isfinite(got.astype(np.float32)), got, kind.type(-9))
        slope = getattr(cuda, f"{name}_grad")(grad, kept)
        near = NEAR[kind] * shape[1] ** 0.5 * 4
        agree(slope, getattr(reference, f"{name}_grad")(*wide(grad, kept)), atol=near)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("columns", [3, 40, 1000])
def test_rows_of_nan_and_infinity_are_those_of_the_definition(kind, columns):
    x = drawn((6, columns), kind)
    x[0, 1], x[1], x[2, 2], x[3, :2], x[4, :-1] = np.nan, -np.inf, np.inf, -np.inf, -np.inf
    x[5, 0], x[5, 1] = -np.inf, np.nan
    with np.errstate(all="ignore"):
        for name in ("softmax", "log_softmax"):
            expected = getattr(reference, name)(*wide(x))
            agree(getattr(cuda, name)(x), expected, slack=4)


@relaxed
@given(
    st.integers(0, 3), st.sampled_from([1, 2, 31, 33, 300, 2101]), kinds, places, st.floats(0, 200)
)
def test_cross_entropy_reads_the_logits_once_and_keeps_two_numbers_a_row(
    driver, n, c, kind, by, scale
):
    logits = misaligned(drawn((n, c), kind, n * 7 + c, scale), by)
    target = np.random.default_rng(c).integers(0, c, n)
    loss, kept = cuda.cross_entropy(logits, target)
    assert kept.shape == (2, n)
    computed = np.dtype(np.float32) if kind.itemsize == 2 else kind
    assert loss.dtype == kept.dtype == computed
    expected, p = reference.cross_entropy(*wide(logits), target) if n else (loss, logits)
    agree(loss, expected, computed, slack=20)
    grad = np.asarray(0.37, kind)
    got = cuda.cross_entropy_grad(grad, logits, kept, target, 0.25)
    assert got.dtype == kind
    if n:
        agree(
            got,
            reference.cross_entropy_grad(*wide(grad, logits), p, target, 0.25),
            slack=20 if computed == kind else 4,
            atol=NEAR[kind],
        )


def test_cross_entropy_of_rows_without_a_number_is_nan():
    logits = np.zeros((4, 40), np.float32)
    logits[1, 20], logits[2] = np.nan, -np.inf
    loss, kept = cuda.cross_entropy(logits, np.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False])
    got = cuda.cross_entropy_grad(np.float32(1)[None], logits, kept, np.array([0, 1, 2, 3]), 1.0)
    np.testing.assert_array_equal(np.isnan(got).any(axis=1), [False, True, True, False])


def test_the_loss_of_a_class_that_does_not_exist_is_nan():
    loss, kept = cuda.cross_entropy(np.zeros((4, 3), np.float32), np.array([-1, 3, 2, 1 << 40]))
    np.testing.assert_array_equal(np.isnan(loss), [True, True, False, True])
    assert np.isfinite(kept).all()


# ---- normalisation -----------------------------------------------------------------------------

shapes = st.tuples(
    st.sampled_from([1, 2, 7, 65, 300]), st.sampled_from([1, 3, 8, 31, 33, 64, 270, 520])
)


@relaxed
@given(shapes, kinds, st.booleans(), st.sampled_from([0.0, 300.0]), st.sampled_from([0, 1]))
def test_norms_over_rows_and_columns_are_those_of_float64(driver, shape, kind, affine, offset, by):
    x, grad = misaligned(drawn(shape, kind, 0, 1, offset), by), drawn(shape, kind, 1)
    computed = np.dtype(np.float32) if kind.itemsize == 2 else kind
    weight, bias = (drawn(shape[1], computed, k) if affine else None for k in (2, 3))
    big = wide(x, weight, bias, grad)
    # The rounding of the input's own offset is what is left of float32.
    near = (1e-4 * (1 + offset / 10)) if computed == np.float32 else 1e-9
    for name in ("layer_norm", "batch_norm", "rms_norm"):
        forward, backward = ((lambda m, n=name, e=e: getattr(m, n + e)) for e in ("", "_grad"))
        more = (weight,) if name == "rms_norm" else (weight, bias)
        found = forward(cuda)(x, *more, 1e-2)
        expected = forward(reference)(*(wide(x) + wide(*more)), 1e-2)
        facts = (1, -1) if name != "rms_norm" else (-1,)
        ours = [expected[i].astype(computed) for i in facts]
        found += backward(cuda)(grad, x, weight, *ours)
        expected += backward(reference)(big[3], big[0], big[1], *(expected[i] for i in facts))
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a.dtype == (kind if i in (0, len(forward(cuda)(x, *more, 1e-2))) else computed)
            assert a.shape == b.shape
            rounding = NEAR[kind] if a.dtype == kind and kind != computed else 0
            np.testing.assert_allclose(
                a.astype(np.float64),
                b,
                rtol=near + rounding,
                atol=(near + rounding) * max(1, len(x)) ** 0.5,
                err_msg=f"{name} {i}",
            )


@relaxed
@given(shapes, kinds, st.booleans(), st.booleans())
def test_columns_are_normalised_by_given_statistics_in_one_pass(driver, shape, kind, cut, added):
    x, more = drawn(shape, kind), drawn(shape, kind, 5) if added and not cut else None
    computed = np.dtype(np.float32) if kind.itemsize == 2 else kind
    mean, rstd, weight, bias = (drawn(shape[1], computed, k) for k in range(1, 5))
    rstd = np.abs(rstd) + computed.type(0.5)
    out, expected = np.empty_like(x), np.empty(shape)
    launches = len(driver.launches)
    cuda.normalise(x, cuda.batch_vectors(x, mean, rstd, weight, bias), out, cut, more)
    assert len(driver.launches) == launches + 1
    vectors = reference.batch_vectors(*wide(x, mean, rstd, weight, bias))
    reference.normalise(*wide(x), vectors, expected, cut, *wide(more))
    agree(out, expected, slack=8)


def test_a_large_mean_leaves_the_variance_its_digits():
    x = drawn((5000, 8), np.float32, scale=1, offset=3000)
    _, var, *_ = cuda.batch_statistics(x, None, None, 1e-5)
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=0), rtol=2e-3)
    launches = [column_norms._divided(x.dtype, x).chunks]
    assert launches[0] > 1  # several chunks were combined


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_running_averages_follow_in_one_pass(driver, kind):
    computed = np.float32 if kind.itemsize == 2 else kind
    held = [drawn(5, kind, k) for k in (0, 1)]
    batch = [drawn((1, 5, 1, 1), computed, k) for k in (2, 3)]
    copies = [h.copy() for h in held]
    launches = len(driver.launches)
    cuda.follow(*copies, *batch, 0.1, 1.25)
    assert len(driver.launches) == launches + 1
    exact = [h.astype(np.float64) for h in held]
    reference.follow(*exact, *wide(*batch), 0.1, 1.25)
    for got, expected in zip(copies, exact, strict=True):
        agree(got, expected)


# ---- rows by index -----------------------------------------------------------------------------


@relaxed
@given(
    st.lists(st.integers(0, 6), max_size=40),
    st.sampled_from([1, 3, 256, 1025]),
    kinds,
    st.integers(1, 60),
)
def test_rows_are_added_up_by_index_in_order(driver, index, columns, kind, repeats):
    index = np.array(index * repeats, np.int64)
    rows = drawn((len(index), columns), kind)
    got = cuda.add_rows(rows, index, 9)
    computed = np.float32 if kind.itemsize == 2 else kind
    expected = np.zeros((9, columns), computed)
    np.add.at(expected, index, rows.astype(computed))
    np.testing.assert_array_equal(got, expected.astype(kind))  # in order: bit for bit


def test_indices_that_are_no_rows_add_nothing():
    rows = np.ones((4, 3), np.float32)
    got = cuda.add_rows(rows, np.array([-1, 2, 1 << 40, 5]), 5)
    np.testing.assert_array_equal(got.sum(axis=1), [0, 0, 3, 0, 0])


def test_integers_take_the_way_of_the_definition():
    x = np.array([-1, 2, 3])
    np.testing.assert_array_equal(pointwise.relu(x), [0, 2, 3])
    np.testing.assert_array_equal(pointwise.add(x, x, 2), 3 * x)
    np.testing.assert_array_equal(pointwise.multiply(x, x), x * x)
    assert cuda.convert(x, np.dtype(np.float32)).dtype == np.float32


# ---- windows -----------------------------------------------------------------------------------

GEOMETRIES = [(3, 3, 2, 2, 1, 1, 1, 1), (2, 2, 2, 2, 0, 0, 1, 1), (3, 2, 1, 2, 1, 0, 2, 1)]


@relaxed
@given(st.sampled_from(GEOMETRIES), st.sampled_from([1, 8, 16, 24]), kinds, places, st.booleans())
def test_pools_take_several_channels_at_once(driver, geometry, channels, kind, by, cut):
    x = misaligned(drawn((2, 7, 6, channels), kind), by)
    x[0, 2, 3] = np.nan
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    oh, ow = (7 + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (6 + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    best, where = cuda.max_pool(x, oh, ow, geometry, cut)
    with np.errstate(invalid="ignore"):
        expected, places = reference.max_pool(*wide(x), oh, ow, geometry, cut)
    np.testing.assert_array_equal(best.astype(np.float64), expected)
    np.testing.assert_array_equal(where, places)
    grad = misaligned(drawn(best.shape, kind, 1), by)
    got = cuda.max_pool_scatter(grad, where, x.shape, geometry)
    agree(got, reference.max_pool_scatter(*wide(grad), where, x.shape, geometry))
    assert got.dtype == kind
    if dh == dw == 1:
        sums = cuda.sum_pool(x[1:], oh, ow, geometry)
        assert sums.dtype == (np.float32 if kind.itemsize == 2 else kind)
        agree(sums, reference.sum_pool(*wide(x[1:]), oh, ow, geometry), slack=4)
        got = cuda.sum_pool_scatter(grad, x.shape, geometry)
        agree(got, reference.sum_pool_scatter(*wide(grad), x.shape, geometry), slack=4)
