"""On a GPU: the fused passes against their definitions in float64 on the host. `pytest -m gpu`.

The tests are those of `test_cuda_passes`, which show the same sources on the CPU; the arrays lie on the GPU as
the tests lay them: in their order, and as far from an even place.
"""

import numpy as np
import pytest
import test_cuda_passes
from test_cuda_passes import *  # noqa: F403

import dptrain
from dptrain.core.arrays import namespace_on, to_host
from dptrain.core.cuda import probe, trouble
from dptrain.core.device import as_device
from dptrain.core.kernels import cuda, kernels_for
from dptrain.core.kernels.cuda import launch

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
PLACE = "cuda:0"
F = dptrain.nn.functional


def moved(array):
    """A host array on the GPU, with its strides and as far from an even place."""
    xp = namespace_on(as_device(PLACE))
    if not array.ndim:
        return xp.asarray(array)
    order = sorted(range(array.ndim), key=lambda d: -array.strides[d])
    rows = np.ascontiguousarray(array.transpose(order))
    by = array.ctypes.data // array.itemsize % (16 // array.itemsize)
    held = xp.empty(rows.size + by, rows.dtype)[by:].reshape(rows.shape)
    held[...] = xp.asarray(rows)
    return held.transpose(np.argsort(order))


def returned(value):
    if isinstance(value, tuple):
        return tuple(map(returned, value))
    return to_host(value) if hasattr(value, "dtype") else value


class OnGpu:
    """The kernels for host arrays: there and back, what is written in place too."""

    def __getattr__(self, name):
        if name == "batch_vectors":  # what comes back goes to `normalise` as it is
            return lambda x, *rest: rest

        def run(*args, **kwargs):
            there = [
                tuple(map(moved, a))
                if type(a) is tuple and a and isinstance(a[0], np.ndarray)
                else moved(np.asarray(a))
                if isinstance(a, (np.ndarray, np.generic))
                else a
                for a in args
            ]
            out = getattr(cuda, name)(*there, **kwargs)
            for host, device in zip(args, there, strict=True):
                if isinstance(host, np.ndarray) and name in ("normalise", "follow"):
                    host[...] = to_host(device)
            return returned(out)

        return run


class Launches:
    """Passes launches on and notes them."""

    def __init__(self, driver):
        self.driver, self.launches = driver, []

    def __call__(self, program, kernel, *args):
        self.launches.append((kernel, program.kind))
        self.driver(program, kernel, *args)


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    found = Launches(launch.driver)
    monkeypatch.setattr(launch, "driver", found)
    monkeypatch.setattr(test_cuda_passes, "cuda", OnGpu())
    return found


@pytest.mark.parametrize("kind", test_cuda_passes.KINDS, ids=str)
def test_a_long_row_of_logits(kind):
    logits = test_cuda_passes.drawn((33, 50257), kind, scale=5)
    target = np.random.default_rng(1).integers(0, 50257, 33)
    there, classes = moved(logits), moved(target)
    loss, kept = cuda.cross_entropy(there, classes)
    wide = logits.astype(np.float64)
    expected, p = test_cuda_passes.reference.cross_entropy(wide, target)
    np.testing.assert_allclose(to_host(loss), expected, rtol=1e-5)
    grad = kernels_for(there).cross_entropy_grad(
        moved(np.ones((), kind)), there, kept, classes, 0.5
    )
    slope = test_cuda_passes.reference.cross_entropy_grad(np.ones(()), wide, p, target, 0.5)
    near = test_cuda_passes.NEAR[kind]
    got = to_host(grad).astype(np.float64)
    np.testing.assert_allclose(got, slope, rtol=max(near, 1e-4), atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, test_cuda_passes.BFLOAT16], ids=str)
def test_many_rows_into_a_large_table_have_the_same_bits_in_every_run(kind):
    rows = test_cuda_passes.drawn((8192, 768), kind)
    index = np.random.default_rng(0).zipf(1.3, 8192) % 50257
    there = [moved(rows), moved(index)]
    first, second = (to_host(cuda.add_rows(*there, 50257)) for _ in range(2))
    np.testing.assert_array_equal(first.view(np.uint16), second.view(np.uint16))
    expected = np.zeros((50257, 768), np.float32)
    np.add.at(expected, index, rows.astype(np.float32))
    np.testing.assert_array_equal(
        first.astype(np.float32), expected.astype(kind).astype(np.float32)
    )


@pytest.mark.parametrize("kind", [dptrain.float32, dptrain.bfloat16])
def test_a_batch_norm_of_many_rows(kind):
    host, grad = dptrain.randn(64, 64, 14, 14), dptrain.randn(64, 64, 14, 14).to(kind)
    results = []
    for place, dtype in (("cpu", dptrain.float64), ("cuda:0", kind)):
        x = host.to(kind).to(dtype).to(place).requires_grad_()
        wide = dptrain.float32 if dtype is dptrain.bfloat16 else dtype
        weight = dptrain.linspace(0.5, 2, 64, dtype=wide, device=place).requires_grad_()
        stats = [dptrain.zeros(64, dtype=wide, device=place) for _ in range(2)]
        out = F.batch_norm(x, *stats, weight, weight.detach(), training=True)
        out.backward(grad.to(place).to(dtype))
        values = (out.detach(), x.grad, weight.grad, *stats)
        results.append([to_host(v._array).astype(np.float64) for v in values])
    rounding = 1e-5 if kind is dptrain.float32 else 2**-8
    for i, (exact, got) in enumerate(zip(*results, strict=True)):
        near = 1e-4 if i > 1 and kind is dptrain.float32 else rounding
        scale = np.abs(exact).max()
        np.testing.assert_allclose(got, exact, rtol=2 * near, atol=near * scale, err_msg=str(i))
