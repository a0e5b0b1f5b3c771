"""Optimizers over flat storage: what is updated, what is skipped, what follows a rebinding."""

import copy
import math
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dptrain
from dptrain import nn, optim
from dptrain.core.flat import FlatStorage, adopt, aligned_empty, place_of
from dptrain.core.kernels import reference, reference_optim

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


# ---- what follows a rebinding ----------------------------------------------------------------------


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


# ---- state -----------------------------------------------------------------------------------------


@every_optimizer
def test_copied_optimizer_goes_on_as_the_original_would(make):
    params = leaves(3, 4)
    o = make(params)
    give_gradients(params)
    o.step()
    twins, other = copy.deepcopy((params, o))
    again, third = pickle.loads(pickle.dumps((params, o)))
    for step in (1, 2):
        for group, optimizer in ((params, o), (twins, other), (again, third)):
            give_gradients(group, step)
            optimizer.step()
    for p, q, r in zip(params, twins, again, strict=True):
        np.testing.assert_array_equal(value(p), value(q))
        np.testing.assert_array_equal(value(p), value(r))


@every_optimizer
def test_loaded_state_is_a_copy_that_goes_on_alike(make):
    params = leaves(3, 4)
    o = make(params)
    for step in range(2):
        give_gradients(params, step, skip={1} if step else ())
        o.step()
    twins = copy.deepcopy(params)
    other = make(twins)
    other.load_state_dict(o.state_dict())
    for step in (2, 3):
        give_gradients(params, step)
        o.step()
    for step in (2, 3):
        give_gradients(twins, step)
        other.step()
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_array_equal(value(p), value(q))


def test_state_may_come_as_arrays():
    params = leaves(3)
    o = optim.Adam(params)
    give_gradients(params)
    o.step()
    saved = o.state_dict()
    saved["state"] = {
        k: {n: v.numpy() for n, v in entry.items()} for k, entry in saved["state"].items()
    }
    other = optim.Adam(leaves(3))
    other.load_state_dict(saved)
    (entry,) = other.state.values()
    assert entry["step"].item() == 1
    np.testing.assert_array_equal(entry["exp_avg"].numpy(), o.state[params[0]]["exp_avg"].numpy())


def test_state_that_is_cleared_starts_anew():
    params = leaves(3, 4)
    o = MAKERS["adam"](params)
    give_gradients(params)
    o.step()
    o.state.clear()
    twins = copy.deepcopy(params)
    other = MAKERS["adam"](twins)
    for group, optimizer in ((params, o), (twins, other)):
        give_gradients(group, 1)
        optimizer.step()
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_array_equal(value(p), value(q))
    assert o.state[params[0]]["step"].item() == 1


def test_state_that_the_user_replaces_is_used():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=1.0, momentum=0.5)
    give_gradients([p])
    o.step()
    o.step()
    before, grad = value(p), p.grad.numpy().copy()
    o.state[p]["momentum_buffer"] = dptrain.tensor([2.0, 4.0, 6.0])
    o.step()
    np.testing.assert_allclose(value(p), before - (np.array([1.0, 2.0, 3.0]) + grad))


def test_state_of_two_parameters_may_be_exchanged():
    p, q = leaves(3, 3)
    o = optim.SGD([p, q], lr=1.0, momentum=0.5)
    give_gradients([p, q])
    o.step()
    held = [o.state[t]["momentum_buffer"].numpy().copy() for t in (p, q)]
    o.state[p], o.state[q] = o.state[q], o.state[p]
    before, grads = [value(t) for t in (p, q)], [t.grad.numpy().copy() for t in (p, q)]
    o.step()
    np.testing.assert_allclose(value(p), before[0] - (0.5 * held[1] + grads[0]))
    np.testing.assert_allclose(value(q), before[1] - (0.5 * held[0] + grads[1]))


def test_momentum_that_is_switched_on_later_starts_from_the_gradient():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=1.0)
    give_gradients([p])
    o.step()
    o.param_groups[0]["momentum"] = 0.9
    before, grad = value(p), p.grad.numpy().copy()
    o.step()
    np.testing.assert_allclose(value(p), before - grad)
    o.step()
    np.testing.assert_allclose(value(p), before - grad - 1.9 * grad)


def test_parameter_that_is_exchanged_in_its_group_is_updated():
    p, q = leaves(3, 3)
    o = optim.SGD([p], lr=1.0)
    give_gradients([p, q])
    o.step()
    o.param_groups[0]["params"][0] = q
    kept, before, grad = value(p), value(q), q.grad.numpy().copy()
    o.step()
    np.testing.assert_array_equal(value(p), kept)
    np.testing.assert_allclose(value(q), before - grad)


def test_group_that_is_replaced_counts_at_the_next_step():
    (p,) = leaves(3)
    o = optim.SGD([p], lr=1.0)
    give_gradients([p])
    o.step()
    o.param_groups[0] = {**o.param_groups[0], "lr": 0.0}
    kept = value(p)
    o.step()
    np.testing.assert_array_equal(value(p), kept)


def test_state_tensors_are_views_of_one_buffer_per_name():
    params = leaves(3, 4)
    o = optim.Adam(params)
    give_gradients(params)
    o.step()
    a, b = (o.state[p]["exp_avg"].numpy() for p in params)
    assert a.base is b.base
    assert not np.may_share_memory(a, o.state[params[0]]["exp_avg_sq"].numpy())


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
        ("AdamW", {"capturable": True}, "capturable=True is not supported"),
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
