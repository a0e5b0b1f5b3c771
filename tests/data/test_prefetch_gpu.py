"""On a GPU: page-locked memory, copies beside the computation, batches ahead of their use. `pytest -m gpu`."""

import numpy as np
import pytest

import dptrain
from dptrain.core.cuda import library, probe, trouble
from dptrain.data import DataLoader, PrefetchLoader, TensorDataset

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
cuda = dptrain.cuda


def work(x, rounds=100):
    """Products that keep the current stream busy for some milliseconds each."""
    for _ in range(rounds):
        x = x @ x * (1 / x.shape[0])
    return x


@pytest.fixture(scope="module")
def square():
    square = dptrain.ones(4096, 4096, device="cuda")
    work(square, 2)  # kernels are loaded
    cuda.synchronize()
    return square


def test_memory_is_page_locked_and_views_know_it():
    x = dptrain.arange(12.0).reshape(3, 4)
    dptrain.zeros(1, device="cuda")
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].t().is_pinned()
    assert not pinned.clone().is_pinned()
    assert dptrain.equal(pinned, x)
    assert dptrain.zeros(3, pin_memory=True).is_pinned()
    image = dptrain.rand(2, 3, 8, 8).to(memory_format=dptrain.channels_last)
    there = image.pin_memory().cuda(non_blocking=True)
    assert there.stride() == image.stride()
    assert dptrain.equal(there.cpu(), image)


def test_copies_from_page_locked_memory_are_not_waited_for(square):
    x = dptrain.rand(1 << 24).pin_memory()
    work(square)
    there = x.cuda(non_blocking=True)
    behind = cuda.current_stream().record_event()
    assert not behind.query()  # the call came back while the GPU was still at its work
    back = dptrain.empty_like(x, pin_memory=True)
    back.copy_(there, non_blocking=True)
    cuda.synchronize()
    assert dptrain.equal(back, x)


def test_memory_that_nobody_has_any_more_is_not_overwritten_before_it_was_read(square):
    work(square)
    there = []
    for i in range(100):
        x = dptrain.full((1 << 16,), float(i), pin_memory=True)
        there.append(x.cuda(non_blocking=True))
    assert [t.mean().item() for t in there] == [float(i) for i in range(100)]


def test_a_parcel_arrives_while_the_current_stream_works(square):
    x = dptrain.rand(1 << 24).pin_memory()
    parcel = library().courier(0).parcel()
    array = parcel.add(x.numpy())
    parcel.seal()
    work(square, 200)
    behind = cuda.current_stream().record_event()
    parcel._event.synchronize()
    assert not behind.query()
    parcel.claim()
    np.testing.assert_array_equal(library().cupy.asnumpy(array), x.numpy())


@pytest.mark.parametrize("pin_memory", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_values_are_right_over_many_batches(square, pin_memory, workers):
    rows, width = 6400, 1024
    x = dptrain.arange(rows * 1.0).reshape(rows, 1).expand(rows, width).contiguous()
    loader = DataLoader(
        TensorDataset(dptrain.arange(rows), x), 64, num_workers=workers, pin_memory=pin_memory
    )
    seen = []
    for number, values in PrefetchLoader(loader):
        work(square, 2)  # the computation lags behind
        seen.append((number, (values == number.reshape(-1, 1)).all()))
        del values
    assert len(seen) == 100
    assert all(right.item() for _, right in seen)
    assert dptrain.equal(dptrain.cat([number for number, _ in seen]).cpu(), dptrain.arange(rows))


def test_a_pass_that_is_left_leaves_the_memory_in_order(square):
    loader = DataLoader(TensorDataset(dptrain.rand(64, 1 << 18)), 8, pin_memory=True)
    for _ in range(10):
        for (batch,) in PrefetchLoader(loader):
            kept = batch
            break
        filled = [dptrain.full((8, 1 << 18), 7.0, device="cuda") for _ in range(3)]
        assert all((f == 7).all().item() for f in filled)
        assert dptrain.equal(kept.cpu(), loader.dataset.tensors[0][:8])
