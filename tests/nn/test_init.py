"""Initial values: bounds, spread, fans, reproducibility."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dptrain
from dptrain import nn
from dptrain.nn import init


def assert_uniform(values, bound):
    """Within the bound, near it on both sides, and with the moments of the uniform distribution."""
    v = np.asarray(values).ravel().astype(np.float64) / bound
    assert np.abs(v).max() <= 1
    n = v.size
    assert v.max() > 1 - 20 / n
    assert v.min() < -1 + 20 / n
    # Five standard errors of the mean and of the variance (the fourth moment is 1/5).
    assert abs(v.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs((v**2).mean() - 1 / 3) < 5 * math.sqrt((1 / 5 - 1 / 9) / n)


def assert_normal(values, std):
    v = np.asarray(values).ravel().astype(np.float64) / std
    n = v.size
    assert abs(v.mean()) < 5 / math.sqrt(n)
    assert abs((v**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((np.abs(v) < 1).mean() - 0.6827) < 5 * math.sqrt(0.22 / n)


@pytest.fixture(autouse=True)
def seed():
    dptrain.manual_seed(1234)


def test_linear_starts_within_one_over_root_of_fan_in():
    layer = nn.Linear(100, 80)
    assert_uniform(layer.weight.detach().numpy(), 0.1)
    assert_uniform(nn.Linear(100, 5000).bias.detach().numpy(), 0.1)


def test_convolution_starts_within_one_over_root_of_fan_in():
    layer = nn.Conv2d(8, 600, 3, groups=2)
    bound = 1 / math.sqrt(4 * 9)
    assert_uniform(layer.weight.detach().numpy(), bound)
    assert_uniform(nn.Conv2d(4, 5000, 3).bias.detach().numpy(), bound)


def test_layers_without_inputs_start_without_a_bound():
    with pytest.warns(UserWarning, match="zero-element tensors is a no-op"):
        layer = nn.Linear(0, 3)
    assert layer.bias.tolist() == [0, 0, 0]


def test_equal_seeds_give_equal_layers_and_draws_go_on():
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    dptrain.manual_seed(1234)
    c = nn.Linear(3, 4)
    assert a.weight.tolist() == c.weight.tolist()
    assert a.bias.tolist() == c.bias.tolist()
    assert a.weight.tolist() != b.weight.tolist()


def test_same_values_in_every_precision():
    single = init.uniform_(dptrain.empty(50, dtype=dptrain.float32))
    dptrain.manual_seed(1234)
    double = init.uniform_(dptrain.empty(50, dtype=dptrain.float64))
    np.testing.assert_array_equal(single.numpy(), double.numpy().astype(np.float32))


@pytest.mark.parametrize(
    ("fill", "check"),
    [
        (lambda t: init.uniform_(t, -3, 3), lambda v: assert_uniform(v, 3)),
        (lambda t: init.normal_(t, 0, 2), lambda v: assert_normal(v, 2)),
        (
            lambda t: init.xavier_uniform_(t, gain=2),
            lambda v: assert_uniform(v, 2 * math.sqrt(6 / (6 + 8) / 100)),
        ),
        (
            lambda t: init.xavier_normal_(t),
            lambda v: assert_normal(v, math.sqrt(2 / (6 + 8) / 100)),
        ),
        (
            lambda t: init.kaiming_uniform_(t, nonlinearity="relu"),
            lambda v: assert_uniform(v, math.sqrt(6 / 600)),
        ),
        (
            lambda t: init.kaiming_normal_(t, mode="fan_out", nonlinearity="linear"),
            lambda v: assert_normal(v, math.sqrt(1 / 800)),
        ),
        (
            lambda t: init.kaiming_normal_(t, a=1),
            lambda v: assert_normal(v, math.sqrt(1 / 600)),
        ),
    ],
    ids=["uniform", "normal", "xavier_u", "xavier_n", "kaiming_u", "kaiming_n", "leaky"],
)
def test_distributions_have_their_spread(fill, check):
    tensor = dptrain.empty(8, 6, 10, 10)  # fan_in 600, fan_out 800
    assert fill(tensor) is tensor
    check(tensor.numpy())


def test_constants():
    assert init.constant_(dptrain.empty(2), 3.5).tolist() == [3.5, 3.5]
    assert init.ones_(dptrain.empty(2)).tolist() == [1, 1]
    assert init.zeros_(dptrain.empty(2)).tolist() == [0, 0]


def test_parameters_are_filled_without_recording():
    p = nn.Parameter(dptrain.zeros(3))
    init.normal_(p)
    assert p.is_leaf
    assert p.requires_grad


def test_draws_come_from_the_generator_that_is_given():
    g = dptrain.Generator().manual_seed(5)
    a = init.xavier_uniform_(dptrain.empty(3, 4), generator=g)
    untouched = dptrain.rand(3)
    g.manual_seed(5)
    dptrain.manual_seed(1234)
    assert untouched.tolist() == dptrain.rand(3).tolist()
    b = init.xavier_uniform_(dptrain.empty(3, 4), generator=g)
    assert a.tolist() == b.tolist()


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_fans_count_inputs_and_outputs_of_a_unit(shape):
    fan_in, fan_out = init._calculate_fan_in_and_fan_out(dptrain.empty(shape))
    assert fan_in * shape[0] == fan_out * shape[1] == math.prod(shape)


def test_gains():
    assert init.calculate_gain("linear") == init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("tanh") == pytest.approx(5 / 3)
    assert init.calculate_gain("relu") == init.calculate_gain("leaky_relu", 0) == math.sqrt(2)
    assert init.calculate_gain("leaky_relu", 1) == 1
    assert init.calculate_gain("leaky_relu") == pytest.approx(math.sqrt(2 / 1.0001))
    assert init.calculate_gain("selu") == 0.75


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        init.xavier_normal_(dptrain.empty(3))
    with pytest.raises(ValueError, match="Mode sideways not supported"):
        init.kaiming_uniform_(dptrain.empty(3, 3), mode="sideways")
    with pytest.raises(ValueError, match="Unsupported nonlinearity step"):
        init.calculate_gain("step")
    with pytest.raises(ValueError, match="negative_slope True not a valid number"):
        init.calculate_gain("leaky_relu", True)


@pytest.mark.parametrize(
    "name",
    [
        "kaiming_normal_",
        "kaiming_uniform_",
        "normal_",
        "orthogonal_",
        "sparse_",
        "trunc_normal_",
        "uniform_",
        "xavier_normal_",
        "xavier_uniform_",
    ],
)
def test_each_initialiser_draws_from_the_generator_alone(name):
    def draw(seed):
        target = dptrain.empty(4, 6)
        options = {"sparsity": 0.5} if name == "sparse_" else {}
        generator = dptrain.Generator().manual_seed(seed)
        return getattr(nn.init, name)(target, generator=generator, **options).tolist()

    before = dptrain.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert (dptrain.get_rng_state() == before).all()
