"""The error and gamma functions against closed forms, the C library and their own inverses."""

import math

import numpy as np
import pytest

from dptrain.core.ops import special_bessel
from dptrain.core.ops import special_values as special

POINTS = np.linspace(-5.99, 30, 2003)


@pytest.mark.parametrize("name", ["erf", "erfc", "lgamma"])
@np.errstate(all="ignore")
def test_values_equal_the_c_library(name):
    expected = np.array([getattr(math, name)(p) for p in POINTS])
    found = getattr(special, name)(POINTS)
    np.testing.assert_allclose(found, expected, rtol=5e-14, atol=1e-14)


@np.errstate(all="ignore")
def test_erfinv_inverts_erf_into_the_tails():
    y = np.concatenate([np.linspace(-0.999999, 0.999999, 1001), [1 - 1e-12]])
    np.testing.assert_allclose(special.erf(special.erfinv(y)), y, rtol=1e-14, atol=1e-15)
    assert special.erfinv(np.array([-1.0, 1.0])).tolist() == [-np.inf, np.inf]
    assert np.isnan(special.erfinv(np.array([1.5]))).all()


@np.errstate(all="ignore")
def test_gamma_family_has_its_closed_forms():
    euler = 0.57721566490153286
    points = np.array([1.0, 0.5, 2.0])
    np.testing.assert_allclose(
        special.digamma(points), [-euler, -euler - 2 * math.log(2), 1 - euler], rtol=1e-14
    )
    np.testing.assert_allclose(
        special_bessel.polygamma(1, points),
        [math.pi**2 / 6, math.pi**2 / 2, math.pi**2 / 6 - 1],
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        special_bessel.polygamma(2, points[:1]), [-2 * 1.2020569031595942], rtol=1e-14
    )
    # Recurrence across the poles: psi(x + 1) = psi(x) + 1 / x.
    x = np.linspace(-4.95, -0.05, 50)
    np.testing.assert_allclose(special.digamma(x + 1), special.digamma(x) + 1 / x, rtol=1e-10)
    assert np.isposinf(special.lgamma(np.array([0.0, -1.0, -2.0, np.inf, -np.inf]))).all()
