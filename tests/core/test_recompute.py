"""Checkpointed segments: the same numbers as without, and none of the memory."""

import importlib

import numpy as np
import pytest

import dptrain
from dptrain import nn
from dptrain.autograd import Function, gradcheck, gradgradcheck
from dptrain.core.recompute import CheckpointError
from dptrain.utils.checkpoint import checkpoint, checkpoint_sequential


def network():
    dptrain.manual_seed(3)
    return nn.Sequential(
        *[
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 8), nn.ReLU())
            for _ in range(4)
        ]
    )


def straight(net, x):
    return net(x)


def each_block(net, x):
    for block in net:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def nested(net, x):
    def inner(y):
        return checkpoint(net[1], checkpoint(net[0], y) * 2) / 2

    def outer(y):
        return net[2](checkpoint(inner, y))

    return net[3](checkpoint(outer, x))


def nested_plain(net, x):
    return net[3](net[2](net[1](net[0](x) * 2) / 2))


def in_parts(net, x):
    return checkpoint_sequential(net, 3, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("run", "plain"),
    [(each_block, straight), (nested, nested_plain), (in_parts, straight)],
)
def test_gradients_and_random_numbers_are_those_without(run, plain):
    results = []
    for forward in (plain, run):
        net = network()
        x = dptrain.randn(5, 8, requires_grad=True)
        loss = forward(net, x).pow(2).sum()
        loss.backward()
        after = dptrain.rand(2).tolist(), nn.functional.dropout(dptrain.ones(9)).tolist()
        results.append(
            [loss.item(), after, x.grad.tolist(), *[p.grad.tolist() for p in net.parameters()]]
        )
    assert results[0] == results[1]


def test_hooks_of_leaves_fire_once_in_the_main_pass():
    net, seen = network(), []
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(id(p)))
    each_block(net, dptrain.randn(2, 8)).sum().backward()
    assert len(seen) == len(set(seen)) == 16


def test_nothing_is_saved_between_forward_and_backward_and_it_runs_twice():
    calls = []

    def segment(x):
        calls.append(1)
        return x.exp().sin() * x

    x = dptrain.ones(3, requires_grad=True)
    y = checkpoint(segment, x)
    nodes = [y.grad_fn, y.grad_fn.edges[0][0], y.grad_fn.edges[0][0].edges[0][0]]
    assert not any(isinstance(n.saved, tuple) or n.__dict__ for n in nodes)
    z = y.sum()
    z.backward(retain_graph=True)
    z.backward()
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="second time"):
        z.backward()


def test_second_derivatives_pass_through():
    x = dptrain.randn(3, dtype=dptrain.float64).requires_grad_()

    def function(x):
        return checkpoint(lambda a: a.exp() * a[0] + a.tanh().sum(), x)

    assert gradcheck(function, x)
    assert gradgradcheck(function, x)


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * 2 * grad


def test_functions_of_the_user_and_changes_in_place_are_recomputed():
    def segment(x):
        y = Square.apply(x.exp())
        y[0].mul_(3)
        return y * y

    results = []
    for run in (segment, lambda x: checkpoint(segment, x)):
        x = dptrain.tensor([0.5, -1.0], requires_grad=True)
        run(x).sum().backward()
        results.append(x.grad.tolist())
    assert results[0] == results[1]
    with pytest.raises(RuntimeError, match=r"SquareBackward.*cannot be differentiated twice"):
        checkpoint(segment, x).sum().backward(create_graph=True)


def test_another_second_run_is_an_error():
    calls = []

    def more(x):
        calls.append(1)
        return x.exp() * 2 if len(calls) > 1 else x.exp()

    x = dptrain.ones(2, requires_grad=True)
    with pytest.raises(CheckpointError, match=r"different number.*\(1\).*\(2\)"):
        checkpoint(more, x).sum().backward()

    def other(x):
        calls.append(1)
        return x.sin() if len(calls) % 2 else x.exp()

    with pytest.raises(CheckpointError, match=r"SinBackward0.*ExpBackward0"):
        checkpoint(other, x).sum().backward()
    y = x * 1
    z = checkpoint(dptrain.exp, y)
    y.mul_(2)
    with pytest.raises(CheckpointError, match=r"shape \[2\].*inplace"):
        z.sum().backward()
    with pytest.raises(ValueError, match="determinism_check"):
        checkpoint(dptrain.exp, x, determinism_check="all")
    with pytest.raises(ValueError, match=r"segments.*4"):
        checkpoint_sequential(network(), 5, x)


def test_public_places_are_those_of_pytorch():
    assert dptrain.utils.checkpoint.checkpoint is checkpoint
    data = importlib.import_module("dptrain.utils.data")
    assert data.DataLoader is dptrain.data.DataLoader
    from dptrain.utils.data import TensorDataset

    assert len(TensorDataset(dptrain.zeros(3))) == 3
    with pytest.raises(AttributeError, match="Nothing"):
        _ = data.Nothing
    assert np.isin(["DataLoader", "Dataset"], dir(data)).all()
