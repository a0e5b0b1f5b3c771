"""Optimizers of every kind, parameters and gradients for the tests of `Optimizer`."""

import copy

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim

MAKERS = {
    "sgd": lambda params: optim.SGD(params, lr=0.1),
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda params: optim.Adam(params, lr=0.1, weight_decay=0.1),
    "adamw": lambda params: optim.AdamW(params, lr=0.1, amsgrad=True),
    "adamax": lambda params: optim.Adamax(params, lr=0.1, weight_decay=0.1),
    "nadam": lambda params: optim.NAdam(params, lr=0.1, momentum_decay=0.1),
    "radam": lambda params: optim.RAdam(params, lr=0.1, betas=(0.9, 0.7)),
    "adagrad": lambda params: optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.5),
    "adadelta": lambda params: optim.Adadelta(params),
    "rmsprop": lambda params: optim.RMSprop(params, momentum=0.5, centered=True),
    "rprop": lambda params: optim.Rprop(params, lr=0.1),
    "asgd": lambda params: optim.ASGD(params, lr=0.1, lambd=0.1, t0=1),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def leaf(*shape, seed=0, dtype=None):
    values = np.random.default_rng(seed).standard_normal(shape)
    return nn.Parameter(dptrain.tensor(values, dtype=dtype or dptrain.float64))


def leaves(*sizes):
    return [leaf(n, seed=i) for i, n in enumerate(sizes)]


def give_gradients(params, step=0, skip=()):
    for i, p in enumerate(params):
        if i in skip:
            p.grad = None
        else:
            g = np.random.default_rng(1000 * step + i).standard_normal(p.shape)
            p.grad = dptrain.tensor(g, dtype=p.dtype)


def value(p):
    return p.detach().numpy().copy()


def apart(make, params, steps, skips=()):
    """The same steps with an optimizer for each parameter alone: nothing can be merged."""
    copies = copy.deepcopy(list(params))
    alone = [make([p]) for p in copies]
    for step in range(steps):
        give_gradients(copies, step, skips[step] if skips else ())
        for o in alone:
            o.step()
    return copies
