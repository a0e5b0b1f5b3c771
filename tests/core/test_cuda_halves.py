"""16-bit values on a GPU: they reach its kernels as they are, forward and backward, and results are rounded once.

The arrays are the stand-in's, the kernels are the CUDA sources run on the CPU.
"""

import fake_cupy
import numpy as np
import pytest
from cuda_on_cpu import on_cpu, using_cpu

import dptrain
from dptrain.core import half, kernels, walk
from dptrain.core.arrays import to_host

pytestmark = on_cpu
F = dptrain.nn.functional
KINDS = [dptrain.float16, dptrain.bfloat16]
IMAGE, ROWS = (2, 8, 6, 6), (6, 24)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with using_cpu(tmp_path_factory) as found:
        yield found


@pytest.fixture
def driver(compiled, monkeypatch):
    with fake_cupy.installed(monkeypatch):
        monkeypatch.setattr(kernels, "_cuda", fake_cupy.real_kernels)
        compiled.launches.clear()
        yield compiled


def weight_of(x, channels):
    """As under autocast: float32 beside 16-bit values."""
    kind = dptrain.float32 if x.dtype.itemsize == 2 else x.dtype
    return dptrain.linspace(0.5, 2, channels, device=x.device, dtype=kind)


def norm(x, mode):
    w = weight_of(x, x.shape[1])
    stats = [dptrain.zeros(x.shape[1], device=x.device), dptrain.ones(x.shape[1], device=x.device)]
    return F.batch_norm(x, *stats, w, w - 1, training=mode)


def over_last(function):
    def run(x):
        w = weight_of(x, x.shape[-1])
        return function(x, (x.shape[-1],), w)

    return run


#: name: (shape, function, kernels that run, forward and backward)
CASES = {
    "relu": (IMAGE, F.relu, ["relu", "relu_grad"]),
    "gelu": (ROWS, F.gelu, ["gelu_value", "gelu_grad"]),
    "gelu_tanh": (
        ROWS,
        lambda x: F.gelu(x, approximate="tanh"),
        ["gelu_tanh_value", "gelu_tanh_grad"],
    ),
    "silu": (ROWS, F.silu, ["silu_value", "silu_grad"]),
    "tanh": (ROWS, dptrain.tanh, ["tanh_value", "tanh_grad"]),
    "sigmoid": (ROWS, dptrain.sigmoid, ["sigmoid_value", "sigmoid_grad"]),
    "leaky_relu": (ROWS, F.leaky_relu, ["leaky_relu_value", "leaky_relu_grad"]),
    "softmax": (ROWS, lambda x: F.softmax(x, -1), ["softmax", "softmax_grad"]),
    "log_softmax": (ROWS, lambda x: F.log_softmax(x, -1), ["log_softmax", "log_softmax_grad"]),
    "batch_norm": (
        IMAGE,
        lambda x: norm(x, True),
        [
            "moments",
            "statistics",
            "scale_columns",
            "column_products",
            "add_chunks",
            "batch_norm_grad",
        ],
    ),
    "layer_norm": (
        ROWS,
        over_last(F.layer_norm),
        ["layer_norm", "layer_norm_grad", "column_products", "add_chunks"],
    ),
    "rms_norm": (
        ROWS,
        over_last(F.rms_norm),
        ["layer_norm", "layer_norm_grad", "column_products", "add_chunks"],
    ),
    "add": (IMAGE, lambda x: x + x.flip(0), ["add", "add"]),
    "sub": (IMAGE, lambda x: dptrain.sub(x, x.flip(0), alpha=2), ["add", "add"]),
    "mul": (IMAGE, lambda x: x * x.flip(0), ["multiply", "multiply", "multiply", "add"]),
    "max_pool2d": (IMAGE, lambda x: F.max_pool2d(x, 3, 2, 1), ["max_pool", "max_pool_scatter"]),
    "avg_pool2d": (IMAGE, lambda x: F.avg_pool2d(x, 2), ["sum_pool", "sum_pool_scatter"]),
    "adaptive_avg_pool2d": (
        IMAGE,
        lambda x: F.adaptive_avg_pool2d(x, 1),
        ["sum_pool", "sum_pool_scatter"],
    ),
    "cross_entropy": (
        ROWS,
        lambda x: F.cross_entropy(x, dptrain.arange(len(x), device=x.device)),
        ["cross_entropy", "cross_entropy_grad"],
    ),
}


def run(name, x, kind):
    """Result and gradient, as float64."""
    _, function, _ = CASES[name]
    x = x.to(kind).requires_grad_()
    out = function(x)
    out.backward(dptrain.linspace(-1, 1, out.numel(), device=x.device).reshape(out.shape).to(kind))
    assert out.dtype is x.grad.dtype is kind
    return [to_host(v._array).astype(np.float64) for v in (out, x.grad)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_an_operation_takes_16_bit_values_as_they_are(driver, monkeypatch, name, kind):
    shape, _, expected = CASES[name]
    host = dptrain.tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 2)
    exact = run(name, host.to(kind).double(), dptrain.float64)
    there = host.to("cuda:1").to(kind)
    driver.launches.clear()

    def refuse(value):
        assert getattr(value, "dtype", None) not in half.HALVES, "lifted to float32"
        return value

    monkeypatch.setattr(half, "lift", refuse)
    monkeypatch.setattr(walk, "lifted", lambda values: [refuse(v) for v in values])
    found = run(name, there, kind)
    started = [launch[0] for launch in driver.launches if launch[1] == str(kind).split(".")[1]]
    orders = ("turn", "turn_few", "follow")  # who brings values to the order of the kernels
    rest = [k for k in started if k not in ("narrow", "widen", *orders)]
    assert rest == expected
    near = 2**-10 if kind is dptrain.float16 else 2**-7
    for got, right in zip(found, exact, strict=True):
        # The gradient's own arguments (results of the forward pass) were rounded too.
        np.testing.assert_allclose(got, right, rtol=3 * near, atol=3 * near)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_the_kernels_do_not_serve_is_lifted_forward_and_backward(driver, kind):
    host = dptrain.tensor(np.random.default_rng(0).standard_normal((3, 4, 5, 3)).astype(np.float32))
    for function in (
        lambda x: F.softmax(x, 1),
        lambda x: F.log_softmax(x, 0),
        lambda x: F.instance_norm(x),
        lambda x: F.group_norm(x, 2),
        lambda x: norm(x, False),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: F.adaptive_avg_pool2d(x[0], 1),
    ):
        results = []
        for place, dtype in (("cpu", dptrain.float64), ("cuda:0", kind)):
            x = host.to(kind).to(dtype).to(place).requires_grad_()
            out = function(x)
            grad = dptrain.linspace(-1, 1, out.numel(), device=place).reshape(out.shape)
            out.backward(grad.to(dtype))
            results += [to_host(v._array).astype(np.float64) for v in (out, x.grad)]
        near = 2**-10 if kind is dptrain.float16 else 2**-7
        np.testing.assert_allclose(results[2], results[0], rtol=near, atol=near)
        np.testing.assert_allclose(results[3], results[1], rtol=3 * near, atol=3 * near)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_embedding_sums_equal_rows_in_float32(driver, kind):
    weight = dptrain.zeros(5, 3, dtype=kind, device="cuda:0").requires_grad_()
    index = dptrain.tensor([1] * 600 + [4], device="cuda:0")
    F.embedding(index, weight).sum().backward()
    assert [r[0] for r in to_host(weight.grad._array).astype(float).tolist()] == [0, 600, 0, 0, 1]
    assert ("add_rows", str(kind).split(".")[1]) in [launch[:2] for launch in driver.launches]


def test_a_dropped_mask_is_of_bytes_and_serves_every_derivative(driver):
    dptrain.manual_seed(3)
    x = dptrain.ones(64, device="cuda:0", requires_grad=True)
    out = F.dropout(x, 0.25)
    assert out._node.mask.dtype == np.uint8
    kept = to_host(out._array) > 0
    np.testing.assert_array_equal(to_host(out._array), np.where(kept, np.float32(1 / 0.75), 0))
    (grad,) = dptrain.autograd.grad((out * out).sum(), x, create_graph=True)
    (second,) = dptrain.autograd.grad(grad.sum(), x)
    np.testing.assert_allclose(to_host(second._array), np.where(kept, 2 / 0.75**2, 0), rtol=1e-6)


def test_running_averages_follow_on_a_gpu_as_on_the_host(driver):
    x = dptrain.tensor(np.random.default_rng(0).standard_normal((7, 4, 3)).astype(np.float32))
    layers = [dptrain.nn.BatchNorm1d(4), dptrain.nn.BatchNorm1d(4).to("cuda:1")]
    for layer, place in zip(layers, ("cpu", "cuda:1"), strict=True):
        for _ in range(3):
            layer(x.to(place))
    for name in ("running_mean", "running_var"):
        host, there = (to_host(getattr(layer, name)._array) for layer in layers)
        np.testing.assert_allclose(there, host, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_a_weight_cast_by_autocast_is_written_where_it_belongs(driver):
    weight = dptrain.nn.Parameter(dptrain.ones(64, device="cuda:0"))
    optimizer = dptrain.optim.SGD([weight], lr=0.5)  # gives gradients their place
    (weight.to(dptrain.bfloat16) * 2).sum().backward()
    assert ("widen", "bfloat16") in [launch[:2] for launch in driver.launches]
    np.testing.assert_array_equal(to_host(weight.grad._array), 2)
    optimizer.step()
    np.testing.assert_array_equal(to_host(weight._array), 0)


def test_a_change_in_place_is_a_pass_over_images_as_they_lie(driver):
    x = dptrain.randn(2, 8, 3, 3).to("cuda:0").to(memory_format=dptrain.channels_last)
    expected = np.maximum(to_host(x._array), 0)
    driver.launches.clear()
    x.relu_()
    assert [launch[0] for launch in driver.launches] == ["relu", "assign"]
    np.testing.assert_array_equal(to_host(x._array), expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_residual_of_16_bits_is_added_to_float32_as_it_is(driver, kind):
    x, y = dptrain.randn(4, 40).to("cuda:0"), dptrain.randn(4, 40).to("cuda:0").to(kind)
    x.requires_grad_(), y.requires_grad_()
    for out, sign in ((x + y, 1), (y + x, 1), (x - y, -1)):
        driver.launches.clear()
        assert out.dtype is dptrain.float32
        wide = to_host(y.detach()._array).astype(np.float32)
        np.testing.assert_array_equal(to_host(out._array), to_host(x._array) + sign * wide)
        x.grad = y.grad = None
        out.backward(dptrain.ones_like(out))
        assert (x.grad.dtype, y.grad.dtype) == (dptrain.float32, kind)
        np.testing.assert_array_equal(to_host(y.grad._array).astype(np.float32), sign)
    driver.launches.clear()
    x.detach() + y.detach()
    assert [launch[0] for launch in driver.launches] == ["add_narrow"]
