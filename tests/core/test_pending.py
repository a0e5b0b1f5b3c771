"""Pending results of batch norm: computed with what reads them, and never other values than at once."""

import copy
import io
import pickle

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.core.pending import Pending
from dptrain.nn import functional as F

CASES = {
    "relu": lambda y, h: y.relu(),
    "function": lambda y, h: dptrain.relu(y),
    "two relus": lambda y, h: y.relu() + dptrain.relu(y) * 3,
    "relu and itself": lambda y, h: y.relu() + y,
    "itself and relu": lambda y, h: y + y.relu(),
    "sum": lambda y, h: (y + h).relu(),
    "sum from the right": lambda y, h: (h + y).relu(),
    "sum of one": lambda y, h: y + y,
    "sum and relu": lambda y, h: (y + h) * y.relu(),
    "number": lambda y, h: (y + 1).relu(),
    "broadcast": lambda y, h: y + h[:, :1],
    "another order of memory": lambda y, h: y + h.contiguous(),
    "something else": lambda y, h: y.sigmoid(),
    "relu in place": lambda y, h: y.relu_(),
    "function in place": lambda y, h: F.relu(y, inplace=True),
    "sum in place": lambda y, h: in_place(y, h).relu_(),
    "add_": lambda y, h: y.add_(h, alpha=2),
}


def in_place(y, h):
    before = y
    y += h
    assert y is before
    return y


def layers(dtype=dptrain.float32):
    dptrain.manual_seed(1)
    conv = nn.Conv2d(3, 6, 3, padding=1, bias=False, dtype=dtype)
    norm = nn.BatchNorm2d(6, dtype=dtype)
    with dptrain.no_grad():
        norm.weight.copy_(dptrain.randn(6))
        norm.bias.copy_(dptrain.randn(6))
    return conv, norm


def images(dtype=dptrain.float32):
    dptrain.manual_seed(2)
    return dptrain.randn(4, 3, 7, 5, dtype=dtype)


def pending(conv, norm, x):
    y = norm(conv(x))
    assert type(y) is Pending
    return y


def at_once(conv, norm, x):
    y = norm(conv(x))
    assert y.isfinite().all()
    assert type(y) is dptrain.Tensor
    return y


@pytest.mark.parametrize("dtype", [dptrain.float32, dptrain.float64])
@pytest.mark.parametrize("case", CASES)
def test_a_pending_result_is_the_result(case, dtype):
    found = []
    for make in (pending, at_once):
        conv, norm = layers(dtype)
        x = images(dtype).requires_grad_()
        y = make(conv, norm, x)
        out = CASES[case](y, (conv(x) * 0.5).detach())
        ((out + 0.5) ** 3).sum().backward()  # gradients where the ReLU gives 0 too
        grads = [p.grad.numpy() for p in (x, *conv.parameters(), *norm.parameters())]
        found.append((out.detach().numpy(), norm.running_mean.numpy(), *grads))
    for value, expected in zip(*found, strict=True):
        bound = np.finfo(value.dtype).eps * 100 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(value, expected, rtol=0, atol=bound)
    np.testing.assert_array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_it_stays_pending_behind_a_relu_and_a_sum(threads):
    before = dptrain.get_num_threads()
    dptrain.set_num_threads(threads)
    try:
        conv, norm = layers()
        x = dptrain.randn(64, 3, 32, 32)
        y = pending(conv, norm, x)
        h = (conv(x) * 1).detach()
        cut, total = y.relu(), y + h
        assert type(y) is Pending
        assert cut.grad_fn.next_functions[0][0] is y.grad_fn
        assert repr(cut.grad_fn).startswith("<ReluBackward0")
        exact = at_once(conv, norm, x)
        np.testing.assert_array_equal(cut.detach().numpy(), np.maximum(exact.detach().numpy(), 0))
        np.testing.assert_array_equal(total.detach().numpy(), (exact + h).detach().numpy())
        np.testing.assert_array_equal(y.detach().numpy(), exact.detach().numpy())
    finally:
        dptrain.set_num_threads(before)


def by_numpy(x):
    x.detach().numpy()[...] = 0


CHANGES = {
    "in place": lambda x: x.zero_(),
    "a view": lambda x: x[:2].zero_(),
    "detached": lambda x: x.detach().fill_(3),
    "data": lambda x: x.data.mul_(2),
    "NumPy": by_numpy,
    "other data": lambda x: setattr(x, "data", x.data * 2),
    "index": lambda x: x.__setitem__(0, 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_it_waits_for_comes_too_late(change):
    conv, norm = layers()
    x = conv(images())
    y = norm(x)
    assert type(y) is Pending
    expected = at_once(*layers(), images()).detach().numpy()
    with dptrain.no_grad():
        CHANGES[change](x)
        np.testing.assert_array_equal(y.relu().numpy(), np.maximum(expected, 0))
    np.testing.assert_array_equal(y.detach().numpy(), expected)


@pytest.mark.parametrize("seen", ["array", "view", "saved", "leaf", "no_grad", "evaluation"])
def test_what_others_see_is_not_lent(seen):
    conv, norm = layers()
    x = conv(images())
    if seen == "array":
        kept = x.detach().numpy()
    elif seen == "view":
        kept = x[1:]
    elif seen == "saved":
        kept = x * x
    elif seen == "leaf":
        x = kept = x.detach()
    elif seen == "evaluation":
        kept = norm.eval()
    with dptrain.set_grad_enabled(seen != "no_grad"):
        assert type(norm(x)) is dptrain.Tensor
    assert seen == "no_grad" or kept is not None


def test_the_gradient_of_a_pending_result_is_its_own():
    """Hooks, `retain_grad` and `autograd.grad` see what has passed the ReLU, not what entered it."""
    seen = []
    for make in (pending, at_once):
        conv, norm = layers()
        y = make(conv, norm, images())
        early = []
        y.register_hook(lambda g, early=early: early.append(g.numpy()))
        out = y.relu()
        y.retain_grad()
        (out * 2).sum().backward(retain_graph=True)
        seen.append((early[0], y.grad.numpy(), dptrain.autograd.grad(out.sum(), y)[0].numpy()))
    for value, expected in zip(*seen, strict=True):
        np.testing.assert_array_equal(value, expected)
    assert (seen[0][0] == 0).any()


@pytest.mark.parametrize("order", [dptrain.contiguous_format, dptrain.channels_last])
@pytest.mark.parametrize("make", [pending, at_once])
def test_the_order_of_memory_looks_as_if_nothing_had_waited(make, order):
    conv, norm = layers()
    x = images().to(memory_format=order)
    y = make(conv, norm, x)
    results = [y.relu(), y + dptrain.zeros(y.shape).to(memory_format=order)]
    results += [F.max_pool2d(conv(x).relu(), 2), conv(x).relu()]
    results += [norm(conv(x)).relu_(), norm(conv(x))]
    for result in results:
        steps = dptrain.empty(result.shape, memory_format=order).stride()
        assert result.is_contiguous(memory_format=order)
        assert result.stride() == steps
        assert result.detach().numpy().strides == tuple(4 * s for s in steps)


def test_a_changed_result_is_another_version():
    """In place on a pending result: the history, `retain_grad` and the version are those of the change."""
    for make in (pending, at_once):
        conv, norm = layers()
        y = make(conv, norm, images())
        y.retain_grad()
        before, first = y._version_counter()[0], y.grad_fn
        assert y.relu_() is y
        assert y._version_counter()[0] > before
        assert y.grad_fn.next_functions[0][0] is first
        y.sum().backward(retain_graph=True)
        np.testing.assert_array_equal(y.grad.numpy(), np.ones(y.shape))
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_evaluation_in_one_pass():
    conv, norm = layers(dptrain.float64)
    norm(conv(images(dptrain.float64)))
    norm.eval()
    x = dptrain.randn(4, 6, 3, 3, dtype=dptrain.float64).requires_grad_()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    by_hand = (x - norm.running_mean[:, None, None]) * scale[:, None, None]
    by_hand = by_hand + norm.bias[:, None, None]
    np.testing.assert_allclose(norm(x).detach().numpy(), by_hand.detach().numpy(), atol=1e-12)
    assert dptrain.autograd.gradcheck(
        lambda x, w, b: F.batch_norm(x, norm.running_mean, norm.running_var, w, b),
        (x, norm.weight, norm.bias),
    )


def test_backward_twice_and_of_itself():
    conv, norm = layers(dptrain.float64)
    x = images(dptrain.float64).requires_grad_()
    out = pending(conv, norm, x).relu()
    first = dptrain.autograd.grad((out**2).sum(), x, retain_graph=True)[0]
    again = dptrain.autograd.grad((out**2).sum(), x, retain_graph=True)[0]
    np.testing.assert_array_equal(first.numpy(), again.numpy())
    graph = dptrain.autograd.grad((out**2).sum(), x, create_graph=True)[0]
    np.testing.assert_allclose(graph.detach().numpy(), first.numpy(), rtol=0, atol=1e-12)
    assert dptrain.autograd.gradgradcheck(
        lambda x: (norm(conv(x)).relu() ** 2).sum(), (x[:2, :, :3, :2].detach().requires_grad_(),)
    )
    assert dptrain.autograd.gradcheck(
        lambda x: norm(conv(x)).relu(), (x[:2, :, :3, :2].detach().requires_grad_(),)
    )


def test_anomaly_mode_finds_the_node():
    conv, norm = layers()
    out = pending(conv, norm, images()).relu()
    with (
        dptrain.autograd.set_detect_anomaly(True),
        pytest.raises(RuntimeError, match="ReluBackward0"),
    ):
        out.backward(dptrain.full(out.shape, float("nan")))


def test_copies_and_text():
    conv, norm = layers()
    expected = at_once(*layers(), images()).detach()
    y = pending(conv, norm, images())
    assert type(y).__name__ == "Tensor"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(y.detach())).numpy(), expected.numpy())
    conv, norm = layers()
    cut_off = pending(conv, norm, images()).detach_()
    np.testing.assert_array_equal(copy.deepcopy(cut_off).numpy(), expected.numpy())
    conv, norm = layers()
    assert "NativeBatchNormBackward0" in repr(pending(conv, norm, images()))
    conv, norm = layers()
    assert pending(conv, norm, images()).shape == (4, 6, 7, 5)


def test_a_fault_in_the_mask_would_be_seen(monkeypatch):
    """What the comparisons above are worth: a ReLU that leaves its work to nobody is noticed."""
    from dptrain.core.ops.norm import NativeBatchNorm

    monkeypatch.setattr(NativeBatchNorm, "joined", lambda self, run: False)
    with pytest.raises(AssertionError):
        test_a_pending_result_is_the_result("relu", dptrain.float32)


POOLS = {
    "halves": lambda h: F.max_pool2d(h, 2),
    "overlapping": lambda h: F.max_pool2d(h, 3, 2),
    "overhanging": lambda h: F.max_pool2d(h, 2, ceil_mode=True),
    "spread": lambda h: F.max_pool2d(h, 2, dilation=2),
    "apart": lambda h: F.max_pool2d(h, (2, 1), (3, 2)),
    "padded": lambda h: F.max_pool2d(h, 3, padding=1),
    "two pools": lambda h: F.max_pool2d(h, 2).sum() * 2 + F.max_pool2d(h, 3),
    "pool and itself": lambda h: F.max_pool2d(h, 2) * h.sum(),
    "itself and pool": lambda h: h.sum() * F.max_pool2d(h, 2),
    "indices": lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
    "sum": lambda h: h + 1,
    "convolution": lambda h: F.conv2d(h, dptrain.ones(2, 6, 3, 3, dtype=h.dtype)),
    "batch norm": lambda h: F.batch_norm(h, None, None, training=True).relu(),
}


def rectified(conv, x, wait):
    h = conv(x).relu()
    assert type(h) is Pending
    if not wait:
        assert h.isfinite().any()
        assert type(h) is dptrain.Tensor
    return h


@pytest.mark.parametrize("dtype", [dptrain.float32, dptrain.float64])
@pytest.mark.parametrize("case", POOLS)
def test_a_pool_computes_the_relu_it_reads(case, dtype):
    found = []
    for wait in (True, False):
        conv, _ = layers(dtype)
        x = images(dtype).requires_grad_()
        out = POOLS[case](rectified(conv, x - 0.3, wait))
        ((out + 0.5) ** 3).sum().backward()
        found.append([v.numpy() for v in (out.detach(), x.grad, conv.weight.grad)])
    assert (found[0][0] == 0).any() or case not in ("halves", "overlapping")
    for value, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
def test_special_values_pass_the_pool_of_a_relu(value):
    found = []
    for wait in (True, False):
        conv = nn.Conv2d(1, 1, 1, bias=False)
        with dptrain.no_grad():
            conv.weight.fill_(1)
        x = dptrain.full((1, 1, 4, 4), -1.0)
        x[0, 0, 1, 1] = x[0, 0, 2, 3] = value
        out = F.max_pool2d(rectified(conv, x.requires_grad_(), wait), 2)
        out.sum().backward()
        found.append((out.detach().numpy(), x.grad.numpy()))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_gradient_of_a_relu_before_a_pool_is_its_own():
    seen = []
    for wait in (True, False):
        conv, _ = layers()
        h = rectified(conv, images() - 0.3, wait)
        early = []
        h.register_hook(lambda g, early=early: early.append(g.numpy()))
        out = F.max_pool2d(h, 2)
        (out * 2).sum().backward(retain_graph=True)
        seen.append((early[0], dptrain.autograd.grad(out.sum(), h)[0].numpy()))
    for value, expected in zip(*seen, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("alive", [True, False])
def test_the_relu_keeps_its_mask_when_its_input_changes(change, alive):
    """A ReLU saves its result, so that its input may change before backward."""
    found = []
    for wait in (True, False):
        conv, _ = layers()
        x = conv(images())
        h = x.relu()
        if not wait:
            assert h.isfinite().any()
        out = F.max_pool2d(h, 2) + (h.mean() if not wait and alive else 0)
        if not alive:
            del h
        with dptrain.no_grad():
            CHANGES[change](x)
        if alive and wait:
            out = out + h.mean()
        grads = dptrain.autograd.grad((out**2).sum(), conv.weight, retain_graph=True)
        graph = dptrain.autograd.grad((out**2).sum(), conv.weight, create_graph=True)
        found.append([v.detach().numpy() for v in (out, *grads, *graph)])
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_derivatives_of_a_pool_of_a_relu():
    conv, _ = layers(dptrain.float64)
    x = images(dptrain.float64)[:2, :, :4, :4].detach().requires_grad_()
    assert dptrain.autograd.gradcheck(lambda x: F.max_pool2d(conv(x).relu(), 2), (x,))
    assert dptrain.autograd.gradgradcheck(
        lambda x: (F.max_pool2d(conv(x).relu(), 2) ** 2).sum(), (x,)
    )
    with pytest.raises(RuntimeError, match=r"max_pool2d: given input size \[4, 6, 7, 5\]"):
        F.max_pool2d(conv(images(dptrain.float64)).relu(), 9)


def test_a_pending_result_is_saved_as_the_tensor_it_becomes():
    conv, norm = layers()
    x = dptrain.randn(2, 3, 5, 5)
    pending = norm(conv(x))
    assert type(pending) is Pending
    file = io.BytesIO()
    dptrain.save({"kept": [pending]}, file)
    file.seek(0)
    assert dptrain.equal(dptrain.load(file)["kept"][0], pending)
