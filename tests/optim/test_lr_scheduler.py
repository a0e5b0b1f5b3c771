"""Learning rate schedules against their closed forms, warnings and errors."""

import math

import pytest

import dptrain
from dptrain import nn, optim
from dptrain.optim import lr_scheduler


def optimizer(*rates):
    groups = [{"params": [nn.Parameter(dptrain.zeros(1))], "lr": lr} for lr in rates]
    return optim.SGD(groups)


def rates_of(schedule, steps):
    seen = [schedule.get_last_lr()]
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        seen.append(schedule.get_last_lr())
    return seen


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
        (lambda o: lr_scheduler.StepLR(o, 3, 0.5), lambda t: 0.5 ** (t // 3)),
        (
            lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 5], 0.5),
            lambda t: 0.5 ** (2 * (t >= 2) + (t >= 5)),
        ),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.9), lambda t: 0.9**t),
        (
            lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
            lambda t: (1 + math.cos(math.pi * t / 4)) / 2,
        ),
    ],
    ids=["lambda", "step", "multistep", "exponential", "cosine"],
)
def test_rates_follow_the_closed_form_in_every_group(make, factor):
    schedule = make(optimizer(0.1, 2.0))
    for t, rates in enumerate(rates_of(schedule, 9)):
        assert rates == pytest.approx([0.1 * factor(t), 2.0 * factor(t)], abs=1e-12)
    assert schedule.get_last_lr() == [g["lr"] for g in schedule.optimizer.param_groups]


def test_rate_in_a_tensor_is_changed_in_place():
    rate = dptrain.tensor(1.0)
    schedule = lr_scheduler.ExponentialLR(optimizer(rate), 0.5)
    rates_of(schedule, 1)
    assert rate.item() == 0.5
    assert schedule.base_lrs == [1.0]


def test_one_function_for_each_group():
    schedule = lr_scheduler.LambdaLR(optimizer(1.0, 1.0), [lambda t: t, lambda t: -t])
    assert rates_of(schedule, 2)[-1] == [2, -2]
    with pytest.raises(ValueError, match="Expected 2 lr_lambdas, but got 1"):
        lr_scheduler.LambdaLR(optimizer(1.0, 1.0), [lambda t: t])


class Ramp:
    def __init__(self, slope):
        self.slope = slope

    def __call__(self, t):
        return self.slope * t


def test_callable_objects_are_saved_with_their_attributes():
    first = lr_scheduler.LambdaLR(optimizer(1.0), Ramp(3))
    rates_of(first, 2)
    second = lr_scheduler.LambdaLR(optimizer(1.0), Ramp(5))
    second.load_state_dict(first.state_dict())
    assert rates_of(second, 1)[-1] == [9]
    assert "optimizer" not in first.state_dict()


def test_wrong_order_of_steps_is_warned_of():
    schedule = lr_scheduler.StepLR(optimizer(1.0), 1)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        schedule.step()


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="int is not an Optimizer"):
        lr_scheduler.StepLR(3, 1)


def test_going_on_needs_the_initial_rates():
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optimizer(1.0), 1, last_epoch=4)
