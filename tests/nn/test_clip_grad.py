"""Gradient clipping."""

import math

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.nn import utils
from dptrain.nn.utils import clip_grad_norm_, clip_grad_value_


def parameters(*grads, dtype=dptrain.float64):
    params = []
    for g in grads:
        p = nn.Parameter(dptrain.zeros(np.shape(g), dtype=dtype))
        p.grad = dptrain.tensor(g, dtype=dtype)
        params.append(p)
    return params


def joined(params):
    return np.concatenate([p.grad.numpy().ravel() for p in params])


@pytest.mark.parametrize("order", [1, 2, 3.5, math.inf])
def test_norm_over_all_gradients_is_brought_to_the_limit(order):
    params = parameters([3.0, -4.0], [[1.0], [2.0]], [])
    params.append(nn.Parameter(dptrain.zeros(2)))  # no gradient: does not count
    before = joined(params[:3])
    expected = np.linalg.norm(before, order)
    total = clip_grad_norm_(params, 0.5, norm_type=order)
    assert total.item() == pytest.approx(expected)
    np.testing.assert_allclose(joined(params[:3]), before * 0.5 / (expected + 1e-6))
    assert params[3].grad is None


def test_small_gradients_are_left_as_they_are():
    (p,) = parameters([3.0, 4.0])
    assert clip_grad_norm_(p, 5.1).item() == 5
    assert p.grad.tolist() == [3, 4]


def test_nothing_to_clip():
    assert clip_grad_norm_([], 1.0).item() == 0
    assert clip_grad_norm_([nn.Parameter(dptrain.zeros(1))], 1.0).item() == 0


def test_half_precision_gradients_are_summed_wider():
    (p,) = parameters([300.0, 400.0], dtype=dptrain.float16)
    assert clip_grad_norm_(p, 1.0).item() == pytest.approx(500)
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=2e-3)
    assert p.grad.dtype is dptrain.float16


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_norm_that_is_not_finite_is_an_error_where_asked(bad):
    params = parameters([1.0, bad])
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert params[0].grad.numpy()[0] == 1
    assert not math.isfinite(clip_grad_norm_(params, 1.0).item())
    assert params[0].grad.numpy()[0] != 1


def test_values_are_limited_on_both_sides():
    params = parameters([-3.0, 0.5, 2.0], [9.0])
    clip_grad_value_(params, 1)
    assert joined(params).tolist() == [-1, 0.5, 1, 1]


def test_a_generator_of_parameters_is_read_once():
    net = nn.Linear(3, 2)
    net(dptrain.ones(1, 3)).sum().backward()
    total = clip_grad_norm_(net.parameters(), 0.1)
    assert total.item() == pytest.approx(math.sqrt(8))
    assert math.sqrt(sum((p.grad.numpy() ** 2).sum() for p in net.parameters())) == pytest.approx(
        0.1, rel=1e-4
    )


def test_norm_and_clipping_in_two_steps_are_clip_grad_norm_():
    for order in (1.0, 2.0, math.inf):
        whole, parts = ([nn.Parameter(dptrain.zeros(3)) for _ in range(2)] for _ in range(2))
        for params in (whole, parts):
            for i, p in enumerate(params):
                p.grad = dptrain.tensor([1.0, -2.0, 3.0]) * (i + 1)
        expected = clip_grad_norm_(whole, 2.0, order)
        total = utils.get_total_norm([p.grad for p in parts], order)
        assert total.item() == expected.item()
        utils.clip_grads_with_norm_(parts, 2.0, total)
        assert [p.grad.tolist() for p in parts] == [p.grad.tolist() for p in whole]
        assert utils.get_total_norm((p.grad for p in parts), order).item() == pytest.approx(2.0)
    assert utils.get_total_norm([]).item() == 0
    with pytest.raises(RuntimeError, match="non-finite"):
        utils.get_total_norm(dptrain.tensor([math.nan]), error_if_nonfinite=True)


def test_old_name_of_clipping_is_deprecated():
    p = nn.Parameter(dptrain.zeros(1))
    p.grad = dptrain.ones(1)
    with pytest.warns(FutureWarning, match="deprecated in favor of `nn.utils.clip_grad_norm_`"):
        utils.clip_grad_norm(p, 0.5)
    assert p.grad.item() == pytest.approx(0.5, abs=1e-5)
