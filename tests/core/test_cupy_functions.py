"""What stands in for functions that CuPy lacks, over the stand-in: NumPy's results, and CuPy's habits."""

import fake_cupy
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.arrays import namespace_on, to_host
from dptrain.core.cuda import cuda_device

relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def xp(monkeypatch):
    with fake_cupy.installed(monkeypatch, 1):
        yield namespace_on(cuda_device(0))


KINDS = [np.float32, np.float64, np.int64, np.int32, np.int8, np.uint8]


@relaxed
@given(
    st.sampled_from(["add", "multiply", "maximum", "minimum"]),
    st.sampled_from(KINDS),
    st.integers(1, 9),
    st.integers(0, 70),
    st.booleans(),
)
def test_values_that_meet_at_a_place_are_all_joined(xp, name, kind, size, count, repeatable):
    stream = np.random.default_rng(count * 10 + size)
    out = (stream.standard_normal((size, 3)) * 2).astype(kind)
    rows, columns = stream.integers(0, size, count), stream.integers(0, 3, count)
    values = (stream.standard_normal(count) * 2).astype(kind)
    there = xp.asarray(out)
    dptrain.use_deterministic_algorithms(repeatable)
    try:
        getattr(xp, name).at(there, (xp.asarray(rows), xp.asarray(columns)), xp.asarray(values))
    finally:
        dptrain.use_deterministic_algorithms(False)
    getattr(np, name).at(out, (rows, columns), values)
    np.testing.assert_allclose(to_host(there), out, rtol=1e-5, atol=1e-6)


def test_places_may_be_slices_and_values_numbers(xp):
    out, index = np.arange(12.0).reshape(3, 4), np.array([1, 3, 1])
    there = xp.asarray(out)
    xp.multiply.at(there, (slice(None), xp.asarray(index)), 3.0)
    np.multiply.at(out, (slice(None), index), 3.0)
    np.testing.assert_array_equal(to_host(there), out)
    whole = xp.asarray(np.array(2.0))
    xp.maximum.at(whole, (...,), xp.asarray(np.array(5.0)))
    assert to_host(whole) == 5


def test_sums_are_atomic_unless_the_same_bits_are_asked_for(xp, monkeypatch):
    seen = []
    original = fake_cupy._Function._method
    monkeypatch.setattr(
        fake_cupy._Function,
        "_method",
        lambda self, name, args, kwargs: seen.append(name) or original(self, name, args, kwargs),
    )
    out, index = xp.asarray(np.zeros(3, np.float32)), xp.asarray(np.array([1, 1]))
    xp.add.at(out, index, 1.0)
    assert seen == ["at"]
    dptrain.use_deterministic_algorithms(True)
    try:
        xp.add.at(out, index, 1.0)
    finally:
        dptrain.use_deterministic_algorithms(False)
    assert seen == ["at"]
    assert to_host(out).tolist() == [0, 4, 0]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 33])
@pytest.mark.parametrize("name", ["logaddexp", "add", "maximum"])
def test_running_values_are_numpys(xp, name, length, axis):
    x = np.random.default_rng(length).standard_normal((length, 3) if axis == 0 else (3, length)) * 9
    if length:
        x[0] = -np.inf
    found = getattr(xp, name).accumulate(xp.asarray(x), axis=axis)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            to_host(found), getattr(np, name).accumulate(x, axis=axis), rtol=1e-12
        )


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3, 3), (3, 2)), ((3, 3), (2, 3, 1)), ((4, 1, 3, 3), (2, 3, 2)), ((3, 3), (3, 2))],
)
def test_systems_broadcast(xp, a, b):
    stream = np.random.default_rng(0)
    a, b = stream.standard_normal(a) + 4 * np.eye(3), stream.standard_normal(b)
    found = xp.linalg.solve(xp.asarray(a), xp.asarray(b))
    np.testing.assert_allclose(to_host(found), np.linalg.solve(a, b), rtol=1e-12)


def test_what_is_singular_is_an_error_on_a_gpu_too(xp):
    there = dptrain.zeros(2, 2).to("cuda:0")
    with pytest.raises(dptrain.linalg.LinAlgError, match="singular"):
        dptrain.linalg.inv(there)
    with pytest.raises(dptrain.linalg.LinAlgError, match="singular"):
        dptrain.linalg.solve(there, dptrain.ones(2, 1).to("cuda:0"))
    with pytest.raises(dptrain.linalg.LinAlgError, match="not positive-definite"):
        dptrain.linalg.cholesky(there)


def test_singular_values_of_symmetric_matrices_rebuild_them(xp):
    a = np.random.default_rng(0).standard_normal((2, 5, 5))
    a = a + a.swapaxes(-1, -2)
    u, s, vh = (to_host(v) for v in xp.linalg.svd(xp.asarray(a), hermitian=True))
    np.testing.assert_allclose(u * s[..., None, :] @ vh, a, atol=1e-12)
    np.testing.assert_allclose(s, np.linalg.svd(a, compute_uv=False), rtol=1e-12)
    only = xp.linalg.svd(xp.asarray(a), compute_uv=False, hermitian=True)
    np.testing.assert_allclose(to_host(only), s, rtol=1e-12)


def test_choices_between_bfloat16_stay_bfloat16(xp):
    kind = np.dtype(ml_dtypes.bfloat16)
    x, mask = np.arange(-3, 3).astype(kind), np.array([True, False] * 3)
    there = xp.asarray(x), xp.asarray(mask)
    for other in (0.5, 0, kind.type(-2), xp.asarray(-x)):
        found = xp.where(there[1], there[0], other)
        assert found.dtype == kind
        host = to_host(other) if type(other) is fake_cupy.ndarray else kind.type(other)
        np.testing.assert_array_equal(to_host(found), np.where(mask, x, host))
    assert xp.where(there[1], there[0], xp.asarray(x.astype(np.float32))).dtype == np.float32
    np.testing.assert_array_equal(to_host(xp.where(there[1])[0]), [0, 2, 4])
