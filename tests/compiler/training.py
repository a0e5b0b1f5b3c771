"""One training, run as it is and compiled: what both leave behind has to be the same bits."""

import numpy as np

import dptrain
import dptrain.nn.functional as F
from dptrain import nn


def batches(count, *makers):
    """`count` tuples of tensors, each made from a generator of its own."""
    return [
        tuple(
            dptrain.from_numpy(make(np.random.default_rng([i, k]))) for k, make in enumerate(makers)
        )
        for i in range(count)
    ]


def normal(*shape):
    return lambda r: r.standard_normal(shape).astype(np.float32)


def classes(count, *shape):
    return lambda r: r.integers(0, count, shape)


def state(*modules):
    """Everything that modules hold, as bytes."""
    return [v.detach().numpy().tobytes() for m in modules for v in m.state_dict().values()]


def classifier_step(model, optimizer, loss=F.cross_entropy):
    """A training step over (x, y)."""

    def step(x, y):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    return step


def run(make, data, compiled, **options):
    """Train from a seed.

    Args:
        make: returns (model, step).
        data: the batches.
        compiled: whether to compile the step.

    Returns:
        Losses, state and the compiled step's report (None).
    """
    dptrain.manual_seed(0)
    model, step = make()
    if compiled:
        step = dptrain.compile(step, **options)
    losses = [step(*batch).detach().numpy().tobytes() for batch in data]
    draws = dptrain.rand(3).numpy().tobytes()
    report = dptrain.compiler.explain(step) if compiled else None
    return losses, [*state(model), draws], report


def assert_same(make, data, replays=None, **options):
    """The compiled training leaves the same bits behind, and replays what it says."""
    losses, held, _ = run(make, data, compiled=False)
    compiled_losses, compiled_held, report = run(make, data, compiled=True, **options)
    assert compiled_losses == losses
    assert compiled_held == held
    assert report.replays == (len(data) - 3 if replays is None else replays), str(report)
    return report


__all__ = [
    "F",
    "assert_same",
    "batches",
    "classes",
    "classifier_step",
    "nn",
    "normal",
    "run",
    "state",
]
