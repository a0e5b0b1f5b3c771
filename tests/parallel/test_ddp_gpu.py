"""On a GPU: DistributedDataParallel by NCCL with one rank, and staged with two. `pytest -m gpu`."""

import numpy as np
import pytest
from device_ranks import SCENARIOS
from thread_ranks import on_ranks

import dptrain
import dptrain.distributed as dist
from dptrain import nn
from dptrain.core.cuda import probe, trouble
from dptrain.parallel import DistributedDataParallel

REASON = trouble(probe())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]


def name(scenario):
    return scenario.__name__


def check_near(found, expected, near):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=near, atol=near)


@pytest.fixture
def nccl():
    dist.init_process_group("nccl", device_id=0)
    yield dist.group.WORLD.communicator
    dist.destroy_process_group()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_one_rank_by_nccl(nccl, scenario):
    near = 1e-2 if "16" in scenario.__name__ else 1e-9
    check_near([scenario(nccl, "cuda:0")], on_ranks(1, scenario, "cpu"), near)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
def test_two_ranks_share_a_gpu_through_the_host(scenario):
    expected = on_ranks(2, scenario, "cpu")
    check_near(on_ranks(2, scenario, "cuda:0"), expected, 1e-9)


def test_a_training_step_with_its_reductions_is_captured_and_replayed(nccl):
    def build(place):
        dptrain.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).to(place)
        return net, dptrain.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(net, optimizer, x, y):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    batches = [(dptrain.randn(16, 20), dptrain.randint(0, 5, (16,))) for _ in range(8)]
    plain = build("cpu")
    expected = [step(*plain, *batch).item() for batch in batches]
    net, optimizer = build("cuda:0")
    model = DistributedDataParallel(net, device_ids=[0])
    x, y = (t.cuda() for t in batches[0])
    stream = dptrain.cuda.Stream()
    with dptrain.cuda.stream(stream):
        found = []
        for batch in batches[:3]:
            x.copy_(batch[0].cuda())
            y.copy_(batch[1].cuda())
            found.append(step(model, optimizer, x, y).item())
    graph = dptrain.cuda.CUDAGraph()
    with dptrain.cuda.graph(graph, stream=stream):
        loss = step(model, optimizer, x, y)
    for batch in batches[3:]:
        x.copy_(batch[0].cuda())
        y.copy_(batch[1].cuda())
        graph.replay()
        found.append(loss.item())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
