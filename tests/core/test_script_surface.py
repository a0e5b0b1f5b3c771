"""What scripts set, ask and walk around the mathematics: modes, devices, graphs, small methods."""

import threading

import pytest

import dptrain
from dptrain.backends import cudnn


@pytest.mark.parametrize(
    ("setter", "getter", "values"),
    [
        ("set_float32_matmul_precision", "get_float32_matmul_precision", ["high", "highest"]),
        ("set_deterministic_debug_mode", "get_deterministic_debug_mode", [2, 1, 0]),
        ("set_warn_always", "is_warn_always_enabled", [True, False]),
        ("set_num_interop_threads", "get_num_interop_threads", [3]),
    ],
)
def test_modes_are_kept(setter, getter, values):
    for value in values:
        getattr(dptrain, setter)(value)
        assert getattr(dptrain, getter)() == value


@pytest.mark.oracle
def test_deterministic_modes_are_told_as_in_pytorch():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    told = []
    for m in (dptrain, torch):
        seen = []
        for use in (
            lambda m: m.use_deterministic_algorithms(True),
            lambda m: m.use_deterministic_algorithms(True, warn_only=True),
            lambda m: m.set_deterministic_debug_mode("error"),
            lambda m: m.set_deterministic_debug_mode("default"),
            lambda m: m.use_deterministic_algorithms(False),
        ):
            use(m)
            seen += [
                m.are_deterministic_algorithms_enabled(),
                m.is_deterministic_algorithms_warn_only_enabled(),
                m.get_deterministic_debug_mode(),
            ]
        told.append(seen)
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dptrain.set_float32_matmul_precision("low"), RuntimeError, "precision"),
        (lambda: dptrain.set_deterministic_debug_mode("x"), RuntimeError, "debug_mode"),
        (lambda: dptrain.set_deterministic_debug_mode(None), TypeError, "debug_mode"),
        (lambda: dptrain.set_num_interop_threads(0), RuntimeError, "positive"),
        (lambda: dptrain.set_default_tensor_type("FooTensor"), TypeError, "FooTensor"),
        (lambda: dptrain.set_default_device("gpu"), RuntimeError, "Invalid device"),
        (lambda: dptrain.zeros(2, device="meta"), RuntimeError, "meta"),
        (lambda: cudnn.flags(fast=True).__enter__(), TypeError, "fast"),
        (lambda: dptrain.exp_(3), TypeError, "exp_.*must be Tensor"),
        (lambda: dptrain.is_signed(3), TypeError, "is_signed.*must be Tensor"),
        (lambda: dptrain.ones(2).as_subclass(int), TypeError, "as_subclass"),
        (lambda: dptrain.ones(2, requires_grad=True).apply_(abs), TypeError, "apply_"),
        (lambda: dptrain.ones(2).fill_diagonal_(0), RuntimeError, "fill_diagonal_"),
        (lambda: dptrain.ones(2, 3, 2).fill_diagonal_(0), RuntimeError, "equal length"),
        (lambda: dptrain.ones(2).imag, RuntimeError, "imag"),
    ],
)
def test_bad_use(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_default_device_belongs_to_the_context():
    assert dptrain.get_default_device() == dptrain.device("cpu")
    with dptrain.device("cuda"):
        assert dptrain.get_default_device().type == "cuda"
        with pytest.raises(RuntimeError, match="device 'cuda' was asked for"):
            dptrain.zeros(2)
        with dptrain.device("cpu"):
            assert dptrain.zeros(2).is_cpu
        seen = []
        thread = threading.Thread(target=lambda: seen.append(dptrain.get_default_device().type))
        thread.start()
        thread.join()
        assert seen == ["cpu"]
    dptrain.set_default_device("cuda")
    with pytest.raises(RuntimeError, match="device 'cuda' was asked for"):
        dptrain.ones(2)
    dptrain.set_default_device(None)
    assert dptrain.ones(2).device.type == "cpu"


def test_flags_of_backends_come_back():
    with cudnn.flags(benchmark=True, enabled=False):
        assert cudnn.benchmark
        assert not cudnn.enabled
    assert not cudnn.benchmark
    assert cudnn.enabled


@pytest.mark.oracle
@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: (m.pi, m.e, m.inf, m.newaxis, m.nan != m.nan),
        lambda m, x: x[m.newaxis].shape == (1, 3, 3),
        lambda m, x: [
            getattr(x, n)
            for n in ("is_cpu", "is_cuda", "is_meta", "is_sparse", "is_mps", "is_quantized")
        ],
        lambda m, x: (x.is_conj(), x.is_neg(), m.is_conj(x), m.is_neg(x), m.is_inference(x)),
        lambda m, x: (
            m.is_signed(x),
            m.is_signed(x.byte()),
            m.is_same_size(x, x.t()),
            m.get_device(x),
        ),
        lambda m, x: m.conj(x) is x or m.real(x).tolist() == x.tolist(),
        lambda m, x: m.relu_(x - 4).tolist(),
        lambda m, x: m.sqrt_(x.clone()).tolist(),
        lambda m, x: m.clamp_(x.clone(), 1, 3).tolist(),
        lambda m, x: m.zero_(x.clone()).tolist(),
        lambda m, x: m.threshold_(x.clone(), 3, 0).tolist(),
        lambda m, x: m.dropout(x, 0.5, False).tolist(),
        lambda m, x: m.cosine_similarity(x, x + 1, 1).shape,
        lambda m, x: m.layer_norm(x, (3,)).shape,
        lambda m, x: m.transpose_copy(x, 0, 1).tolist(),
        lambda m, x: m.unbind_copy(x)[1].tolist(),
        lambda m, x: x.narrow_copy(0, 1, 2).tolist(),
        lambda m, x: [p.tolist() for p in m.unsafe_chunk(x, 2, 1)],
        lambda m, x: x.clone().fill_diagonal_(7).tolist(),
        lambda m, x: m.zeros(7, 2).fill_diagonal_(1, wrap=True).tolist(),
        lambda m, x: m.zeros(3, 3, 3).fill_diagonal_(1).tolist(),
        lambda m, x: x.clone().apply_(lambda v: v + 1).tolist(),
        lambda m, x: x.clone().map_(x.t(), lambda a, b: a * b).tolist(),
        lambda m, x: x.resize(9).shape,
        lambda m, x: x.module_load(x * 2).tolist(),
        lambda m, x: m.range(1, 4).tolist(),
        lambda m, x: m.range(1, 4, 0.5).tolist(),
        lambda m, x: m.typename(x).split(".")[1],
        lambda m, x: m.typename(3),
        lambda m, x: m.vdot(x[0], x[1]).item(),
        lambda m, x: x.clone().as_strided_((2, 2), (1, 2)).tolist(),
        lambda m, x: x.grad_dtype == m.float32,
        lambda m, x: x.to(tensor=m.zeros(1, dtype=m.float64)).dtype == m.float64,
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_small_names_do_what_pytorchs_do(use):
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")
    found, expected = (use(m, m.arange(1.0, 10.0).view(3, 3)) for m in (dptrain, torch))
    assert found == expected


def graph(m, output):
    """The graph behind a tensor, as scripts that draw one walk it."""
    nodes, edges, stack = {}, [], [output.grad_fn]
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes[node] = list(node.variable.shape) if hasattr(node, "variable") else None
        for child, index in node.next_functions:
            if child is not None:
                edges.append((node.name(), child.name(), index))
                stack.append(child)
    return sorted(edges), sorted((n.name(), str(shape)) for n, shape in nodes.items())


@pytest.mark.oracle
def test_graphs_are_walked_as_pytorchs():
    torch = pytest.importorskip("torch", reason="extra `oracle` is not installed")

    def build(m):
        w = m.ones(2, 2, requires_grad=True)
        b = m.ones(2, requires_grad=True)
        parts = (m.ones(4, 2) @ w + b).relu()
        return ((parts.sum(0) * w.sum(1)).exp() + w).mean()

    ours, theirs = graph(dptrain, build(dptrain)), graph(torch, build(torch))
    assert ours == theirs


def test_nodes_take_notes():
    node = (dptrain.ones(2, requires_grad=True) * 2).grad_fn
    node.metadata["who"] = "me"
    assert node.metadata == {"who": "me"}
    assert repr(node).startswith("<MulBackward0 object at 0x")


def test_subclasses_keep_history():
    class Named(dptrain.Tensor):
        pass

    x = dptrain.ones(2, requires_grad=True)
    y = (x * 3).as_subclass(Named)
    assert type(y) is Named
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_fill_diagonal_stops_gradients_there():
    x = dptrain.ones(3, 3, requires_grad=True)
    y = x * 2
    y.fill_diagonal_(0)
    y.sum().backward()
    assert (x.grad == 2 - 2 * dptrain.eye(3)).all()
