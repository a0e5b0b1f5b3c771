"""Function: derivatives written by the user, beside PyTorch's."""

import gc
import weakref

import numpy as np
import pytest

import dptrain
from dptrain.autograd import Function, gradcheck, gradgradcheck
from dptrain.autograd.function import once_differentiable


def cube(m):
    class Cube(m.autograd.Function):
        @staticmethod
        def forward(ctx, x, power=3):
            ctx.power = power
            ctx.save_for_backward(x)
            return x**power

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            assert ctx.needs_input_grad == (True, False)
            return grad * ctx.power * x ** (ctx.power - 1), None

    return lambda x, w: Cube.apply(x, 3) * w


def exp_of_saved_output(m):
    class Exp(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    return lambda x, w: Exp.apply(x * w)


def with_setup_context(m):
    class Scale(m.autograd.Function):
        @staticmethod
        def forward(x, w):
            return x * w, x + w

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, a, b):
            x, w = ctx.saved_tensors
            return a * w + b, a * x + b

    return lambda x, w: Scale.apply(x, w)[0] + Scale.apply(w, x)[1] ** 2


def in_place(m):
    class Twice(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    def use(x, w):
        y = x * w
        z = Twice.apply(y)
        assert z is y
        Twice.apply(y[0])
        return y * y

    return use


def unused_output(m):
    class Both(m.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x)
            sign = (x > 0).double()
            ctx.mark_non_differentiable(sign)
            return x * 2, w * 3, sign

        @staticmethod
        def backward(ctx, a, b, s):
            assert b is None
            return a * 2, None

    def use(x, w):
        y, _, s = Both.apply(x, w)
        assert not s.requires_grad
        return y * s * w

    return use


def identity(m):
    class Same(m.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            return -grad

    def use(x, w):
        y = Same.apply(x)
        assert y is not x
        return y * w + x

    return use


@pytest.mark.oracle
@pytest.mark.parametrize(
    "make", [cube, exp_of_saved_output, with_setup_context, in_place, unused_output, identity]
)
def test_functions_give_pytorchs_first_and_second_derivatives(make):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    results = []
    for m in (dptrain, torch):
        stream = np.random.default_rng(1)
        x, w = (m.tensor(stream.standard_normal((2, 3)), requires_grad=True) for _ in "ab")
        y = make(m)(x, w)
        first = m.autograd.grad(y.sum(), (x, w), create_graph=True)
        second = m.autograd.grad(sum((g * g).sum() for g in first), (x, w), allow_unused=True)
        results.append([y, *first, *[s if s is not None else m.zeros(1) for s in second]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("make", [cube, exp_of_saved_output, with_setup_context, in_place])
def test_functions_pass_gradcheck(make):
    x, w = (dptrain.randn(2, 3, dtype=dptrain.float64).requires_grad_() for _ in "ab")
    assert gradcheck(make(dptrain), (x, w))
    assert gradgradcheck(make(dptrain), (x, w))


def test_node_is_named_after_the_class_and_leaves_no_cycle():
    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            y = x * 2
            ctx.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    y = Double.apply(dptrain.ones(2, requires_grad=True))
    assert "grad_fn=<DoubleBackward>" in repr(y)
    gc.disable()
    try:
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None
    finally:
        gc.enable()


def broken(result, saved=lambda x: ()):
    class Broken(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(*saved(x))
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            assert ctx.saved_tensors is not None
            return result(grad)

    return Broken


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (lambda g: (), RuntimeError, r"BrokenBackward.*expected 1, got 0"),
        (lambda g: (g, g), RuntimeError, r"incorrect number of gradients \(expected 1, got 2\)"),
        (lambda g: 3, TypeError, r"expected Variable or None \(got int\)"),
        (lambda g: g[:1], RuntimeError, r"invalid gradient at index 0 - got \[1\].*\[2\]"),
    ],
)
def test_wrong_results_of_backward_are_named(result, kind, words):
    x = dptrain.ones(2, requires_grad=True)
    with pytest.raises(kind, match=words):
        broken(result).apply(x).sum().backward()


def test_misuse_is_named():
    x = dptrain.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"save_for_backward.*argument 1 is of type int"):
        broken(lambda g: g, lambda x: (x, 3)).apply(x)
    with pytest.raises(NotImplementedError, match="forward function"):
        Function.apply(x)
    y = broken(lambda g: g, lambda x: (x,)).apply(dptrain.ones((), requires_grad=True))
    y.backward()
    with pytest.raises(RuntimeError, match=r"second time.*BrokenBackward"):
        y.backward()
    y = broken(lambda g: g, lambda x: (x,)).apply(x).sum()
    with dptrain.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.backward()

    class Dirty(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.add_(1)

    with pytest.raises(RuntimeError, match="leaf Variable"):
        Dirty.apply(x)


def test_once_differentiable_refuses_the_second_derivative():
    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            assert not dptrain.is_grad_enabled()
            return 2 * ctx.saved_tensors[0] * grad

    x = dptrain.tensor([3.0], requires_grad=True)
    Square.apply(x).backward()
    assert x.grad.tolist() == [6]
    (g,) = dptrain.autograd.grad(Square.apply(x) * x, x, create_graph=True)
    with pytest.raises(RuntimeError, match="@once_differentiable"):
        g.backward()


@pytest.mark.oracle
def test_which_gradients_are_wanted_does_not_depend_on_the_mode():
    def seen(m):
        found = []

        class Product(m.autograd.Function):
            @staticmethod
            def forward(ctx, a, b, c=1):
                found.append(ctx.needs_input_grad)
                return a * b * c

        wanted, other = m.ones(2, requires_grad=True), m.ones(2)
        for args in ((wanted, other), (other, wanted, 2), (other, other)):
            Product.apply(*args)
            with m.no_grad():
                Product.apply(*args)
        return found

    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert seen(dptrain) == seen(torch)
