"""The state of optimizers: copied, loaded, exchanged, cleared."""

import copy
import pickle

import numpy as np
from optimizer_makers import MAKERS, every_optimizer, give_gradients, leaves, value

import dptrain
from dptrain import optim


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
