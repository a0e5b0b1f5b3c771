"""Results that lie with the channels last look and behave as PyTorch's do: strides, views, shared memory."""

import copy
import io
import random

import numpy as np
import pytest

import dptrain
from dptrain.nn import functional


def image(m, shape=(2, 3, 6, 6), seed=0):
    return m.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def convolved(m, x, outputs=4):
    weight = image(m, (outputs, x.shape[1], 3, 3), 1)
    return m.nn.functional.conv2d(x, weight, padding=1)


def test_the_view_after_a_convolution():
    x = image(dptrain).requires_grad_()
    y = functional.max_pool2d(functional.relu(convolved(dptrain, x)), 2)
    assert y._array.flags.c_contiguous is False  # else this test shows nothing
    assert y.stride() == (36, 9, 3, 1)
    assert y.is_contiguous()
    assert y.view(2, -1).shape == (2, 36)
    assert y.contiguous() is y
    y.view(2, -1).sum().backward()
    assert x.grad.is_contiguous()


def test_writes_through_a_view_reach_every_tensor_of_the_memory():
    y = convolved(dptrain, image(dptrain))
    before, data = y.detach(), y.data
    flat = y.view(-1)
    after = y.detach()
    flat.fill_(7.0)
    y[0, 0, 0, 0] = 5.0
    for tensor in (before, data, after, y, flat, dptrain.from_numpy(y.numpy())):
        assert tensor.sum().item() == 7.0 * 287 + 5.0
    assert before.data_ptr() == y.data_ptr() == flat.data_ptr()


def test_the_numpy_array_is_the_tensors_memory():
    y = convolved(dptrain, image(dptrain))
    array = y.numpy()
    assert array.flags.c_contiguous
    array[...] = 3.0
    assert y.sum().item() == 3.0 * y.numel()
    y.zero_()
    assert not array.any()


def test_other_values_are_not_touched_when_the_order_is_settled():
    y = convolved(dptrain, image(dptrain))
    other = y.detach()
    other.data = dptrain.ones(2)
    y.view(-1)
    assert other.tolist() == [1.0, 1.0]


def test_a_change_through_a_view_of_a_saved_value_is_noticed():
    y = functional.relu(convolved(dptrain, image(dptrain).requires_grad_()))
    y.view(-1).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()


def test_hooks_and_functions_see_gradients_that_can_be_viewed():
    seen = []

    class Through(dptrain.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            seen.append(grad.view(-1).shape)
            return grad

    x = image(dptrain).requires_grad_()
    y = Through.apply(convolved(dptrain, x))
    y.register_hook(lambda grad: seen.append(grad.view(2, -1).shape))
    convolved(dptrain, y).sum().backward()
    assert seen == [(2, 144), (288,)]


def test_copies_lie_as_they_were_shown():
    y = convolved(dptrain, image(dptrain))
    file = io.BytesIO()
    dptrain.save(y, file)
    file.seek(0)
    copies = [copy.deepcopy(y), y.clone(), dptrain.zeros_like(y), y + 0, dptrain.nn.Parameter(y)]
    for made in [*copies, dptrain.load(file)]:
        assert made.stride() == (144, 36, 6, 1)
        made.view(-1)


def chain(m, seed, last):
    """Tensors that a random sequence of operations, views and in-place changes has made, all kept."""
    draw = random.Random(seed)
    x = image(m)
    if last:
        x = x.contiguous(memory_format=m.channels_last)
    made = [convolved(m, x)]
    steps = [
        lambda y: convolved(m, y),
        lambda y: y.relu(),
        lambda y: y * 2 + 1,
        lambda y: m.nn.functional.max_pool2d(y, 3, 1, 1),
        lambda y: y.detach(),
        lambda y: y[:, 1:],
        lambda y: y[:, :, ::2],
        lambda y: y.transpose(2, 3),
        lambda y: y.view(y.shape),
        lambda y: y.flatten(2).unflatten(2, y.shape[2:]),
        lambda y: y.mul_(0.5),
        lambda y: y[0].add_(1.0)[None],
        lambda y: m.cat([y.contiguous(), y.contiguous()], 1),
        lambda y: y.clone(),
        lambda y: y.contiguous(),
    ]
    for _ in range(8):
        step, source = draw.choice(steps), draw.choice(made)
        if source.ndim == 4 and source.shape[1] > 1 and source.shape[2] > 2:
            made.append(step(source))
    return made


def steps(tensor):
    """The strides of dimensions that one can step along."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


@pytest.mark.oracle
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_done_values_and_strides_are_pytorchs(seed, last):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for ours, theirs in zip(chain(dptrain, seed, last), chain(torch, seed, last), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-9, atol=1e-9)
        if (
            not last
        ):  # with the channels last PyTorch's own choice differs from operation to operation
            assert steps(ours) == steps(theirs)
