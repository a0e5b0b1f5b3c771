"""The optimizers beyond SGD and Adam against PyTorch: numbers, state, defaults, every option."""

import itertools

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

from optim_pairs import (  # noqa: E402
    SHAPES,
    assert_same,
    assert_same_state,
    give_gradients,
    pair,
    values,
)


def grid(**options):
    return [dict(zip(options, v, strict=True)) for v in itertools.product(*options.values())]


DECAY, BOTH = (0, 0.05), (False, True)
BETAS = ((0.9, 0.999), (0.5, 0.0))
OPTIONS = {
    "Adamax": grid(lr=(0.05,), betas=BETAS, weight_decay=DECAY, maximize=BOTH, eps=(1e-8, 1e-2)),
    "NAdam": grid(
        lr=(0.05,),
        betas=BETAS,
        weight_decay=DECAY,
        momentum_decay=(4e-3, 0.3),
        decoupled_weight_decay=BOTH,
        maximize=BOTH,
    ),
    "RAdam": grid(
        lr=(0.05,),
        betas=((0.9, 0.999), (0.5, 0.7)),
        weight_decay=DECAY,
        decoupled_weight_decay=BOTH,
        maximize=BOTH,
        eps=(1e-8, 1e-2),
    ),
    "Adagrad": grid(
        lr=(0.05,),
        lr_decay=(0, 0.1),
        weight_decay=DECAY,
        initial_accumulator_value=(0, 0.3),
        maximize=BOTH,
        eps=(1e-10, 1e-2),
    ),
    "Adadelta": grid(
        lr=(1.0, 0.3), rho=(0.9, 0.5), weight_decay=DECAY, maximize=BOTH, eps=(1e-6, 1e-2)
    ),
    "RMSprop": grid(
        lr=(0.02,),
        alpha=(0.99, 0.5),
        weight_decay=DECAY,
        momentum=(0, 0.7),
        centered=BOTH,
        maximize=BOTH,
    ),
    "Rprop": grid(
        lr=(0.02,),
        etas=((0.5, 1.2), (0.3, 2.0)),
        step_sizes=((1e-6, 50), (0.01, 0.03)),
        maximize=BOTH,
    ),
    "ASGD": grid(
        lr=(0.05,),
        lambd=(1e-4, 0.1),
        alpha=(0.75, 0.3),
        t0=(1e6, 3),
        weight_decay=DECAY,
        maximize=BOTH,
    ),
    "Adafactor": grid(
        lr=(0.05, 0.5),
        beta2_decay=(-0.8, -0.3),
        eps=((None, 1e-3), (1e-2, 0.1)),
        d=(1.0, 1.7),
        weight_decay=DECAY,
        maximize=BOTH,
    ),
}
every_name = pytest.mark.parametrize("name", OPTIONS)


def start(name):
    """Adafactor divides by the number of elements, in PyTorch also where there are none."""
    return pair(shapes=[(3, 4), (4,), (), (1, 1), (1, 2, 3)] if name == "Adafactor" else SHAPES)


def both(name, ours, theirs, **options):
    return getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)


@every_name
def test_ten_steps_give_the_same_numbers_with_every_option(name):
    for options in [{}, *OPTIONS[name]]:
        ours, theirs = start(name)
        a, b = both(name, ours, theirs, **options)
        for step in range(10):
            give_gradients(step, ours, theirs)
            a.step()
            b.step()
        assert_same(ours, theirs)
        assert_same_state(a.state_dict(), b.state_dict())


@every_name
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_other_types_agree_to_their_precision(name, kind):
    ours, theirs = start(name)
    ours = [nn.Parameter(p.detach().to(getattr(dptrain, kind))) for p in ours]
    theirs = [torch.nn.Parameter(q.detach().to(getattr(torch, kind))) for q in theirs]
    a, b = both(name, ours, theirs, lr=0.01)
    for step in range(5):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            g = values(step + 1, i, tuple(p.shape))
            p.grad = dptrain.tensor(g).to(p.dtype)
            q.grad = torch.tensor(g).to(q.dtype)
        a.step()
        b.step()
    tolerance = {"float32": 2e-6, "bfloat16": 4e-2}[kind]
    for p, q in zip(ours, theirs, strict=True):
        assert str(p.dtype) == f"dptrain.{kind}"
        np.testing.assert_allclose(
            p.detach().double().numpy(), q.detach().double().numpy(), tolerance, tolerance
        )


@every_name
def test_groups_with_options_of_their_own_and_rates_that_change(name):
    ours, theirs = start(name)

    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:4], "lr": 0.3}]

    a, b = both(name, groups(ours), groups(theirs), lr=0.1)
    for step in range(8):
        if step == 3:
            for o, params in ((a, ours), (b, theirs)):
                o.add_param_group({"params": params[4:], "lr": 0.01})
        if step == 5:
            for o in (a, b):
                o.param_groups[1]["lr"] *= 0.1
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    assert_same(ours, theirs)
    assert repr(a) == repr(b)


@every_name
def test_state_of_pytorch_is_loaded_and_the_other_way_round(name):
    options = OPTIONS[name][-1]
    ours, theirs = start(name)
    a, b = both(name, ours, theirs)
    b = getattr(torch.optim, name)(theirs, **options)
    for step in range(3):
        give_gradients(step, ours, theirs)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        p.data = dptrain.tensor(q.detach().numpy().copy())
    a.load_state_dict(b.state_dict())
    assert repr(a) == repr(b)
    assert_same_state(a.state_dict(), b.state_dict())
    for step in range(3, 6):
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    assert_same(ours, theirs)

    back = a.state_dict()
    back["state"] = {
        k: {n: torch.tensor(np.array(v.numpy())) for n, v in entry.items()}
        for k, entry in back["state"].items()
    }
    b.load_state_dict(back)
    for step in range(6, 9):
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    assert_same(ours, theirs)


@every_name
def test_default_options_are_those_of_pytorch(name):
    a, b = both(name, *start(name))
    assert repr(a) == repr(b)
    assert a.defaults == b.defaults
    assert list(a.defaults) == list(b.defaults)
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert_same_state(mine, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "weight_decay": 0.0, "momentum": 0.5},
        {"adjust_lr_fn": "original", "ns_steps": 3},
        {"adjust_lr_fn": "match_rms_adamw", "ns_coefficients": (3.0, -3.2, 1.2), "eps": 1e-3},
    ],
)
def test_muon_rounds_its_iterations_where_pytorch_does(options):
    shapes = [(3, 4), (6, 2), (5, 5)]
    ours, theirs = pair(shapes=shapes)
    lr = 0.1
    a, b = both("Muon", ours, theirs, lr=lr, **options)
    start = [p.detach().numpy().copy() for p in ours]
    for step in range(10):
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-10, atol=1e-10)
        assert abs(p.detach().numpy() - s).max() > 0.1
    assert_same_state(a.state_dict(), b.state_dict())
    assert repr(a) == repr(b)
    assert a.defaults == b.defaults
    again = optim.Muon(ours)
    again.load_state_dict(b.state_dict())
    assert_same_state(again.state_dict(), b.state_dict())
