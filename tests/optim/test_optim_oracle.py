"""Optimizers and schedulers against PyTorch: the same numbers, the same state, both ways."""

import itertools
import math

import numpy as np
import pytest

import dptrain
from dptrain import nn, optim

torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
pytestmark = pytest.mark.oracle

from optim_pairs import SHAPES, assert_same, assert_same_state, give_gradients, pair, values  # noqa: E402

SGD_OPTIONS = [
    {
        "lr": 0.1,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": decay,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    for momentum, dampening, decay, nesterov, maximize in itertools.product(
        (0, 0.9), (0, 0.3), (0, 0.05), (False, True), (False, True)
    )
    if not (nesterov and (momentum == 0 or dampening))
]
ADAM_OPTIONS = [
    {"lr": 0.05, "betas": betas, "weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}
    for betas, decay, amsgrad, maximize in itertools.product(
        ((0.9, 0.999), (0.5, 0.0)), (0, 0.05), (False, True), (False, True)
    )
]
CASES = [
    *(("SGD", options) for options in SGD_OPTIONS),
    *(("Adam", options) for options in ADAM_OPTIONS),
    *(("AdamW", options) for options in ADAM_OPTIONS),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("Adam", {"eps": 1e-3}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_ten_steps_give_the_same_numbers(name, options):
    ours, theirs = pair()
    a, b = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(10):
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    assert_same(ours, theirs)
    assert_same_state(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_other_types_agree_to_their_precision(name, kind):
    ours, theirs = pair()
    ours = [nn.Parameter(p.detach().to(getattr(dptrain, kind))) for p in ours]
    theirs = [torch.nn.Parameter(q.detach().to(getattr(torch, kind))) for q in theirs]
    a, b = getattr(optim, name)(ours, lr=0.01), getattr(torch.optim, name)(theirs, lr=0.01)
    for step in range(5):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            g = values(step + 1, i, SHAPES[i])
            p.grad = dptrain.tensor(g).to(p.dtype)
            q.grad = torch.tensor(g).to(q.dtype)
        a.step()
        b.step()
    tolerance = {"float32": 1e-6, "float16": 5e-3, "bfloat16": 4e-2}[kind]
    for p, q in zip(ours, theirs, strict=True):
        assert str(p.dtype) == f"dptrain.{kind}"
        np.testing.assert_allclose(
            p.detach().double().numpy(), q.detach().double().numpy(), tolerance, tolerance
        )


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("AdamW", {})])
def test_groups_with_options_of_their_own_and_rates_that_change(name, options):
    ours, theirs = pair()

    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:4], "lr": 0.5, "weight_decay": 0.1}]

    a = getattr(optim, name)(groups(ours), lr=0.1, **options)
    b = getattr(torch.optim, name)(groups(theirs), lr=0.1, **options)
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


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_state_of_pytorch_is_loaded_and_the_other_way_round(name):
    options = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
    ours, theirs = pair()
    b = getattr(torch.optim, name)(theirs, lr=0.1, **options)
    a = getattr(optim, name)(ours, lr=0.7)
    for step in range(3):
        give_gradients(step, ours, theirs)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        p.data = dptrain.tensor(q.detach().numpy().copy())
    saved = b.state_dict()
    a.load_state_dict(saved)
    assert repr(a) == repr(b)
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


def test_default_options_are_those_of_pytorch():
    ours, theirs = pair()
    for name in ("SGD", "Adam", "AdamW"):
        a, b = getattr(optim, name)(ours), getattr(torch.optim, name)(theirs)
        assert repr(a) == repr(b)
        assert a.state_dict() == b.state_dict()
        assert a.defaults == b.defaults
        assert list(a.defaults) == list(b.defaults)


SCHEDULES = {
    "LambdaLR": [{"lr_lambda": lambda t: 0.9**t}],
    "StepLR": [{"step_size": 3}, {"step_size": 1, "gamma": 0.5}],
    "MultiStepLR": [{"milestones": [2, 5, 5, 9], "gamma": 0.3}],
    "ExponentialLR": [{"gamma": 0.8}],
    "CosineAnnealingLR": [{"T_max": 5}, {"T_max": 12, "eta_min": 0.01}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(n, o) for n, all_options in SCHEDULES.items() for o in all_options]
)
def test_schedules_give_the_same_rates_also_after_a_resume(name, options):
    ours, theirs = pair()
    rates = []
    for lib, params in ((optim, ours), (torch.optim, theirs)):
        seen = []
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}]
        opt = lib.SGD(groups, lr=0.1)
        make = getattr(lib.lr_scheduler, name)
        schedule = make(opt, **options)
        for step in range(25):
            seen.append(([g["lr"] for g in opt.param_groups], schedule.get_last_lr()))
            opt.step()
            schedule.step()
            if step == 6:
                state, opt_state = schedule.state_dict(), opt.state_dict()
                opt = lib.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=7.0)
                schedule = make(opt, **options)
                opt.load_state_dict(opt_state)
                schedule.load_state_dict(state)
            if step == 12:
                opt_state = opt.state_dict()
                opt = lib.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=7.0)
                opt.load_state_dict(opt_state)
                schedule = make(opt, **options, last_epoch=schedule.last_epoch)
        rates.append(seen)
    for (got, last), (expected, expected_last) in zip(*rates, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14)
        np.testing.assert_allclose(last, expected_last, rtol=1e-14)


def test_a_rate_that_the_user_changes_in_between_is_respected():
    ours, theirs = pair()
    ends = []
    for lib, params in ((optim, ours), (torch.optim, theirs)):
        opt = lib.SGD(params, lr=1.0)
        schedule = lib.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
        for step in range(6):
            opt.step()
            schedule.step()
            if step == 2:
                opt.param_groups[0]["lr"] = 8.0
        ends.append(opt.param_groups[0]["lr"])
    assert ends[0] == ends[1] == 2.0


def test_training_a_network_follows_pytorch():
    """Forward, backward and update together, from equal weights."""
    x = np.random.default_rng(0).standard_normal((16, 1, 6, 6))
    y = np.random.default_rng(1).integers(0, 3, 16)
    losses = []
    state = None
    for lib, array in ((dptrain, dptrain.tensor), (torch, torch.tensor)):
        net = lib.nn.Sequential(
            lib.nn.Conv2d(1, 4, 3, padding=1),
            lib.nn.ReLU(),
            lib.nn.MaxPool2d(2),
            lib.nn.Flatten(),
            lib.nn.Linear(36, 3),
        ).double()
        if state is None:
            state = {k: v.numpy().copy() for k, v in net.state_dict().items()}
        net.load_state_dict({k: array(v) for k, v in state.items()})
        opt = lib.optim.AdamW(net.parameters(), lr=0.01)
        seen = []
        for _ in range(20):
            opt.zero_grad()
            loss = lib.nn.CrossEntropyLoss()(net(array(x)), array(y))
            loss.backward()
            opt.step()
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0][-1] < losses[0][0] < math.inf
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-10)
