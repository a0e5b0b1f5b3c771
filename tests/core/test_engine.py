"""The reverse pass: order, announcements, freeing, errors of use."""

from weakref import ref

import numpy as np
import pytest

import dptrain
from dptrain.core import engine
from dptrain.core.flat import FlatStorage
from dptrain.core.ops.matmul import Linear


class Same(dptrain.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return input * 1

    @staticmethod
    def backward(ctx, grad):
        return grad * 1


LINKS = {
    "add": lambda y: y + 1.0,
    "mul": lambda y: y * 1.0,
    "saves its result": lambda y: y.sigmoid() * 4 - y.sigmoid() * 3,
    "views": lambda y: y.view(2, 1).view(2),
    "in place": lambda y: y.clone() if y.is_leaf else y.mul_(1.0),
    "several outputs": lambda y: dptrain.cat(y.split(1)),
    "function": Same.apply,
}


@pytest.mark.parametrize("link", LINKS)
def test_long_chains_need_no_recursion(link):
    x = dptrain.ones(2, requires_grad=True)

    def chain():
        y = x
        for _ in range(5_000):
            y = LINKS[link](y)
        return y

    y = chain()
    node = ref(y.grad_fn)
    del y
    assert node() is None  # freed at once, without a walk and without the collector
    y = chain()
    node = ref(y.grad_fn)
    y.sum().backward()
    del y
    assert node() is None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("walk", [True, False], ids=["backward", "dropped"])
def test_graph_of_two_hundred_thousand_operations(walk):
    x = dptrain.ones(2, requires_grad=True)
    y = x
    for _ in range(200_000):
        y = y + 1.0
    node = ref(y.grad_fn)
    if walk:
        y.sum().backward()
        assert x.grad.tolist() == [1, 1]
    del y
    assert node() is None


def test_gradients_accumulate_over_calls_and_uses():
    x = dptrain.tensor([2.0, 3.0], requires_grad=True)
    (x * x + x).sum().backward()
    (3 * x).sum().backward()
    assert x.grad.tolist() == [8, 10]


def test_leaf_is_announced_before_the_walk_reaches_the_earlier_ones():
    """The last layer's gradient is final while the first layer's has not been computed yet."""
    first = dptrain.ones(2, requires_grad=True)
    last = dptrain.ones(2, requires_grad=True)
    seen = []
    last.register_post_accumulate_grad_hook(lambda p: seen.append(("last", first.grad is None)))
    first.register_post_accumulate_grad_hook(
        lambda p: seen.append(("first", last.grad is not None))
    )
    ((first * 2).exp() * last).sum().backward()
    assert seen == [("last", True), ("first", True)]


def test_leaf_used_twice_is_announced_once_and_complete():
    x = dptrain.ones(2, requires_grad=True)
    seen = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    (x * 3 + x.exp() * 0).sum().backward()
    assert seen == [[3, 3]]


class Nothing(dptrain.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        return input * 1

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("used", [(Same, Nothing), (Nothing, Same), (Same, Nothing, Same)])
def test_a_use_without_a_gradient_leaves_that_of_the_others(used):
    x = dptrain.ones(2, requires_grad=True)
    seen = []
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.tolist()))
    sum(function.apply(x).sum() for function in used).backward()
    assert seen == [[float(used.count(Same))] * 2]  # announced once
    seen.clear()
    (Nothing.apply(x) + Nothing.apply(x)).sum().backward()
    assert not seen
    assert x.grad.tolist() == [float(used.count(Same))] * 2


def test_end_of_pass_callback_runs_after_every_leaf():
    x, order = dptrain.ones(1, requires_grad=True), []
    x.register_post_accumulate_grad_hook(
        lambda p: (engine.queue_callback(lambda: order.append("end")), order.append("leaf"))
    )
    (x * 2).sum().backward()
    assert order == ["leaf", "end"]
    with pytest.raises(RuntimeError, match="only be installed during backward"):
        engine.queue_callback(lambda: None)


def test_hooks_see_and_replace_gradients():
    x = dptrain.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda g: g * 10)
    handle = x.register_hook(lambda g: g + 1)
    y.sum().backward(retain_graph=True)
    assert x.grad.tolist() == [21, 21]
    handle.remove()
    x.grad = None
    y.sum().backward()
    assert x.grad.tolist() == [20, 20]


def test_retain_grad_keeps_a_non_leafs_gradient():
    x = dptrain.ones(2, requires_grad=True)
    y = x * 2
    y.retain_grad()
    (y * 5).sum().backward()
    assert y.grad.tolist() == [5, 5]


def test_second_backward_needs_retain_graph():
    x = dptrain.ones(2, requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 4]
    with pytest.raises(RuntimeError, match=r"second time.*retain_graph=True"):
        y.backward()


def test_change_of_a_saved_value_is_an_error():
    x = dptrain.ones(3, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(
        RuntimeError,
        match=r"modified by an inplace operation.*\[3\].*ExpBackward0.*version 1; expected version 0",
    ):
        y.sum().backward()


def test_change_through_a_view_of_a_saved_value_is_an_error():
    x = dptrain.ones(2, 2)
    w = dptrain.ones(2, 2, requires_grad=True)
    y = x * w
    x[0].zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_change_of_a_value_that_nobody_saved_is_fine():
    x = dptrain.ones(3, requires_grad=True)
    y = x + 1
    y.mul_(2)
    y.sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_no_grad_records_nothing_and_nests():
    x = dptrain.ones(2, requires_grad=True)
    with dptrain.no_grad():
        assert not (x * 2).requires_grad
        with dptrain.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @dptrain.no_grad()
    def evaluate():
        return x * 2

    assert not evaluate().requires_grad
    with dptrain.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert dptrain.is_grad_enabled()


def test_broadcast_and_promoted_inputs_get_gradients_of_their_own_kind():
    x = dptrain.ones(3, 1, requires_grad=True)
    y = dptrain.ones(2, 1, 4, dtype=dptrain.float64, requires_grad=True)
    (x * y).sum().backward()
    assert (tuple(x.grad.shape), x.grad.dtype) == ((3, 1), dptrain.float32)
    assert (tuple(y.grad.shape), y.grad.dtype) == ((2, 1, 4), dptrain.float64)
    assert x.grad.tolist() == [[8], [8], [8]]


def test_two_leaves_never_share_one_gradient():
    x, y = dptrain.ones(2, requires_grad=True), dptrain.ones(2, requires_grad=True)
    (x + y).sum().backward()
    x.grad.zero_()
    assert y.grad.tolist() == [1, 1]


def test_autograd_grad_leaves_grad_alone():
    x = dptrain.tensor([2.0], requires_grad=True)
    y = x * x
    (found,) = dptrain.autograd.grad(y, x)
    assert found.tolist() == [4]
    assert x.grad is None
    unused = dptrain.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="allow_unused"):
        dptrain.autograd.grad(x * x, unused)


def test_third_derivative_through_create_graph():
    x = dptrain.tensor([2.0], dtype=dptrain.float64, requires_grad=True)
    y = x**4
    for _ in range(3):
        (y,) = dptrain.autograd.grad(y.sum(), x, create_graph=True)
    assert y.item() == pytest.approx(48.0, rel=1e-12)


def test_backward_accumulates_only_into_the_given_inputs():
    x, y = dptrain.ones(1, requires_grad=True), dptrain.ones(1, requires_grad=True)
    (x * y).sum().backward(inputs=[x])
    assert x.grad.tolist() == [1]
    assert y.grad is None


def test_hooks_off_the_way_to_what_is_asked_for_do_not_run():
    x, w = (dptrain.ones(1, requires_grad=True) for _ in range(2))
    middle, called = 2 * x, []
    middle.retain_grad()
    middle.register_hook(lambda grad: called.append(grad.item()))
    out = middle * w
    for inputs, times in ([w], 0), ([middle], 1), ([x], 2):
        dptrain.autograd.grad(out, inputs, retain_graph=True)
        assert len(called) == times
        assert (middle.grad is None) == (not times)
    out.backward(inputs=[w])
    assert len(called) == 2


def test_saved_values_are_freed_as_the_walk_goes():
    x = dptrain.ones(4, requires_grad=True)
    y = x.exp()
    node = y.grad_fn
    y.sum().backward()
    assert node.saved is None


def test_wrong_gradient_arguments_are_named():
    y = dptrain.ones(2, requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"shape \[3\].*\[2\]"):
        y.backward(dptrain.ones(3))
    with pytest.raises(TypeError, match="Tensors or None"):
        y.backward(np.ones(2))
    x = dptrain.ones(2)
    with pytest.raises(RuntimeError, match=r"shape \[3\]"):
        x.grad = dptrain.ones(3)


@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_written_straight_into_flat_storage_are_the_same(passes):
    """A weight that is used twice, and one that already holds a gradient, must not be overwritten."""

    def gradients(flat):
        stream = np.random.default_rng(0)
        tied, once = (
            dptrain.tensor(stream.standard_normal((4, 4)), requires_grad=True) for _ in "ab"
        )
        if flat:
            FlatStorage([once, tied])
        for _ in range(passes):
            x = dptrain.tensor(stream.standard_normal((3, 4)))
            for weight in (tied, once, tied):
                x = Linear.apply(x, weight).tanh()
            x.sum().backward()
        return tied.grad.numpy(), once.grad.numpy()

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_of_parts_are_added_in_place_and_to_nothing_else():
    """Parts of one tensor, taken in every way, beside uses of the whole of it, before and after."""
    x = dptrain.randn(3, 4, 5, requires_grad=True)
    weight = dptrain.randn(3, 4, 5)
    y = x * 2
    kept = y.sum(0)  # its gradient is handed on, not copied
    first, second, third = y.unbind(0)
    pieces = [
        first * weight[0],
        second[1:3] * 3,
        y[0, 1, 2] * 5,
        y.narrow(1, 1, 2) * weight[:, 1:3],
    ]
    total = sum(p.sum() for p in pieces) + (third * third).sum() + (kept * kept).sum() + x[2].sum()
    total.backward()
    expected = np.zeros((3, 4, 5), np.float32)
    expected[0] += weight.numpy()[0]
    expected[1, 1:3] += 3
    expected[0, 1, 2] += 5
    expected[:, 1:3] += weight.numpy()[:, 1:3]
    expected[2] += 2 * third.detach().numpy()
    expected += 2 * kept.detach().numpy()
    expected *= 2
    expected[2] += 1
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_part_is_not_added_to_a_gradient_that_another_path_has_received():
    x = dptrain.ones(4, requires_grad=True)
    a, b = x * 1, x * 1
    both = a + b  # hands one array to both
    (both.sum() + (a[1] * 10).sum() + (a[2:] * 100).sum()).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2, 12, 102, 102])


def test_parts_embed_once(monkeypatch):
    from dptrain.core.ops import shape

    embedded = []
    forward = shape.Embed.forward
    monkeypatch.setattr(
        shape.Embed, "forward", lambda self, *a: embedded.append(1) or forward(self, *a)
    )
    x = dptrain.randn(50, 3, requires_grad=True)
    y = x * 1
    sum(y[i].sum() * i for i in range(50)).backward()
    assert len(embedded) == 1
    np.testing.assert_array_equal(x.grad.numpy()[:, 0], np.arange(50))


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_each_walk_gives_a_leaf_memory_of_its_own(kind):
    weight = dptrain.rand(4, 4, requires_grad=True)
    index = dptrain.tensor([1, 2, 1])
    functional = dptrain.nn.functional
    if kind == "linear":
        loss = functional.linear(dptrain.eye(4), weight).sum()
    else:
        loss = functional.embedding(index, weight).sum()
    loss.backward(retain_graph=True)
    first, values = weight.grad, weight.grad.clone()
    weight.grad = None
    loss.backward(retain_graph=True)
    weight.grad.zero_()
    assert first.tolist() == values.tolist()
    loss.backward()
    assert weight.grad.tolist() == values.tolist()
