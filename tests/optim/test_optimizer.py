"""Optimizers over flat storage: what is updated, what is skipped, what is refused."""

import copy
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_makers import apart, every_optimizer, give_gradients, leaf, leaves, value

import dptrain
from dptrain import nn, optim
from dptrain.core.flat import place_of
from dptrain.core.kernels import reference, reference_optim

# ---- one kernel call over many parameters ----------------------------------------------------------


@every_optimizer
@settings(deadline=None)  # the first example compiles
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    skips=st.lists(st.sets(st.integers(0, 4)), min_size=4, max_size=4),
)
def test_merged_runs_give_the_bits_of_separate_parameters(make, sizes, skips):
    params = leaves(*sizes)
    expected = apart(make, params, 4, skips)
    o = make(params)
    for step in range(4):
        give_gradients(params, step, skips[step])
        o.step()
    for p, q in zip(params, expected, strict=True):
        np.testing.assert_array_equal(value(p), value(q))


@every_optimizer
def test_neighbours_with_gradients_are_one_run(make):
    params = leaves(3, 20, 5)
    o = make(params)
    calls = []
    update = o._update
    o._update = lambda run: (calls.append(run.param.size), update(run))
    for step in range(3):
        give_gradients(params, step)
        o.step()
    assert len(calls) == 3
    calls.clear()
    give_gradients(params, 3, skip={1})
    o.step()
    assert len(calls) == 2


@every_optimizer
def test_numpy_kernels_give_the_same_parameters(make, monkeypatch):
    params = leaves(3, 20)
    others = copy.deepcopy(params)
    for provider in (None, lambda dtype: reference):
        if provider is not None:
            for name, module in list(sys.modules.items()):
                if name.startswith("dptrain.optim.") and hasattr(module, "kernels_for"):
                    monkeypatch.setattr(module, "kernels_for", provider)
                elif name.startswith("dptrain.optim.") and hasattr(module, "optim_kernels_for"):
                    monkeypatch.setattr(module, "optim_kernels_for", lambda dtype: reference_optim)
        chosen = params if provider is None else others
        o = make(chosen)
        for step in range(5):
            give_gradients(chosen, step)
            o.step()
    for p, q in zip(params, others, strict=True):
        np.testing.assert_allclose(value(p), value(q), rtol=1e-12)


@every_optimizer
def test_gaps_of_the_storage_stay_zero(make):
    params = leaves(3, 5, 9)
    o = make(params)
    for step in range(3):
        give_gradients(params, step)
        o.step()
    storage = place_of(params[0]).storage
    gaps = np.ones(storage.size, bool)
    for p in params:
        gaps[place_of(p).start : place_of(p).stop] = False
    assert not storage.data[gaps].any()


def test_gaps_stay_zero_without_eps():
    params = leaves(3, 5)
    o = optim.Adam(params, eps=0)
    give_gradients(params)
    o.step()
    assert np.isfinite(place_of(params[0]).storage.data).all()


# ---- what is skipped -------------------------------------------------------------------------------


@every_optimizer
def test_parameter_without_gradient_keeps_weights_state_and_count(make):
    params = leaves(3, 4)
    o = make(params)
    give_gradients(params)
    o.step()
    before = value(params[0])
    state = {k: v.numpy().copy() for k, v in o.state[params[0]].items()}
    give_gradients(params, 1, skip={0})
    moved = value(params[1])
    o.step()
    np.testing.assert_array_equal(value(params[0]), before)
    assert o.state[params[0]].keys() == state.keys()
    for name, held in state.items():
        np.testing.assert_array_equal(o.state[params[0]][name].numpy(), held)
    assert (value(params[1]) != moved).any()


def test_parameter_that_never_had_a_gradient_has_no_state():
    p, q = leaves(3, 4)
    o = optim.Adam([p, q])
    give_gradients([p])
    o.step()
    assert list(o.state_dict()["state"]) == [0]


def test_zero_gradient_is_no_missing_gradient():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=0.5, weight_decay=0.5)
    before = value(p)
    p.grad = dptrain.zeros(3, dtype=dptrain.float64)
    o.step()
    np.testing.assert_allclose(value(p), before * 0.75)


@every_optimizer
def test_zero_grad_forgets_or_zeroes(make):
    params = leaves(3, 4)
    o = make(params)
    give_gradients(params)
    o.step()
    o.zero_grad(set_to_none=False)
    assert [p.grad.tolist() for p in params] == [[0] * 3, [0] * 4]
    o.zero_grad()
    assert [p.grad for p in params] == [None, None]
    kept = [value(p) for p in params]
    o.step()
    for p, old in zip(params, kept, strict=True):
        np.testing.assert_array_equal(value(p), old)


def test_frozen_parameter_is_left_alone_until_it_is_unfrozen():
    p, q = leaves(3, 4)
    q.requires_grad_(False)
    array = q._array
    o = optim.SGD([p, q], lr=1.0)
    (p.sum() + q.sum()).backward()
    o.step()
    assert q._array is array
    q.requires_grad_()
    before = value(q)
    o.zero_grad()
    (p.sum() + 2 * q.sum()).backward()
    o.step()
    np.testing.assert_allclose(value(q), before - 2)


# ---- stepping --------------------------------------------------------------------------------------


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=0.1)

    def closure():
        o.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    before = value(p)
    with dptrain.no_grad():
        loss = o.step(closure)
    assert loss.item() == pytest.approx((before**2).sum())
    np.testing.assert_allclose(value(p), before * 0.8)


def test_rate_may_be_a_tensor():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=dptrain.tensor(0.5))
    before = value(p)
    give_gradients([p])
    grad = p.grad.numpy().copy()
    o.step()
    np.testing.assert_allclose(value(p), before - 0.5 * grad)


@every_optimizer
def test_infinite_gradients_stay_with_their_parameter(make):
    params = leaves(3, 4)
    o = make(params)
    give_gradients(params)
    params[0].grad = dptrain.tensor([math.inf, math.nan, 1.0], dtype=dptrain.float64)
    o.step()
    o.step()
    assert np.isfinite(value(params[1])).all()
    assert np.isfinite(value(params[0])[2])
    assert not np.isfinite(value(params[0])[:2]).any()


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("SGD", {"lr": -1.0}, "Invalid learning rate: -1.0"),
        ("SGD", {"lr": math.nan}, "Invalid learning rate: nan"),
        ("SGD", {"momentum": -0.1}, "Invalid momentum value: -0.1"),
        ("SGD", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ("SGD", {"differentiable": True}, "differentiable=True is not supported"),
        ("Adam", {"lr": -1.0}, "Invalid learning rate: -1.0"),
        ("Adam", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ("Adam", {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ("Adam", {"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ("AdamW", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ],
)
def test_options_without_meaning_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(optim, kind)(leaves(2), **options)


def test_options_of_a_group_are_checked_too():
    with pytest.raises(ValueError, match="Invalid learning rate"):
        optim.SGD([{"params": leaves(2), "lr": -1.0}])


def test_parameters_that_cannot_be_optimized_are_refused():
    (p,) = leaves(2)
    with pytest.raises(ValueError, match="empty parameter list"):
        optim.SGD([])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        optim.SGD(p)
    with pytest.raises(TypeError, match="one of the params is int"):
        optim.SGD([1])
    with pytest.raises(TypeError, match="ordered collections"):
        optim.SGD({p})
    with pytest.raises(TypeError, match="must be a dict"):
        optim.SGD([p]).add_param_group([p])
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        optim.SGD([p * 2])
    with pytest.raises(UserWarning, match="duplicate parameters"):
        optim.SGD([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optim.SGD([{"params": [p]}, {"params": p}])
    with pytest.raises(ValueError, match="names are missing"):
        optim.SGD([("p", p), leaf(2)])


def test_state_of_another_model_is_refused_and_nothing_changes():
    params = leaves(3, 4)
    o = optim.Adam(params, lr=0.5)
    give_gradients(params)
    o.step()
    before = copy.deepcopy(o.state_dict())
    good = o.state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        o.load_state_dict({**good, "param_groups": good["param_groups"] * 2})
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        o.load_state_dict({**good, "param_groups": [{**good["param_groups"][0], "params": [0]}]})
    wrong = optim.Adam(leaves(3, 5), lr=0.1)
    give_gradients(wrong.param_groups[0]["params"])
    wrong.step()
    with pytest.raises(ValueError, match=r"state\[1\]\['exp_avg'\] has shape \[5\]"):
        o.load_state_dict(wrong.state_dict())
    after = o.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, entry in before["state"].items():
        for name, held in entry.items():
            np.testing.assert_array_equal(after["state"][key][name].numpy(), held.numpy())


def test_named_parameters_keep_their_names_in_the_state():
    model = nn.Linear(2, 1)
    o = optim.SGD(model.named_parameters(), lr=0.1)
    assert o.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    o.load_state_dict(optim.SGD(model.parameters(), lr=0.2).state_dict())
    assert o.param_groups[0]["param_names"] == ["weight", "bias"]
    assert o.param_groups[0]["lr"] == 0.2


def test_state_of_adam_decays_decoupled_when_adamw_loads_it():
    o = optim.AdamW(leaves(2))
    o.load_state_dict(optim.Adam(leaves(2)).state_dict())
    assert o.param_groups[0]["decoupled_weight_decay"] is True
