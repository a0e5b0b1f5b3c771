"""`dptrain.special` over the whole range of its arguments, and the windows."""

import math

import numpy as np
import pytest

import dptrain
from dptrain.core.random import numpy_stream


def draw(low, high, count=400):
    return np.asarray(numpy_stream(5, int(abs(high))).uniform(low, high, count))


WIDE = {
    "i0": (-700, 700),
    "i1": (-700, 700),
    "i0e": (-40, 40),
    "i1e": (-1e4, 1e4),
    "erfcx": (-25, 200),
    "ndtr": (-35, 8),
    "log_ndtr": (-1e3, 8),
    "ndtri": (0, 1),
    "gammaln": (-20, 50),
    "entr": (-1, 5),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", WIDE)
def test_values_over_the_whole_range_equal_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    x = draw(*WIDE[name])
    found = getattr(dptrain.special, name)(dptrain.from_numpy(x)).numpy()
    expected = getattr(torch.special, name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["i1e", "erfcx", "ndtr", "log_ndtr", "ndtri", "i0e", "entr"])
def test_edges_equal_pytorch(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    x = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0])
    found = getattr(dptrain.special, name)(dptrain.from_numpy(x)).numpy()
    expected = getattr(torch.special, name)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.oracle
def test_zeta_and_incomplete_gamma_equal_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    inf = math.inf
    for name, a, b, tolerance in (
        ("zeta", draw(1.01, 60), draw(0.01, 100), 1e-13),
        ("zeta", np.array([1, 0.5, 2, 3, 2.5]), np.array([1, 1, 0, -0.5, -0.5]), 1e-13),
        # PyTorch's have nine digits.
        ("gammainc", draw(0.01, 300), draw(0.01, 400), 1e-8),
        ("gammaincc", draw(0.01, 300), draw(0.01, 400), 1e-8),
        ("gammainc", np.array([0.0, -1, 1, inf, 2, 0]), np.array([1.0, 1, -1, 1, inf, 0]), 0),
        ("gammaincc", np.array([0.0, -1, 1, inf, 2, 0]), np.array([1.0, 1, -1, 1, inf, 0]), 0),
    ):
        found = getattr(dptrain.special, name)(dptrain.from_numpy(a), dptrain.from_numpy(b))
        expected = getattr(torch.special, name)(torch.from_numpy(a), torch.from_numpy(b))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=tolerance, atol=tolerance)


def test_the_incomplete_gamma_function_keeps_its_recurrence():
    """P(a + 1, x) = P(a, x) - x^a exp(-x) / Gamma(a + 1): Abramowitz and Stegun 6.5.21."""
    a, x = (dptrain.from_numpy(draw(*r)) for r in ((0.1, 50), (0.1, 60)))
    step = (a * x.log() - x - (a + 1).lgamma()).exp()
    left, right = dptrain.igamma(a + 1, x), dptrain.igamma(a, x) - step
    np.testing.assert_allclose(left.numpy(), right.numpy(), atol=1e-13)


def test_zeta_of_two_is_the_sum_of_inverse_squares():
    assert dptrain.special.zeta(2, dptrain.tensor(1.0)).item() == pytest.approx(math.pi**2 / 6)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett", "kaiser"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_equal_pytorch(name, periodic):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = (getattr(m, f"{name}_window") for m in (dptrain, torch))
    for length in (0, 1, 2, 7, 16):
        found, expected = ours(length, periodic), theirs(length, periodic)
        assert found.dtype is dptrain.float32
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-6)
    wide = ours(9, periodic, dtype=dptrain.float64).numpy()
    np.testing.assert_allclose(wide, theirs(9, periodic, dtype=torch.float64).numpy(), atol=1e-12)
    for bad in ({"window_length": -1}, {"window_length": 3, "dtype": dptrain.int64}):
        with pytest.raises(RuntimeError, match=f"{name}_window"):
            ours(**bad)


@pytest.mark.oracle
def test_every_public_name_is_pytorchs():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert set(dptrain.special.__all__) <= set(dir(torch.special))
