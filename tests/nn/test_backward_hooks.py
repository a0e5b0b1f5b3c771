"""Backward hooks of modules, beside PyTorch's."""

import numpy as np
import pytest

import dptrain
from dptrain import nn


def listed(grads):
    return [
        None if g is None else np.round(g.detach().numpy().astype(float), 5).tolist() for g in grads
    ]


def pair(m):
    class Pair(m.nn.Module):
        def forward(self, x, factor, y):
            return x * y, factor, x + y

    return Pair()


def one_layer(m, net_of=None):
    seen = []
    net = m.nn.Tanh()
    net.register_full_backward_hook(lambda mod, i, o: seen.append(("full", listed(i), listed(o))))
    net.register_full_backward_pre_hook(lambda mod, o: seen.append(("pre", listed(o))))
    x = m.tensor([0.5, -1.0], requires_grad=True)
    net(x).sum().backward()
    return seen, listed([x.grad])


def replaced(m):
    seen = []
    net = m.nn.Tanh()
    net.register_full_backward_pre_hook(lambda mod, o: (o[0] * 2,))
    net.register_full_backward_hook(lambda mod, i, o: (i[0] + 1,))
    first = net.register_full_backward_hook(lambda mod, i, o: seen.append(listed(i)), prepend=True)
    x = m.tensor([0.5, -1.0], requires_grad=True)
    (net(x) ** 2).sum().backward()
    first.remove()
    net(x).sum().backward()
    return seen, listed([x.grad])


def many_values(m):
    seen = []
    net = pair(m)
    net.register_full_backward_hook(lambda mod, i, o: seen.append((listed(i), listed(o))))
    x = m.tensor([0.5, -1.0], requires_grad=True)
    y = m.tensor([2.0, 3.0])
    a, f, b = net(x, 7, y)
    assert f == 7
    (a * 2 + b).sum().backward()
    return seen, listed([x.grad])


def input_without_gradient(m):
    seen = []
    net = m.nn.Linear(2, 1)
    with m.no_grad():
        net.weight.fill_(0.5)
        net.bias.fill_(0)
    net.register_full_backward_hook(lambda mod, i, o: seen.append((listed(i), listed(o))))
    net(m.ones(3, 2)).sum().backward()
    with m.no_grad():
        net(m.ones(3, 2))
    return seen, listed([net.weight.grad])


def deep(m):
    seen = []
    net = m.nn.Sequential(m.nn.Tanh(), m.nn.Sigmoid(), m.nn.Tanh())
    for name, module in net.named_modules():
        module.register_full_backward_hook(
            lambda mod, i, o, name=name: seen.append((name, listed(i), listed(o)))
        )
    x = m.tensor([0.25], requires_grad=True)
    net(x).backward()
    return seen, listed([x.grad])


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(
    "program", [one_layer, replaced, many_values, input_without_gradient, deep]
)
def test_hooks_see_and_replace_what_pytorchs_do(program):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert program(dptrain) == program(torch)


def test_wrong_results_are_named():
    x = dptrain.ones(2, requires_grad=True)
    net = nn.Tanh()
    handle = net.register_full_backward_hook(lambda m, i, o: (None, None))
    with pytest.raises(RuntimeError, match=r"Backward hook.*grad_input, got 2, but expected 1"):
        net(x).sum().backward()
    handle.remove()
    net.register_full_backward_pre_hook(lambda m, o: ())
    with pytest.raises(
        RuntimeError, match=r"Backward pre hook.*grad_output, got 0, but expected 1"
    ):
        net(x).sum().backward()
    net = nn.Linear(2, 1)
    net.register_full_backward_hook(lambda m, i, o: (o[0],))
    with pytest.raises(RuntimeError, match="no input requires gradient"):
        net(dptrain.ones(2)).backward()


def test_a_handle_never_removes_a_later_hook():
    net = nn.Tanh()
    seen = []
    handle = net.register_forward_hook(lambda *a: seen.append(1))
    handle.remove()
    net.register_forward_hook(lambda *a: seen.append(2))
    handle.remove()
    net(dptrain.ones(1))
    assert seen == [2]
