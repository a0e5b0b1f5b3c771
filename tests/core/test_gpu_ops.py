"""On a GPU: every operation on its samples, and every kernel, against the host. `pytest -m gpu`."""

import numpy as np
import op_runs
import pytest
from test_kernels import image

import dptrain
from dptrain.core.arrays import namespace_on, to_host
from dptrain.core.cuda import probe, trouble
from dptrain.core.device import as_device
from dptrain.core.kernels import kernels_for, optim_kernels_for, reference, reference_optim
from dptrain.core.random import numpy_stream
from dptrain.distributions import Binomial, Gamma

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
PLACE = op_runs.PLACE

#: Without a GPU one skipped test says so, not a thousand.
CASES = [("add", 0)] if REASON else op_runs.CASES


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 is multiplied as float32."""
    monkeypatch.setattr(dptrain.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("dtype", op_runs.DTYPES)
@pytest.mark.parametrize(("name", "n"), CASES)
def test_values_and_gradients_are_the_hosts_and_nothing_is_copied_back(name, n, dtype):
    op_runs.check_on_gpu(name, n, dtype)


def test_what_is_singular_is_an_error():
    zeros = dptrain.zeros(2, 3, 3, device=PLACE)
    for matrices in (zeros, zeros[0]):
        with pytest.raises(dptrain.linalg.LinAlgError, match="singular"):
            dptrain.linalg.inv(matrices)
        with pytest.raises(dptrain.linalg.LinAlgError, match="singular"):
            dptrain.linalg.solve(matrices, dptrain.ones(3, 1, device=PLACE))
        with pytest.raises(dptrain.linalg.LinAlgError, match="not positive-definite"):
            dptrain.linalg.cholesky(matrices)


@pytest.mark.parametrize("kind", ["add", "multiply", "maximum", "minimum"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
def test_values_that_meet_at_a_place_are_all_joined_the_same_way_each_time(kind, dtype):
    stream = np.random.default_rng(0)
    values, places = stream.uniform(0.9, 1.1, 5000).astype(dtype), stream.integers(0, 300, 5000)
    xp, found = namespace_on(as_device(PLACE)), []
    dptrain.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            out = xp.ones(300, dtype)
            getattr(xp, kind).at(out, *on_gpu(places, values))
            found.append(to_host(out))
    finally:
        dptrain.use_deterministic_algorithms(False)
    expected = np.ones(300, np.float64 if dtype != np.uint8 else dtype)
    getattr(np, kind).at(expected, places, values)
    near = {np.float32: 1e-5, np.float16: 2e-2}.get(dtype, 0)
    np.testing.assert_allclose(found[0], expected, rtol=near)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_rows_are_added_in_their_order():
    stream = np.random.default_rng(1)
    rows, index = stream.standard_normal((700, 9)).astype(np.float32), stream.integers(0, 50, 700)
    expected = np.zeros((50, 9), np.float32)
    np.add.at(expected, index, rows)
    there = on_gpu(rows, index)
    np.testing.assert_array_equal(to_host(kernels_for(there[0]).add_rows(*there, 50)), expected)


def test_draws_from_distributions_have_their_means():
    rate = dptrain.full((100_000,), 30.0, device=PLACE)
    for drawn, mean, deviation in (
        (dptrain.poisson(rate), 30, 30**0.5),
        (dptrain.poisson(rate / 10), 3, 3**0.5),
        (Binomial(rate, rate / 60).sample(), 15, 7.5**0.5),
        (Gamma(rate, rate).sample(), 1, 30**-0.5),
    ):
        assert str(drawn.device) == PLACE
        assert abs(float(drawn.mean()) - mean) < 5 * deviation / 100_000**0.5


def on_gpu(*arrays):
    xp = namespace_on(as_device(PLACE))
    return [None if a is None else xp.asarray(a) for a in arrays]


WINDOWS = [
    ((2, 7, 6, 3), (3, 2, 2, 1, 1, 1, 1, 2), (4, 6)),
    ((1, 5, 5, 1), (1, 1, 1, 1, 0, 0, 1, 1), (5, 5)),
    ((64, 32, 32, 16), (3, 3, 1, 1, 1, 1, 1, 1), (32, 32)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "geometry", "outs"), WINDOWS)
def test_window_kernels_have_the_bits_of_the_definition(shape, geometry, outs, dtype):
    x = image(shape, dtype)
    (there,) = on_gpu(x)
    kernels = kernels_for(there)
    rows = reference.im2col(x, *outs, geometry)
    np.testing.assert_array_equal(to_host(kernels.im2col(there, *outs, geometry)), rows)
    np.testing.assert_array_equal(
        to_host(kernels.col2im(*on_gpu(rows), shape, *outs, geometry)),
        reference.col2im(rows, shape, *outs, geometry),
    )
    best, where = reference.max_pool(x, *outs, geometry)
    found = kernels.max_pool(there, *outs, geometry)
    np.testing.assert_array_equal(to_host(found[0]), best)
    np.testing.assert_array_equal(to_host(found[1]), where)
    np.testing.assert_array_equal(
        to_host(kernels.max_pool_scatter(*on_gpu(best, where), shape, geometry)),
        reference.max_pool_scatter(best, where, shape, geometry),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 1000, 100_003])
def test_updates_have_the_bits_of_the_definition(n, dtype):
    stream = np.random.default_rng(n)
    param, grad, m = (stream.standard_normal(n).astype(dtype) for _ in range(3))
    v = np.abs(stream.standard_normal(n)).astype(dtype)
    adam = (0.1, 0.9, 0.999, 1e-8, 0.01, 0.2, 0.3, False, False)
    rmsprop = (0.1, 0.9, 1e-8, 0.01, 0.5, False)
    there = on_gpu(param, grad, m, v)
    kernels_for(there[0]).adam(*there, None, *adam)
    optim_kernels_for(there[0]).rmsprop(there[0], there[1], there[3], there[2], None, *rmsprop)
    reference.adam(param, grad, m, v, None, *adam)
    reference_optim.rmsprop(param, grad, v, m, None, *rmsprop)
    for found, expected in zip(there, (param, grad, m, v), strict=True):
        np.testing.assert_array_equal(to_host(found), expected)


@pytest.mark.parametrize("classes", [1, 10, 1000, 32000])
def test_cross_entropy_and_erf_equal_the_definition(classes):
    logits = np.random.default_rng(0).standard_normal((33, classes)).astype(np.float32) * 10
    target = np.random.default_rng(1).integers(0, classes, 33)
    there = on_gpu(logits, target)
    for found, expected in zip(
        kernels_for(there[0]).cross_entropy(*there),
        reference.cross_entropy(logits, target),
        strict=True,
    ):
        np.testing.assert_allclose(to_host(found), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        to_host(kernels_for(there[0]).erf(there[0])), reference.erf(logits), rtol=1e-6, atol=1e-7
    )


def test_uniform_numbers_are_the_hosts_bit_for_bit():
    from dptrain.core.kernels.cuda.philox import DeviceStream

    host = numpy_stream(5, 1)
    there = DeviceStream(namespace_on(as_device(PLACE)), host)
    for n, kind in ((7, np.float32), (1000, np.float64), (99_999, np.float32), (3, np.float64)):
        np.testing.assert_array_equal(to_host(there.random(n, kind)), host.random(n, dtype=kind))
    normal = to_host(there.standard_normal(200_000, np.float32)).astype(np.float64)
    assert abs(normal.mean()) < 0.012
    assert abs(normal.var() - 1) < 0.016


def test_sixteen_bits_survive_the_kernels():
    for kind in (dptrain.float16, dptrain.bfloat16):
        x = dptrain.randn(2, 3, 8, 8).to(kind)
        found = dptrain.nn.functional.max_pool2d(x.to(PLACE), 2).cpu()
        expected = dptrain.nn.functional.max_pool2d(x, 2)
        assert found.float().tolist() == expected.float().tolist()
