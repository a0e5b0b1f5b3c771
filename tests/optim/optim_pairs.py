"""Equal parameters and gradients on both sides, and the comparison of what optimizers made of them."""

import numpy as np
import torch

import dptrain
from dptrain import nn

SHAPES = [(3, 4), (4,), (), (2, 0), (1, 2, 3)]


def values(step, i, shape, dtype=np.float64):
    return np.random.default_rng(100 * step + i).standard_normal(shape).astype(dtype)


def pair(dtype=np.float64, shapes=SHAPES):
    """The same parameters on both sides."""
    start = [values(0, i, s, dtype) for i, s in enumerate(shapes)]
    ours = [nn.Parameter(dptrain.tensor(v)) for v in start]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in start]
    return ours, theirs


def give_gradients(step, ours, theirs, dtype=np.float64):
    """The same gradients; some parameters get none in some steps."""
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        if (step + i) % 4 == 3:
            p.grad = q.grad = None
        else:
            g = values(step + 1, i, tuple(p.shape), dtype)
            p.grad, q.grad = dptrain.tensor(g), torch.tensor(g)


def assert_same(ours, theirs, rtol=1e-10):
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=rtol, atol=rtol)


def assert_same_state(a, b, rtol=1e-10):
    assert a["state"].keys() == b["state"].keys()
    for key in a["state"]:
        assert list(a["state"][key]) == list(b["state"][key])
        for name, held in a["state"][key].items():
            theirs = b["state"][key][name]
            np.testing.assert_allclose(held.numpy(), theirs.numpy(), rtol=rtol, atol=rtol)
            assert str(held.dtype)[8:] == str(theirs.dtype)[6:]
            assert tuple(held.shape) == tuple(theirs.shape)
