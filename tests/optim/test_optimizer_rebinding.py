"""Optimizers over flat storage: what follows a rebinding of parameters and gradients."""

import copy

import numpy as np
import pytest
from optimizer_makers import MAKERS, apart, every_optimizer, give_gradients, leaves, value

import dptrain
from dptrain import nn, optim
from dptrain.core.flat import FlatStorage, adopt, aligned_empty, place_of


def test_values_seen_through_the_parameter_are_those_of_the_storage():
    params = leaves(3, 4)
    o = optim.SGD(params, lr=1.0)
    view = params[0].detach()
    give_gradients(params)
    o.step()
    np.testing.assert_array_equal(view.numpy(), value(params[0]))


@every_optimizer
def test_rebound_data_is_updated_with_the_state_it_had(make):
    params, others = leaves(3, 4), leaves(3, 4)
    o, plain = make(params), make(others)
    for step in range(4):
        if step == 2:
            params[0].data = params[0].data.clone() + 1
            with dptrain.no_grad():
                others[0].copy_(others[0] + 1)
        give_gradients(params, step)
        give_gradients(others, step)
        o.step()
        plain.step()
    for p, q in zip(params, others, strict=True):
        np.testing.assert_array_equal(value(p), value(q))


@every_optimizer
def test_model_that_changes_dtype_goes_on_with_its_state(make):
    model = nn.Linear(3, 2)
    o = make(model.parameters())
    x = dptrain.ones(4, 3)
    model(x).sum().backward()
    o.step()
    state = {k: v.double().numpy() for k, v in o.state[model.weight].items()}
    model.double()
    give_gradients([model.bias])
    model.weight.grad = None
    o.step()
    assert model.weight.dtype is model.bias.dtype is dptrain.float64
    give_gradients([model.weight, model.bias])
    before = copy.deepcopy(model.weight)
    o.step()
    alone = make([before])
    alone.state[before] = {
        k: dptrain.tensor(v, dtype=dptrain.float32 if k in o._scalar_names else dptrain.float64)
        for k, v in state.items()
    }
    give_gradients([before])
    alone.step()
    np.testing.assert_array_equal(value(model.weight), value(before))
    for name, held in o.state[model.weight].items():
        assert held.dtype is (dptrain.float32 if name in o._scalar_names else dptrain.float64)


@every_optimizer
def test_storage_that_is_laid_out_anew_takes_the_state_along(make):
    params = leaves(3, 4, 5)
    expected = apart(make, params, 4)
    o = make(params)
    for step in range(4):
        if step == 2:
            FlatStorage([params[1], params[2], params[0]])
        if step == 3:
            place_of(params[0]).storage.use_grad_memory(aligned_empty, extra=7)
        give_gradients(params, step)
        o.step()
    for p, q in zip(params, expected, strict=True):
        np.testing.assert_array_equal(value(p), value(q))


@every_optimizer
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_both_orders_of_adoption_share_one_storage(make, optimizer_first):
    params = leaves(3, 4)
    expected = apart(make, params, 2)
    if optimizer_first:
        o = make(params)
        (storage,) = adopt(params)
    else:
        (storage,) = adopt(params)
        o = make(params)
    for step in range(2):
        give_gradients(params, step)
        o.step()
    for p, q in zip(params, expected, strict=True):
        assert place_of(p).storage is storage
        np.testing.assert_array_equal(value(p), value(q))


def test_two_optimizers_share_a_storage_without_touching_each_others_parameters():
    params = leaves(3, 4, 5, 6)
    adopt(params)
    expected = apart(MAKERS["momentum"], params[::2], 3)
    one, two = MAKERS["momentum"](params[::2]), MAKERS["adam"](params[1::2])
    untouched = [value(p) for p in params[1::2]]
    for step in range(3):
        give_gradients(params[::2], step)
        one.step()
    for p, q in zip(params[::2], expected, strict=True):
        np.testing.assert_array_equal(value(p), value(q))
    for p, old in zip(params[1::2], untouched, strict=True):
        np.testing.assert_array_equal(value(p), old)
    give_gradients(params[1::2])
    two.step()
    assert (value(params[1]) != untouched[0]).all()


def test_gradients_of_backward_land_in_the_storage_and_are_used():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    o = optim.SGD(model.parameters(), lr=0.1)
    x = dptrain.randn(5, 3, dtype=dptrain.float64)
    for _ in range(3):
        o.zero_grad()
        model(x).square().mean().backward()
        expected = [value(p) - 0.1 * p.grad.numpy() for p in model.parameters()]
        o.step()
        for p, e in zip(model.parameters(), expected, strict=True):
            assert p.grad is place_of(p).storage.slot(place_of(p).position)
            np.testing.assert_allclose(value(p), e, rtol=1e-14)


def test_tied_parameter_is_updated_once():
    a = nn.Linear(3, 3, bias=False)
    b = nn.Linear(3, 3, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    o = optim.SGD(model.parameters(), lr=0.1)
    model(dptrain.ones(2, 3)).sum().backward()
    before, grad = value(a.weight), a.weight.grad.numpy().copy()
    o.step()
    assert b.weight is a.weight
    np.testing.assert_allclose(value(a.weight), before - np.float32(0.1) * grad, rtol=1e-6)


def test_backward_through_values_of_before_the_step_is_an_error():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=0.1)
    y = (p * p).sum()
    give_gradients([p])
    o.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
