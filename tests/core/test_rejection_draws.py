"""Draws made of uniform numbers, as on a GPU: they have their distributions."""

import math

import fake_kernels
import numpy as np
import pytest

import dptrain
from dptrain.core.ops.rejection_draws import binomial, poisson, standard_gamma
from dptrain.core.ops.special_bessel import gamma_ratio
from dptrain.core.transfers import watch
from dptrain.distributions import Binomial, Gamma

N = 40_000
#: Kolmogorov's bound on the distance of an empirical distribution function, at a probability of 1e-6.
NEAR = 2.7 / math.sqrt(N)


def drawn(function, *parameters):
    """Draws with numbers for parameters."""
    stream = np.random.default_rng(3)
    with np.errstate(all="ignore"):  # a GPU tells nobody either
        return function(*(np.full(N, float(p)) for p in parameters), lambda: stream.random(N))


def check(draws, logs):
    """Whole numbers whose distribution function is that of the logarithms of probabilities from 0."""
    assert (draws == np.floor(draws)).all()
    found = np.bincount(draws.astype(np.int64), minlength=len(logs))
    assert len(found) == len(logs), "a draw of no probability"
    assert np.abs(np.cumsum(found) / N - np.cumsum(np.exp(logs))).max() < NEAR


def log_factorials(most):
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


@pytest.mark.parametrize("rate", [0.3, 4.0, 9.99, 10.0, 55.0, 3000.0])
def test_poisson(rate):
    k = np.arange(int(rate + 12 * math.sqrt(rate)) + 12)
    draws = drawn(poisson, rate)
    check(draws, k * math.log(rate) - rate - log_factorials(len(k) - 1))
    assert abs(draws.var() / rate - 1) < 5 * math.sqrt((1 / rate + 2) / N)


def test_rates_at_the_ends():
    assert (drawn(poisson, 0.0) == 0).all()
    assert np.isnan(drawn(poisson, math.nan)).all()
    assert np.isinf(drawn(poisson, math.inf)).all()


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("count", [1, 9, 33, 200, 2000])
def test_binomial(count, chance):
    k, f = np.arange(count + 1), log_factorials(count)
    logs = f[-1] - f - f[::-1] + k * math.log(chance) + (count - k) * math.log1p(-chance)
    check(drawn(binomial, count, chance), logs)


def test_chances_at_the_ends():
    assert (drawn(binomial, 50, 0.0) == 0).all()
    assert (drawn(binomial, 50, 1.0) == 50).all()
    assert (drawn(binomial, 0, 0.4) == 0).all()


@pytest.mark.parametrize("shape", [0.05, 0.6, 1.0, 2.5, 40.0, 5000.0])
def test_gamma(shape):
    places = slice(None, None, 80)
    draws = np.sort(drawn(standard_gamma, shape))[places]
    with np.errstate(all="ignore"):
        exact = gamma_ratio(np.full(len(draws), shape), draws, False)
    assert np.abs(exact - np.arange(N)[places] / N).max() < NEAR + 1 / N


def test_on_a_gpu_nothing_goes_through_the_host(monkeypatch):
    with fake_kernels.installed(monkeypatch), watch() as seen:
        rate = dptrain.full((200,), 20.0).to("cuda:0")
        shape = dptrain.full((200,), 3.0).to("cuda:0").requires_grad_()
        drawn = [
            dptrain.poisson(rate),
            Binomial(rate, rate / 50).sample(),
            Gamma(shape, shape).rsample(),
        ]
        drawn[2].sum().backward()
        assert {str(t.device) for t in [*drawn, shape.grad]} == {"cuda:0"}
        assert not [t for t in seen if t.kind == "copy"]
        assert all(0 < float(t.mean()) < 25 for t in drawn)
