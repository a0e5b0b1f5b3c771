"""What stands around the reverse pass: hooks, inputs, anomalies, modes, functional; as PyTorch's."""

import numpy as np
import pytest

import dptrain
from dptrain.autograd import Variable, functional


def both(program):
    """The program's result with dptrain and with PyTorch."""
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    return program(dptrain), program(torch)


def hooks_in_order(m):
    seen = []
    x = m.ones(2, requires_grad=True)
    y = x * 3
    y.retain_grad()
    handles = []

    def once(g):
        seen.append(("once", g.tolist()))
        handles[0].remove()

    handles.append(y.register_hook(once))
    y.register_hook(lambda g: g * 2)
    y.register_hook(lambda g: seen.append(("after", g.tolist())))
    x.register_hook(lambda g: seen.append(("leaf", g.tolist())))
    x.register_hook(lambda g: g + 1)
    x.register_post_accumulate_grad_hook(lambda p: seen.append(("post", p.grad.tolist())))
    for _ in range(2):
        y.sum().backward(retain_graph=True)
    return seen, y.grad.tolist(), x.grad.tolist()


def hook_on_output_of_many(m):
    seen = []
    x = m.arange(4.0, requires_grad=True)
    a, b = x.split(2)
    a.register_hook(lambda g: seen.append(g.tolist()))
    (a * 2 + b * 0).sum().backward()
    return seen, x.grad.tolist()


def inputs_only(m):
    x, w = (m.tensor([2.0, 3.0], requires_grad=True) for _ in "ab")
    seen = []
    y = x * w
    z = y * x
    w.register_hook(lambda g: seen.append("w"))
    z.sum().backward(inputs=[x, y], retain_graph=True)
    first = x.grad.tolist(), y.grad.tolist(), w.grad
    z.sum().backward(inputs=w)
    return first, w.grad.tolist(), seen


def grad_options(m):
    x, w = (m.tensor([2.0, 3.0], requires_grad=True) for _ in "ab")
    y = x * x
    a = m.autograd.grad(y.sum(), [x, w], allow_unused=True, retain_graph=True)
    b = m.autograd.grad(y.sum(), [x, w], materialize_grads=True, retain_graph=True)
    c = m.autograd.grad([y, x * 1], [x, y], [m.ones(2), m.ones(2)])
    return a[0].tolist(), a[1], [t.tolist() for t in (*b, *c)]


def accumulate_with_graph(m):
    x = m.tensor([2.0], requires_grad=True)
    w = m.tensor([5.0], requires_grad=True)
    for _ in range(2):
        (x * x * w).backward(create_graph=True)
    x.grad.backward()
    same = x.grad is w.grad
    with m.no_grad():
        (x + w).backward() if False else None
    return x.grad.tolist(), w.grad.tolist(), x.grad.requires_grad, same


def leaves_and_flags(m):
    x = m.ones(2, requires_grad=True)
    y = x * 2
    z = y.detach()
    with m.inference_mode():
        inside = m.is_inference_mode_enabled()
        u = x * 2
    return (
        x.is_leaf, y.is_leaf, z.is_leaf, z.requires_grad, u.requires_grad, inside,
        m.is_inference_mode_enabled(), m.inference_mode()(lambda: (x * 2).requires_grad)(),
        m.inference_mode(lambda: (x * 2).requires_grad)(),
    )  # fmt: skip


def none_gradients(m):
    x = m.ones(2, requires_grad=True)
    a, b = m.ones(2, requires_grad=True), m.ones(2, requires_grad=True)
    y = x * a
    y.sum().backward()
    return b.grad, a.grad.tolist(), y.grad_fn is not None


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize(
    "program",
    [
        hooks_in_order, hook_on_output_of_many, inputs_only, grad_options, accumulate_with_graph,
        leaves_and_flags, none_gradients,
    ],
)  # fmt: skip
def test_programs_equal_pytorch(program):
    found, expected = both(program)
    assert found == expected


def test_nodes_that_lead_to_no_wanted_gradient_are_neither_run_nor_freed():
    x, w = (dptrain.ones(2, requires_grad=True) for _ in "ab")
    y = x.exp()
    z = (y * w).sum()
    dptrain.autograd.grad(z, w)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("use", "kind", "words"),
    [
        (lambda x: x.sum().backward(inputs=[]), RuntimeError, "cannot be empty"),
        (lambda x: x.sum().backward(inputs=[dptrain.ones(2)]), RuntimeError, "not require grad"),
        (lambda x: dptrain.autograd.grad(x.sum(), [3]), TypeError, "input 0.*int"),
        (lambda x: dptrain.autograd.grad(x.sum(), dptrain.ones(1)), RuntimeError, "input 0"),
        (
            lambda x: dptrain.autograd.grad(x.sum(), x, is_grads_batched=True),
            NotImplementedError,
            "is_grads_batched",
        ),
        (
            lambda x: dptrain.autograd.grad(x.sum(), x, allow_unused=False, materialize_grads=True),
            ValueError,
            "allow_unused",
        ),
        (lambda x: hooked(x, lambda g: 3).backward(), TypeError, "returned 'int'"),
        (lambda x: hooked(x, lambda g: g[:1]).backward(), RuntimeError, "changed the size"),
        (lambda x: x.detach().register_hook(print), RuntimeError, "doesn't require gradient"),
        (lambda x: x.detach().retain_grad(), RuntimeError, "can't retain_grad"),
    ],
)
def test_bad_use_is_named(use, kind, words):
    with pytest.raises(kind, match=words):
        use(dptrain.ones(2, requires_grad=True))


def hooked(x, hook):
    y = x * 2
    y.register_hook(hook)
    return y.sum()


def test_anomaly_mode_names_the_operation_and_where_it_was_recorded():
    x = dptrain.tensor([0.0, 1.0], requires_grad=True)
    with dptrain.autograd.detect_anomaly():
        y = (x.sqrt() * 0).sum()
        with pytest.raises(
            RuntimeError, match="'SqrtBackward0' returned nan values in its 0th"
        ) as e:
            y.backward()
    assert "test_anomaly_mode_names" in e.value.__notes__[0]
    (x.sqrt() * 0).sum().backward()
    assert np.isnan(x.grad.numpy()[0])
    assert not dptrain.is_anomaly_enabled()
    dptrain.autograd.set_detect_anomaly(True, check_nan=False)
    try:
        assert dptrain.is_anomaly_enabled()
        (x.sqrt() * 0).sum().backward()
    finally:
        dptrain.autograd.set_detect_anomaly(False)


def test_variable_is_a_tensor():
    x = dptrain.ones(2)
    v = Variable(x, requires_grad=True)
    assert isinstance(x, Variable)
    assert v.requires_grad
    assert not x.requires_grad
    with pytest.raises(TypeError, match="list"):
        Variable([1.0])


def two(x, y):
    return (x * x).sum(0) * y, y.exp() * x[0, 0]


def scalar(x, y):
    return (x.sin() @ x.t().exp()).sum() * (y * y).sum()


CALLS = [
    lambda f, m, x, y: f.jacobian(two, (x, y)),
    lambda f, m, x, y: f.jacobian(lambda a: a.exp().sum(1), x),
    lambda f, m, x, y: f.jacobian(lambda a: (a.sum(), m.ones(2, dtype=a.dtype)), y),
    lambda f, m, x, y: f.hessian(scalar, (x, y)),
    lambda f, m, x, y: f.hessian(lambda a: (a**3).sum(), y),
    lambda f, m, x, y: f.vjp(two, (x, y), (y, y * 2)),
    lambda f, m, x, y: f.jvp(two, (x, y), (x * 2, y)),
    lambda f, m, x, y: f.vhp(scalar, (x, y), (x, y)),
    lambda f, m, x, y: f.hvp(scalar, (x, y), (x, y)),
    lambda f, m, x, y: f.vjp(lambda a: a.sum(), y),
]


def leaves(value):
    return [t for v in value for t in leaves(v)] if isinstance(value, tuple) else [value]


@pytest.mark.oracle
@pytest.mark.parametrize("call", CALLS)
def test_functional_equals_pytorch(call):
    def program(m):
        stream = np.random.default_rng(0)
        x, y = (m.tensor(stream.standard_normal(s)) for s in ((2, 3), (3,)))
        return leaves(call(m.autograd.functional, m, x, y))

    for a, b in zip(*both(program), strict=True):
        assert a.requires_grad == b.requires_grad
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-13)


def test_functional_results_are_differentiable_on_demand():
    x = dptrain.randn(3, dtype=dptrain.float64).requires_grad_()
    assert dptrain.autograd.gradcheck(
        lambda a: functional.jacobian(lambda b: b**3, a, create_graph=True), x
    )
    assert dptrain.autograd.gradcheck(
        lambda a: functional.hvp(lambda b: (b**4).sum(), a, a, create_graph=True)[1], x
    )


def test_every_way_to_compute_a_jacobian_gives_the_same():
    x = dptrain.randn(3, dtype=dptrain.float64)
    plain = functional.jacobian(lambda a: a**3 * a.sum(), x)
    for strategy in ("reverse-mode", "forward-mode"):
        fast = functional.jacobian(lambda a: a**3 * a.sum(), x, vectorize=True, strategy=strategy)
        assert fast.equal(plain)


@pytest.mark.parametrize(
    ("use", "kind", "words"),
    [
        (lambda x: functional.jacobian(lambda a: 3, x), TypeError, "outputs.*jacobian.*int"),
        (lambda x: functional.jacobian(lambda a: a, 3), TypeError, "inputs.*jacobian.*int"),
        (lambda x: functional.jacobian(lambda a: dptrain.ones(1), x, strict=True), RuntimeError, "strict"),
        (lambda x: functional.jacobian(lambda a: a, x, strategy="forward-mode"), NotImplementedError, "vectorize"),
        (lambda x: functional.jacobian(lambda a: a, x, strategy="other"), AssertionError, "forward-mode"),
        (lambda x: functional.jacobian(lambda a: a, x, vectorize=True, strict=True), RuntimeError, "strict"),
        (lambda x: functional.hessian(lambda a: a, x), RuntimeError, "single element"),
        (lambda x: functional.vjp(lambda a: a, x), RuntimeError, "v can only be None"),
        (lambda x: functional.vjp(lambda a: a, x, dptrain.ones(3)), RuntimeError, r"\[2\].*\[3\]"),
        (lambda x: functional.jvp(lambda a: a, x, (x, x)), RuntimeError, "invalid length"),
    ],
)  # fmt: skip
def test_bad_use_of_functional_is_named(use, kind, words):
    with pytest.raises(kind, match=words):
        use(dptrain.ones(2))


@pytest.mark.oracle
@pytest.mark.parametrize(
    "deviation",
    [
        lambda m, x: x.std(1),
        lambda m, x: x.std(1, correction=0, keepdim=True).exp(),
        lambda m, x: x[0].std(),
        lambda m, x: m.std_mean(x, 1)[0],
    ],
)
def test_the_deviation_of_equal_values_has_no_gradient(deviation):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ends = []
    for m in (dptrain, torch):
        x = m.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]], requires_grad=True)
        (first,) = m.autograd.grad(deviation(m, x).sum(), x, create_graph=True)
        (second,) = m.autograd.grad(first.pow(2).sum(), x)
        ends.append(np.stack([first.detach().numpy(), second.numpy()]))
    assert np.isfinite(ends[0]).all()
    np.testing.assert_allclose(*ends, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("form", ["pow", "atan2"])
def test_gradients_at_the_origin_are_zero_where_pytorch_says_so(form):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    ends = []
    for m in (dptrain, torch):
        x, y = (m.tensor([0.0, 0.0, 2.0], requires_grad=True) for _ in range(2))
        getattr(m, form)(x, y).sum().backward()
        ends.append((x.grad.numpy(), y.grad.numpy()))
    assert np.isfinite(ends[0]).all()
    np.testing.assert_allclose(*ends, rtol=1e-6)
