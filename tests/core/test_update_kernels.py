"""The compiled updates of SGD and Adam against their NumPy definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain.core.kernels import reference

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba not installed")

# The first example of a test compiles; timing says nothing about the code.
relaxed = settings(max_examples=40, deadline=None)
dtypes = st.sampled_from([np.float32, np.float64])


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
