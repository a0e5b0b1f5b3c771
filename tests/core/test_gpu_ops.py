"""On a GPU: every operation on its samples, and every kernel, against the host. `pytest -m gpu`."""

import numpy as np
import pytest
from op_samples import SAMPLES
from test_kernels import image
from test_ops import as_list, build, flat, ours, resolve

import dptrain
from dptrain.core.arrays import namespace_on, to_host
from dptrain.core.cuda import probe, trouble
from dptrain.core.device import as_device
from dptrain.core.kernels import kernels_for, optim_kernels_for, reference, reference_optim
from dptrain.core.random import numpy_stream
from dptrain.core.transfers import watch

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
PLACE = "cuda:0"

#: Without a GPU one skipped test says so, not a thousand.
CASES = [(name, n) for name, calls in SAMPLES.items() for n in range(len(calls))]
CASES = [("add", 0)] if REASON else CASES

#: Names whose job it is to bring values to the host.
LEAVES = {"Tensor.cpu", "Tensor.numpy", "Tensor.item", "Tensor.tolist", "Tensor.to"}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 is multiplied as float32."""
    monkeypatch.setattr(dptrain.backends.cudnn, "allow_tf32", False)


def run(name, n, dtype, make):
    """Results, gradients, transfers of a sample call, and whether a tensor said where it is to run."""
    args, kwargs = build(SAMPLES[name][n], dtype, make)
    given = any(isinstance(a, dptrain.Tensor) for a in flat([*args, *kwargs.values()]))
    dptrain.manual_seed(0)
    with watch() as seen:
        outs = as_list(resolve(name, dptrain, dptrain.nn.functional)(*args, **kwargs))
        wanted = [o for o in outs if getattr(o, "requires_grad", False)]
        if wanted:
            sum((o * o).sum() for o in wanted).backward()
    return outs, [getattr(a, "grad", None) for a in flat(args)], seen, given


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_values_and_gradients_are_the_hosts_and_nothing_is_copied_back(name, n, dtype):
    def there(array, arg):
        tensor = ours(array, arg).to(PLACE)
        return tensor.requires_grad_() if arg.kind == "x" else tensor

    expected, expected_grads, *_ = run(name, n, dtype, lambda a, s: ours(a, s, grad=True))
    found, grads, seen, given = run(name, n, dtype, there)
    for ours_, theirs in zip([*found, *grads], [*expected, *expected_grads], strict=True):
        if not isinstance(theirs, dptrain.Tensor):
            assert ours_ == theirs
            continue
        assert ours_.dtype is theirs.dtype
        assert name in LEAVES or not given or ours_.device == as_device(PLACE)
        # Integers are computed with in float32 in both runs.
        near = 1e-9 if dtype is np.float64 and theirs.dtype is dptrain.float64 else 2e-4
        np.testing.assert_allclose(
            ours_.detach().cpu().to(dptrain.float64).numpy(),
            theirs.detach().to(dptrain.float64).numpy(),
            rtol=near,
            atol=near,
        )
    assert name in LEAVES or not [t for t in seen if t.kind == "copy"]


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
