"""On a GPU: memory, streams, events, graphs, copies, and training against the host. `pytest -m gpu`."""

import gc

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.core.cuda import probe, trouble

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
cuda = dptrain.cuda
several = pytest.mark.skipif(probe().count < 2, reason="needs two GPUs")


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Dropout(0.2), nn.Linear(120, 10),
    )  # fmt: skip


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 10)
    )


OPTIMIZERS = {
    "sgd": lambda p: dptrain.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: dptrain.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: dptrain.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: dptrain.optim.RMSprop(p, lr=1e-4, centered=True),
}


def losses(model, optimizer, dtype, place, steps=5):
    dptrain.manual_seed(0)
    net = model().to(dtype).to(place)
    make = OPTIMIZERS[optimizer](net.parameters())
    stream = np.random.default_rng(0)
    found = []
    for _ in range(steps):
        x = dptrain.tensor(stream.standard_normal((16, 1, 28, 28)), dtype=dtype).to(place)
        y = dptrain.tensor(stream.integers(0, 10, 16)).to(place)
        make.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        make.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [mlp, lenet])
@pytest.mark.parametrize(("dtype", "near"), [(dptrain.float32, 1e-3), (dptrain.float64, 1e-8)])
def test_training_follows_the_host_dropout_masks_included(
    model, optimizer, dtype, near, monkeypatch
):
    monkeypatch.setattr(dptrain.backends.cudnn, "allow_tf32", False)
    np.testing.assert_allclose(
        losses(model, optimizer, dtype, "cuda"), losses(model, optimizer, dtype, "cpu"), rtol=near
    )


def test_two_runs_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(dptrain.backends.cudnn, "deterministic", True)
    runs = [losses(lenet, "sgd", dptrain.float32, "cuda") for _ in range(2)]
    assert runs[0] == runs[1]


@several
def test_training_runs_on_a_gpu_that_is_not_the_current_one():
    assert cuda.current_device() == 0
    expected = losses(lenet, "adam", dptrain.float64, "cuda:0")
    np.testing.assert_allclose(
        losses(lenet, "adam", dptrain.float64, "cuda:1"), expected, rtol=1e-9
    )


@several
def test_copies_between_gpus_are_ordered_with_the_work_before_and_after():
    x = dptrain.randn(1 << 22)
    for _ in range(20):
        there = (x.to("cuda:0") * 2 + 1).to("cuda:1")
        assert dptrain.equal(there.cpu(), x * 2 + 1)


def test_copies_to_and_from_the_host_without_waiting():
    x = dptrain.randn(1 << 20)
    there = x.to("cuda", non_blocking=True)
    back = (there + 1).to("cpu", non_blocking=True)
    cuda.synchronize()
    assert dptrain.equal(back, x + 1)
    transposed = dptrain.arange(12.0).reshape(3, 4).T
    assert dptrain.equal(transposed.cuda().cpu(), transposed)


def test_memory_is_counted_and_given_back():
    gc.collect()
    cuda.empty_cache()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    x = dptrain.zeros(1 << 20).cuda()
    assert cuda.memory_allocated() - before == 4 << 20
    y = x + 1
    del x
    assert cuda.memory_allocated() - before == 4 << 20
    assert cuda.max_memory_allocated() - before >= 8 << 20
    reserved = cuda.memory_reserved()
    assert reserved >= cuda.memory_allocated()
    del y
    cuda.empty_cache()
    assert cuda.memory_allocated() == before
    assert cuda.memory_reserved() < reserved
    free, total = cuda.mem_get_info()
    assert 0 < free <= total == cuda.get_device_properties().total_memory


def test_exhausted_memory_is_named_and_survived():
    _, total = cuda.mem_get_info()
    with pytest.raises(cuda.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate"):
        dptrain.zeros(8).cuda().expand(total // 8 + 1, 8).contiguous()
    assert dptrain.ones(3).cuda().sum().item() == 3


def test_streams_wait_for_each_other():
    first, second = cuda.Stream(), cuda.Stream()
    x = dptrain.ones(2048, 2048).cuda()
    first.wait_stream(cuda.current_stream())
    for _ in range(5):
        with cuda.stream(first):
            assert cuda.current_stream() == first
            y = x
            for _ in range(20):
                y = y @ x * (1 / 2048)
        second.wait_stream(first)
        with cuda.stream(second):
            z = y * 2
        second.synchronize()
        assert second.query()
        assert dptrain.equal(z.cpu(), dptrain.full((2048, 2048), 2.0))
    assert cuda.current_stream() == cuda.default_stream()


def test_events_measure_time():
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    x = dptrain.ones(2048, 2048).cuda()
    start.record()
    for _ in range(10):
        x @ x
    end.record()
    end.synchronize()
    assert end.query()
    assert 0 < start.elapsed_time(end) < 10_000


def test_a_graph_replays_with_new_inputs():
    x = dptrain.arange(6.0).reshape(2, 3).cuda()
    _ = (x @ x.T).relu() + 1  # compiled before the capture
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        assert cuda.is_current_stream_capturing()
        out = (x @ x.T).relu() + 1
    for k in range(3):
        values = dptrain.randn(2, 3)
        x.copy_(values.cuda())
        graph.replay()
        np.testing.assert_allclose(
            out.cpu().numpy(), ((values @ values.T).relu() + 1).numpy(), rtol=1e-5, err_msg=str(k)
        )


def test_a_replayed_graph_draws_new_numbers_those_of_the_host():
    x = dptrain.ones(1001)
    there = x.cuda()
    dptrain.manual_seed(4)
    nn.functional.dropout(there)  # compiled before the capture
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        out = nn.functional.dropout(there)
    replayed = []
    for _ in range(3):
        graph.replay()
        replayed.append(out.cpu().tolist())
    dptrain.manual_seed(4)
    nn.functional.dropout(x)
    assert replayed == [nn.functional.dropout(x).tolist() for _ in range(3)]


def test_memory_of_a_graph_is_its_own():
    x = dptrain.ones(1000).cuda()
    _ = x * 2 + 1
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        out = x * 2 + 1
    junk = [dptrain.full((1000,), 7.0).cuda() for _ in range(50)]
    graph.replay()
    assert out.cpu().tolist() == [3.0] * 1000
    assert all(j.cpu().tolist() == [7.0] * 1000 for j in junk)


def test_state_of_the_generators_comes_back():
    x = dptrain.ones(100).cuda()
    nn.functional.dropout(x)
    for get, put in (
        (cuda.get_rng_state, cuda.set_rng_state),
        (dptrain.get_rng_state, dptrain.set_rng_state),
    ):
        state = get()
        first = nn.functional.dropout(x).tolist()
        put(state)
        assert nn.functional.dropout(x).tolist() == first


def test_a_graphed_module_trains_as_the_module():
    def train(graphed):
        dptrain.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).cuda()
        if graphed:
            sample = dptrain.zeros(16, 20).cuda()
            net = cuda.make_graphed_callables(net, (sample,))
        optimizer = dptrain.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        stream, found = np.random.default_rng(1), []
        for _ in range(6):
            x = dptrain.tensor(stream.standard_normal((16, 20)), dtype=dptrain.float32).cuda()
            y = dptrain.tensor(stream.integers(0, 5, 16)).cuda()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    np.testing.assert_allclose(train(True), train(False), rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [dptrain.float16, dptrain.bfloat16])
def test_fused_attention_has_the_values_of_the_host(dtype, causal, monkeypatch):
    from dptrain.core.kernels.cuda import cudnn, cudnn_attention

    reason = cudnn.trouble()
    if reason is not None:
        pytest.skip(f"no cuDNN: {reason}")
    monkeypatch.setattr(cudnn_attention, "enabled", True)
    served = []
    forward = cudnn_attention.forward
    monkeypatch.setattr(
        cudnn_attention, "forward", lambda *a: served.append(forward(*a)) or served[-1]
    )
    arrays = [np.random.default_rng(k).standard_normal((2, 3, 64, 64)) for k in range(3)]

    def run(place):
        q, k, v = (dptrain.tensor(x).to(dtype).to(place).requires_grad_() for x in arrays)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        (out.float() ** 2).sum().backward()
        return [t.detach().float().cpu().numpy() for t in (out, q.grad, k.grad, v.grad)]

    for found, expected in zip(run("cuda"), run("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=5e-2, atol=5e-2)
    if served == [None]:
        pytest.skip("cuDNN has no such algorithm on this GPU")


@several
def test_data_parallel_sums_gradients_by_nccl():
    from dptrain.comm import nccl_local
    from dptrain.comm.default import nccl_trouble

    if nccl_trouble() is not None:
        pytest.skip(f"no NCCL: {nccl_trouble()}")
    arrays = [dptrain.full((1000,), float(i + 1)).to(f"cuda:{i}")._array for i in range(2)]
    total = nccl_local.sum_on(dptrain.device("cuda", 0), arrays[1:])
    assert dptrain.equal(dptrain.from_dlpack(total).cpu(), dptrain.full((1000,), 2.0))
    net = nn.Linear(8, 3).double().cuda()
    split = nn.DataParallel(net)
    x = dptrain.randn(11, 8, dtype=dptrain.float64)
    split(x.cuda()).square().sum().backward()
    found = net.weight.grad.cpu()
    net.zero_grad()
    net(x.cuda()).square().sum().backward()
    np.testing.assert_allclose(found.numpy(), net.weight.grad.cpu().numpy(), rtol=1e-9)
