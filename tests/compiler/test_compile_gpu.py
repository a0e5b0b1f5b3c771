"""Steps that are CUDA graphs, on a GPU: the bits of the plain step. `pytest -m gpu`.

What is recorded, replayed and refused is shown without one in `test_captured_steps.py`.
"""

import gc
from functools import partial

import numpy as np
import pytest
from captured import OPTIMIZERS, accumulator, assert_same, batch, optimizer_of, stepper, train
from training import F, nn

import dptrain
import dptrain.distributed as dist
from dptrain.core.cuda import probe, trouble
from dptrain.optim import lr_scheduler
from dptrain.parallel import DistributedDataParallel

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setattr(dptrain.backends.cudnn, "deterministic", True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_count_their_steps_and_follow_a_schedule(name):
    assert_same(
        stepper(optimizer_of(name), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=7)), 12
    )


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
        nn.Conv2d(8, 16, 3, stride=2), nn.GroupNorm(4, 16), nn.GELU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 3),
    ).cuda()  # fmt: skip


def image(i, rows=8):
    r = np.random.default_rng(i)
    x = dptrain.tensor(r.standard_normal((rows, 1, 16, 16)), dtype=dptrain.float32)
    return x.cuda(), dptrain.tensor(r.integers(0, 3, rows)).cuda()


def test_convolutions_norms_and_dropout():
    assert_same(stepper(optimizer_of("AdamW"), build=convolutional), 10, batches=image)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 11)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.block(self.table(x), src_mask=mask, is_causal=True))


def tokens(i):
    r = np.random.default_rng(i)
    return tuple(dptrain.tensor(r.integers(0, 11, (4, 9))).cuda() for _ in range(2))


@pytest.mark.parametrize("bits", [32, 16])
def test_a_transformer_that_ignores_some_targets(bits):
    def make():
        model = Decoder().cuda()
        optimizer = dptrain.optim.AdamW(model.parameters(), lr=0.01)

        def step(x, y):
            optimizer.zero_grad()
            with dptrain.autocast("cuda", dptrain.bfloat16, enabled=bits == 16):
                out = model(x)
            loss = F.cross_entropy(out.float().reshape(-1, 11), y.reshape(-1), ignore_index=3)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return loss

        return model, optimizer, step

    losses, _, _ = train(make, 8, compiled=False, batches=tokens)
    found, _, report = train(make, 8, compiled=True, batches=tokens)
    assert report.replays == 5
    # The plain step leaves out by other sums what it has seen to be ignored.
    np.testing.assert_allclose(found, losses, rtol=1e-2 if bits == 16 else 1e-4)


def test_batches_of_another_size_and_accumulation():
    optimizer = lambda params: dptrain.optim.RMSprop(params, momentum=0.9)  # noqa: E731
    make = accumulator(optimizer, 2, 0.5, convolutional)

    def of(i):
        return (*image(i, 8 if i % 4 < 2 else 5), i % 2 == 1)

    report = assert_same(make, 32, 4 * 5, batches=of)
    assert report.recordings == 4


def test_values_that_are_read_are_refused_and_a_broken_capture_is_survived():
    x = dptrain.arange(6.0).cuda()
    for function, reason in (
        (lambda x: x * x.sum().item(), "are read on the host"),
        (lambda x: x[x > 2].sum(), "a CUDA graph cannot hold it"),
    ):
        call = dptrain.compile(function)
        with pytest.warns(UserWarning, match=reason):
            outs = [call(x).cpu() for _ in range(6)]
        assert all(dptrain.equal(out, function(x).cpu()) for out in outs)
        assert not dptrain.cuda.is_current_stream_capturing()
    assert_same(stepper(optimizer_of("SGD")), 6)


def test_seeds_and_states_are_followed():
    x = dptrain.ones(1001).cuda()
    call = dptrain.compile(F.dropout, fullgraph=True)

    def draws(run):
        dptrain.manual_seed(3)
        found = [run(x).tolist() for _ in range(5)]
        state = dptrain.cuda.get_rng_state()
        found += [run(x).tolist() for _ in range(2)]
        dptrain.cuda.set_rng_state(state)
        return [*found, run(x).tolist(), F.dropout(x).tolist()]

    assert draws(call) == draws(F.dropout)
    assert dptrain.compiler.explain(call).replays == 5


def test_replays_take_no_memory_and_results_stay():
    model, _, step = stepper(optimizer_of("Adam"))()
    call = dptrain.compile(step, fullgraph=True)
    kept = [call(*batch(i)) for i in range(6)]
    first = kept[-1].item()
    gc.collect()
    before = dptrain.cuda.memory_allocated()
    for i in range(50):
        call(*batch(i))
    dptrain.cuda.synchronize()
    gc.collect()
    assert dptrain.cuda.memory_allocated() == before
    assert kept[-1].item() == first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_optimizer_with_capturable_in_a_graph_made_by_hand():
    def run(graphed):
        p = nn.Parameter(dptrain.arange(5.0).cuda())
        optimizer = dptrain.optim.Adam([p], lr=0.1, capturable=True)

        def step():
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()

        step()
        if graphed:
            graph = dptrain.cuda.CUDAGraph()
            with dptrain.cuda.graph(graph):
                step()
        for i in range(4):
            optimizer.param_groups[0]["lr"] = 0.1 * (i + 1)
            graph.replay() if graphed else step()
        return p.tolist(), int(optimizer.state[p]["step"])

    assert run(True) == run(False)


def test_a_step_whose_gradients_nccl_averages():
    dist.init_process_group("nccl", device_id=0)
    try:
        wrap = partial(DistributedDataParallel, device_ids=[0])
        make = stepper(optimizer_of("AdamW"), build=convolutional, wrap=wrap)
        assert_same(make, 9, batches=image)
    finally:
        dptrain.compiler.reset()
        gc.collect()  # graphs that hold what NCCL does go before its communicator
        dist.destroy_process_group()
