"""Steps over a GPU's tensors, plain and captured, on a GPU or on one that is not there.

The one that is not there is the stand-in for CuPy, with the CUDA kernels run by g++.
"""

from contextlib import contextmanager
from functools import partial

import fake_cupy
import numpy as np
from cuda_on_cpu import COMPILER, CpuDriver
from training import F, nn

import dptrain
from dptrain.core import kernels
from dptrain.core.kernels.cuda import FAMILIES, cudnn, gemm, launch


class Driver(CpuDriver):
    """Launches over the stand-in's arrays, noted while a stream is captured."""

    def __call__(self, program, kernel, declared, grid, block, values):
        hosts = [v.host if type(v) is fake_cupy.ndarray else v for v in values]
        run = super().__call__
        fake_cupy.noted(
            lambda *hosts: run(program, kernel, declared, grid, block, hosts), hosts, {}
        )


def make_driver(folder):
    """One for many tests: each source is compiled once."""
    return Driver(folder, FAMILIES)


def _multiply(self, plan, a, b, out, *rest):
    """A product by the stand-in for cuBLAS, noted while a stream is captured."""
    run = partial(_MULTIPLY, self, plan)
    fake_cupy.noted(lambda a, b, out: run(a, b, out, *rest), (a.host, b.host, out.host), {})


_MULTIPLY = gemm.Cublas.multiply


@contextmanager
def install(monkeypatch, driver):
    """`cuda:0` is the stand-in, with the CUDA kernels themselves."""
    monkeypatch.setattr(launch, "driver", driver)
    monkeypatch.setattr(gemm.Cublas, "multiply", _multiply)
    monkeypatch.setattr(cudnn, "_library", [None])
    with fake_cupy.installed(monkeypatch) as library:
        monkeypatch.setattr(kernels, "_cuda", fake_cupy.real_kernels)
        yield library


def launches():
    """How many graphs were started."""
    return sum(entry[0] == "launch" for entry in fake_cupy.LOG)


def batch(i, rows=4):
    r = np.random.default_rng(i)
    x = dptrain.tensor(r.standard_normal((rows, 6)), dtype=dptrain.float32)
    return x.cuda(), dptrain.tensor(r.integers(0, 3, rows)).cuda()


def network():
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    ).cuda()


def held(model, optimizer):
    """Everything that a training leaves behind, as bytes."""
    found = [t.detach().cpu().numpy().tobytes() for t in model.state_dict().values()]
    for entry in optimizer.state.values():
        found += [
            t.cpu().numpy().tobytes() for t in entry.values() if isinstance(t, dptrain.Tensor)
        ]
    return [*found, *(p.grad is None or p.grad.cpu().numpy().tobytes() for p in model.parameters())]


def train(make, steps, compiled, batches=batch):
    """Losses, what was left behind, the report."""
    dptrain.manual_seed(0)
    model, optimizer, step = make()
    if compiled:
        step = dptrain.compile(step, fullgraph=True)
    losses = [step(*batches(i)) for i in range(steps)]
    report = dptrain.compiler.explain(step) if compiled else None
    return [loss.item() for loss in losses], held(model, optimizer), report


def assert_same(make, steps=10, replays=None, batches=batch):
    losses, left, _ = train(make, steps, compiled=False, batches=batches)
    found, kept, report = train(make, steps, compiled=True, batches=batches)
    assert found == losses
    assert kept == left
    assert report.replays == (steps - 3 if replays is None else replays), str(report)
    return report


def stepper(optimizer_of, after=lambda optimizer: None, build=network, wrap=lambda model: model):
    def make():
        model = build()
        called = wrap(model)
        optimizer = optimizer_of(model.parameters())
        extra = after(optimizer)

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(called(x), y)
            loss.backward()
            optimizer.step()
            if extra is not None:
                extra.step()
            return loss

        return model, optimizer, step

    return make


def accumulator(optimizer_of, calls, most, build=network):
    """Gradients of so many calls are added up, and clipped to a norm of `most`."""

    def make():
        model = build()
        optimizer = optimizer_of(model.parameters())

        def step(x, y, last):
            loss = F.cross_entropy(model(x), y) / calls
            loss.backward()
            if last:
                nn.utils.clip_grad_norm_(model.parameters(), most)
                optimizer.step()
                optimizer.zero_grad()
            return loss

        return model, optimizer, step

    return make


OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "momentum": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {},
    "Adamax": {},
    "ASGD": {"t0": 3},
    "NAdam": {},
    "RAdam": {},
    "Rprop": {},
}


def optimizer_of(name):
    kind = getattr(dptrain.optim, "SGD" if name == "momentum" else name)
    return lambda params: kind(params, **OPTIMIZERS[name])


__all__ = [
    "COMPILER",
    "OPTIMIZERS",
    "assert_same",
    "batch",
    "held",
    "install",
    "launches",
    "make_driver",
    "network",
    "optimizer_of",
    "stepper",
    "train",
]
