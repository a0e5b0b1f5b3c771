"""`autograd.graph`: how saved tensors are packed, and edges, compared with PyTorch."""

from contextlib import nullcontext

import pytest

import dptrain
from dptrain.autograd import graph
from dptrain.utils.checkpoint import checkpoint


def _square(lib):
    class Square(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x * x
            ctx.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(ctx, grad):
            x, y = ctx.saved_tensors
            return grad * (2 * x + 0 * y)

    return Square.apply


NETS = {
    "leaf twice": lambda lib, x, w: x * x,
    "a number": lambda lib, x, w: x * 2 + w * 0.5,
    "result": lambda lib, x, w: (x * w).exp(),
    "linear": lambda lib, x, w: lib.nn.functional.linear(x.reshape(2, 3), w.reshape(2, 3)),
    "chain": lambda lib, x, w: (x * w).tanh().pow(3) / (1 + w * w),
    "function": lambda lib, x, w: _square(lib)(x * w) + _square(lib)(x),
    "views": lambda lib, x, w: (x[1:] * w[:-1]).reshape(5, 1) @ w[:1].reshape(1, 1),
}


def _leaves(lib):
    return [lib.tensor([0.5, -1.0, 2.0, 1.5, -0.5, 3.0], requires_grad=True) for _ in range(2)]


def _halved(lib, net, order):
    """Gradients where every saved tensor comes back halved: they show which values are packed."""
    x, w = _leaves(lib)
    with lib.autograd.graph.saved_tensors_hooks(lambda t: t / 2, lambda t: t):
        y = net(lib, x, w)
    first = lib.autograd.grad(y.sum(), [x, w], create_graph=order > 1, allow_unused=True)
    if order == 1:
        return first
    total = sum((g * g).sum() for g in first if g is not None)
    return lib.autograd.grad(total, [x, w], allow_unused=True)


@pytest.mark.oracle
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["leaf twice", "result", "linear", "function", "views"])
def test_what_is_packed_is_what_backward_sees(name, order):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    for ours, theirs in zip(
        _halved(dptrain, NETS[name], order), _halved(torch, NETS[name], order), strict=True
    ):
        if theirs is None:
            assert ours is None
        else:
            assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_packing_through_another_memory_changes_nothing(name):
    found = []
    for hooked in (False, True):
        x, w = _leaves(dptrain)
        hooks = graph.saved_tensors_hooks(lambda t: t.numpy().copy(), dptrain.from_numpy)
        with hooks if hooked else nullcontext():
            y = NETS[name](dptrain, x, w)
        grads = dptrain.autograd.grad(y.sum(), [x, w], create_graph=True, allow_unused=True)
        total = sum((g * g).sum() for g in grads if g is not None)
        if total.requires_grad:
            grads += dptrain.autograd.grad(total, [x, w], allow_unused=True)
        found.append([None if g is None else g.tolist() for g in grads])
    assert found[0] == found[1]


def _calls(lib):
    seen = []

    def pack(name):
        def run(t):
            seen.append((name, tuple(t.shape)))
            return t

        return run

    def unpack(t):
        seen.append("unpacked")
        return t

    x, w = _leaves(lib)
    hooks = lib.autograd.graph.saved_tensors_hooks
    with hooks(pack("outer"), unpack):
        y = x * w
        with hooks(pack("inner"), unpack):
            y = y * w
        with lib.no_grad():
            x * w
    z = y * w
    z.sum().backward(retain_graph=True)
    z.sum().backward()
    return seen


@pytest.mark.oracle
def test_hooks_are_called_as_in_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert _calls(dptrain) == _calls(torch)


def _bad(lib, pack, unpack):
    x, _ = _leaves(lib)
    with lib.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = x * x
    y.sum().backward()


def _disabled(lib):
    with (
        lib.autograd.graph.disable_saved_tensors_hooks("not here"),
        lib.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    ):
        pass


def _disabled_too_late(lib):
    with (
        lib.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        lib.autograd.graph.disable_saved_tensors_hooks("not here"),
    ):
        pass


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda lib: _bad(lib, lambda t: 1, lambda t: t), "expected to be a Tensor but got"),
        (lambda lib: _bad(lib, lambda t: t.add_(1), lambda t: t), "modifying its input in place"),
        (lambda lib: _bad(lib, lambda t: t, lambda t: t[:4]), "shape|size"),
        (_disabled, "not here"),
        (_disabled_too_late, "not here"),
        (lambda lib: lib.autograd.graph.get_gradient_edge(lib.ones(2)), "gradient edge"),
        (
            lambda lib: lib.autograd.graph.register_multi_grad_hook([], print, mode="both"),
            "Expects mode",
        ),
    ],
)
def test_misuse_is_refused_as_in_pytorch(use, words):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    kinds = []
    for lib in (dptrain, torch):
        with pytest.raises((RuntimeError, TypeError, ValueError), match=words) as caught:
            use(lib)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]
    _bad(dptrain, lambda t: t, lambda t: t)  # nothing stays behind


def test_hooks_around_and_inside_a_checkpoint():
    seen = []

    def pack(t):
        seen.append(tuple(t.shape))
        return t.numpy().copy()

    hooks = graph.saved_tensors_hooks(pack, dptrain.from_numpy)
    grads = []
    for where in ("none", "around", "inside"):
        x, w = _leaves(dptrain)
        net = NETS["chain"]
        if where == "around":
            with hooks:
                y = checkpoint(net, dptrain, x, w, use_reentrant=False)
            assert not seen  # the segment keeps nothing to pack
        elif where == "inside":

            def packed(*args):
                with hooks:
                    return NETS["chain"](*args)

            y = checkpoint(packed, dptrain, x, w, use_reentrant=False)
        else:
            y = net(dptrain, x, w)
        y.sum().backward()
        grads.append([x.grad.tolist(), w.grad.tolist()])
    assert seen
    assert grads[0] == grads[1] == grads[2]


def test_training_with_saved_tensors_on_the_host():
    results = []
    for context in (graph.save_on_cpu(), graph.save_on_cpu(pin_memory=True), None):
        dptrain.manual_seed(0)
        net = dptrain.nn.Sequential(
            dptrain.nn.Conv2d(3, 4, 3),
            dptrain.nn.BatchNorm2d(4),
            dptrain.nn.ReLU(inplace=True),
            dptrain.nn.MaxPool2d(2),
            dptrain.nn.Flatten(),
            dptrain.nn.LayerNorm(36),
            dptrain.nn.Linear(36, 5),
        )
        x = dptrain.randn(2, 3, 8, 8)
        if context is None:
            loss = dptrain.nn.functional.cross_entropy(net(x), dptrain.tensor([1, 4]))
        else:
            with context:
                loss = dptrain.nn.functional.cross_entropy(net(x), dptrain.tensor([1, 4]))
        loss.backward()
        results.append([p.grad.flatten().tolist() for p in net.parameters()])
    assert results[0] == results[1]
    for ours, plain in zip(results[0], results[2], strict=True):
        assert ours == pytest.approx(plain, rel=1e-4, abs=1e-6)


def _edges(lib):
    x, w = _leaves(lib)
    g = lib.autograd.graph
    y = x * w
    z = y.exp()
    at_y, at_z, at_x = (g.get_gradient_edge(t) for t in (y, z, x))
    by_y, by_x = lib.autograd.grad(z.sum(), [at_y, at_x], retain_graph=True)
    (from_z,) = lib.autograd.grad(at_z, w, grad_outputs=lib.ones(6))
    nodes = [isinstance(t.grad_fn, g.Node) for t in (y, z)] + [isinstance(at_x.node, g.Node)]
    return by_y.tolist(), by_x.tolist(), from_z.tolist(), nodes, at_y.output_nr


@pytest.mark.oracle
def test_edges_stand_for_their_tensors():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = _edges(dptrain), _edges(torch)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert ours[3:] == theirs[3:]


def _multi(lib, mode):
    a, b, c = (lib.tensor([v], requires_grad=True) for v in (1.0, 2.0, 3.0))
    seen = []

    def note(found):
        several = found if isinstance(found, (list, tuple)) else [found]
        seen.append([None if g is None else g.item() for g in several])

    handle = lib.autograd.graph.register_multi_grad_hook([a, b, c], note, mode=mode)
    (a * b * c).sum().backward()
    (a * b).sum().backward()
    (a * a * b * c).sum().backward()
    handle.remove()
    (a * b).sum().backward()
    if mode == "any":
        return len(seen)
    return seen


@pytest.mark.oracle
@pytest.mark.parametrize("mode", ["all", "any"])
def test_a_hook_of_several_gradients_is_called_once_a_pass(mode):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    assert _multi(dptrain, mode) == _multi(torch, mode)


def test_a_counted_change_is_an_error_of_use():
    x = dptrain.ones(2, requires_grad=True)
    y = x * 1
    z = y * y
    graph.increment_version([y])
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        z.sum().backward()


def _node_hooks(lib):
    seen = []

    def note(name, factor=None):
        def hook(*grads):
            seen.append((name, [[None if g is None else g.tolist() for g in gs] for gs in grads]))
            if factor is None:
                return None
            return tuple(None if g is None else g * factor for g in grads[0])

        return hook

    x = lib.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    w = lib.tensor([2.0, 3.0], requires_grad=True)
    y = x * w
    z = y.relu()
    a, b = z.sum(0).split(1)
    y.grad_fn.register_hook(note("mul", 2))
    y.grad_fn.register_prehook(note("before mul", 3))
    z.grad_fn.register_hook(note("relu"))
    gone = z.grad_fn.register_hook(note("gone"))
    gone.remove()
    leaf = y.grad_fn.next_functions[0][0]
    leaf.register_hook(note("accumulated"))
    y.register_hook(lambda g: seen.append(("tensor", g.tolist())))
    (a * 5).sum().backward(retain_graph=True)
    (a * b).sum().backward(retain_graph=True)
    _, g = lib.autograd.grad((a * b).sum(), [x, w], create_graph=True)
    (g * g).sum().backward()
    return seen, x.grad.tolist(), w.grad.tolist()


@pytest.mark.oracle
def test_hooks_of_nodes_see_and_replace_what_they_do_in_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ours, theirs = _node_hooks(dptrain), _node_hooks(torch)
    assert ours[0] == theirs[0]
    assert ours[1:] == theirs[1:]


def test_a_hook_of_a_node_that_returns_too_few_gradients():
    x = dptrain.ones(2, requires_grad=True)
    y = x * x
    y.grad_fn.register_hook(lambda grad_inputs, grad_outputs: grad_inputs[:1])
    with pytest.raises(RuntimeError, match="incorrect number of values"):
        y.sum().backward()
