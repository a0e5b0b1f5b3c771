"""Hooks of optimizers: when they run, what they may change, how they are taken off."""

import copy

import pytest

import dptrain
from dptrain import nn, optim
from dptrain.optim.hooks import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def optimizer(kind=optim.SGD):
    p = nn.Parameter(dptrain.ones(1))
    p.grad = dptrain.ones(1)
    return p, kind([p])


def test_step_hooks_run_around_the_step_in_order():
    p, o = optimizer()
    seen = []
    handles = [
        o.register_step_pre_hook(lambda o, a, k: seen.append(("before", p.item() == 1, len(a), k))),
        o.register_step_post_hook(lambda o, a, k: seen.append(("after", p.item() < 1, len(a), k))),
        register_optimizer_step_pre_hook(lambda o, a, k: seen.append("all before")),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append("all after")),
    ]
    try:
        o.step()
    finally:
        for handle in handles:
            handle.remove()
    assert seen == ["all before", ("before", True, 1, {}), ("after", True, 1, {}), "all after"]
    o.step()
    assert len(seen) == 4


def test_pre_hook_may_change_the_arguments():
    _, o = optimizer()
    o.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: "other"), {}))
    assert o.step(lambda: "given") == "other"
    o.register_step_pre_hook(lambda o, args, kwargs: 3)
    with pytest.raises(RuntimeError, match=r"must return None or a tuple .* but got 3"):
        o.step()


class Twice(optim.SGD):
    """Calls the step of its base class twice."""

    def step(self, closure=None):
        super().step()
        return super().step(closure)


class OfItsOwn(optim.Optimizer):
    """Updates in its own step, as users of PyTorch write it."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.5})

    @dptrain.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


@pytest.mark.parametrize("kind", [Twice, OfItsOwn, optim.Adam])
def test_hooks_run_once_around_any_step(kind):
    _, o = optimizer(kind)
    seen = []
    o.register_step_pre_hook(lambda *_: seen.append("before"))
    o.register_step_post_hook(lambda *_: seen.append("after"))
    o.step()
    assert seen == ["before", "after"]


def test_optimizer_with_a_step_of_its_own_updates_and_counts_for_schedulers(recwarn):
    p, o = optimizer(OfItsOwn)
    schedule = optim.lr_scheduler.ExponentialLR(o, 0.5)
    o.step()
    schedule.step()
    assert p.item() == 0.5
    assert not recwarn


def test_step_that_fails_can_be_repeated_with_its_hooks():
    _, o = optimizer()
    seen = []
    o.register_step_pre_hook(lambda *_: seen.append(1))
    with pytest.raises(ZeroDivisionError):
        o.step(lambda: 1 / 0)
    o.step()
    assert seen == [1, 1]


def test_state_dict_hooks_see_and_replace_the_state():
    _, o = optimizer()
    seen = []
    o.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    o.register_state_dict_post_hook(lambda o, s: seen.append("post"))
    o.register_state_dict_post_hook(lambda o, s: {**s, "more": 1}, prepend=True)
    assert o.state_dict()["more"] == 1
    assert seen == ["pre", "post"]


def test_load_hooks_see_and_replace_the_state():
    _, o = optimizer()
    saved = o.state_dict()
    saved["param_groups"][0]["lr"] = 0.125
    seen = []

    def other_rate(o, state):
        return {**state, "param_groups": [{**state["param_groups"][0], "lr": 0.25}]}

    o.register_load_state_dict_pre_hook(lambda o, s: seen.append(s["param_groups"][0]["lr"]))
    o.register_load_state_dict_pre_hook(other_rate, prepend=True)
    o.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    o.load_state_dict(saved)
    assert seen == [0.25, 0.25]
    assert saved["param_groups"][0]["lr"] == 0.125


def test_copy_starts_without_hooks():
    _, o = optimizer()
    o.register_step_pre_hook(lambda *_: 1 / 0)
    copy.deepcopy(o).step()
    with pytest.raises(ZeroDivisionError):
        o.step()


def test_an_optimizer_around_another_steps_without_a_start_of_its_own():
    """As wrappers are often written: attributes are shared, `super().__init__` is never called."""

    class Around(optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups, self.steps = inner, inner.param_groups, 0

        def step(self, closure=None):
            self.steps += 1
            return self.inner.step(closure)

    p = nn.Parameter(dptrain.ones(2))
    p.grad = dptrain.ones(2)
    around = Around(optim.SGD([p], lr=0.25))
    around.step()
    assert around.steps == 1
    assert p.tolist() == [0.75, 0.75]
