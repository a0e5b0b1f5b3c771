"""A script in PyTorch's words for torchrun: accumulation, hooks, uneven inputs, a sharded optimizer.

The test runs it as it is, and with `torch` replaced by `dptrain` in the imports; both have to print the
same figures.
"""

import copy
import json
import os
import sys
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.algorithms.ddp_comm_hooks.default_hooks as default
import torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook as post_localSGD
import torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook as powerSGD
import torch.distributed.algorithms.model_averaging.averagers as averagers
import torch.distributed.algorithms.model_averaging.hierarchical_model_averager as hierarchicalSGD
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import DDPCommHookType, register_ddp_comm_hook
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils import clip_grad_norm_

RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
LOCAL_RANK = int(os.environ["LOCAL_RANK"])


def filled(model, scale=0.5):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-scale, scale, p.numel()).sin().view_as(p))
    return model


def net():
    return filled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))


def batch(step, rank=RANK):
    return (torch.arange(30, dtype=torch.float32) + 31 * step + 101 * rank).cos().view(5, 6)


def figures(model):
    return [p.detach().double().flatten()[:3].tolist() for p in model.parameters()]


def steps(model, optimizer, count=4):
    for step in range(count):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return figures(model)


def accumulated():
    model = DDP(net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(4):
        last = step % 2 == 1
        with nullcontext() if last else model.no_sync():
            (model(batch(step)).square().mean() / 2).backward()
        if last:
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return figures(model)


def uneven():
    model = DDP(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = 0
    with model.join():
        for step in range(3 + 2 * RANK):
            optimizer.zero_grad()
            model(batch(step)).square().mean().backward()
            optimizer.step()
            seen += 1
    again = DDP(net())
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    with Join([again], divide_by_initial_world_size=False):
        for step in range(2 + RANK):
            optimizer.zero_grad()
            again(batch(step)).square().mean().backward()
            optimizer.step()
    return [seen, figures(model), figures(again)]


def unused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = filled(nn.Linear(6, 3)), filled(nn.Linear(6, 3))

        def forward(self, x, both):
            return self.a(x) + self.b(x) if both else self.a(x)

    model = DDP(Two(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step), both=RANK == 0 and step > 0).square().mean().backward()
        optimizer.step()
    return figures(model)


def hooked():
    found = {}
    hooks = {
        "allreduce": (None, default.allreduce_hook),
        "fp16": (None, default.fp16_compress_hook),
        "wrapped": (None, default.fp16_compress_wrapper(default.allreduce_hook)),
        "noop": (None, noop_hook),
    }
    for name, (state, hook) in hooks.items():
        model = DDP(net())
        model.register_comm_hook(state, hook)
        found[name] = steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for kind in ("ALLREDUCE", "FP16_COMPRESS", "NOOP"):
        model = DDP(net())
        register_ddp_comm_hook(getattr(DDPCommHookType, kind), model, state=dist.group.WORLD)
        found[kind] = steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model = DDP(net())
    state = powerSGD.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=3)
    model.register_comm_hook(state, powerSGD.powerSGD_hook)
    found["powerSGD before it starts"] = steps(
        model, torch.optim.SGD(model.parameters(), lr=0.1), 2
    )
    return found


def own_hook():
    def allreduce_then_square(state, bucket: dist.GradBucket):
        work = dist.all_reduce(bucket.buffer().div_(WORLD_SIZE), async_op=True)
        return work.get_future().then(lambda fut: fut.value()[0] * fut.value()[0])

    model = DDP(net())
    model.register_comm_hook(None, allreduce_then_square)
    return steps(model, torch.optim.SGD(model.parameters(), lr=1.0))


def local_sgd():
    own, _ = dist.new_subgroups(group_size=1)
    model = DDP(net())
    state = post_localSGD.PostLocalSGDState(process_group=None, subgroup=own, start_localSGD_iter=3)
    model.register_comm_hook(state, post_localSGD.post_localSGD_hook)
    averager = averagers.PeriodicModelAverager(period=3, warmup_steps=3)
    local = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = PostLocalSGDOptimizer(optim=local, averager=averager)
    seen = [steps(model, optimizer, 5), steps(model, optimizer, 2)]
    saved = copy.deepcopy(optimizer.state_dict())
    fresh = PostLocalSGDOptimizer(
        optim=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        averager=averagers.PeriodicModelAverager(period=3, warmup_steps=3),
    )
    fresh.load_state_dict(saved)
    return [*seen, state.iter, averager.step, fresh.averager.step, steps(model, fresh, 4)]


def hierarchical():
    model = DDP(net())
    own, _ = dist.new_subgroups(group_size=1)
    state = post_localSGD.PostLocalSGDState(None, own, 2, post_local_gradient_allreduce=False)
    model.register_comm_hook(state, post_localSGD.post_localSGD_hook)
    averager = hierarchicalSGD.HierarchicalModelAverager(
        period_group_size_dict={2: 1, 4: 2}, warmup_steps=2
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(7):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
        averager.average_parameters(model.parameters())
    return figures(model)


def sharded():
    model = DDP(net())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.Adam, lr=0.01
    )
    found = steps(model, optimizer)
    optimizer.consolidate_state_dict(to=0)
    if RANK == 0:
        state = optimizer.state_dict()
        found.append(sorted(state["state"]))
        found.append([float(state["state"][i]["step"]) for i in sorted(state["state"])])
        found.append([state["state"][i]["exp_avg"].sum().item() for i in sorted(state["state"])])
    return found


def meshed():
    mesh = init_device_mesh("cpu", (1, WORLD_SIZE), mesh_dim_names=("replicate", "dp"))
    model = DDP(net(), process_group=mesh.get_group("dp"))
    other = DDP(net(), device_mesh=mesh["dp"])
    found = steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
    same = steps(other, torch.optim.SGD(other.parameters(), lr=0.1)) == found
    return [found, same, mesh["dp"].get_local_rank()]


def environment():
    dist.monitored_barrier(timeout=timedelta(seconds=30))
    return [
        dist.get_rank() == RANK,
        dist.get_world_size() == WORLD_SIZE,
        dist.get_node_local_rank() == LOCAL_RANK,
        dist.is_torchelastic_launched(),
        int(os.environ["LOCAL_WORLD_SIZE"]),
        int(os.environ["GROUP_RANK"]),
        bool(os.environ["MASTER_ADDR"] and int(os.environ["MASTER_PORT"])),
    ]


@record
def main():
    torch.set_num_threads(1)
    dist.init_process_group(backend="gloo", init_method="env://")
    cases = (
        environment,
        accumulated,
        uneven,
        unused,
        hooked,
        own_hook,
        local_sgd,
        hierarchical,
        sharded,
        meshed,
    )
    found = {case.__name__: case() for case in cases}
    everyone = [None] * WORLD_SIZE
    dist.all_gather_object(everyone, found)
    if RANK == 0:
        sys.stdout.write(json.dumps(everyone) + "\n")
        sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
