"""Loss scaling and autocast over several ranks or devices: one rank's infinite gradient is everybody's."""

import sys

import numpy as np
import pytest
from test_ddp import on_ranks

import dptrain
from dptrain import amp, nn, optim
from dptrain.parallel import DistributedDataParallel


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_ranks_skip_the_same_steps(bad):
    """Batch 1 of the last rank and batch 3 of the first hold a number that makes the gradients infinite."""
    ranks, steps = 3, 5

    def rank(comm):
        dptrain.manual_seed(0)
        model = DistributedDataParallel(nn.Linear(4, 2))
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = amp.GradScaler("cpu", growth_interval=2)
        stream = np.random.default_rng(comm.rank)
        trace = []
        for i in range(steps):
            x = stream.standard_normal((3, 4)).astype(np.float32)
            if (comm.rank, i) in ((ranks - 1, 1), (0, 3)):
                x[1, 2] = bad
            optimizer.zero_grad()
            with dptrain.autocast("cpu"):
                loss = model(dptrain.tensor(x)).float().square().mean()
            scaler.scale(loss).backward()
            before = model.module.weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            moved = not dptrain.equal(before, model.module.weight)
            trace.append((moved, scaler.get_scale(), model.module.weight.tolist()))
        return trace

    traces = on_ranks(ranks, rank)
    assert [moved for moved, *_ in traces[0]] == [True, False, True, False, True]
    assert [scale / 2**16 for _, scale, _ in traces[0]] == [1, 0.5, 0.5, 0.25, 0.25]
    assert traces[1] == traces[0]
    assert traces[2] == traces[0]


def test_thread_ranks_start_in_the_state_of_their_caller_and_keep_their_own():
    def rank(comm):
        a = dptrain.ones(2, 2)
        inherited = (a @ a).dtype
        with dptrain.autocast("cpu", dtype=dptrain.float16, enabled=comm.rank == 0):
            comm.barrier()
            own = (a @ a).dtype
            comm.barrier()
        return inherited, own, (a @ a).dtype

    with dptrain.autocast("cpu"):
        found = on_ranks(2, rank)
    half, brain = dptrain.float16, dptrain.bfloat16
    assert found == [(brain, half, brain), (brain, dptrain.float32, brain)]


REPLICAS = """
import dptrain
from dptrain import amp, nn, optim


def train(wrap):
    dptrain.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model, kinds, losses = wrap(net), set(), []
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    scaler = amp.GradScaler("cpu", growth_interval=2)
    net[2].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    for i in range(5):
        x = dptrain.randn(6, 4)
        if i == 2:
            x[5, 0] = float("inf")  # in the share of the second device
        optimizer.zero_grad()
        with dptrain.autocast("cpu"):
            loss = nn.functional.mse_loss(model(x), dptrain.ones(6, 2))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return kinds, losses, scaler.get_scale()


alone = train(lambda net: net)
both = train(lambda net: nn.DataParallel(net, device_ids=["cpu:0", "cpu:1"]))
assert both[0] == alone[0] == {dptrain.bfloat16}, both
assert both[2] == alone[2] == 2.0**17, both
for a, b in zip(alone[1], both[1], strict=True):
    assert a != a and b != b or abs(a - b) < 0.02, (alone, both)
"""


def test_replicas_compute_in_the_types_of_the_region(job):
    done = job([sys.executable, "-c", REPLICAS], DPTRAIN_HOST_DEVICES="2")
    assert done.returncode == 0, done.stderr
