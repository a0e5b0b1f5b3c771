"""Derivatives of derivatives: backward formulas that are operations of their own, and walks over their graphs."""

import numpy as np
import pytest

import dptrain
from dptrain.autograd import grad, gradcheck, gradgradcheck
from dptrain.nn import functional as F

draws = np.random.default_rng(0)


def leaf(*shape):
    return dptrain.from_numpy(draws.standard_normal(shape)).requires_grad_()


CURVES = {
    "Tanh": lambda root: root.tanh,
    "Sigmoid": lambda root: root.sigmoid,
    "Relu": lambda root: root.relu,
    "LeakyRelu": lambda root: lambda x: root.nn.functional.leaky_relu(x, 0.2),
    "Hardtanh": lambda root: root.nn.functional.hardtanh,
    "Elu": lambda root: lambda x: root.nn.functional.elu(x, 0.7),
    "Silu": lambda root: root.nn.functional.silu,
    "Gelu": lambda root: root.nn.functional.gelu,
    "Softplus": lambda root: lambda x: root.nn.functional.softplus(x, 1.5),
}
PRODUCTS = {
    "linear": (lambda x, w, b: F.linear(x, w, b), [(3, 4), (2, 4), (2,)]),
    "linear of batches": (lambda x, w, b: F.linear(x, w, b), [(2, 3, 4), (2, 4), (2,)]),
    "linear of one": (lambda x, w: F.linear(x, w), [(4,), (2, 4)]),
    "matmul": (lambda a, b: a @ b, [(3, 4), (4, 2)]),
    "matmul of batches": (lambda a, b: a @ b, [(2, 3, 4), (2, 4, 2)]),
    "matmul of a batch and one": (lambda a, b: a @ b, [(2, 3, 4), (4, 2)]),
    "matmul of broadcast batches": (lambda a, b: a @ b, [(2, 1, 3, 4), (3, 4, 2)]),
    "mse": (lambda x, y: F.mse_loss(x, y), [(3, 4), (3, 4)]),
    "mse of each": (lambda x, y: F.mse_loss(x, y, reduction="none"), [(3, 4), (3, 4)]),
    "sum": (lambda x: (x * x).sum(1) * x[:, 0], [(3, 4)]),
}
FUNCTIONS = {
    **{name: (make(dptrain), [(3, 4)]) for name, make in CURVES.items()},
    **PRODUCTS,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_and_third_derivatives_equal_finite_differences(name):
    function, shapes = FUNCTIONS[name]
    inputs = [leaf(*shape) for shape in shapes]
    weights = leaf(*function(*inputs).shape).detach()

    def first(*args):
        # Times the arguments themselves: else what is of the second degree has no third derivative.
        out = (function(*args) * weights * args[0].sum()).sum()
        return grad(out, args, create_graph=True)

    assert gradcheck(first, inputs)
    assert gradgradcheck(first, inputs)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CURVES)
def test_second_derivatives_equal_pytorch_in_few_nodes(name):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    values = draws.standard_normal((5, 7))

    def run(root):
        x = root.from_numpy(values.copy()).requires_grad_()
        (first,) = root.autograd.grad(CURVES[name](root)(x * x).sum(), x, create_graph=True)
        names = []
        stack = [first.grad_fn]
        while stack:
            node = stack.pop()
            names.append(node.name())
            stack += [n for n, _ in node.next_functions if n is not None]
        (second,) = root.autograd.grad((first * first).sum(), x)
        return first.detach().numpy(), second.numpy(), {n for n in names if "BackwardBackward" in n}

    for mine, theirs in zip(run(dptrain), run(torch), strict=True):
        if isinstance(theirs, set):
            assert theirs - {"HardtanhBackwardBackward0"} <= mine
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_leaf_does_not_wait_for_a_node_that_no_gradient_reaches():
    """A slope that is constant between its jumps sends none on to what it was computed from."""
    x, w = leaf(6, 3), leaf(4, 3)
    (slope,) = grad(F.leaky_relu(F.linear(x, w)).sum(), x, create_graph=True)
    alone = grad((slope * slope).sum(), w, retain_graph=True)[0]
    seen = []
    w.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    ((slope * slope).sum() + w.sum()).backward()
    assert len(seen) == 1
    np.testing.assert_allclose(w.grad.numpy(), alone.numpy() + 1, rtol=1e-12)


@pytest.mark.oracle
def test_a_critic_with_a_gradient_penalty_equals_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

    def run(root):
        fixed = np.random.default_rng(1)
        nn = root.nn
        critic = nn.Sequential(
            nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
        )
        with root.no_grad():
            for p in critic.parameters():
                p.copy_(root.from_numpy(fixed.standard_normal(tuple(p.shape)).astype(np.float32)))
        real, fake = (
            root.from_numpy(fixed.standard_normal((16, 2)).astype(np.float32)) for _ in range(2)
        )
        mix = (real * 0.3 + fake * 0.7).requires_grad_()
        (g,) = root.autograd.grad(critic(mix).sum(), mix, create_graph=True)
        penalty = ((g.norm(2, dim=1) - 1) ** 2).mean()
        (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
        return [p.grad.numpy() for p in critic.parameters()]

    for mine, theirs in zip(run(dptrain), run(torch), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_walk_computes_no_gradient_that_it_was_not_asked_for(monkeypatch):
    from dptrain.core.ops import matmul

    asked = []
    plain = matmul._linear_gradients

    def watched(grad, input, weight, needs, target=None):
        asked.append(needs)
        return plain(grad, input, weight, needs, target)

    monkeypatch.setattr(matmul, "_linear_gradients", watched)
    x, w, b = leaf(3, 4), leaf(2, 4), leaf(2)
    out = F.linear(x, w, b).sum()
    (only,) = grad(out, x, retain_graph=True)
    assert asked.pop() == (True, False, False)
    grad(out, w, create_graph=True)
    assert asked.pop() == (False, True, False)
    out.backward()  # a later walk of the same graph is asked for all again
    assert asked == [(True, True, True)]
    np.testing.assert_array_equal(x.grad.numpy(), only.numpy())
    np.testing.assert_allclose(w.grad.numpy(), np.tile(x.detach().numpy().sum(0), (2, 1)))
