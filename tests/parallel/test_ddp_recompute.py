"""DistributedDataParallel over checkpointed segments: the gradients of the whole batch."""

import numpy as np

import dptrain
from dptrain import nn
from dptrain.comm.default import set_default
from dptrain.comm.thread import run_ranks
from dptrain.core.random import Generator, use_generator
from dptrain.parallel import DistributedDataParallel
from dptrain.utils.checkpoint import checkpoint


class Net(nn.Module):
    def __init__(self, recompute):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.recompute = recompute

    def block(self, x):
        return self.second(self.first(x).tanh())

    def forward(self, x):
        for _ in range(2):  # the same parameters in two segments
            x = checkpoint(self.block, x) if self.recompute else self.block(x)
        return x


def test_averaged_gradients_do_not_depend_on_recomputation():
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)

    def rank(comm, recompute):
        set_default(comm)
        with use_generator(Generator().manual_seed(0)):
            model = DistributedDataParallel(Net(recompute))
            model(dptrain.tensor(x[comm.rank :: 2])).square().sum().backward()
            return [p.grad.tolist() for p in model.parameters()]

    kept, recomputed = (run_ranks(2, rank, r) for r in (False, True))
    assert kept[0] == kept[1] == recomputed[0] == recomputed[1]
