"""The compiled optimizer updates against their NumPy definition: the same bits."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.core.kernels import optim_kernels_for, reference_optim

native_optim = pytest.importorskip(
    "dptrain.core.kernels.native_optim", reason="numba not installed"
)

SCALARS = {
    "eps": st.sampled_from([1e-8, 1e-2, 0.0]),
    "weight_decay": st.sampled_from([0, 0.1]),
    "maximize": st.booleans(),
    "rectified": st.booleans(),
    "nesterov": st.booleans(),
    "eta_minus": st.just(0.5),
    "eta_plus": st.just(1.2),
    "smallest": st.just(0.1),
    "largest": st.just(0.9),
    "mu": st.sampled_from([1.0, 0.25]),
    "correction": st.floats(0.01, 1),
}
OPTIONAL = ("momentum_buffer", "grad_avg")
NOT_NEGATIVE = ("exp_avg_sq", "exp_inf", "total", "square_avg", "acc_delta", "step_size")


def array(name, seed, n, dtype):
    values = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    if n > 3 and name != "prev":
        values[1], values[2] = np.nan, np.inf
    return np.abs(values) if name in NOT_NEGATIVE else values


#: Their sums may be added in another order.
REDUCING = ("adafactor_matrix", "adafactor_vector")


@pytest.mark.parametrize("name", [n for n in native_optim.__all__ if n not in REDUCING])
@settings(max_examples=30, deadline=None)  # the first example compiles
@given(data=st.data(), n=st.integers(0, 9), dtype=st.sampled_from([np.float32, np.float64]))
def test_twins_give_the_same_bits(name, data, n, dtype):
    arrays, scalars = {}, {}
    for i, p in enumerate(inspect.signature(getattr(reference_optim, name)).parameters.values()):
        if "np.ndarray" in p.annotation:
            absent = p.name in OPTIONAL and data.draw(st.booleans(), label=f"no {p.name}")
            arrays[p.name] = None if absent else array(p.name, i, n, dtype)
        else:
            scalars[p.name] = data.draw(SCALARS.get(p.name, st.floats(0, 0.99)), label=p.name)
    results = []
    for provider in (native_optim, reference_optim):
        copies = {k: None if v is None else v.copy() for k, v in arrays.items()}
        with np.errstate(all="ignore"):
            getattr(provider, name)(**copies, **scalars)
        results.append(copies)
    for key in arrays:
        if arrays[key] is not None:
            np.testing.assert_array_equal(results[0][key], results[1][key], err_msg=key)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 3, 4), (2, 1, 5), (3, 4, 1), (1, 60, 70), (1,), (9,), (500,)]
)
@pytest.mark.parametrize("maximize", [False, True])
def test_twins_that_sum_agree_to_rounding(shape, dtype, maximize):
    matrix, rng = len(shape) == 3, np.random.default_rng(len(shape))
    means = [(*shape[:2], 1), (shape[0], 1, shape[2])] if matrix else [shape]
    arrays = [rng.standard_normal(s).astype(dtype) for s in (shape, shape)]
    arrays += [rng.random(s).astype(dtype) for s in means]
    options = 0.01, 0.9, 0.3, 1e-7, 1e-3, 1.5, maximize
    name, results = REDUCING[0 if matrix else 1], []
    for provider in (native_optim, reference_optim):
        copies = [a.copy() for a in arrays]
        getattr(provider, name)(*copies, *options)
        results.append(copies)
    tolerance = 2e-6 if dtype is np.float32 else 1e-13
    for a, b, before in zip(*results, arrays, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert np.array_equal(a, before) == (before is arrays[1])  # all but the gradient changes


def test_every_update_of_the_definition_has_a_compiled_twin():
    names = [
        n
        for n, f in vars(reference_optim).items()
        if callable(f) and f.__module__ == reference_optim.__name__ and not n.startswith("_")
    ]
    assert sorted(names) == native_optim.__all__


def test_provider_follows_the_element_type_alone():
    assert optim_kernels_for(np.empty(0, np.float16)) is reference_optim
    assert optim_kernels_for(np.empty(0, np.float32)) is optim_kernels_for(np.empty(0, np.float64))
