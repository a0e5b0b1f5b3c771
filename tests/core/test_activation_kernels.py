"""The compiled activations against their definition in a wider type, and against PyTorch."""

import math

import numpy as np
import pytest

import dptrain
from dptrain.core.kernels import reference, reference_activations

native = pytest.importorskip("dptrain.core.kernels.native", reason="numba is not installed")

#: Parameters, and the bound of the curve in units in the last place.
CURVES = {
    "sigmoid": ((), 4),
    "silu": ((), 4),
    "softplus": ((1.5, 20.0), 4),
    "logsigmoid": ((), 4),
    "mish": ((), 4),
    "elu": ((0.7, 1.3), 4),
    "leaky_relu": ((0.01,), 4),
    "hardswish": ((), 4),
}
DTYPES = [np.float32, np.float64]


def points(dtype):
    small = np.logspace(-6, 1.4, 4001)
    return np.concatenate([np.linspace(-30, 30, 40_001), small, -small]).astype(dtype)


def assert_close(got, exact, units):
    assert np.isfinite(got).all()
    step = np.spacing(np.abs(exact).astype(got.dtype))
    assert (np.abs(got - exact) <= units * step).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CURVES)
def test_curves_and_slopes_are_within_their_bounds(name, dtype):
    parameters, units = CURVES[name]
    x = points(dtype)
    wide = x.astype(np.longdouble)
    exact = reference_activations.activation(name, wide, *parameters)
    got = native.activation(name, x, *parameters)
    assert got.dtype == dtype
    # The rounding of an argument that is scaled counts by its size.
    assert_close(got, exact, units + (2 * np.abs(wide) if name == "softplus" else 0))
    kept = got if name == "sigmoid" else x
    slope = native.activation_grad(name, np.ones_like(x), kept, *parameters)
    exact = reference_activations.activation_grad(
        name, np.ones_like(wide), kept.astype(np.longdouble), *parameters
    )
    # 1 - sigmoid(x) is rounded as a number near 1, and multiplied by x.
    eps = np.finfo(dtype).eps
    assert (np.abs(slope - exact) <= 4 * eps * (np.abs(exact) + np.abs(wide) + 1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_exact_in_its_tails_too(dtype):
    x = points(dtype)
    x = x[x > (-14 if dtype is np.float32 else -30)]
    cdf = np.array([math.erfc(-v * math.sqrt(0.5)) / 2 for v in x.tolist()])
    # In float64 the argument of erfc has been rounded: its error grows with the square.
    slack = 8 if dtype is np.float32 else 8 + 2 * x * x
    assert_close(native.activation("gelu", x), x * cdf, slack)
    density = np.exp(-(x.astype(np.longdouble) ** 2) / 2) / math.sqrt(2 * math.pi)
    slope = native.activation_grad("gelu", np.ones_like(x), x)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(slope, cdf + x * density, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tanh_form_of_gelu_is_its_definition(dtype):
    x, eps = points(dtype), np.finfo(dtype).eps
    x = x[np.abs(x) < 8]
    wide = x.astype(np.longdouble)
    for got, exact in (
        (native.activation("gelu_tanh", x), reference_activations.activation("gelu_tanh", wide)),
        (
            native.activation_grad("gelu_tanh", np.ones_like(x), x),
            reference_activations.activation_grad("gelu_tanh", np.ones_like(wide), wide),
        ),
    ):
        np.testing.assert_allclose(got, exact, rtol=0, atol=64 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*CURVES, "gelu_tanh", "tanh"])
def test_twins_agree_at_the_edges_and_in_any_layout(name, dtype):
    """What is infinite or no number, at the vector's end, and arrays that are no one run of memory."""
    parameters = CURVES.get(name, ((), 0))[0]
    edges = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 3, -3, 20], dtype)
    eps = 8 * np.finfo(dtype).eps
    with np.errstate(all="ignore"):
        for x in (edges, np.resize(points(dtype), (7, 9, 11)).transpose(2, 0, 1), np.ones((4, 6), dtype)[:, ::2]):  # fmt: skip
            kept = x
            if name == "tanh":
                kept = np.tanh(x)
            else:
                got = native.activation(name, x, *parameters)
                expected = reference.activation(name, x, *parameters)
                np.testing.assert_allclose(got, expected, rtol=eps, atol=eps)
                assert got.dtype == dtype
            if name == "sigmoid":
                kept = got
            grad = np.full_like(x, 2)
            got = native.activation_grad(name, grad, kept, *parameters)
            expected = reference.activation_grad(name, grad, kept, *parameters)
            finite = np.isfinite(x)
            np.testing.assert_allclose(got[finite], expected[finite], rtol=eps, atol=eps)
            np.testing.assert_array_equal(
                np.isnan(got)[np.isnan(x)], np.isnan(expected)[np.isnan(x)]
            )


def test_exp_of_both_types_is_within_its_bound():
    import numba

    from dptrain.core.kernels.exponential import exponentials

    for dtype, low, high, units in ((np.float32, -110, 95, 1.1), (np.float64, -760, 720, 1.5)):
        exp = exponentials(dtype).exp.made

        @numba.njit(error_model="numpy")
        def run(x, out, exp=exp):
            for i in range(x.size):
                out[i] = exp(x[i])

        x = np.concatenate([np.linspace(low, high, 100_001), np.linspace(-1, 1, 10_001)])
        x = x.astype(dtype)
        got = np.empty_like(x)
        run(x, got)
        exact = np.exp(x.astype(np.longdouble))
        with np.errstate(over="ignore", under="ignore"):
            rounded = exact.astype(dtype)
        finite = np.isfinite(rounded)
        assert (np.abs(got - exact)[finite] <= units * np.spacing(rounded[finite])).all()
        assert np.isposinf(got[~finite]).all()
        edges = np.array([np.nan, np.inf, -np.inf, 0, -0.0], dtype)
        got = np.empty_like(edges)
        run(edges, got)
        np.testing.assert_array_equal(got, np.array([np.nan, np.inf, 0, 1, 1], dtype))


def test_threads_change_no_bit():
    x = points(np.float32).repeat(3)
    before, results = dptrain.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            dptrain.set_num_threads(threads)
            results.append(native.activation("gelu", x))
    finally:
        dptrain.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.silu(x),
        lambda f, x: f.gelu(x),
        lambda f, x: f.gelu(x, approximate="tanh"),
        lambda f, x: f.softplus(x, beta=2, threshold=3),
        lambda f, x: f.mish(x),
        lambda f, x: f.logsigmoid(x),
        lambda f, x: f.elu(x, alpha=0.5),
        lambda f, x: f.selu(x),
        lambda f, x: f.leaky_relu(x, 0.2),
        lambda f, x: f.hardswish(x),
        lambda f, x: x.sigmoid(),
        lambda f, x: x.tanh(),
    ],
)
def test_activations_and_gradients_are_pytorchs(call, dtype):
    torch = pytest.importorskip("torch", reason="the oracle")
    values = np.random.default_rng(0).standard_normal((33, 17)).astype(dtype) * 3
    weights = np.random.default_rng(1).standard_normal((33, 17)).astype(dtype)
    results = []
    for library in (dptrain, torch):
        x = library.from_numpy(values.copy()).requires_grad_()
        y = call(library.nn.functional, x)
        y.backward(library.from_numpy(weights))
        results.append((y.detach().numpy(), x.grad.numpy()))
    eps = np.finfo(dtype).eps
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=64 * eps, atol=64 * eps)


def images(dtype):
    """One image in several orders, and what is infinite or no number in it."""
    x = np.random.default_rng(3).normal(0, 4, (5, 12, 9, 11)).astype(dtype)
    x[0, 0, 0, :4] = np.nan, np.inf, -np.inf, 6
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return {"first": x, "last": last, "holes": np.repeat(x, 2, axis=3)[..., ::2]}


@pytest.mark.parametrize("order", ["first", "last", "holes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_clipped_and_what_passes_is_the_definition(dtype, order):
    x = images(dtype)[order]
    got, expected = native.clip(x, -1.5, 6), reference.clip(x, -1.5, 6)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    # An infinite gradient does not reach what was cut off.
    for grad in (np.where(expected[1], 2, np.inf).astype(dtype), images(dtype)["first"]):
        got = native.pass_where(grad, expected[1], 0.5)
        np.testing.assert_array_equal(got, reference.pass_where(grad, expected[1], 0.5))
        assert got.dtype == dtype
        assert not got[~expected[1]].any()


@pytest.mark.parametrize("order", ["first", "last", "holes"])
@pytest.mark.parametrize("weights", [1, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prelu_and_its_gradients_are_the_definition(dtype, weights, order):
    x = images(dtype)[order]
    weight = np.linspace(-0.5, 0.5, weights).astype(dtype).reshape(1, -1, 1, 1)
    np.testing.assert_array_equal(native.prelu(x, weight), reference.prelu(x, weight))
    x[~np.isfinite(x)] = 1
    grad = np.random.default_rng(4).normal(size=x.shape).astype(dtype)
    got = native.prelu_grad(grad, x, weight)
    exact = reference.prelu_grad(*(v.astype(np.longdouble) for v in (grad, x, weight)))
    size = np.abs(grad * x).sum(axis=(0, 2, 3), keepdims=True)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(got[0], exact[0], rtol=eps)
    assert got[1].shape == weight.shape
    assert got[1].dtype == dtype
    assert (np.abs(got[1] - exact[1]) <= 8 * eps * size.sum()).all()


def test_what_a_recorded_call_compiles_is_no_part_of_the_recording(monkeypatch):
    from dptrain.core.kernels import activations
    from dptrain.core.kernels.deferred import Function

    given = []
    make = activations._map_grad._make

    def make_and_note(variant, names):
        given.append(names["slope"])
        return make(variant, names)

    activations._slope_code.cache_clear()
    monkeypatch.setattr(activations._map_grad, "_make", make_and_note)
    monkeypatch.setattr(activations._map_grad, "_addresses", {})
    activations._map_grad.address.cache_clear()
    x = dptrain.ones(64, requires_grad=True)
    dptrain.compile(lambda x: dptrain.nn.functional.mish(x).sum())(x).backward()
    assert given
    assert all(isinstance(slope, Function) for slope in given)  # nothing around it
