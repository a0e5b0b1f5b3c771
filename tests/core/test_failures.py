"""How failed calls of what is no operation are told: whose words stand, and whose are replaced."""

import warnings

import pytest

import dptrain
from dptrain import nn, optim
from dptrain.core.failures import told


def refused(action):
    try:
        action()
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


def test_a_wrong_argument_of_a_layer_is_named_in_place_of_what_came_of_it():
    error = refused(lambda: nn.BatchNorm2d(3)(None))
    assert type(error) is TypeError
    assert str(error) == "BatchNorm2d(): argument 'input' (position 1) must be Tensor, not NoneType"
    assert error.__suppress_context__


def test_a_layer_is_named_before_the_facts():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))
    error = refused(lambda: model(dptrain.ones(4, 2)))
    assert type(error) is ValueError
    assert str(error).startswith("BatchNorm2d: expected 4D input")


@pytest.mark.parametrize("kind", [AttributeError, TypeError, ValueError, KeyError, RuntimeError])
def test_errors_of_a_users_layer_pass_as_they_are(kind):
    raised = kind("of the user")

    class Own(nn.Module):
        def forward(self, x):
            raise raised

    assert refused(lambda: nn.Sequential(nn.Linear(2, 2), Own())(dptrain.ones(1, 2))) is raised


def test_a_users_mistake_in_a_layer_of_his_own_keeps_pythons_words():
    class Own(nn.Module):
        def forward(self, x):
            return x.no_such_thing

    error = refused(lambda: nn.Sequential(Own())(dptrain.ones(1)))
    assert type(error) is AttributeError
    assert "no_such_thing" in str(error)


def test_errors_of_a_users_function_pass_as_they_are():
    def schedule(step):
        return None + step

    optimizer = optim.SGD([dptrain.ones(2, requires_grad=True)], lr=0.1)
    error = refused(lambda: optim.lr_scheduler.LambdaLR(optimizer, schedule))
    assert str(error) == "unsupported operand type(s) for +: 'NoneType' and 'int'"


def test_kinds_of_their_own_stay():
    class Special(ValueError):
        pass

    error = Special("words")
    assert told(error, "f", told, (), {}) is error


def test_constructors_name_the_class_that_the_user_called():
    class Mine(nn.Linear):
        def __init__(self, size):
            super().__init__(size, "wide")

    assert str(refused(lambda: Mine(2))).startswith(
        "Linear(): argument 'out_features' (position 2)"
    )
    assert str(refused(lambda: nn.Conv2d("a", 2, 3))).startswith("Conv2d(): argument 'in_channels'")
    assert str(refused(lambda: nn.CELU(1.0, False, 3))).startswith("CELU() takes 2 positional")


def test_an_argument_that_fits_is_not_blamed_for_another():
    error = refused(lambda: nn.Conv1d(3, 2, 3, padding="same", groups=None))
    assert "argument 'groups' must be int, not NoneType" in str(error)


def test_options_that_fail_at_the_first_step_are_named():
    p = dptrain.ones(2, requires_grad=True)
    p.grad = dptrain.ones(2)
    optimizer = optim.ASGD([p], lambd=None)
    assert "ASGD(): argument 'lambd' must be Number" in str(refused(optimizer.step))
    scheduler = optim.lr_scheduler.StepLR(optim.SGD([p], lr=0.1), 1)
    scheduler.gamma = "half"
    scheduler.optimizer.step()
    assert "StepLR(): argument 'gamma' must be Number, not str" in str(refused(scheduler.step))


@pytest.mark.parametrize(
    ("given", "found"),
    [([1], "list of int"), (None, "NoneType"), ((dptrain.ones(1), "x"), "tuple of Tensor, str")],
)
def test_annotations_of_collections_are_looked_into(given, found):
    error = refused(lambda: nn.utils.clip_grad_norm_(given, 1.0))
    assert type(error) is TypeError
    assert str(error) == (
        "clip_grad_norm_(): argument 'parameters' (position 1) must be Tensor or Iterable of Tensor, "
        f"not {found}"
    )


def test_a_call_that_goes_well_is_not_looked_at(monkeypatch):
    monkeypatch.setattr("dptrain.nn.module.told", None)
    assert nn.Linear(2, 3)(dptrain.ones(1, 2)).shape == (1, 3)


def parameter():
    return dptrain.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    "warns",
    [
        lambda p: nn.LSTM(2, 2, dropout=0.5),
        lambda p: optim.SGD([p, p], lr=0.1),
        lambda p: optim.lr_scheduler.StepLR(optim.SGD([p], lr=0.1), 1).get_lr(),
        lambda p: nn.NLLLoss2d(),
        lambda p: nn.utils.clip_grad_norm([p], 1.0),
        lambda p: nn.utils.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_warnings_name_the_users_line(warns):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warns(parameter())
    assert [w.filename for w in seen] == [__file__]
